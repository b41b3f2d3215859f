//! Everything the primary knows, and its decisions: functions of that knowledge, a message and the time. No I/O.
//!
//! What is recorded ([`RoutingInfo`] and a little more) changes only through [`Changes`]: a decision returns them, the service writes
//! them to the store, and only then [`Cluster::apply`] makes them true here. What is not recorded (leases, reports: [`Presence`]) is
//! changed at once, and starts anew with every primary.

mod chains;
mod heartbeat;
mod mgmtds;
mod presence;
mod recover;
mod register;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{NodeKind, NodeState, RoutingInfo};

use crate::changes::{Changes, Event};
use crate::record::{DiskRecord, IdsRecord, RequestRecord};
use crate::store::Loaded;

pub use presence::Presence;
pub use register::Registration;

/// The primary's knowledge.
pub struct Cluster {
    /// What everyone is told.
    pub info: RoutingInfo,
    disks: BTreeMap<DiskId, DiskRecord>,
    ids: IdsRecord,
    requests: BTreeMap<u128, RequestRecord>,
    presence: BTreeMap<NodeId, Presence>,
    /// Other mgmtd's entries in the store as last seen: start and beat.
    mgmtds: BTreeMap<NodeId, (u64, u64)>,
    /// Chains that have to be looked at again although nothing new is known: they are held, or their change could not be written.
    unsettled: BTreeSet<ChainId>,
    /// Lease time T.
    term: Duration,
    /// This mgmtd, which needs no lease.
    own: NodeId,
    /// When the next tick is due; lateness shows that this process was not running.
    next_tick: Option<Monotonic>,
}

impl Cluster {
    /// What `loaded` says. Everyone who was up has a lease until `granted`: this primary does not know what its predecessor granted,
    /// so it has to be a full one, of the predecessor's length if that was longer.
    pub fn new(loaded: Loaded, own: NodeId, term: Duration, granted: Monotonic) -> Cluster {
        let Loaded { info, disks, ids, requests, .. } = loaded;
        let presence = info.nodes.keys().map(|&node| (node, Presence::granted(granted))).collect();
        // A hold of the last primary is not recorded; who is lost is.
        let unsettled = info.chains.keys().copied().collect();
        Cluster {
            info,
            disks,
            ids,
            requests,
            presence,
            mgmtds: BTreeMap::new(),
            unsettled,
            term,
            own,
            next_tick: None,
        }
    }

    /// The lease time T.
    pub fn term(&self) -> Duration {
        self.term
    }

    /// Makes written changes true, under the next routing version.
    pub fn apply(&mut self, changes: &Changes) {
        for (chain, held) in &changes.evaluated {
            if *held {
                self.unsettled.insert(*chain);
            } else {
                self.unsettled.remove(chain);
            }
        }
        if changes.is_empty() {
            return;
        }
        self.info.version.0 += 1;
        let clone = |(&id, value): (&NodeId, &pb::Node)| (id, value.clone());
        self.info.nodes.extend(changes.nodes.iter().map(clone));
        self.info.targets.extend(changes.targets.iter().map(|(&id, target)| (id, target.clone())));
        self.info.chains.extend(changes.chains.iter().map(|(&id, chain)| (id, chain.clone())));
        for table in &changes.tables {
            self.info.tables.insert((table.id, table.version), table.clone());
        }
        self.disks.extend(changes.disks.iter().map(|(&id, disk)| (id, disk.clone())));
        self.ids = changes.ids.unwrap_or(self.ids);
        self.requests.extend(changes.request);
    }

    /// Notes that `changes` could not be written: what they looked at is looked at again with the next event.
    pub fn not_written(&mut self, changes: &Changes) {
        self.unsettled.extend(changes.evaluated.keys());
        self.unsettled.extend(changes.chains.keys());
    }

