//! TCP: for clusters without RDMA, for tests, and for clients anywhere. Addresses are `host:port` or `tcp://host:port`.
//!
//! One connection is one socket, with a task that reads and one that writes (`outbox.rs`); bulk data goes between the socket and the pool's
//! buffers without a copy (`inbox.rs` says where the exceptions are). The frames are drawn in `docs/format-wire.md`.

mod client;
mod inbox;
mod outbox;
mod reader;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use catena_buf::BufPool;
use futures_util::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

pub(crate) use self::session::TcpSession;
use crate::error::NetError;
use crate::handshake::{Identity, PeerId, carrier};
use crate::listener::{Offer, Server};
use crate::service::Service;
use crate::transport::{Connection, Listener, TCP, Transport, host};
use crate::{limits, shake};

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

/// No delay for small messages; a peer whose machine or network is gone is noticed in seconds. A socket that cannot be tuned works too.
///
/// Buffer sizes are left to the kernel, which fits them to the way: fixed ones are either too small for a long way or waste memory and
/// queue small messages behind large ones on a short one.
pub(crate) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(12)));
}

/// Connects to a listener and shakes hands with it, for messages over a stream or, after that, over a queue pair. Returns who it is and
/// how many requests it takes at a time.
pub(crate) async fn dial(
    address: &str,
    identity: &Identity,
    carrier: u8,
) -> Result<(TcpStream, PeerId, u32), NetError> {
    let connect =
        |error: std::io::Error| NetError::Connect { address: address.into(), reason: error.to_string() };
    let mut stream = TcpStream::connect(host(address)).await.map_err(connect)?;
    tune(&stream);
    let (peer, credits) = shake::introduce(&mut stream, identity, carrier, address).await?;
    Ok((stream, peer, credits))
}

/// Lets an attempt to connect take this long.
pub(crate) async fn within<T>(
    deadline: Duration,
    address: &str,
    attempt: impl Future<Output = Result<T, NetError>>,
) -> Result<T, NetError> {
    tokio::time::timeout(deadline, attempt).await.unwrap_or_else(|_| {
        Err(NetError::Connect { address: address.into(), reason: "no answer within the deadline".into() })
    })
}

impl Transport for TcpTransport {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, NetError>> {
        Box::pin(within(deadline, address, async move {
            let (stream, peer, credits) = dial(address, &self.identity, carrier::STREAM).await?;
            Ok(Arc::new(client::start(stream, peer, address, credits)) as Arc<dyn Connection>)
        }))
    }

    fn listen<'a>(
        &'a self,
        address: &'a str,
        service: Arc<dyn Service>,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, NetError>> {
        Box::pin(async move {
            let offer = Offer {
                scheme: TCP,
                credits: self.options.credits,
                handshake: self.options.handshake,
                #[cfg(feature = "rdma")]
                rails: None,
            };
            let server =
                Server::start(address, self.identity.clone(), self.pool.clone(), offer, service).await?;
            Ok(Box::new(server) as Box<dyn Listener>)
        })
    }

    fn pool(&self) -> &BufPool {
        &self.pool
    }
}
