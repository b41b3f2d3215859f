//! The calls, as plain async functions; gRPC or the simulator brings them here.
//!
//! One lock guards what the primary knows; it is held while a change is written to the store, so that nobody is answered from a state
//! that is about to change (a lease renewed for a target that is being taken out). Heartbeats that bring nothing new write nothing and
//! hold it for microseconds. Calls that may write run in a task of their own: a caller that goes away must not stop them between the
//! store and the memory.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use catena_kv::Database;
use catena_proto::clock::Clock;
use catena_proto::ids::*;
use catena_proto::pb::{self, *};
use catena_proto::routing::{NodeKind, NodeState, RoutingInfo, wide_bytes};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep, timeout_at};
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tracing::{error, info, warn};

use crate::changes::{Changes, Event};
use crate::cluster::{Cluster, Registration};
use crate::metrics::Metrics;
use crate::sessions::{SessionChanges, Sessions};
use crate::store::{Store, StoreError};

/// Longest that a long poll may wait; longer requests are answered earlier.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long a registration waits for held chains before the caller is asked to come back.
const HELD_WAIT: Duration = Duration::from_secs(1);

/// What a [`Service`] is made of.
pub struct Parts {
    /// The cluster.
    pub cluster: ClusterId,
    /// This mgmtd's number.
    pub node: NodeId,
    /// This start of it.
    pub incarnation: Incarnation,
    /// Lease time T of services.
    pub lease: Duration,
    /// Lease of clients' sessions.
    pub client_lease: Duration,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// For pauses between retries.
    pub seed: u64,
    /// The store.
    pub db: Arc<dyn Database>,
}

/// A mgmtd without its network.
pub struct Service {
    cluster: ClusterId,
    node: NodeId,
    incarnation: Incarnation,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    store: Store,
    published: watch::Sender<Arc<Published>>,
    /// Leases may end earlier than the ticker believes.
    rescheduled: Notify,
    ended: watch::Sender<Option<End>>,
    metrics: Metrics,
}

/// Why nothing is answered any more.
#[derive(Clone, Debug)]
enum End {
    /// It may not go on: another primary, or a store that failed.
    Failed(String),
    /// It was told to stop.
    Stopped,
}

impl From<&End> for Failure {
    fn from(end: &End) -> Failure {
        match end {
            End::Failed(reason) => Failure::new(Status::NoPrimary, reason.clone()),
            End::Stopped => Failure::new(Status::ShuttingDown, "this mgmtd is stopping"),
        }
    }
}

struct State {
    cluster: Cluster,
    sessions: Sessions,
}

/// Routing information as it is shown, and its wire form, made at most once.
struct Published {
    info: RoutingInfo,
    wire: OnceLock<pb::RoutingInfo>,
}

impl Published {
    fn new(info: RoutingInfo) -> Arc<Published> {
        Arc::new(Published { info, wire: OnceLock::new() })
    }
    fn wire(&self) -> pb::RoutingInfo {
        self.wire.get_or_init(|| (&self.info).into()).clone()
    }
}

impl Service {
    /// Opens the store as primary. Nothing happens by itself before [`Service::run`] is polled.
    pub async fn open(parts: Parts) -> Result<Arc<Service>, StoreError> {
        let Parts { cluster, node, incarnation, lease, client_lease, clock, seed, db } = parts;
        let (store, mut loaded) = Store::open(db, cluster, node, incarnation, seed).await?;
        let what = if loaded.initialised { "cluster initialised" } else { "cluster loaded" };
        info!(
            %cluster,
            term = store.term(),
            routing = loaded.info.version.0,
            nodes = loaded.info.nodes.len(),
            chains = loaded.info.chains.len(),
            "{what}"
        );
        let now = clock.monotonic();
        let sessions = Sessions::new(std::mem::take(&mut loaded.sessions), client_lease, now);
        let known = Cluster::new(loaded, node, lease, now);
        let published = watch::Sender::new(Published::new(known.info.clone()));
        let service = Service {
            cluster,
            node,
            incarnation,
            clock,
            state: Mutex::new(State { cluster: known, sessions }),
            store,
            published,
            rescheduled: Notify::new(),
            ended: watch::Sender::new(None),
            metrics: Metrics::default(),
        };
        Ok(Arc::new(service))
    }

