//! Making chain tables.

use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::pb::{self, CreateTableReply, CreateTableRequest};
use catena_proto::routing::{Chain, LocalState, NodeKind, NodeState, PublicState, Table, Target, wide_id};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use super::Cluster;
use crate::changes::{Changes, Event};
use crate::placement::{Slot, Wanted, place};
use crate::record::RequestRecord;
use crate::store;

/// More would not fit in one transaction of the store.
const TRANSACTION: usize = 9_000_000;

impl Cluster {
    /// Places a new table on the storage nodes that are up and were heard from. Changes nothing if the same request made one before.
    pub fn create_table(
        &self,
        now: Monotonic,
        request: &CreateTableRequest,
    ) -> Result<(Changes, RequestRecord), Failure> {
        let name = match request.request.len() {
            0 => None,
            _ => Some(
                wide_id(&request.request)
                    .ok_or_else(|| Failure::new(Status::Invalid, "a request id has 16 bytes"))?,
            ),
        };
        if let Some(made) = name.and_then(|name| self.requests.get(&name)) {
            return Ok((Changes::default(), *made));
        }
        let table = match request.table {
            0 => TableId(self.info.tables.keys().map(|(id, _)| id.0).max().unwrap_or(0) + 1),
            asked => TableId(asked),
        };
        if self.info.newest_table(table).is_some() {
            return Err(Failure::new(
                Status::Exists,
                format!("{table} is there already; leave the id out for the next free one"),
            ));
        }
        let slots = self.slots(now, request.min_nodes)?;
        let wanted = Wanted {
            replicas: request.replicas,
            targets_per_disk: request.targets_per_disk,
            seed: request.seed,
        };
        let placement =
            place(&slots, wanted).map_err(|error| Failure::new(Status::Invalid, error.to_string()))?;

        let mut changes = Changes::default();
        let mut ids = self.ids;
        let mut chains = Vec::with_capacity(placement.chains.len());
        for members in &placement.chains {
            let chain = ChainId(ids.chain);
            ids.chain += 1;
            let mut targets = Vec::with_capacity(members.len());
            for &slot in members {
                let id = TargetId(ids.target);
                ids.target += 1;
                targets.push(id);
                let target = Target {
                    id,
                    chain,
                    node: slots[slot].node,
                    disk: slots[slot].disk,
                    state: PublicState::Serving,
                    local: LocalState::UpToDate,
                    joined_at: ChainVersion(1),
                    used: 0,
                    chunks: 0,
                };
                changes.targets.insert(id, target);
            }
            changes.chains.insert(chain, Chain { id: chain, version: ChainVersion(1), targets });
            chains.push(chain);
        }
        if store::size_of(&changes) > TRANSACTION {
            let message = format!(
                "a table of {} targets is too large for one transaction: ask for fewer targets per disk than {}",
                changes.targets.len(),
                placement.targets_per_disk
            );
            return Err(Failure::new(Status::Invalid, message));
        }
        let record = RequestRecord { table: table.0, version: 1, recovery_balance: placement.balance.worst };
        changes.ids = Some(ids);
        changes.request = name.map(|name| (name, record));
        changes.events.push(Event::Table {
            table,
            chains: chains.len(),
            replicas: request.replicas,
            recovery_balance: placement.balance.worst,
        });
        changes.tables.push(Table { id: table, version: 1, replicas: request.replicas, chains });
        Ok((changes, record))
    }

    /// The answer about a table that is there.
    pub fn table_reply(&self, made: RequestRecord) -> CreateTableReply {
        let table = self.info.tables.get(&(TableId(made.table), made.version)).map(|table| pb::ChainTable {
            id: table.id.0,
            version: table.version,
            replicas: table.replicas,
            chains: table.chains.iter().map(|chain| chain.0).collect(),
        });
        CreateTableReply {
            table,
            routing_version: self.info.version.0,
            recovery_balance: made.recovery_balance,
        }
    }

    /// Working disks of storage nodes that are certainly there. A node of which this primary has heard nothing yet may be long gone.
    fn slots(&self, now: Monotonic, min_nodes: u32) -> Result<Vec<Slot>, Failure> {
        let mut slots = Vec::new();
        let (mut there, mut known) = (0, 0);
        for node in self.info.nodes.values().filter(|node| node.kind() == NodeKind::Storage) {
            known += 1;
            let id = NodeId(node.id);
            let heard = self.presence.get(&id).is_some_and(|presence| {
                presence.heard.is_some() && presence.until > now && presence.successor.is_none()
            });
            if node.state() != NodeState::Up || !heard {
                continue;
            }
            there += 1;
            let domain = if node.domain.is_empty() { id.to_string() } else { node.domain.clone() };
            for disk in node.disks.iter().filter(|disk| !disk.failed) {
                let disk = DiskId(wide_id(&disk.id).unwrap_or_default());
                slots.push(Slot { domain: domain.clone(), node: id, disk });
            }
        }
        if there < min_nodes {
            let message = format!(
                "{there} storage nodes are up ({known} known), {min_nodes} are asked for: start the others, or wait"
            );
            return Err(Failure::new(Status::Busy, message));
        }
        slots.sort();
        Ok(slots)
    }
}
