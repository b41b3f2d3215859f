//! Space and counts of the whole file system. Space is what routing information says of the disks; counts are the sums of sharded
//! counters and exact.

use catena_proto::pb;
use catena_proto::routing::NodeKind;

use crate::access::Caller;
use crate::error::OpError;
use crate::op::{Age, Query};
use crate::schema::codec::integer;
use crate::schema::key::{self, Counter};
use crate::tx::Tx;

impl Query for pb::StatfsRequest {
    type Reply = pb::StatfsReply;
    const NAME: &'static str = "statfs";
    const AGE: Age = Age::Second;
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, _: &Caller) -> Result<pb::StatfsReply, OpError> {
        let mut sums = [0_i64; Counter::ALL.len()];
        let (shards, _) = tx.range(key::counters(), 0).await?;
        for item in &shards {
            if let Some(counter) = key::counter_of(&item.key) {
                sums[counter as usize] += integer("a counter", Some(&item.value))?;
            }
        }
        let sum = |counter: Counter| u64::try_from(sums[counter as usize]).unwrap_or(0);

        let routing = tx.cx.routing.current();
        let replicas = routing.newest_table(tx.cx.layout.table_id()).map_or(1, |table| table.replicas.max(1));
        let storage = routing.nodes.values().filter(|node| node.kind() == NodeKind::Storage);
        let disks = storage.flat_map(|node| &node.disks).filter(|disk| !disk.failed);
        let (capacity, used) = disks.fold((0_u64, 0_u64), |(capacity, used), disk| {
            (capacity.saturating_add(disk.capacity), used.saturating_add(disk.used))
        });
        Ok(pb::StatfsReply {
            capacity: capacity / u64::from(replicas),
            used: used / u64::from(replicas),
            files: sum(Counter::Files),
            directories: sum(Counter::Directories),
            reclaim_files: sum(Counter::ReclaimFiles),
            reclaim_bytes: sum(Counter::ReclaimBytes),
            sessions: sum(Counter::Sessions),
        })
    }
}
