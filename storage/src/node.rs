//! The node: its disks and targets, and how they follow the cluster's routing information.
//!
//! A target takes part in nothing before routing information that is newer than this start has been seen (R28): mgmtd has then taken
//! every target of an earlier incarnation out of its chain.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use catena_craq::Replica;
use catena_engine::EngineError;
use catena_mgmtd_client::{Lease, Report, RoutingWatch};
use catena_proto::clock::Clock;
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{self, RoutingInfo};
use catena_rt::time::{interval, sleep, timeout};
use futures_util::future::join_all;
use tracing::{error, info, warn};

use crate::disk::Disk;
use crate::life::Membership;
use crate::metrics::Metrics;
use crate::peers::{Peers, Verdicts};
use crate::progress::Sessions;
use crate::repair::Repairs;
use crate::service::ADOPTION_WAIT;
use crate::ship::Shipping;
use crate::target::{StoreView, Target};
use crate::throttle::Throttle;
use crate::wire::{Control, Verdict};

/// Between one look at what was not answered and the next: well above a round trip under load, because what was only slow is sent
/// twice. What is known to be lost is not sent again by this.
const TICK: Duration = Duration::from_secs(1);

/// Between one count of what targets hold and the next.
const USAGE_EVERY: Duration = Duration::from_secs(10);

/// The targets of this node.
#[derive(Default)]
pub(crate) struct Targets {
    pub by_id: BTreeMap<TargetId, Arc<Target>>,
    by_chain: BTreeMap<ChainId, Arc<Target>>,
}

/// Everything that requests need.
pub(crate) struct Node {
    pub id: NodeId,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub peers: Arc<Peers>,
    pub shipping: Shipping,
    pub throttle: Throttle,
    pub repairs: Repairs,
    /// Resyncs that this node drives or has driven.
    pub sessions: Sessions,
    routing: RoutingWatch,
    /// Kept by the heartbeats, which begin after the address is known; no target exists before it is set.
    lease: OnceLock<Lease>,
    disks: Vec<Arc<Disk>>,
    targets: ArcSwap<Targets>,
    /// The routing information that the targets have adopted.
    applied: AtomicU64,
    kick: OnceLock<Box<dyn Fn() + Send + Sync>>,
    stopping: AtomicBool,
}

