//! Connections to storage nodes, made when first needed, shared by everyone, replaced when they break; and what each node has to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use catena_net::{Call, Connection, NetError, Reply, Transport};
use catena_proto::ids::NodeId;
use catena_proto::status::Status;
use catena_rt::time::{Instant, timeout_at};
use parking_lot::Mutex;

use crate::metrics::{Metrics, add};
use crate::options::Options;

/// How long a node that did not answer is only asked when nobody else can be. It doubles each time, so that a node which hangs costs
/// ever fewer reads an attempt.
const SUSPICION: Duration = Duration::from_secs(2);
const LONGEST_SUSPICION: Duration = Duration::from_secs(32);

/// An attempt that brought no reply.
#[derive(Clone, Debug)]
pub(crate) struct NoReply {
    pub status: Status,
    pub detail: Box<str>,
    /// The request may have reached the node.
    pub sent: bool,
}

pub(crate) struct Nodes {
    transport: Arc<dyn Transport>,
    connect: Duration,
    connections: usize,
    epoch: Instant,
    known: Mutex<BTreeMap<NodeId, Arc<Node>>>,
}

pub(crate) struct Node {
    /// Bulk bytes asked for and not yet answered.
    outstanding: AtomicU64,
    /// Milliseconds since the epoch until which the node is suspect.
    suspect: AtomicU64,
    /// Attempts in a row that were not answered.
    strikes: AtomicU32,
    slots: Vec<Slot>,
    next: AtomicUsize,
}

/// A connection and the address that it leads to: a node may come back at another one.
type Ready = (Box<str>, Arc<dyn Connection>);

#[derive(Default)]
struct Slot {
    ready: Mutex<Option<Ready>>,
    /// Held while connecting: one attempt serves all who wait. Holds when and why the last one failed.
    connecting: tokio::sync::Mutex<Option<(Instant, NoReply)>>,
}

/// Bytes counted as outstanding until dropped.
pub(crate) struct Load {
    node: Arc<Node>,
    bytes: u64,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.node.outstanding.fetch_sub(self.bytes, Relaxed);
    }
}

impl Node {
    pub fn load(self: &Arc<Self>, bytes: u64) -> Load {
        self.outstanding.fetch_add(bytes, Relaxed);
        Load { node: self.clone(), bytes }
    }

    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Relaxed)
    }
}

impl Nodes {
    pub fn new(transport: Arc<dyn Transport>, options: &Options) -> Nodes {
        Nodes {
            transport,
            connect: options.connect,
            connections: options.connections.max(1),
            epoch: Instant::now(),
            known: Mutex::default(),
        }
    }

    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub fn get(&self, node: NodeId) -> Arc<Node> {
        let mut known = self.known.lock();
        let make = || {
            Arc::new(Node {
                outstanding: AtomicU64::new(0),
                suspect: AtomicU64::new(0),
                strikes: AtomicU32::new(0),
                slots: (0..self.connections).map(|_| Slot::default()).collect(),
                next: AtomicUsize::new(0),
            })
        };
        known.entry(node).or_insert_with(make).clone()
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the node failed to answer a moment ago.
    pub fn suspect(&self, node: &Node) -> bool {
        let until = node.suspect.load(Relaxed);
        until != 0 && self.millis() < until
    }

    pub fn accuse(&self, node: &Node) {
        if self.suspect(node) {
            // One silence fails all that were waiting in it: it counts once.
            return;
        }
        let strikes = node.strikes.fetch_add(1, Relaxed).min(8);
        let suspicion = (SUSPICION * (1 << strikes)).min(LONGEST_SUSPICION);
        node.suspect.store(self.millis() + suspicion.as_millis() as u64, Relaxed);
    }

    /// Sends `call` (whose deadline is set here) to the node at `address` and waits for the answer until `until`.
    pub async fn call(
        &self,
        node: &Node,
        address: &str,
        mut call: Call,
        until: Instant,
        metrics: &Metrics,
    ) -> Result<Reply, NoReply> {
        let late = |sent| NoReply { status: Status::TimedOut, detail: "no answer in time".into(), sent };
        let connection = match timeout_at(until, self.connection(node, address, metrics)).await {
            Ok(connection) => connection?,
            Err(_) => return Err(late(false)),
        };
        call.deadline = until.saturating_duration_since(Instant::now());
        match timeout_at(until, connection.call(call)).await {
            Ok(Ok(reply)) => {
                node.suspect.store(0, Relaxed);
                node.strikes.store(0, Relaxed);
                Ok(reply)
            }
            Ok(Err(error)) => {
                let sent = matches!(error, NetError::Disconnected { .. } | NetError::TimedOut { .. });
                Err(no_reply(&error, sent))
            }
            Err(_) => Err(late(true)),
        }
    }

    async fn connection(
        &self,
        node: &Node,
        address: &str,
        metrics: &Metrics,
    ) -> Result<Arc<dyn Connection>, NoReply> {
        let slot = &node.slots[node.next.fetch_add(1, Relaxed) % node.slots.len()];
        let ready = || match &*slot.ready.lock() {
            Some((at, connection)) if **at == *address && !connection.is_closed() => Some(connection.clone()),
            _ => None,
        };
        if let Some(connection) = ready() {
            return Ok(connection);
        }
        let asked = Instant::now();
        let mut failed = slot.connecting.lock().await;
        if let Some(connection) = ready() {
            return Ok(connection);
        }
        if let Some((when, why)) = &*failed
            && *when > asked
        {
            return Err(why.clone());
        }
        match self.transport.connect(address, self.connect).await {
            Ok(connection) => {
                add(&metrics.connects, 1);
                *slot.ready.lock() = Some((address.into(), connection.clone()));
                *failed = None;
                Ok(connection)
            }
            Err(error) => {
                let why = no_reply(&error, false);
                *failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }
}

fn no_reply(error: &NetError, sent: bool) -> NoReply {
    NoReply { status: error.status(), detail: error.to_string().into(), sent }
}
