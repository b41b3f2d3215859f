//! A service's side of membership: registration, heartbeats on time, and the lease that follows from their answers.
//!
//! One heartbeat is under way at a time, every quarter of the lease; a failed one is repeated four times as fast, because only T/2 may
//! pass without an answer. The report is gathered after the time of sending was taken, so the lease never starts late.

use std::sync::Arc;
use std::time::Duration;

use catena_proto::clock::Clock;
use catena_proto::ids::{RoutingVersion, TargetId};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::JoinHandle;
use catena_rt::time::{Instant, sleep, timeout, timeout_at};
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

/// The heartbeat loop.
async fn beat(shared: Arc<Shared>, mut term: Duration, patience: Duration) {
    let mut sequence = 0;
    let mut failing = false;
    loop {
        sequence += 1;
        let sent = shared.clock.monotonic();
        let request = shared.heartbeat(sequence, shared.reporter.report());
        // A heartbeat older than this renews nothing any more; the next one is better.
        let deadline = term / 4;
        // One mgmtd that does not answer leaves time to ask another.
        let client = shared.client.with_options(CallOptions::within(deadline, deadline / 2));
        let outcome = timeout(deadline, client.heartbeat(request)).await.unwrap_or_else(|_| {
            Err(Failure::new(
                Status::TimedOut,
                "mgmtd did not answer a heartbeat within a quarter of the lease",
            ))
        });
        let mut next = term / 4;
        match outcome {
            Ok(reply) => {
                if failing {
                    info!(node = shared.node.id, "mgmtd answers heartbeats again");
                    failing = false;
                }
                term = Duration::from_millis(reply.lease_ms.max(4));
                shared.lease.renew(sent, term, reply.renewed.into_iter().map(TargetId));
                next = term / 4;
            }
            Err(failure) if failure.status == Status::NotFound => {
                warn!(node = shared.node.id, %failure, "mgmtd does not know this service; registering again");
                let mut node = shared.node.clone();
                node.disks = shared.reporter.report().disks;
                if let Err(failure) = register(&shared.client, &node, patience).await {
                    return fail(&shared, failure);
                }
                continue;
            }
            Err(failure) if fatal(failure.status) => return fail(&shared, failure),
            Err(failure) => {
                if !failing {
                    let left = shared.lease.valid_until().since(shared.clock.monotonic());
                    warn!(node = shared.node.id, %failure, lease_left = ?left, "a heartbeat failed; trying on");
                    failing = true;
                }
                next /= 4;
            }
        }
        tokio::select! {
            biased;
            () = sleep(next) => {}
            () = shared.kick.notified() => {}
            () = shared.stop.notified() => return,
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
