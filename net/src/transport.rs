//! The traits that backends implement.

use std::sync::Arc;
use std::time::Duration;

use catena_buf::BufPool;
use futures_util::future::BoxFuture;

use crate::call::{Call, Reply};
use crate::error::NetError;
use crate::handshake::PeerId;
use crate::service::Service;
use crate::stats::{ConnectionStats, ListenerStats};

/// A way to reach others and be reached. An address is `host:port`; the mem backend takes any text.
pub trait Transport: Send + Sync + 'static {
    /// Connects and shakes hands.
    fn connect<'a>(
        &'a self,
        address: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, NetError>>;

    /// Serves at an address. Port 0 takes a free one.
    fn listen<'a>(
        &'a self,
        address: &'a str,
        service: Arc<dyn Service>,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, NetError>>;

    /// Where bulk data lives.
    fn pool(&self) -> &BufPool;

    /// Makes buffers of another pool as good as those of its own, for as long as its memory is there. It may take long: locking memory
    /// does. Where nothing has to be registered all buffers are alike.
    fn register(&self, pool: &BufPool) -> Result<(), NetError> {
        let _ = pool;
        Ok(())
    }

    /// Why nobody can reach this process for now, as far as can be told here: every port that it uses is down. A look at the devices,
    /// not for the way of a request.
    fn outage(&self) -> Option<String> {
        None
    }
}

/// A connection to a server. Calls run side by side; a broken connection fails them all and stays broken. It closes when the last
/// reference and the last call are gone.
pub trait Connection: Send + Sync {
    /// Sends a request and waits for the answer; first, in turn, for a credit. Nothing is sent before the first poll.
    ///
    /// Dropping the future gives the call up: the server is told, its answer is thrown away, and no byte of it lands in a buffer that
    /// has a new owner by then.
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Reply, NetError>>;

    /// The server, as it proved itself in the handshake.
    fn peer(&self) -> PeerId;

    /// New calls fail at once: it broke, or the server is shutting down.
    fn is_closed(&self) -> bool;

    /// Counters since the connection was made.
    fn stats(&self) -> ConnectionStats;
}

/// A server's socket. Dropping it stops accepting and breaks its connections at once.
pub trait Listener: Send + Sync {
    /// The address that clients use, with the real port.
    fn address(&self) -> String;

    /// Counters since it was made.
    fn stats(&self) -> ListenerStats;

    /// Stops accepting, tells the clients, lets requests under way finish for at most `grace`, then closes the connections.
    fn shutdown(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()>;
}

/// Begins an address; says what the listener there offers. Who connects may leave it out, and may take either.
pub(crate) const TCP: &str = "tcp://";
#[cfg(feature = "rdma")]
pub(crate) const RDMA: &str = "rdma://";

/// `host:port` of an address.
pub(crate) fn host(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, host)| host)
}
