//! Ways to other storage nodes: one connection a lane, made when first needed and made anew when it breaks.
//!
//! Lanes are separate connections because a connection's reader waits for a buffer of a request's class before it looks at the next
//! request. On one connection a forward that waits for memory would hold up the acknowledgement that frees some. With a lane for each
//! hop, buffers of hop k are only ever waited for by holders of buffers of hop k-1, and chains that cross cannot block each other.
//!
//! Messages without data are gathered for each node: while [`BATCHES`] of them are under way the next ones wait and travel together.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use catena_buf::BufPool;
use catena_mgmtd_client::RoutingWatch;
use catena_net::{Call, Connection, NetError, Reply, Transport};
use catena_proto::frame;
use catena_proto::ids::{NodeId, TargetId};
use catena_proto::status::Status;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{debug, info};
use zerocopy::IntoBytes;

use crate::wire::{self, Control, Verdict};

/// Batches of control messages under way to one node.
const BATCHES: usize = 4;
/// Most control messages in one batch.
const BATCH_ITEMS: usize = frame::MAX_ITEMS;
/// Most control messages that wait for one node; beyond it they are dropped, which the protocol survives.
const QUEUE_ITEMS: usize = 1 << 16;
/// How long a connection attempt may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a control message may take before it counts as lost.
const CONTROL_DEADLINE: Duration = Duration::from_secs(5);
/// A pause before a node that cannot be reached is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// A kind of traffic with a connection of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    Control = 0,
    Hop1 = 1,
    Hop2 = 2,
    Hop3 = 3,
    Sync = 4,
}

impl Lane {
    /// The lane of data for the replica at `place` of the path.
    pub fn hop(place: usize) -> Lane {
        match place {
            0 | 1 => Lane::Hop1,
            2 => Lane::Hop2,
            _ => Lane::Hop3,
        }
    }
}

/// Hears what peers answered to control messages.
pub(crate) trait Verdicts: Clone + Send + Sync + 'static {
    /// The answer to one item.
    fn verdict(&self, item: &Control, verdict: Verdict);
}

/// All ways to other nodes.
pub(crate) struct Peers {
    transport: Arc<dyn Transport>,
    routing: RoutingWatch,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    end: Arc<End>,
    dropped: prometheus_client::metrics::counter::Counter,
}

/// The end of the service: calls under way end with it, so that nothing of a service outlives it for as long as a deadline.
#[derive(Default)]
struct End {
    reached: AtomicBool,
    notify: Notify,
}

impl End {
    async fn reached(&self) {
        let notified = self.notify.notified();
        let mut notified = std::pin::pin!(notified);
        notified.as_mut().enable();
        if !self.reached.load(Ordering::Acquire) {
            notified.await;
        }
    }
}

struct Link {
    node: NodeId,
    lanes: [LaneState; 5],
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct LaneState {
    current: Mutex<Option<(String, Arc<dyn Connection>)>>,
    /// Held while connecting, so that one attempt serves all who wait, in their order.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Control>,
    in_flight: usize,
}

impl LaneState {
    fn get(&self, address: &str) -> Option<Arc<dyn Connection>> {
        let mut current = self.current.lock();
        match &*current {
            Some((known, connection)) if known == address && !connection.is_closed() => {
                Some(connection.clone())
            }
            Some(_) => {
                *current = None;
                None
            }
            None => None,
        }
    }
}

impl Peers {
    pub fn new(
        transport: Arc<dyn Transport>,
        routing: RoutingWatch,
        dropped: prometheus_client::metrics::counter::Counter,
    ) -> Peers {
        Peers { transport, routing, links: Mutex::default(), end: Arc::default(), dropped }
    }

    fn link(&self, node: NodeId) -> Arc<Link> {
        let mut links = self.links.lock();
        let link = links
            .entry(node)
            .or_insert_with(|| Arc::new(Link { node, lanes: Default::default(), queue: Mutex::default() }));
        link.clone()
    }

    /// Where a target is now.
    fn locate(&self, target: TargetId) -> Option<(NodeId, String)> {
        let routing = self.routing.load();
        let target = routing.targets.get(&target)?;
        Some((target.node, routing.address(target)?.to_owned()))
    }

    /// Makes a call to the node that has `to`. Calls that are polled in some order begin there in that order, while the connection holds.
    pub fn call(
        &self,
        to: TargetId,
        lane: Lane,
        call: Call,
    ) -> impl Future<Output = Result<Reply, NetError>> + Send + use<> {
        let located = self.locate(to).map(|(node, address)| (self.link(node), address));
        let (transport, end) = (self.transport.clone(), self.end.clone());
        async move {
            let Some((link, address)) = located else {
                let reason = format!("the routing information has no address for target {to}");
                return Err(NetError::Disconnected { peer: to.to_string(), reason, sent: false });
            };
            let calling = async {
                let connection = match link.lanes[lane as usize].get(&address) {
                    Some(connection) => connection,
                    None => connect(&*transport, &link, lane, &address).await?,
                };
                connection.call(call).await
            };
            tokio::select! {
                biased;
                reply = calling => reply,
                () = end.reached() => {
                    let reason = "this service has ended".to_owned();
                    Err(NetError::Disconnected { peer: address.clone(), reason, sent: true })
                }
            }
        }
    }

