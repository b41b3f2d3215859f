//! One term of a primary: what it knows, and the calls that it answers. All of it goes when the term ends; the next one begins with what
//! is in the store.
//!
//! One lock guards what the primary knows; it is held while a change is written to the store, so that nobody is answered from a state
//! that is about to change (a lease renewed for a target that is being taken out). Heartbeats that bring nothing new write nothing and
//! hold it for microseconds. Calls that may write run in a task of their own: a caller that goes away must not stop them between the
//! store and the memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use catena_proto::clock::{Clock, Monotonic};
use catena_proto::ids::*;
use catena_proto::pb::{self, *};
use catena_proto::routing::RoutingInfo;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep, timeout_at};
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tracing::{info, warn};

use crate::changes::{Changes, Event};
use crate::cluster::{Cluster, Registration};
use crate::metrics::Metrics;
use crate::record::MemberRecord;
use crate::sessions::{SessionChanges, Sessions};
use crate::store::{Fenced, StoreError, Verdict};

/// Longest that a long poll may wait; longer requests are answered earlier.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long a registration waits for held chains before the caller is asked to come back.
const HELD_WAIT: Duration = Duration::from_secs(1);

/// Why a term ended from within.
#[derive(Clone, Debug)]
pub enum Over {
    /// What is in memory may not be what is in the store, or another one is primary: stand by, and begin anew if possible.
    Anew(String),
    /// This process may not go on.
    Failed(String),
    /// The process stops, or has found out by itself that it is primary no longer.
    Ended,
}

/// Until when answers may be given; shared with who renews the lease. Only grows.
#[derive(Default)]
pub struct Until(AtomicU64);

