//! TCP: for clusters without RDMA, for tests, and for clients anywhere. Addresses are `host:port` or `tcp://host:port`.
//!
//! One connection is one socket, with a task that reads and one that writes (`outbox.rs`); bulk data goes between the socket and the pool's
//! buffers without a copy (`inbox.rs` says where the exceptions are). The frames are drawn in `docs/format-wire.md`.

mod client;
mod frame;
mod inbox;
mod outbox;
mod reader;
mod server;
mod session;
mod shake;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use catena_buf::BufPool;
use futures_util::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use crate::error::NetError;
use crate::handshake::Identity;
use crate::limits;
use crate::service::Service;
use crate::transport::{Connection, Listener, Transport};

const SCHEME: &str = "tcp://";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Requests in flight that a server grants to each connection; 1 to 65535.
    pub credits: u32,
    /// A client that has not introduced itself after this is cut off.
    pub handshake: Duration,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions { credits: limits::CREDITS, handshake: Duration::from_secs(5) }
    }
}

/// The transport of one process.
pub struct TcpTransport {
    identity: Identity,
    pool: BufPool,
    options: TcpOptions,
}

impl TcpTransport {
    /// For a process with this identity, whose bulk data lives in `pool`.
    pub fn new(identity: Identity, pool: BufPool) -> TcpTransport {
        TcpTransport::with_options(identity, pool, TcpOptions::default())
    }

    /// As [`TcpTransport::new`], with other options.
    pub fn with_options(identity: Identity, pool: BufPool, options: TcpOptions) -> TcpTransport {
        let credits = options.credits.clamp(1, u32::from(u16::MAX));
        TcpTransport { identity, pool, options: TcpOptions { credits, ..options } }
    }
}

/// `host:port` of an address.
fn host(address: &str) -> &str {
    address.strip_prefix(SCHEME).unwrap_or(address)
}

/// No delay for small messages; a peer whose machine or network is gone is noticed in seconds. A socket that cannot be tuned works too.
///
/// Buffer sizes are left to the kernel, which fits them to the way: fixed ones are either too small for a long way or waste memory and
/// queue small messages behind large ones on a short one.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(12)));
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
                let mut stream =
                    TcpStream::connect(host(address)).await.map_err(|error| connect(error.to_string()))?;
                tune(&stream);
                let (peer, credits) = shake::introduce(&mut stream, &self.identity, address).await?;
                Ok(client::TcpConnection::start(stream, peer, address, credits))
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
            let socket = if first.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            let socket = socket.map_err(failed)?;
            socket.set_reuseaddr(true).map_err(failed)?;
            socket.bind(first).map_err(failed)?;
            let listener = socket.listen(BACKLOG).map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            let (identity, pool) = (self.identity.clone(), self.pool.clone());
            let server = server::Server::start(listener, local, identity, pool, &self.options, service);
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