    /// Memory for what peers answer.
    pub fn pool(&self) -> &BufPool {
        self.transport.pool()
    }

    /// Why nobody can reach this node.
    pub fn outage(&self) -> Option<String> {
        self.transport.outage()
    }

    /// Ends every call under way, and all that come.
    pub fn close(&self) {
        self.end.reached.store(true, Ordering::Release);
        self.end.notify.notify_waiters();
        self.links.lock().clear();
    }

    /// Sends a control message, soon and perhaps together with others. It may get lost.
    pub fn control<V: Verdicts>(self: &Arc<Self>, to: TargetId, item: Control, verdicts: &V) {
        let Some((node, _)) = self.locate(to) else {
            self.dropped.inc();
            return;
        };
        let link = self.link(node);
        let mut queue = link.queue.lock();
        if queue.items.len() >= QUEUE_ITEMS {
            self.dropped.inc();
            return;
        }
        queue.items.push_back(item);
        if queue.in_flight >= BATCHES {
            return;
        }
        queue.in_flight += 1;
        drop(queue);
        let (peers, verdicts) = (self.clone(), verdicts.clone());
        start(async move { peers.drain(&link, to, &verdicts).await });
    }

    /// Sends batches until nothing waits.
    async fn drain(&self, link: &Link, mut to: TargetId, verdicts: &impl Verdicts) {
        loop {
            let batch: Vec<Control> = {
                let mut queue = link.queue.lock();
                if queue.items.is_empty() {
                    queue.in_flight -= 1;
                    return;
                }
                let count = queue.items.len().min(BATCH_ITEMS);
                queue.items.drain(..count).collect()
            };
            if let Some(first) = batch.first() {
                to = TargetId(first.to.get());
            }
            self.send_batch(to, &batch, verdicts).await;
        }
    }

    async fn send_batch(&self, to: TargetId, batch: &[Control], verdicts: &impl Verdicts) {
        let body = Bytes::copy_from_slice(batch.as_bytes());
        // A second try covers a connection that was found broken; more is for the replica's tick.
        for attempt in 0..2 {
            let call = Call::new(wire::CONTROL, body.clone(), CONTROL_DEADLINE);
            match self.call(to, Lane::Control, call).await {
                Ok(reply) if reply.status == Status::Ok => {
                    match frame::take_all::<Verdict>(&reply.body) {
                        Ok(answers) if answers.len() == batch.len() => {
                            for (item, verdict) in batch.iter().zip(answers) {
                                verdicts.verdict(item, *verdict);
                            }
                        }
                        _ => debug!(%to, "a peer's answer to control messages cannot be decoded"),
                    }
                    return;
                }
                Ok(reply) => {
                    let verdict = Verdict::new(reply.status, false);
                    batch.iter().for_each(|item| verdicts.verdict(item, verdict));
                    return;
                }
                Err(error) => {
                    debug!(%to, %error, attempt, "control messages were not delivered");
                    catena_rt::time::sleep(PAUSE).await;
                }
            }
        }
        let verdict = Verdict::new(Status::Disconnected, false);
        batch.iter().for_each(|item| verdicts.verdict(item, verdict));
    }

    /// Control messages that wait, for the metrics.
    pub fn queued(&self) -> usize {
        self.links.lock().values().map(|link| link.queue.lock().items.len()).sum()
    }
}

async fn connect(
    transport: &dyn Transport,
    link: &Link,
    lane: Lane,
    address: &str,
) -> Result<Arc<dyn Connection>, NetError> {
    let state = &link.lanes[lane as usize];
    let _alone = state.connecting.lock().await;
    if let Some(connection) = state.get(address) {
        return Ok(connection);
    }
    let connection = transport.connect(address, CONNECT).await?;
    if connection.peer() != catena_net::PeerId::Node(link.node) {
        let reason = format!("{} answers where node {} was expected", connection.peer(), link.node);
        return Err(NetError::Disconnected { peer: address.to_owned(), reason, sent: false });
    }
    info!(peer = %link.node, address, ?lane, "connected");
    *state.current.lock() = Some((address.to_owned(), connection.clone()));
    Ok(connection)
}

/// Runs `future` up to its first wait right here, so that what it begins is begun in the caller's order, and the rest as a task.
pub(crate) fn start(future: impl Future<Output = ()> + Send + 'static) {
    let mut future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(future);
    // The task polls it again at once and leaves the waker that counts.
    if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        catena_rt::spawn(future);
    }
}