impl Until {
    /// To at least `until`.
    pub fn raise(&self, until: Monotonic) {
        self.0.fetch_max(u64::try_from(until.0.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
    }
    /// Whether it is not over.
    pub fn holds(&self, now: Monotonic) -> bool {
        now < Monotonic(Duration::from_nanos(self.0.load(Ordering::Acquire)))
    }
}

/// A primary's term.
pub struct Reign {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    store: Fenced,
    /// Who answers.
    address: String,
    until: Arc<Until>,
    state: Mutex<State>,
    published: watch::Sender<Arc<Published>>,
    /// Leases may end earlier than the ticker believes.
    rescheduled: Notify,
    over: watch::Sender<Option<Over>>,
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

impl Reign {
    /// Begins a term with what was loaded from the store. Nothing happens by itself before [`Reign::watch_leases`] is polled.
    pub fn new(
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        store: Fenced,
        address: String,
        until: Arc<Until>,
        (cluster, sessions): (Cluster, Sessions),
    ) -> Arc<Reign> {
        let published = watch::Sender::new(Published::new(cluster.info.clone()));
        metrics.show(cluster.info.version.0, &cluster.counts());
        metrics.sessions.set(sessions.len() as i64);
        Arc::new(Reign {
            clock,
            metrics,
            store,
            address,
            until,
            state: Mutex::new(State { cluster, sessions }),
            published,
            rescheduled: Notify::new(),
            over: watch::Sender::new(None),
        })
    }

    /// The term's number.
    pub fn term(&self) -> u64 {
        self.store.term()
    }

    /// Until when answers may be given.
    pub fn until(&self) -> &Until {
        &self.until
    }

    /// The routing information's version.
    pub fn routing_version(&self) -> RoutingVersion {
        self.published.borrow().info.version
    }

    /// Whether answers may be given: the lease certainly has not run out, and nothing is wrong (R24). Ask after the work that the
    /// answer is about, too: the process may have been paused meanwhile, as with R11.
    pub fn answers(&self) -> bool {
        self.over.borrow().is_none() && self.until.holds(self.clock.monotonic())
    }

    /// Why the term ended, once it has.
    pub async fn over(&self) -> Over {
        let mut over = self.over.subscribe();
        let over = over.wait_for(Option::is_some).await.ok().and_then(|over| over.clone());
        match over {
            Some(over) => over,
            None => std::future::pending().await,
        }
    }

    /// Why the term ended, if it has.
    pub fn ended(&self) -> Option<Over> {
        self.over.borrow().clone()
    }

    /// Answers nothing from now on; ends long polls. The first reason stands.
    pub fn end(&self, why: Over) {
        self.over.send_if_modified(|over| {
            let first = over.is_none();
            over.get_or_insert(why);
            first
        });
    }

    /// A service starts.
    pub async fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<RegisterReply, Failure> {
        let node =
            request.node.ok_or_else(|| Failure::new(Status::Malformed, "a registration without a node"))?;
        let deadline = Instant::now() + HELD_WAIT;
        loop {
            let mut published = self.published.subscribe();
            let node = node.clone();
            let registration = self.exclusive(async move |reign| reign.try_register(node).await).await?;
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
        self.exclusive(async move |reign| {
            let mut state = reign.state.lock().await;
            let changes = state.cluster.heartbeat(reign.clock.monotonic(), &request)?;
            let changed = !changes.is_empty();
            reign.commit(&mut state, changes).await?;
            // The time after the commit: a lease that begins later ends later, which is safe on this side.
            let reply = state.cluster.renew(reign.clock.monotonic(), &request);
            if changed {
                reign.rescheduled.notify_one();
            }
            Ok(reply)
        })
        .await
    }

    /// Routing information newer than what the caller has, as soon as there is any. Who knows nothing and does not wait (`known_version`
    /// and `wait_ms` 0) gets the newest figures (use of disks and targets), which otherwise are of the time of the last change.
    pub async fn get_routing(&self, request: GetRoutingRequest) -> Result<GetRoutingReply, Failure> {
        let mut published = self.published.subscribe();
        let known = request.known_version;
        let newer = |published: &Arc<Published>| published.info.version.0 > known;
        let reply = |routing| GetRoutingReply { routing, primary: self.address.clone() };
        if (known, request.wait_ms) == (0, 0) && newer(&published.borrow()) {
            let info = self.state.lock().await.cluster.with_figures();
            return Ok(reply(Some((&info).into())));
        }
        let wait = Duration::from_millis(request.wait_ms).min(MAX_WAIT);
        let waiting = Waiting::new(&self.metrics);
        let mut over = self.over.subscribe();
        let snapshot = tokio::select! {
            biased;
            _ = over.wait_for(Option::is_some) => None,
            snapshot = published.wait_for(newer) => snapshot.ok().map(|snapshot| snapshot.clone()),
            () = sleep(wait) => None,
        };
        drop(waiting);
        Ok(reply(snapshot.map(|snapshot| snapshot.wire())))
    }

    /// Makes a chain table.
    pub async fn create_table(
        self: &Arc<Self>,
        request: CreateTableRequest,
    ) -> Result<CreateTableReply, Failure> {
        self.exclusive(async move |reign| {
            let mut state = reign.state.lock().await;
            let (changes, made) = state.cluster.create_table(reign.clock.monotonic(), &request)?;
            reign.commit(&mut state, changes).await?;
            Ok(state.cluster.table_reply(made))
        })
        .await
    }

    /// Serves a chain that is down from a target that an operator names (R29).
    pub async fn recover_chain(
        self: &Arc<Self>,
        request: RecoverChainRequest,
    ) -> Result<RecoverChainReply, Failure> {
        self.exclusive(async move |reign| {
            let mut state = reign.state.lock().await;
            let (changes, before) = state.cluster.recover_chain(&request)?;
            reign.commit(&mut state, changes).await?;
            Ok(state.cluster.recovered(ChainId(request.chain), before))
        })
        .await
    }

    /// Opens, extends or closes a client's session.
    pub async fn extend_client_session(
        self: &Arc<Self>,
        request: ClientSessionRequest,
    ) -> Result<ClientSessionReply, Failure> {
        self.exclusive(async move |reign| {
            let mut state = reign.state.lock().await;
            let changes = state.sessions.changes(&request)?;
            reign.write_sessions(&changes).await?;
            let reply = state.sessions.apply(&request, changes, reign.clock.monotonic());
            reign.metrics.sessions.set(state.sessions.len() as i64);
            Ok(reply)
        })
        .await
    }

    /// The clients with a live session.
    pub async fn list_clients(&self) -> Result<ListClientsReply, Failure> {
        let clients = self.state.lock().await.sessions.list(self.clock.monotonic());
        Ok(ListClientsReply { clients })
    }

    /// The mgmtd that run, as the store says, with this one: what everyone is shown of them.
    pub async fn roll_call(
        self: &Arc<Self>,
        own: MemberRecord,
        others: Vec<MemberRecord>,
    ) -> Result<(), Failure> {
        self.exclusive(async move |reign| {
            let mut state = reign.state.lock().await;
            let changes = state.cluster.roll_call(reign.clock.monotonic(), &own, &others);
            reign.commit(&mut state, changes).await
        })
        .await
    }

    /// Watches over leases, without end.
    pub async fn watch_leases(self: &Arc<Self>) {
        loop {
            let now = self.clock.monotonic();
            let due = self.state.lock().await.cluster.schedule_tick(now);
            tokio::select! {
                biased;
                () = self.rescheduled.notified() => continue,
                () = sleep(due.since(now)) => {}
            }
            let ticked = self.exclusive(async move |reign| reign.tick().await).await;
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

    /// Writes `changes` and makes them true; shows them to everyone if there is anything to show.
    async fn commit(&self, state: &mut MutexGuard<'_, State>, changes: Changes) -> Result<(), Failure> {
        // The role may have been lost while the caller waited for the lock.
        self.check()?;
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
        self.check()?;
        if changes.is_empty() {
            return Ok(());
        }
        self.store.sessions(changes).await.map_err(|error| self.store_failed(error))
    }

    fn store_failed(&self, error: StoreError) -> Failure {
        match error.verdict() {
            Verdict::Passing => {}
            Verdict::Anew => self.end(Over::Anew(error.to_string())),
            Verdict::Fatal => self.end(Over::Failed(error.to_string())),
        }
        error.into()
    }

    fn check(&self) -> Result<(), Failure> {
        if self.answers() { Ok(()) } else { Err(Status::NoPrimary.into()) }
    }

    /// Runs `work` to its end even if the caller goes away.
    async fn exclusive<T: Send + 'static, F>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Reign>) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        match catena_rt::spawn(work(self.clone())).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // A panic between the store and the memory leaves them apart.
                self.end(Over::Failed(format!("a call ended in a panic ({error}); this is a bug")));
                Err(Status::Internal.into())
            }
        }
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
