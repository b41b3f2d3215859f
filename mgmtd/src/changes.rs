//! What a decision changes: the records to write, in one transaction and one routing version, and what people should read about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{Chain, Table, Target};
use tracing::{info, warn};

use crate::record::{DiskRecord, IdsRecord, RequestRecord};

/// New values of records; what is not here stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Services.
    pub nodes: BTreeMap<NodeId, pb::Node>,
    /// Disks seen.
    pub disks: BTreeMap<DiskId, DiskRecord>,
    /// Targets.
    pub targets: BTreeMap<TargetId, Target>,
    /// Chains.
    pub chains: BTreeMap<ChainId, Chain>,
    /// New tables.
    pub tables: Vec<Table>,
    /// The next ids.
    pub ids: Option<IdsRecord>,
    /// The outcome of a CreateTable.
    pub request: Option<(u128, RequestRecord)>,
    /// What happened, for the log.
    pub events: Vec<Event>,
    /// Chains that were looked at, and whether they have to wait (see [`crate::chain::held`]).
    pub evaluated: BTreeMap<ChainId, bool>,
}

impl Changes {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.disks.is_empty()
            && self.targets.is_empty()
            && self.chains.is_empty()
            && self.tables.is_empty()
            && self.ids.is_none()
            && self.request.is_none()
    }

    /// The chains that changed.
    pub fn changed_chains(&self) -> BTreeSet<ChainId> {
        self.chains.keys().copied().collect()
    }
}

/// Something worth a line in the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A service registered, or is heard from again.
    NodeUp {
        /// Which.
        node: NodeId,
        /// What it is.
        kind: &'static str,
        /// Where it is.
        address: String,
        /// This start of it.
        incarnation: Incarnation,
        /// Whether this is a new start.
        started: bool,
    },
    /// A service's lease ran out.
    NodeFailed {
        /// Which.
        node: NodeId,
        /// How long ago it was last heard from; `None`: not since this mgmtd began.
        silent: Option<Duration>,
    },
    /// A service said that it stops.
    NodeStopped {
        /// Which.
        node: NodeId,
    },
    /// A disk was reported failed, or healthy again.
    Disk {
        /// Whose.
        node: NodeId,
        /// Which.
        disk: DiskId,
        /// Where.
        path: String,
        /// Failed, or not any more.
        failed: bool,
    },
    /// A target moved to the disk that replaced its own.
    Moved {
        /// Which.
        target: TargetId,
        /// Whose.
        node: NodeId,
        /// To where.
        disk: DiskId,
    },
    /// A chain changed.
    Chain {
        /// Which.
        chain: ChainId,
        /// States and order before.
        before: String,
        /// And after.
        after: String,
    },
    /// A chain lost a target and waits; see [`crate::chain::held`].
    Held {
        /// Which.
        chain: ChainId,
        /// How it stands.
        state: String,
    },
    /// An operator named a target to serve from (R29).
    Recovered {
        /// Which.
        chain: ChainId,
        /// From which target.
        target: TargetId,
        /// Those that had everything, and are given up.
        dropped: String,
    },
    /// A table was made.
    Table {
        /// Which.
        table: TableId,
        /// How many chains.
        chains: usize,
        /// Targets per chain.
        replicas: u32,
        /// The worst domain's share of load after a failure over the even share.
        recovery_balance: f64,
    },
}

impl Event {
    /// Writes the line.
    pub fn log(&self) {
        match self {
            Event::NodeUp { node, kind, address, incarnation, started: true } => {
                info!(%node, kind, address, incarnation = incarnation.0, "node up");
            }
            Event::NodeUp { node, kind, address, .. } => {
                info!(%node, kind, address, "node up again, same start of the service");
            }
            Event::NodeFailed { node, silent: Some(silent) } => {
                warn!(%node, ?silent, "node failed: its lease ran out");
            }
            Event::NodeFailed { node, silent: None } => {
                warn!(%node, "node failed: not heard from since this mgmtd began");
            }
            Event::NodeStopped { node } => info!(%node, "node stopped"),
            Event::Disk { node, disk, path, failed: true } => warn!(%node, %disk, path, "disk failed"),
            Event::Disk { node, disk, path, failed: false } => info!(%node, %disk, path, "disk works again"),
            Event::Moved { target, node, disk } => {
                info!(%target, %node, %disk, "target moved to the disk that replaced its own; it will be rebuilt");
            }
            Event::Chain { chain, before, after } => info!(%chain, before, after, "chain changed"),
            Event::Held { chain, state } => {
                warn!(%chain, state, "chain lost a target while nobody else of it was heard from; waiting");
            }
            Event::Recovered { chain, target, dropped } => {
                warn!(%chain, %target, dropped, "an operator gave up what the chain's last targets have: it serves from an older one");
            }
            Event::Table { table, chains, replicas, recovery_balance } => {
                info!(%table, chains, replicas, recovery_balance, "chain table made");
            }
        }
    }
}