    /// Shows this mgmtd in the routing information. Refused if another service has its number.
    pub async fn announce(
        self: &Arc<Self>,
        control: String,
        metrics: String,
        pid: u32,
    ) -> Result<(), Failure> {
        let node = pb::Node {
            id: self.node.0,
            kind: NodeKind::Mgmtd.into(),
            state: NodeState::Up.into(),
            control_address: control,
            metrics_address: metrics,
            incarnation: self.incarnation.0,
            pid,
            ..Default::default()
        };
        self.exclusive(async move |service| {
            let mut state = service.state.lock().await;
            let old = state.cluster.info.nodes.get(&service.node);
            if let Some(old) = old.filter(|old| old.kind() != NodeKind::Mgmtd) {
                let message = format!(
                    "node {} is a {} service of this cluster: give this mgmtd another number",
                    service.node,
                    crate::cluster::kind_name(old.kind())
                );
                return Err(Failure::new(Status::Exists, message));
            }
            let mut changes = Changes::default();
            // What was primary here before and has another number does not run any more.
            for other in state.cluster.info.nodes.values() {
                if other.kind() == NodeKind::Mgmtd && other.state() == NodeState::Up && other.id != node.id {
                    let down = pb::Node { state: NodeState::Down.into(), ..other.clone() };
                    changes.nodes.insert(NodeId(other.id), down);
                }
            }
            changes.nodes.insert(service.node, node.clone());
            service.commit(&mut state, changes).await
        })
        .await
    }

    /// A service starts.
    pub async fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<RegisterReply, Failure> {
        let outcome = self.register_now(request).await;
        self.count("register", outcome)
    }

    async fn register_now(self: &Arc<Self>, request: RegisterRequest) -> Result<RegisterReply, Failure> {
        self.check(&request.cluster)?;
        let node =
            request.node.ok_or_else(|| Failure::new(Status::Malformed, "a registration without a node"))?;
        let deadline = Instant::now() + HELD_WAIT;
        loop {
            let mut published = self.published.subscribe();
            let node = node.clone();
            let registration = self.exclusive(async move |service| service.try_register(node).await).await?;
            let chains = match registration {
                Ok(reply) => return Ok(reply),
                Err(chains) => chains,
            };
            if timeout_at(deadline, published.changed()).await.is_err() {
                let message = format!(
                    "{} chains (the first is {}) wait for word from their other members, or for their leases to run out; then this node is let in",
                    chains.len(),
                    chains[0]
                );
                return Err(Failure::new(Status::Busy, message));
            }
        }
    }

    async fn try_register(&self, node: pb::Node) -> Result<Result<RegisterReply, Vec<ChainId>>, Failure> {
        let mut state = self.state.lock().await;
        let (id, incarnation) = (NodeId(node.id), Incarnation(node.incarnation));
        let (changes, registration) = state.cluster.register(self.clock.monotonic(), node)?;
        self.commit(&mut state, changes).await?;
        if let Registration::Held { chains } = registration {
            return Ok(Err(chains));
        }
        state.cluster.registered(self.clock.monotonic(), id, incarnation);
        self.rescheduled.notify_one();
        Ok(Ok(RegisterReply {
            lease_ms: state.cluster.term().as_millis() as u64,
            routing_version: state.cluster.info.version.0,
        }))
    }

    /// A service lives.
    pub async fn heartbeat(self: &Arc<Self>, request: HeartbeatRequest) -> Result<HeartbeatReply, Failure> {
        let outcome = match self.check(&request.cluster) {
            Ok(()) => self.exclusive(async move |service| service.take_heartbeat(&request).await).await,
            Err(failure) => Err(failure),
        };
        self.count("heartbeat", outcome)
    }

    async fn take_heartbeat(&self, request: &HeartbeatRequest) -> Result<HeartbeatReply, Failure> {
        let mut state = self.state.lock().await;
        let changes = state.cluster.heartbeat(self.clock.monotonic(), request)?;
        let changed = !changes.is_empty();
        self.commit(&mut state, changes).await?;
        // The time after the commit: a lease that begins later ends later, which is safe on this side.
        let reply = state.cluster.renew(self.clock.monotonic(), request);
        if changed {
            self.rescheduled.notify_one();
        }
        Ok(reply)
    }

