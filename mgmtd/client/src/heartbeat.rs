//! A service's side of membership: registration, heartbeats on time, and the lease that follows from their answers.
//!
//! Heartbeats leave every quarter of the lease, answered or not; a failed one is repeated four times as fast, because only T/2 may
//! pass without an answer. The report is gathered after the time of sending was taken, so the lease never starts late.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use catena_proto::clock::{Clock, Monotonic};
use catena_proto::ids::{RoutingVersion, TargetId};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::JoinHandle;
use catena_rt::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use crate::calls::{CallOptions, MgmtdClient};
use crate::lease::Lease;

/// What a service says about itself in a heartbeat.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Version of the routing information that the service acts on.
    pub routing_version: RoutingVersion,
    /// Its targets. One that is left out keeps what was last said of it.
    pub targets: Vec<pb::TargetReport>,
    /// Its disks, all of them.
    pub disks: Vec<pb::Disk>,
    /// Why nobody can reach it: no heartbeat is sent then, although one would arrive. A service that mgmtd hears and others do not
    /// would keep its place in its chains, and every write would wait for it.
    pub outage: Option<String>,
}

/// Where reports come from. Called right before each heartbeat; must not block. Any `Fn() -> Report` is one.
pub trait Reporter: Send + Sync + 'static {
    /// The state of the service at this moment.
    fn report(&self) -> Report;
}

impl<F: Fn() -> Report + Send + Sync + 'static> Reporter for F {
    fn report(&self) -> Report {
        self()
    }
}

/// How patient a registration is.
#[derive(Clone, Copy, Debug)]
pub struct HeartbeatOptions {
    /// How long to try to register: more than the lease, because a node id is free only when the lease of the process that had it
    /// ran out, and because mgmtd may have to wait for other members of the chains.
    pub patience: Duration,
}

impl Default for HeartbeatOptions {
    fn default() -> HeartbeatOptions {
        HeartbeatOptions { patience: Duration::from_secs(60) }
    }
}

/// A registered service that keeps its lease. Dropping it ends the heartbeats without a word, as a crash would.
pub struct Heartbeats {
    shared: Arc<Shared>,
    lease: Lease,
    term: Duration,
    registered_at: RoutingVersion,
    task: Option<JoinHandle<()>>,
}

struct Shared {
    client: MgmtdClient,
    node: pb::Node,
    clock: Arc<dyn Clock>,
    reporter: Box<dyn Reporter>,
    lease: Lease,
    kick: Notify,
    stop: Notify,
    failed: watch::Sender<Option<Failure>>,
}

impl Heartbeats {
    /// Registers `node` (its `incarnation` must be new with every start, R28) and begins to send heartbeats.
    ///
    /// When this returns, mgmtd has taken every target of an earlier incarnation out of its chain. The service must see routing
    /// information of at least [`Heartbeats::registered_at`] before any of its targets takes part in anything.
    pub async fn start(
        client: MgmtdClient,
        node: pb::Node,
        clock: Arc<dyn Clock>,
        reporter: impl Reporter,
        options: HeartbeatOptions,
    ) -> Result<Heartbeats, Failure> {
        let reply = register(&client, &node, options.patience).await?;
        let lease = Lease::new();
        let shared = Arc::new(Shared {
            client,
            node,
            clock,
            reporter: Box::new(reporter),
            lease: lease.clone(),
            kick: Notify::new(),
            stop: Notify::new(),
            failed: watch::Sender::new(None),
        });
        let term = Duration::from_millis(reply.lease_ms);
        info!(node = shared.node.id, lease = ?term, routing = reply.routing_version, "registered with mgmtd");
        let task = catena_rt::spawn(beat(shared.clone(), term, options.patience));
        let registered_at = RoutingVersion(reply.routing_version);
        Ok(Heartbeats { shared, lease, term, registered_at, task: Some(task) })
    }

    /// The cluster's lease as it was at registration: how long a service may be silent before mgmtd declares it failed.
    pub fn term(&self) -> Duration {
        self.term
    }

    /// The lease that the heartbeats keep.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Routing information from this version on shows what mgmtd did about this start.
    pub fn registered_at(&self) -> RoutingVersion {
        self.registered_at
    }

    /// Sends a heartbeat now: something happened that mgmtd should know at once (a resync finished, a disk failed, new routing was
    /// adopted).
    pub fn kick(&self) {
        self.shared.kick.notify_one();
    }

