//! TCP: for clusters without RDMA, for tests, and for clients anywhere. Addresses are `tcp://host:port`.

mod client;
mod frame;
mod server;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use catena_buf::BufPool;
use futures_util::future::BoxFuture;
use rand::RngCore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::error::NetError;
use crate::handshake::Identity;
use crate::service::Service;
use crate::transport::{Connection, Listener, Transport};

/// The transport of one process.
pub struct TcpTransport {
    identity: Identity,
    pool: BufPool,
}

impl TcpTransport {
    /// For a process with this identity, whose bulk data lives in `pool`.
    pub fn new(identity: Identity, pool: BufPool) -> TcpTransport {
        TcpTransport { identity, pool }
    }
}

/// `host:port` of an address.
fn host(address: &str) -> &str {
    address.strip_prefix("tcp://").unwrap_or(address)
}

/// Sockets carry big messages and small ones: no delay for the latter, room for the former.
fn tune(stream: &TcpStream) {
    // A socket without these works too, only slower.
    let _ = stream.set_nodelay(true);
}

fn nonce() -> [u8; 32] {
    let mut nonce = [0; 32];
    rand::rng().fill_bytes(&mut nonce);
    nonce
}

async fn receive<T: zerocopy::FromBytes + zerocopy::IntoBytes>(stream: &mut TcpStream) -> std::io::Result<T> {
    let mut message = T::new_zeroed();
    stream.read_exact(message.as_mut_bytes()).await?;
    Ok(message)
}

async fn send<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    stream: &mut TcpStream,
    message: &T,
) -> std::io::Result<()> {
    stream.write_all(message.as_bytes()).await
}

impl Transport for TcpTransport {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, NetError>> {
        Box::pin(async move {
            let connect = |reason: String| NetError::Connect { address: address.into(), reason };
            let attempt = async {
                let stream =
                    TcpStream::connect(host(address)).await.map_err(|error| connect(error.to_string()))?;
                tune(&stream);
                client::shake_hands(stream, &self.identity, address).await
            };
            match tokio::time::timeout(deadline, attempt).await {
                Ok(result) => result.map(|connection| Arc::new(connection) as Arc<dyn Connection>),
                Err(_) => Err(connect("no answer within the deadline".into())),
            }
        })
    }

    fn listen<'a>(
        &'a self,
        address: &'a str,
        service: Arc<dyn Service>,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, NetError>> {
        Box::pin(async move {
            let failed =
                |error: std::io::Error| NetError::Listen { address: address.into(), reason: explain(&error) };
            let mut addresses = tokio::net::lookup_host(host(address)).await.map_err(failed)?;
            let first =
                addresses.next().ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
            let socket =
                if first.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
            socket.set_reuseaddr(true).map_err(failed)?;
            socket.bind(first).map_err(failed)?;
            let listener: TcpListener = socket.listen(1024).map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            let server =
                server::Server::start(listener, local, self.identity.clone(), self.pool.clone(), service);
            Ok(Box::new(server) as Box<dyn Listener>)
        })
    }

    fn pool(&self) -> &BufPool {
        &self.pool
    }
}

fn explain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the port is in use: stop the other process or choose another port".into()
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied: ports below 1024 need privileges".into(),
        _ => error.to_string(),
    }
}