    /// Routing information newer than what the caller has, as soon as there is any. Who knows nothing and does not wait (`known_version`
    /// and `wait_ms` 0) gets the newest figures (use of disks and targets), which otherwise are of the time of the last change.
    pub async fn get_routing(&self, request: GetRoutingRequest) -> Result<GetRoutingReply, Failure> {
        let outcome = self.get_routing_now(request).await;
        self.count("get_routing", outcome)
    }

    async fn get_routing_now(&self, request: GetRoutingRequest) -> Result<GetRoutingReply, Failure> {
        self.check(&request.cluster)?;
        let mut published = self.published.subscribe();
        let known = request.known_version;
        let newer = |published: &Arc<Published>| published.info.version.0 > known;
        if (known, request.wait_ms) == (0, 0) && newer(&published.borrow()) {
            let info = self.state.lock().await.cluster.with_figures();
            return Ok(GetRoutingReply { routing: Some((&info).into()), ..Default::default() });
        }
        let wait = Duration::from_millis(request.wait_ms).min(MAX_WAIT);
        let waiting = Waiting::new(&self.metrics);
        let mut ended = self.ended.subscribe();
        let snapshot = tokio::select! {
            biased;
            snapshot = published.wait_for(newer) => snapshot.ok().map(|snapshot| snapshot.clone()),
            () = sleep(wait) => None,
            _ = ended.wait_for(Option::is_some) => None,
        };
        drop(waiting);
        self.alive()?;
        Ok(GetRoutingReply { routing: snapshot.map(|snapshot| snapshot.wire()), ..Default::default() })
    }

    /// Makes a chain table.
    pub async fn create_table(
        self: &Arc<Self>,
        request: CreateTableRequest,
    ) -> Result<CreateTableReply, Failure> {
        let outcome = match self.check(&request.cluster) {
            Ok(()) => {
                self.exclusive(async move |service| {
                    let mut state = service.state.lock().await;
                    let (changes, made) = state.cluster.create_table(service.clock.monotonic(), &request)?;
                    service.commit(&mut state, changes).await?;
                    Ok(state.cluster.table_reply(made))
                })
                .await
            }
            Err(failure) => Err(failure),
        };
        self.count("create_table", outcome)
    }

    /// Opens, extends or closes a client's session.
    pub async fn extend_client_session(
        self: &Arc<Self>,
        request: ClientSessionRequest,
    ) -> Result<ClientSessionReply, Failure> {
        let outcome = match self.check(&request.cluster) {
            Ok(()) => {
                self.exclusive(async move |service| {
                    let mut state = service.state.lock().await;
                    let changes = state.sessions.changes(&request)?;
                    service.write_sessions(&changes).await?;
                    let reply = state.sessions.apply(&request, changes, service.clock.monotonic());
                    service.metrics.sessions.set(state.sessions.len() as i64);
                    Ok(reply)
                })
                .await
            }
            Err(failure) => Err(failure),
        };
        self.count("extend_client_session", outcome)
    }

    /// The clients with a live session.
    pub async fn list_clients(&self, request: ListClientsRequest) -> Result<ListClientsReply, Failure> {
        let outcome = match self.check(&request.cluster) {
            Ok(()) => {
                let clients = self.state.lock().await.sessions.list(self.clock.monotonic());
                Ok(ListClientsReply { clients })
            }
            Err(failure) => Err(failure),
        };
        self.count("list_clients", outcome)
    }

    /// Watches over leases until the service fails or is stopped.
    pub async fn run(self: Arc<Self>) {
        let mut ended = self.ended.subscribe();
        loop {
            let now = self.clock.monotonic();
            let due = self.state.lock().await.cluster.schedule_tick(now);
            tokio::select! {
                biased;
                () = sleep(due.since(now)) => {}
                () = self.rescheduled.notified() => continue,
                _ = ended.wait_for(Option::is_some) => return,
            }
            let ticked = self.exclusive(async move |service| service.tick().await).await;
            if let Err(failure) = ticked {
                warn!(%failure, "a lease that ran out could not be recorded; trying again");
            }
        }
    }