impl Node {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        id: NodeId,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        peers: Arc<Peers>,
        shipping: Shipping,
        throttle: Throttle,
        routing: RoutingWatch,
        disks: Vec<Arc<Disk>>,
    ) -> Node {
        Node {
            id,
            clock,
            metrics,
            peers,
            shipping,
            throttle,
            repairs: Repairs::default(),
            sessions: Sessions::default(),
            routing,
            lease: OnceLock::new(),
            disks,
            targets: ArcSwap::default(),
            applied: AtomicU64::new(0),
            kick: OnceLock::new(),
            stopping: AtomicBool::new(false),
        }
    }

    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// All targets, as of now.
    pub fn targets(&self) -> Arc<Targets> {
        self.targets.load_full()
    }
    /// A target of this node.
    pub fn target(&self, id: TargetId) -> Option<Arc<Target>> {
        self.targets.load().by_id.get(&id).cloned()
    }
    /// This node's replica of a chain. Placement puts no two of them on one node.
    pub fn target_of(&self, chain: ChainId) -> Option<Arc<Target>> {
        self.targets.load().by_chain.get(&chain).cloned()
    }

    /// Waits a while for routing information that the sender of a message has and this node has not.
    pub async fn await_version(&self, target: &Target, version: ChainVersion) {
        if version > target.adopted() {
            let _ = timeout(ADOPTION_WAIT, target.adopted_at_least(version)).await;
        }
    }

    /// Sends a message without data, soon.
    pub fn send_control(self: &Arc<Self>, to: TargetId, item: Control) {
        self.peers.control(to, item, self);
    }

    /// Lets mgmtd hear at once of what has changed.
    pub fn kick_heartbeat(&self) {
        if let Some(kick) = self.kick.get() {
            kick();
        }
    }
    /// How to do that.
    pub fn set_kick(&self, kick: impl Fn() + Send + Sync + 'static) {
        let _ = self.kick.set(Box::new(kick));
    }

    /// Who keeps the targets' leases.
    pub fn set_lease(&self, lease: Lease) {
        let _ = self.lease.set(lease);
    }

    /// Clients are sent away from now on.
    pub fn stop_serving(&self) {
        self.stopping.store(true, Ordering::Release);
    }
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends every target's part where it is.
    pub fn abandon_targets(&self) -> Arc<Targets> {
        let targets = self.targets.swap(Arc::default());
        targets.by_id.values().for_each(|target| target.retire());
        self.peers.close();
        targets
    }

    /// Ends every target's part, and waits until nothing of theirs is on its way to a disk.
    pub async fn forget_targets(&self, patience: Duration) {
        let targets = self.abandon_targets();
        let quiet = async {
            for target in targets.by_id.values() {
                while target.is_staging() {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let _ = timeout(patience, quiet).await;
    }

    // --- disks ---

    /// A disk failed: its targets leave their chains at once. Comes back at once and may be called under a target's lock.
    pub fn disk_failed(self: &Arc<Self>, disk: &Arc<Disk>) {
        if !disk.mark_failed() {
            return;
        }
        let reason = disk.engine().failure().map(|failure| failure.to_string()).unwrap_or_default();
        error!(node = %self.id, disk = disk.path(), reason, "the disk is out of service");
        let (node, disk) = (self.clone(), disk.clone());
        catena_rt::spawn(async move {
            for target in node.targets().by_id.values().filter(|target| Arc::ptr_eq(&target.disk, &disk)) {
                target.take_offline(&node, "its disk failed");
            }
            node.kick_heartbeat();
        });
    }

    /// Keeps a disk in order until it fails.
    pub async fn maintain(self: Arc<Self>, disk: Arc<Disk>) {
        loop {
            // Once a second at least: commit marks that no record carried are written then.
            let _ = timeout(Duration::from_secs(1), disk.engine().maintenance_due()).await;
            let maintained = disk.engine().maintain().await;
            disk.sample();
            if let (Err(error @ EngineError::NoSpace { .. }), None) = (&maintained, disk.engine().failure()) {
                // The file system is full, perhaps of others' files: what is here is served on, and the log has room for a while.
                warn!(node = %self.id, disk = disk.path(), %error, "no room for a checkpoint; trying again");
                sleep(TICK).await;
                continue;
            }
            if let Err(error) = &maintained {
                error!(node = %self.id, disk = disk.path(), %error, "the disk's upkeep failed");
            }
            if maintained.is_err() || disk.has_failed() {
                return self.disk_failed(&disk);
            }
        }
    }

    /// Counts what every target holds, page by page, for people and for placement.
    pub async fn count_usage(self: Arc<Self>) {
        loop {
            sleep(USAGE_EVERY).await;
            for target in self.targets().by_id.values() {
                target.count_usage().await;
            }
        }
    }

    // --- time ---

    /// Lets targets send again what was not answered.
    pub async fn tick(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        loop {
            ticks.tick().await;
            for target in self.targets().by_id.values() {
                target.tick(&self);
                target.watch_lease(&self);
            }
            self.shipping.expire();
            self.metrics.queued.set(self.peers.queued() as i64);
        }
    }

    // --- routing ---

    /// Follows the routing information, from `at_least` on.
    pub async fn follow(self: Arc<Self>, at_least: RoutingVersion) {
        let mut info = self.routing.at_least(at_least).await;
        loop {
            self.apply(&info).await;
            info = self.routing.changed(info.version).await;
        }
    }

    /// Makes the targets that the routing information puts here, and lets all of them adopt their chains.
    pub async fn apply(self: &Arc<Self>, info: &RoutingInfo) {
        let known = self.targets();
        let missing = info
            .targets
            .values()
            .filter(|target| target.node == self.id && !known.by_id.contains_key(&target.id));
        let opened = join_all(missing.map(|target| self.open_target(target))).await;
        let opened: Vec<Arc<Target>> = opened.into_iter().flatten().collect();
        let known = if opened.is_empty() {
            known
        } else {
            let by_id: BTreeMap<_, _> =
                known.by_id.values().cloned().chain(opened).map(|target| (target.id, target)).collect();
            let by_chain = by_id.values().map(|target| (target.chain, target.clone())).collect();
            let targets = Arc::new(Targets { by_id, by_chain });
            self.targets.store(targets.clone());
            targets
        };
        let mut changed = false;
        for target in known.by_id.values() {
            // Without a word on it, it stays as it is; its lease is not renewed then.
            if let Some(membership) = Membership::of(info, target.id, target.chain) {
                changed |= target.adopt(self, membership);
            }
        }
        self.applied.fetch_max(info.version.0, Ordering::AcqRel);
        if changed {
            self.kick_heartbeat();
        }
    }

    /// A target that the routing information puts on a disk of this node: found there with what it had pending, or made.
    ///
    /// One that is not there is made and takes part as the routing information says. That loses nothing: making it is durable before
    /// it takes part, so it never took part; and no write was acknowledged while it was in its chain without taking part.
    async fn open_target(&self, target: &routing::Target) -> Option<Arc<Target>> {
        let disk = self.disks.iter().find(|disk| disk.id() == target.disk);
        let Some(disk) = disk.filter(|disk| !disk.has_failed()) else {
            warn!(node = %self.id, target = %target.id, disk = %target.disk, "a target's disk is not in this node");
            return None;
        };
        if !disk.engine().targets().contains(&target.id) {
            if let Err(error) = disk.engine().create_target(target.id).await {
                error!(node = %self.id, target = %target.id, disk = disk.path(), %error, "a target cannot be made");
                return None;
            }
            info!(node = %self.id, target = %target.id, chain = %target.chain, disk = disk.path(), "target created");
        }
        let note = disk.note(target.id);
        if let Some(note) = note.filter(|note| note.chain != target.chain) {
            error!(node = %self.id, target = %target.id, disk = disk.path(), chain = %target.chain, found = %note.chain, "the target on this disk belongs to another chain: not touched");
            return None;
        }
        let unsynced = note.filter(|note| note.unsynced).map(|note| note.joined_at);
        let mut replica = Replica::new(target.id);
        if catena_rt::broken("19b a sole replica discards its pendings") {
            let _ = disk.drop_pendings(target.id).await;
        }
        let restored = disk.restored(target.id);
        if !restored.is_empty() {
            info!(node = %self.id, target = %target.id, pending = restored.len(), "pending versions found after the start");
        }
        let lease = self.lease.get()?.target(target.id);
        replica.restore(restored, &StoreView::new(disk, target.id));
        Some(Arc::new(Target::new(target.id, target.chain, disk.clone(), lease, replica, unsynced)))
    }

    // --- what mgmtd is told ---

    /// The state of the node, for a heartbeat.
    pub fn report(&self) -> Report {
        Report {
            routing_version: RoutingVersion(self.applied.load(Ordering::Acquire)),
            targets: self.targets().by_id.values().map(|target| target.report()).collect(),
            disks: self.disk_reports(),
            outage: self.peers.outage(),
        }
    }

    pub fn disk_reports(&self) -> Vec<pb::Disk> {
        let report = |disk: &Arc<Disk>| {
            let stats = disk.engine().stats();
            pb::Disk {
                id: routing::wide_bytes(disk.id().0),
                path: disk.path().to_owned(),
                capacity: stats.capacity,
                used: stats.used,
                failed: disk.has_failed(),
                fresh: disk.fresh,
                empty: disk.engine().targets().is_empty(),
            }
        };
        self.disks.iter().map(report).collect()
    }
}

impl Verdicts for Arc<Node> {
    fn verdict(&self, item: &Control, verdict: Verdict) {
        if let Some(target) = self.target(TargetId(item.from.get())) {
            target.control_answered(self, item, verdict);
        }
    }
}
