//! Routing information: the nodes, targets, chains and chain tables of a cluster, under one version.
//!
//! mgmtd makes it, everyone else holds a snapshot. Conversions from the wire refuse what does not hang together, so that the rest of
//! the code can rely on it: every target of a chain exists, every chain of a table exists.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::ids::*;
use crate::layout::Layout;
use crate::pb;

pub use pb::{LocalState, MgmtdRole, NodeKind, NodeState, PublicState};

/// A snapshot of the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingInfo {
    /// Grows with every change.
    pub version: RoutingVersion,
    /// Whose it is.
    pub cluster: ClusterId,
    /// Services, storage and others.
    pub nodes: BTreeMap<NodeId, pb::Node>,
    /// Replicas' homes.
    pub targets: BTreeMap<TargetId, Target>,
    /// Chains.
    pub chains: BTreeMap<ChainId, Chain>,
    /// Every version of every chain table.
    pub tables: BTreeMap<(TableId, u32), Table>,
}

/// A target as everyone sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its identity.
    pub id: TargetId,
    /// The chain that it belongs to.
    pub chain: ChainId,
    /// The node that has its disk.
    pub node: NodeId,
    /// The disk.
    pub disk: DiskId,
    /// What it may do.
    pub state: PublicState,
    /// What its service last said of it.
    pub local: LocalState,
    /// Chain version at which its current membership (or resync session) began.
    pub joined_at: ChainVersion,
    /// Bytes used.
    pub used: u64,
    /// Chunks held.
    pub chunks: u64,
}

/// A chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// Its identity.
    pub id: ChainId,
    /// Grows with every change of members, order or states.
    pub version: ChainVersion,
    /// All its targets in chain order: serving, lastsrv, syncing, waiting, offline (R26).
    pub targets: Vec<TargetId>,
}

/// One version of a chain table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its identity.
    pub id: TableId,
    /// Its version, from 1.
    pub version: u32,
    /// Targets per chain when all are there.
    pub replicas: u32,
    /// What layouts index.
    pub chains: Vec<ChainId>,
}

/// Routing information that does not hang together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("routing information version {version} is inconsistent: {what}")]
pub struct RoutingError {
    /// The refused version.
    pub version: u64,
    /// What is wrong with it.
    pub what: String,
}

impl RoutingInfo {
    /// The targets of `chain` in `state`, in chain order.
    pub fn targets_in(&self, chain: ChainId, state: PublicState) -> impl Iterator<Item = &Target> {
        let targets = self.chains.get(&chain).map(|chain| chain.targets.as_slice()).unwrap_or_default();
        targets.iter().filter_map(|id| self.targets.get(id)).filter(move |target| target.state == state)
    }

    /// The write path of `chain`: its serving targets in order, then at most one syncing target (R4).
    pub fn path(&self, chain: ChainId) -> Vec<&Target> {
        let mut path: Vec<_> = self.targets_in(chain, PublicState::Serving).collect();
        if !path.is_empty() {
            path.extend(self.targets_in(chain, PublicState::Syncing).take(1));
        }
        path
    }

    /// The data-plane address of the node that has `target`.
    pub fn address(&self, target: &Target) -> Option<&str> {
        self.nodes
            .get(&target.node)
            .map(|node| node.data_address.as_str())
            .filter(|address| !address.is_empty())
    }

    /// The newest version of a table.
    pub fn newest_table(&self, table: TableId) -> Option<&Table> {
        self.tables.range((table, 0)..=(table, u32::MAX)).next_back().map(|(_, table)| table)
    }

    /// The chains of a file in stripe order.
    pub fn chains_of(&self, layout: &Layout) -> Option<Vec<ChainId>> {
        let table = self.tables.get(&(layout.table, layout.table_version))?;
        layout.chains(&table.chains).ok()
    }
}

/// A 16-byte identity from the wire.
pub fn wide_id(bytes: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(bytes.try_into().ok()?))
}

/// A 16-byte identity for the wire.
pub fn wide_bytes(id: u128) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

impl From<&RoutingInfo> for pb::RoutingInfo {
    fn from(info: &RoutingInfo) -> Self {
        pb::RoutingInfo {
            version: info.version.0,
            cluster: wide_bytes(info.cluster.0),
            nodes: info.nodes.values().cloned().collect(),
            targets: info.targets.values().map(pb::Target::from).collect(),
            chains: info
                .chains
                .values()
                .map(|chain| pb::Chain {
                    id: chain.id.0,
                    version: chain.version.0,
                    targets: chain.targets.iter().map(|target| target.0).collect(),
                })
                .collect(),
            tables: info
                .tables
                .values()
                .map(|table| pb::ChainTable {
                    id: table.id.0,
                    version: table.version,
                    replicas: table.replicas,
                    chains: table.chains.iter().map(|chain| chain.0).collect(),
                })
                .collect(),
        }
    }
}

