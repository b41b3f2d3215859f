//! Questions about which chunks there are: the last one of a file in this chain, and lists for verification, repair and reclaim.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use catena_craq::Role;
use catena_proto::frame::{ChunkEntry, ChunksRequest, MAX_ITEMS, method};
use catena_proto::ids::*;
use catena_proto::status::Status;
use zerocopy::IntoBytes;

use crate::disk::{Listed, is_gone};
use crate::node::Node;
use crate::request;
use crate::service::{Answer, only};
use crate::target::Target;

/// Answers a question about a range of chunks.
pub(crate) async fn answer(node: &Arc<Node>, method: u16, body: Bytes) -> Answer {
    match answer_from(node, method, &body).await {
        Ok(body) => (Status::Ok, body, Vec::new()),
        Err(status) => only(status),
    }
}

async fn answer_from(node: &Arc<Node>, method: u16, body: &[u8]) -> Result<Bytes, Status> {
    let range = request::decode_chunks(body)?;
    let target = node.target_of(ChainId(range.chain.get())).ok_or(Status::NotServing)?;
    let version = ChainVersion(range.chain_version.get());
    // Version 0 asks this replica whatever it is: for whoever compares replicas and knows what the answer is worth.
    let fenced = version != ChainVersion(0);
    if fenced {
        node.await_version(&target, version).await;
        let state = target.state();
        match (version.cmp(&state.replica.view().version), state.replica.role()) {
            (std::cmp::Ordering::Less, _) => return Err(Status::StaleRouting),
            (std::cmp::Ordering::Greater, _) => return Err(Status::NotYet),
            (_, Role::Serving(_)) if state.outage.is_none() => {}
            _ => return Err(Status::NotServing),
        }
    }
    let entries = match method {
        // What was acknowledged is committed at every serving replica, so that anyone of them can say.
        method::LAST_CHUNK => {
            target.disk.last(target.id, InodeId(range.from_inode.get())).into_iter().collect()
        }
        _ => list(&target, &range),
    };
    let mut out = BytesMut::with_capacity(size_of::<ChunkEntry>() * entries.len());
    for listed in entries {
        let checksum = if range.checksums.get() == 0 || listed.committed.version == ChunkVersion(0) {
            0
        } else {
            match target.disk.checksum(target.id, listed.chunk).await {
                Ok(checksum) => checksum,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(target.disk.read_failed(node, &target, listed.chunk, &error)),
            }
        };
        let entry = ChunkEntry {
            inode: listed.chunk.inode.0.into(),
            version: listed.committed.version.0.into(),
            assigned: listed.committed.assigned.0.into(),
            index: listed.chunk.index.into(),
            length: listed.length.into(),
            checksum: checksum.into(),
            pending: (listed.pending as u32).into(),
        };
        out.put_slice(entry.as_bytes());
    }
    // R11: the answer is complete, now the clock.
    if fenced && !target.lease_holds(node) {
        return Err(Status::NoLease);
    }
    Ok(out.freeze())
}

fn list(target: &Target, range: &ChunksRequest) -> Vec<Listed> {
    let limit = (range.limit.get() as usize).clamp(1, MAX_ITEMS);
    let from = ChunkId { inode: InodeId(range.from_inode.get()), index: range.from_index.get() };
    let to = Bound::Included(ChunkId { inode: InodeId(range.to_inode.get()), index: u32::MAX });
    let mut cursor = Bound::Included(from);
    let mut entries = Vec::new();
    // Tombstones are not shown: pages are read until enough others were found.
    loop {
        let page = target.disk.list(target.id, cursor, to, limit);
        let last = page.last().map(|listed| listed.chunk).filter(|_| page.len() == limit);
        entries.extend(page.into_iter().filter(|listed| !listed.tombstone || listed.pending > 0));
        match last {
            Some(last) if entries.len() < limit => cursor = Bound::Excluded(last),
            _ => break,
        }
    }
    entries.truncate(limit);
    entries
}