    /// A handle that only kicks, for parts of the service that outlive nothing.
    pub fn kicker(&self) -> impl Fn() + Send + Sync + Clone + 'static {
        let shared = self.shared.clone();
        move || shared.kick.notify_one()
    }

    /// Resolves when the service cannot go on: another incarnation of this node has taken its place, or it may not register again.
    pub async fn failed(&self) -> Failure {
        let mut failed = self.shared.failed.subscribe();
        let failure = failed.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match failure {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Ends the heartbeats and tells mgmtd that this incarnation has stopped for good: call it only when the service no longer answers
    /// anything. Without an answer within `deadline` the lease runs out instead, which is slower and just as safe.
    pub async fn stop(mut self, deadline: Duration) {
        self.shared.stop.notify_one();
        let Some(task) = self.task.take() else { return };
        let abort = task.abort_handle();
        let until = Instant::now() + deadline;
        if timeout_at(until, task).await.is_err() {
            abort.abort();
        }
        let mut last = self.shared.heartbeat(u64::MAX, Report::default());
        last.stopping = true;
        if let Ok(Err(failure)) = timeout_at(until, self.shared.client.heartbeat(last)).await {
            warn!(%failure, "mgmtd was not told of this stop; the lease will run out instead");
        }
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Shared {
    /// Begins a heartbeat. One that is older than half the lease renews nothing any more.
    fn send(&self, sequence: u64, term: Duration) -> UnderWay {
        let sent = self.clock.monotonic();
        let mut report = self.reporter.report();
        if let Some(outage) = report.outage.take() {
            let message = format!("not sent, others cannot reach this service: {outage}");
            return Box::pin(ready((sent, Err(Failure::new(Status::Disconnected, message)))));
        }
        let request = self.heartbeat(sequence, report);
        // One mgmtd that does not answer leaves time to ask another.
        let client = self.client.with_options(CallOptions::within(term / 2, term / 4));
        Box::pin(async move {
            let outcome = timeout(term / 2, client.heartbeat(request)).await.unwrap_or_else(|_| {
                Err(Failure::new(
                    Status::TimedOut,
                    "mgmtd did not answer a heartbeat within half of the lease",
                ))
            });
            (sent, outcome)
        })
    }

    fn heartbeat(&self, sequence: u64, report: Report) -> pb::HeartbeatRequest {
        pb::HeartbeatRequest {
            node: self.node.id,
            incarnation: self.node.incarnation,
            routing_version: report.routing_version.0,
            targets: report.targets,
            disks: report.disks,
            sequence,
            ..Default::default()
        }
    }
}

/// Registers, waiting while another process may still hold the node id or the chains are not ready (both end with a lease).
async fn register(
    client: &MgmtdClient,
    node: &pb::Node,
    patience: Duration,
) -> Result<pb::RegisterReply, Failure> {
    let until = Instant::now() + patience;
    let mut told = false;
    loop {
        let failure = match client.register(node.clone()).await {
            Ok(reply) if reply.lease_ms >= 4 => return Ok(reply),
            Ok(reply) => {
                let message = format!("mgmtd offers a lease of {} ms, which nobody can keep", reply.lease_ms);
                return Err(Failure::new(Status::Malformed, message));
            }
            Err(failure) => failure,
        };
        let passes = matches!(
            failure.status,
            Status::Exists | Status::Busy | Status::NoPrimary | Status::Disconnected | Status::ShuttingDown
        );
        let pause = Duration::from_millis(200);
        if !passes || Instant::now() + pause >= until {
            return Err(failure);
        }
        if !told {
            warn!(node = node.id, %failure, "not registered yet; trying on");
            told = true;
        }
        sleep(pause).await;
    }
}

/// A heartbeat under way: when it was sent, and what came of it.
type UnderWay = BoxFuture<'static, (Monotonic, Result<pb::HeartbeatReply, Failure>)>;

/// The heartbeat loop. Heartbeats leave on time whether or not the one before was answered: on a network that takes its time, an answer
/// that comes late still renews what is left of the lease, and one that is lost costs nothing but itself.
async fn beat(shared: Arc<Shared>, mut term: Duration, patience: Duration) {
    let mut sequence = 0;
    let mut failing = false;
    let mut under_way = FuturesUnordered::<UnderWay>::new();
    let mut sent = Instant::now();
    let mut next = sent;
    loop {
        // What is asked for at once may still have to wait for the answer before: those who ask come in crowds.
        let crowded = !under_way.is_empty() && sent.elapsed() < term / 8;
        tokio::select! {
            biased;
            () = shared.stop.notified() => return,
            Some((sent, outcome)) = under_way.next() => match outcome {
                Ok(reply) => {
                    if failing {
                        info!(node = shared.node.id, "mgmtd answers heartbeats again");
                        failing = false;
                    }
                    term = Duration::from_millis(reply.lease_ms.max(4));
                    if reply.service_renewed {
                        shared.lease.renew(sent, term, reply.renewed.into_iter().map(TargetId));
                    }
                }
                Err(failure) if failure.status == Status::NotFound => {
                    warn!(node = shared.node.id, %failure, "mgmtd does not know this service; registering again");
                    under_way.clear();
                    let mut node = shared.node.clone();
                    node.disks = shared.reporter.report().disks;
                    if let Err(failure) = register(&shared.client, &node, patience).await {
                        return fail(&shared, failure);
                    }
                    next = Instant::now();
                }
                Err(failure) if fatal(failure.status) => return fail(&shared, failure),
                Err(failure) => {
                    if !failing {
                        let left = shared.lease.valid_until().since(shared.clock.monotonic());
                        warn!(node = shared.node.id, %failure, lease_left = ?left, "a heartbeat failed; trying on");
                        failing = true;
                    }
                    if under_way.is_empty() {
                        next = next.min(Instant::now() + term / 16);
                    }
                }
            },
            () = shared.kick.notified(), if !crowded => next = Instant::now(),
            () = sleep_until(next) => {
                sequence += 1;
                under_way.push(shared.send(sequence, term));
                sent = Instant::now();
                next = sent + term / 4;
            }
        }
    }
}

/// Refusals that no repetition changes: this incarnation is over, or never was welcome.
fn fatal(status: Status) -> bool {
    matches!(
        status,
        Status::StaleHandle
            | Status::WrongCluster
            | Status::BadToken
            | Status::WrongProtocol
            | Status::Exists
    )
}

fn fail(shared: &Shared, failure: Failure) {
    error!(node = shared.node.id, %failure, "mgmtd has refused this service");
    shared.failed.send_replace(Some(failure));
}