    /// Time has passed: declares services failed whose lease ran out.
    pub fn tick(&mut self, now: Monotonic) -> Changes {
        let mut changes = Changes::default();
        if let Some(due) = self.next_tick
            && now.since(due) > self.term / 2
        {
            // This process stood still; heartbeats may be waiting unread. As a new primary would, it grants everyone a full lease.
            tracing::warn!(late = ?now.since(due), "mgmtd was not running for a while; every service gets a full lease");
            for presence in self.presence.values_mut() {
                presence.until = presence.until.max(now + self.term);
            }
        }
        let failed: Vec<NodeId> = self
            .up_nodes()
            .filter(|node| self.presence.get(node).is_none_or(|presence| presence.until <= now))
            .collect();
        for &node in &failed {
            let mut record = self.info.nodes[&node].clone();
            record.state = NodeState::Down.into();
            let silent =
                self.presence.get(&node).and_then(|presence| presence.heard).map(|heard| now.since(heard));
            changes.events.push(Event::NodeFailed { node, silent });
            changes.nodes.insert(node, record);
        }
        let touched = failed.iter().flat_map(|&node| self.chains_on(node)).collect();
        self.evaluate(now, &mut changes, touched);
        changes
    }

    /// When [`Cluster::tick`] has to be called next. Call it after the last tick's changes were applied.
    pub fn schedule_tick(&mut self, now: Monotonic) -> Monotonic {
        let ends = self.up_nodes().filter_map(|node| self.presence.get(&node)).map(|presence| presence.until);
        // Not before a little time has passed: a change that could not be written is not tried again in a tight loop.
        let due = ends.min().unwrap_or(now + self.term).clamp(now + self.term / 64, now + self.term);
        self.next_tick = Some(due);
        due
    }

    /// Services that are up, without this mgmtd itself.
    fn up_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let up = |node: &&pb::Node| node.state() == NodeState::Up && node.id != self.own.0;
        self.info.nodes.values().filter(up).map(|node| NodeId(node.id))
    }

    /// The chains that have a target on `node`.
    fn chains_on(&self, node: NodeId) -> BTreeSet<ChainId> {
        self.info.targets.values().filter(|target| target.node == node).map(|target| target.chain).collect()
    }

    /// Numbers for the metrics: services up and down by kind, targets by state, chains that nobody serves.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for node in self.info.nodes.values() {
            *counts.nodes.entry((kind_name(node.kind()), node.state() == NodeState::Up)).or_default() += 1;
        }
        for target in self.info.targets.values() {
            *counts.targets.entry(crate::chain::state_name(target.state)).or_default() += 1;
        }
        counts.chains_down =
            self.info.chains.keys().filter(|&&chain| self.info.path(chain).is_empty()).count();
        counts.chains = self.info.chains.len();
        counts.chains_held = self.unsettled.len();
        counts
    }

    /// Routing information with the newest figures (use of disks and targets, local states). They change without a new routing version,
    /// so that heartbeats wake nobody.
    pub fn with_figures(&self) -> RoutingInfo {
        let mut info = self.info.clone();
        for (id, node) in &mut info.nodes {
            let Some(presence) = self.presence.get(id) else { continue };
            for disk in &mut node.disks {
                if let Some(newest) = presence.disks.iter().find(|newest| newest.id == disk.id) {
                    (disk.used, disk.capacity) = (newest.used, newest.capacity);
                }
            }
        }
        for (id, target) in &mut info.targets {
            let presence = self.presence.get(&target.node);
            if let Some(report) = presence.and_then(|presence| presence.reports.get(id)) {
                (target.used, target.chunks) = (report.used, report.chunks);
                target.local = report.local;
            }
        }
        info
    }
}

/// See [`Cluster::counts`].
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub nodes: BTreeMap<(&'static str, bool), usize>,
    pub targets: BTreeMap<&'static str, usize>,
    pub chains: usize,
    pub chains_down: usize,
    pub chains_held: usize,
}

/// The word for a kind of service.
pub fn kind_name(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Storage => "storage",
        NodeKind::Meta => "meta",
        NodeKind::Mgmtd => "mgmtd",
        NodeKind::Unspecified => "unspecified",
    }
}
