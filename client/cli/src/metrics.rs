//! The `/metrics` endpoint of a service: Prometheus text over HTTP/1.1, nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::exit::{Failure, Result};

/// Scrapers are few; more connections than this at once are a mistake, and wait.
const CONNECTIONS: usize = 32;

/// Binds the endpoint, so that a port in use stops the start and is not found out later.
pub async fn bind(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::io(format_args!("metrics address {address}"), error)
            .hint("choose another `metrics` address in the configuration file, or leave it out")
    })
}

/// Serves `registry` until the process ends.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "metrics at /metrics");
    }
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, peer): (_, SocketAddr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: it passes.
                tracing::warn!(%error, "metrics: accept failed");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let registry = registry.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request| {
                let registry = registry.clone();
                async move { Ok::<_, Infallible>(answer(&request, &registry)) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "metrics: connection ended");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let reply = |status, kind, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    };
    const PLAIN: &str = "text/plain; charset=utf-8";
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, registry) {
                Ok(()) => {
                    reply(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
                }
                Err(_) => {
                    reply(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "cannot encode the metrics\n".into())
                }
            }
        }
        (&Method::GET | &Method::HEAD, "/") => reply(StatusCode::OK, PLAIN, "catena: see /metrics\n".into()),
        (&Method::GET | &Method::HEAD, _) => reply(StatusCode::NOT_FOUND, PLAIN, "see /metrics\n".into()),
        _ => reply(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".into()),
    }
}