    async fn tick(&self) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        let now = self.clock.monotonic();
        let expired = state.sessions.expired(now);
        if !expired.is_empty() {
            self.write_sessions(&expired).await?;
            for client in expired.keys() {
                info!(%client, "client session ran out");
            }
            state.sessions.remove(&expired);
            self.metrics.sessions.set(state.sessions.len() as i64);
        }
        let changes = state.cluster.tick(now);
        self.commit(&mut state, changes).await
    }

    /// The reason why this process cannot go on, once there is one.
    pub async fn failed(&self) -> String {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(|end| matches!(end, Some(End::Failed(_)))).await.as_deref() {
            Ok(Some(End::Failed(reason))) => reason.clone(),
            _ => std::future::pending().await,
        }
    }

    /// Answers nothing from now on; ends long polls.
    pub fn stop(&self) {
        self.end(End::Stopped);
    }

    /// The counters, for `/metrics`.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes `changes` and makes them true; shows them to everyone if there is anything to show.
    async fn commit(&self, state: &mut MutexGuard<'_, State>, changes: Changes) -> Result<(), Failure> {
        // This process may have failed while the caller waited for the lock.
        self.alive()?;
        if !changes.is_empty() {
            let begin = self.clock.monotonic();
            if let Err(error) = self.store.commit(state.cluster.info.version, &changes).await {
                state.cluster.not_written(&changes);
                return Err(self.store_failed(error));
            }
            self.metrics.commit.observe(self.clock.monotonic().since(begin).as_secs_f64());
        }
        state.cluster.apply(&changes);
        changes.events.iter().for_each(Event::log);
        if !changes.is_empty() {
            self.metrics.chain_changes.inc_by(changes.chains.len() as u64);
            let failed = |event: &&Event| matches!(event, Event::NodeFailed { .. });
            self.metrics.nodes_failed.inc_by(changes.events.iter().filter(failed).count() as u64);
            self.published.send_replace(Published::new(state.cluster.with_figures()));
        }
        // Counting is work; a heartbeat that brings nothing new is none.
        if !changes.is_empty() || !changes.evaluated.is_empty() {
            self.metrics.show(state.cluster.info.version.0, &state.cluster.counts());
        }
        Ok(())
    }

    async fn write_sessions(&self, changes: &SessionChanges) -> Result<(), Failure> {
        self.alive()?;
        if changes.is_empty() {
            return Ok(());
        }
        self.store.sessions(changes).await.map_err(|error| self.store_failed(error))
    }

    /// A store that may have written what this process does not know of ends the process: the next start reads what is there.
    fn store_failed(&self, error: StoreError) -> Failure {
        if !error.is_passing() {
            self.fail(error.to_string());
        }
        error.into()
    }

    fn fail(&self, reason: String) {
        if self.end(End::Failed(reason.clone())) {
            error!(reason, "mgmtd cannot go on");
        }
    }

    fn end(&self, why: End) -> bool {
        self.ended.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(why);
            first
        })
    }

    /// A primary that may not be one any more answers nothing (R24).
    fn alive(&self) -> Result<(), Failure> {
        self.ended.borrow().as_ref().map_or(Ok(()), |end| Err(end.into()))
    }

    fn check(&self, cluster: &[u8]) -> Result<(), Failure> {
        self.alive()?;
        if cluster == &wide_bytes(self.cluster.0)[..] {
            return Ok(());
        }
        let message = format!("this is cluster {}; the request is for another one", self.cluster);
        Err(Failure::new(Status::WrongCluster, message))
    }

    /// Runs `work` to its end even if the caller goes away.
    async fn exclusive<T: Send + 'static, F>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Service>) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        match catena_rt::spawn(work(self.clone())).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // A panic between the store and the memory leaves them apart.
                self.fail(format!("a call ended in a panic ({error}); this is a bug"));
                Err(Status::Internal.into())
            }
        }
    }

    fn count<T>(&self, call: &'static str, outcome: Result<T, Failure>) -> Result<T, Failure> {
        self.metrics.called(call, outcome.as_ref().err().map(|failure| failure.status));
        outcome
    }
}

/// Counts a long poll while it waits.
struct Waiting<'a>(&'a Metrics);

impl<'a> Waiting<'a> {
    fn new(metrics: &'a Metrics) -> Waiting<'a> {
        metrics.polls.inc();
        Waiting(metrics)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.polls.dec();
    }
}
