//! RDMA: reliable queue pairs over InfiniBand or RoCE, through `libibverbs`.
//!
//! A connection begins as a TCP stream to the listener's address: handshake first, then each end tells the other where its queue pair is
//! (`setup.rs`). From there on messages are SENDs and bulk data moves by the server's READs and WRITEs (`link.rs`); the stream stays open and
//! silent, so that a peer's death is heard at once. A listener serves clients over either, as each of them asks.
//!
//! **A late WRITE never lands in a buffer with a new owner**: buffers that a server was told of are given back when its reply has come, which
//! is behind its last WRITE on the same queue pair, or when the queue pair has been destroyed, after which the device drops whatever still
//! arrives. Nothing else frees them: not a deadline, not a caller that has gone, not an error.
//!
//! **What a peer may touch:** a server's queue pairs give their clients no access to its memory. A client's give the server access to its
//! pool, with the key that requests carry.

mod adapter;
mod client;
mod link;
mod rails;
mod reader;
mod session;
mod setup;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use catena_buf::BufPool;
use catena_proto::status::Status;
use catena_verbs::{Provider, VerbsError};
use futures_util::future::BoxFuture;
use tracing::{info, warn};

pub(crate) use self::link::Link;
pub(crate) use self::rails::Rails;
pub(crate) use self::session::RdmaSession;
pub(crate) use self::setup::accept;
use crate::config::Fallback;
use crate::error::NetError;
use crate::handshake::{Identity, carrier};
use crate::limits;
use crate::listener::{Offer, Server};
use crate::service::Service;
use crate::tcp::{TcpOptions, TcpTransport, dial, within};
use crate::transport::{Connection, Listener, RDMA, Transport};

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct RdmaOptions {
    /// Requests in flight that a server grants to each connection; 1 to 65535.
    pub credits: u32,
    /// A client that has not introduced itself after this is cut off.
    pub handshake: Duration,
    /// Ports to use: `device` or `device:port`. Empty stands for all that are active.
    pub devices: Vec<String>,
    /// Entry of the GID table, on every port. Chosen by address without.
    pub gid_index: Option<u8>,
    /// Entry of the partition table (InfiniBand), on every port. Without: the first of which the port is a full member.
    pub pkey_index: Option<u16>,
    /// Largest payload of a packet, bytes. The port's without; always the smaller of both ends'.
    pub mtu: Option<u16>,
    /// How long to look for completions before waiting for an event. Zero: not at all. Costs a processor while there is work.
    pub busy_poll: Duration,
    /// Time-out of an acknowledgement: 4.096 us times 2 to the power of this, 1 to 31.
    pub timeout: u8,
    /// Retries after that, 0 to 6.
    pub retries: u8,
    /// DSCP and ECN bits (RoCE).
    pub traffic_class: u8,
    /// Service level (InfiniBand).
    pub service_level: u8,
    /// Bytes for messages, beside the pool; a connection takes 256 KiB of it.
    pub message_memory: usize,
    /// What to do where RDMA cannot be had.
    pub fallback: Fallback,
}

impl Default for RdmaOptions {
    fn default() -> RdmaOptions {
        RdmaOptions {
            credits: limits::CREDITS,
            handshake: Duration::from_secs(5),
            devices: Vec::new(),
            gid_index: None,
            pkey_index: None,
            mtu: None,
            busy_poll: Duration::ZERO,
            // Half a second: a window of data takes its time where several connections share a slow link, and what is sent again for no
            // reason makes that worse. Lost packets are mostly heard of sooner, by what comes behind them.
            timeout: 17,
            retries: 6,
            traffic_class: 0,
            service_level: 0,
            message_memory: 32 << 20,
            fallback: Fallback::None,
        }
    }
}

/// The transport of one process.
pub struct RdmaTransport {
    identity: Identity,
    pool: BufPool,
    rails: Arc<Rails>,
    options: RdmaOptions,
    tcp: TcpTransport,
}

impl RdmaTransport {
    /// For a process with this identity, whose bulk data lives in `pool`. Opens the devices and registers the pool with each.
    pub fn new(
        provider: Arc<dyn Provider>,
        identity: Identity,
        pool: BufPool,
        options: RdmaOptions,
    ) -> Result<RdmaTransport, VerbsError> {
        let options = RdmaOptions {
            credits: options.credits.clamp(1, u32::from(u16::MAX)),
            retries: options.retries.min(6),
            timeout: options.timeout.clamp(1, 31),
            ..options
        };
        let rails = Arc::new(Rails::open(provider, &pool, &options)?);
        info!(ports = rails.names(), "RDMA");
        let tcp = TcpOptions { credits: options.credits, handshake: options.handshake };
        let tcp = TcpTransport::with_options(identity.clone(), pool.clone(), tcp);
        Ok(RdmaTransport { identity, pool, rails, options, tcp })
    }

    async fn dial(&self, address: &str) -> Result<Arc<dyn Connection>, NetError> {
        let (mut stream, peer, credits) = dial(address, &self.identity, carrier::QUEUE_PAIR).await?;
        let link = setup::propose(&mut stream, &self.rails, address).await?;
        let (pool, busy_poll) = (self.pool.clone(), self.options.busy_poll);
        let connection = client::start(stream, link, pool, peer, address, credits, busy_poll).await?;
        Ok(Arc::new(connection))
    }
}

impl Transport for RdmaTransport {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, NetError>> {
        Box::pin(async move {
            let begun = tokio::time::Instant::now();
            // Something is left for the other way.
            let patience = match self.options.fallback {
                Fallback::None => deadline,
                Fallback::Tcp => deadline * 3 / 4,
            };
            let error = match within(patience, address, self.dial(address)).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let stranger = matches!(&error, NetError::Refused { status, .. }
                if !matches!(status, Status::NoRdma | Status::Busy));
            if self.options.fallback == Fallback::None || stranger {
                return Err(error);
            }
            let connection = self.tcp.connect(address, deadline.saturating_sub(begun.elapsed())).await?;
            warn!(address, %error, "using TCP instead of RDMA, as configured");
            Ok(connection)
        })
    }

    fn listen<'a>(
        &'a self,
        address: &'a str,
        service: Arc<dyn Service>,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, NetError>> {
        Box::pin(async move {
            let offer = Offer {
                scheme: RDMA,
                credits: self.options.credits,
                handshake: self.options.handshake,
                rails: Some(self.rails.clone()),
            };
            let server =
                Server::start(address, self.identity.clone(), self.pool.clone(), offer, service).await?;
            Ok(Box::new(server) as Box<dyn Listener>)
        })
    }

    fn pool(&self) -> &BufPool {
        &self.pool
    }

    fn register(&self, pool: &BufPool) -> Result<(), NetError> {
        self.rails.register(pool).map_err(|error| NetError::Invalid(error.to_string()))
    }

    /// TCP may have another way, so with that to fall back on nothing is out.
    fn outage(&self) -> Option<String> {
        (self.options.fallback == Fallback::None).then(|| self.rails.outage()).flatten()
    }
}
