//! Full forwards: a pending version as the chunk's whole contents, for a syncing successor that has no base for a delta.

use std::sync::Arc;

use catena_craq::Forward;
use catena_proto::ids::*;

use crate::disk::At;
use crate::effects::UnderWay;
use crate::node::Node;
use crate::payload::Payload;
use crate::ship::{Haste, Unshipped, ship};
use crate::target::Target;
use crate::wire::Verdict;

/// A full forward that was asked for.
pub(crate) struct Full {
    pub to: TargetId,
    pub place: usize,
    pub chain_version: ChainVersion,
    pub chunk: ChunkId,
    pub id: VersionId,
    pub tag: Option<Tag>,
    pub full: bool,
    pub first: bool,
    pub durable: ChunkVersion,
}

impl Full {
    pub fn under_way(&self) -> UnderWay {
        let &Full { to, chain_version, chunk, id, full, .. } = self;
        UnderWay { to, chain_version, chunk, id, full }
    }
}

/// Reads a chunk as of a pending version and sends it to the syncing successor.
pub(crate) fn send_full(target: Arc<Target>, node: Arc<Node>, full: Full) {
    catena_rt::spawn(async move {
        let under_way = full.under_way();
        let UnderWay { to, chain_version, chunk, .. } = under_way;
        let sent = ship_full(&target, &node, full).await;
        target.forward_is_over(&under_way);
        target.full_is_over(&node, chunk);
        if let Some(answered) = sent {
            target.forward_answered(&node, to, chain_version, chunk, answered).await;
        }
    });
}

/// The successor's verdict if it was asked, or what stands for one; `None` if there is nothing to send.
async fn ship_full(target: &Arc<Target>, node: &Arc<Node>, full: Full) -> Option<Option<Verdict>> {
    let Full { to, place, chain_version, chunk, id, tag, full, first, durable } = full;
    let shipped = match ship(target, node, to, chunk, At::Version(id), Haste::Now).await {
        Ok(shipped) => shipped,
        // Committed and overtaken: the tail, which is the successor, has it. Or not durable yet: the next tick asks again.
        Err(Unshipped::Gone) => return None,
        Err(Unshipped::Unreadable(error)) => {
            target.disk.read_failed(node, target, chunk, &error);
            return None;
        }
        Err(Unshipped::Refused(status)) => return Some(Some(Verdict::new(status, false))),
    };
    let payload = Payload::whole(&shipped);
    let forward = Forward { chunk, id, tag, payload, full, first, durable };
    Some(target.send_forward(node, to, place, chain_version, forward).await)
}