impl From<&Target> for pb::Target {
    fn from(target: &Target) -> Self {
        pb::Target {
            id: target.id.0,
            chain: target.chain.0,
            node: target.node.0,
            disk: wide_bytes(target.disk.0),
            state: target.state as i32,
            local: target.local as i32,
            joined_at: target.joined_at.0,
            used: target.used,
            chunks: target.chunks,
        }
    }
}

impl TryFrom<pb::RoutingInfo> for RoutingInfo {
    type Error = RoutingError;
    fn try_from(wire: pb::RoutingInfo) -> Result<Self, RoutingError> {
        let version = wire.version;
        let bad = |what: String| RoutingError { version, what };
        let cluster = wide_id(&wire.cluster).ok_or_else(|| bad("the cluster id is not 16 bytes".into()))?;
        let mut info = RoutingInfo {
            version: RoutingVersion(version),
            cluster: ClusterId(cluster),
            nodes: wire.nodes.into_iter().map(|node| (NodeId(node.id), node)).collect(),
            ..Default::default()
        };
        for target in wire.targets {
            let disk =
                wide_id(&target.disk).ok_or_else(|| bad(format!("target {}: no disk id", target.id)))?;
            let id = TargetId(target.id);
            info.targets.insert(
                id,
                Target {
                    id,
                    chain: ChainId(target.chain),
                    node: NodeId(target.node),
                    disk: DiskId(disk),
                    state: target.state(),
                    local: target.local(),
                    joined_at: ChainVersion(target.joined_at),
                    used: target.used,
                    chunks: target.chunks,
                },
            );
        }
        for chain in wire.chains {
            let targets: Vec<_> = chain.targets.into_iter().map(TargetId).collect();
            if let Some(missing) = targets.iter().find(|id| !info.targets.contains_key(id)) {
                return Err(bad(format!("chain {} names target {missing}, which is not there", chain.id)));
            }
            let id = ChainId(chain.id);
            info.chains.insert(id, Chain { id, version: ChainVersion(chain.version), targets });
        }
        for table in wire.tables {
            let chains: Vec<_> = table.chains.into_iter().map(ChainId).collect();
            if let Some(missing) = chains.iter().find(|id| !info.chains.contains_key(id)) {
                return Err(bad(format!("table {} names chain {missing}, which is not there", table.id)));
            }
            let (id, version) = (TableId(table.id), table.version);
            info.tables.insert((id, version), Table { id, version, replicas: table.replicas, chains });
        }
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> RoutingInfo {
        let target = |id: u64, state| Target {
            id: TargetId(id),
            chain: ChainId(1),
            node: NodeId(id as u32),
            disk: DiskId(u128::from(id)),
            state,
            local: LocalState::UpToDate,
            joined_at: ChainVersion(1),
            used: 0,
            chunks: 0,
        };
        let targets = [
            target(3, PublicState::Serving),
            target(1, PublicState::Serving),
            target(2, PublicState::Syncing),
            target(4, PublicState::Offline),
        ];
        RoutingInfo {
            version: RoutingVersion(9),
            cluster: ClusterId(5),
            nodes: BTreeMap::new(),
            chains: [(
                ChainId(1),
                Chain {
                    id: ChainId(1),
                    version: ChainVersion(4),
                    targets: targets.iter().map(|t| t.id).collect(),
                },
            )]
            .into(),
            targets: targets.into_iter().map(|t| (t.id, t)).collect(),
            tables: [(
                (TableId(1), 1),
                Table { id: TableId(1), version: 1, replicas: 3, chains: vec![ChainId(1)] },
            )]
            .into(),
        }
    }

    #[test]
    fn routing_survives_the_wire() {
        let info = example();
        assert_eq!(RoutingInfo::try_from(pb::RoutingInfo::from(&info)), Ok(info));
    }

    #[test]
    fn the_path_is_the_serving_targets_then_one_syncing() {
        let info = example();
        let path: Vec<_> = info.path(ChainId(1)).iter().map(|target| target.id.0).collect();
        assert_eq!(path, [3, 1, 2]);
        assert!(info.path(ChainId(2)).is_empty());
    }

    #[test]
    fn routing_that_names_what_is_not_there_is_refused() {
        let mut wire = pb::RoutingInfo::from(&example());
        wire.targets.pop();
        let error = RoutingInfo::try_from(wire).unwrap_err();
        assert!(error.to_string().contains("chain 1 names target t4"), "{error}");
    }
}
