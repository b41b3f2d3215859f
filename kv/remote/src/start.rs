//! Starting and stopping a key-value service: gRPC around a store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::KvError;
use catena_kv::local::Store;
use catena_proto::ids::ClusterId;
use catena_proto::pb::kv_server::KvServer;
use catena_proto::rpc::ServerAuth;
use catena_proto::token::Token;
use catena_rt::JoinHandle;
use catena_rt::time::timeout;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::service::Service;
use crate::skin::Skin;

/// How long calls under way may take to end at a stop.
const DRAIN: Duration = Duration::from_secs(2);
/// The largest transaction and what the wire adds to it.
const MAX_REQUEST: usize = 16 << 20;
/// Calls at once on one connection: with [`MAX_REQUEST`] the bound on what one client's requests take.
const CALLS: usize = 512;

/// Why a key-value service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address.
    #[error("cannot listen on {address}: {error}; is another process using it? Choose another `listen`")]
    Listen {
        /// As configured.
        address: String,
        /// The system's word.
        error: std::io::Error,
    },
}

/// A running key-value service.
pub struct Running<S: Store> {
    service: Arc<Service<S>>,
    address: SocketAddr,
    upkeep: JoinHandle<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    stop: oneshot::Sender<()>,
}

/// Binds `listen`. Apart from [`start`], so that a second process on the same configuration ends before it touches the store.
pub async fn bind(listen: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(listen).await.map_err(|error| StartError::Listen { address: listen.to_owned(), error })
}

/// Serves `store` on `listener` to members of `cluster`. `opening` must be another number at every start.
pub fn start<S: Store>(
    listener: TcpListener,
    (cluster, token): (ClusterId, Token),
    store: Arc<S>,
    opening: u64,
) -> Result<Running<S>, StartError> {
    let address = listener
        .local_addr()
        .map_err(|error| StartError::Listen { address: "the bound socket".into(), error })?;
    let service = Service::new(store, opening);
    let upkeep = catena_rt::spawn(service.clone().run());
    let skin = KvServer::new(Skin(service.clone())).max_decoding_message_size(MAX_REQUEST);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(CALLS as u32)
        .concurrency_limit_per_connection(CALLS)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(InterceptedService::new(skin, ServerAuth::new(cluster, token)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            // A dropped sender is a stop too.
            let _ = stopped.await;
        });
    let server = catena_rt::spawn(server);
    tracing::info!(%address, %cluster, "key-value service is up");
    Ok(Running { service, address, upkeep, server, stop })
}

impl<S: Store> Running<S> {
    /// The bound gRPC address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The service without its network.
    pub fn service(&self) -> &Arc<Service<S>> {
        &self.service
    }

    /// Resolves with the reason when the store takes no more commits.
    pub async fn failed(&self) -> KvError {
        self.service.failed().await
    }

    /// Stops: answers what is under way, for a while. The store closes when the last view of it is gone.
    pub async fn stop(mut self) {
        self.upkeep.abort();
        let _ = self.stop.send(());
        if timeout(DRAIN, &mut self.server).await.is_err() {
            self.server.abort();
            let _ = self.server.await;
        }
        tracing::info!("key-value service stopped");
    }
}
