//! The syncing target's side of a resync: it drops its pendings, shows what it has, and takes what its predecessor says (R14 to R20).
//!
//! Everything that changes the store here runs in a task of its own: a call that is given up half-way must not leave a chunk marked as
//! being installed.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use catena_buf::IoBuf;
use catena_craq::{Decision, DumpEntry, Install, Role};
use catena_engine::{EngineError, Op};
use catena_net::Incoming;
use catena_proto::frame::{self, MAX_ITEMS};
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::time::{sleep, timeout};
use futures_util::StreamExt;
use futures_util::stream;
use tracing::{info, warn};
use zerocopy::IntoBytes;

use crate::disk::{Note, TagRow};
use crate::forward::contents;
use crate::node::Node;
use crate::service::{Answer, only};
use crate::ship;
use crate::target::Target;
use crate::wire::{self, BaseHead, Decided, DumpRange, DumpReply, Dumped, SyncHead, TagEntry, Verdict, Word};

/// How long the answer to a base may be held back for the sake of clients.
const HOLD_BACK: Duration = Duration::from_secs(5);
/// Checksums looked up at once: each may take a trip to the disk.
const LOOKUPS: usize = 16;

/// A resync message's frame: who it is for and in which session.
struct Frame {
    target: Arc<Target>,
    chain_version: ChainVersion,
    joined_at: ChainVersion,
}

/// Begins a session: every pending is dropped, durably, and the contents are noted as incomplete. Then the dump may be answered.
pub(crate) fn begin(target: Arc<Target>, node: Arc<Node>, joined_at: ChainVersion) {
    catena_rt::spawn(async move {
        // One at a time: an older session's dropping must not meet a newer one's stages.
        let _alone = target.session.lock().await;
        let current = || {
            let state = target.state();
            state.replica.role() == Role::Syncing && state.replica.view().joined_at == joined_at
        };
        // A stage that was begun before the session is still a write to the store.
        while target.is_staging() {
            sleep(Duration::from_millis(1)).await;
        }
        if !current() {
            return;
        }
        let note = Note { chain: target.chain, joined_at, unsynced: true };
        let began = async {
            target.disk.set_note(target.id, &note).await?;
            target.disk.drop_pendings(target.id).await
        };
        if let Err(error) = began.await {
            return store_failed(&node, &target, &error);
        }
        {
            let mut state = target.state();
            state.unsynced = Some(joined_at);
            state.synced = None;
        }
        info!(target = %target.id, chain = %target.chain, joined_at = joined_at.0, "resync begins: ready to be brought up to date");
        target.step(&node, |replica, _, _| replica.session_ready(joined_at));
    });
}

fn store_failed(node: &Arc<Node>, target: &Arc<Target>, error: &EngineError) {
    tracing::error!(target = %target.id, disk = %target.disk.path(), %error, "a resync cannot write to its disk");
    if target.disk.has_failed() {
        node.disk_failed(&target.disk);
    }
    target.take_offline(node, "a resync could not write to the disk");
}

/// Answers a resync message.
pub(crate) async fn serve(node: &Arc<Node>, mut request: Incoming) -> (Answer, u64) {
    let data = request.take_data();
    let bytes = data.iter().map(|data| data.len() as u64).sum();
    match answer(node, request.method, &request.body, data).await {
        Ok(body) => ((Status::Ok, body, Vec::new()), bytes),
        Err(status) => (only(status), 0),
    }
}

async fn answer(node: &Arc<Node>, method: u16, body: &[u8], data: Vec<IoBuf>) -> Result<Bytes, Status> {
    if method == wire::SPOOL {
        return ship::receive_part(node, body, data).await;
    }
    let malformed = |_| Status::Malformed;
    let mut body = body;
    let sync = frame::take_one::<SyncHead>(&mut body).map_err(malformed)?;
    let target = node.target(TargetId(sync.to.get())).ok_or(Status::NotYet)?;
    let (chain_version, joined_at) =
        (ChainVersion(sync.chain_version.get()), ChainVersion(sync.joined_at.get()));
    node.await_version(&target, chain_version).await;
    if target.state().outage.is_some() {
        return Err(Status::NotYet);
    }
    let frame = Frame { target, chain_version, joined_at };
    match method {
        wire::DUMP => {
            let range = frame::take_one::<DumpRange>(&mut body).map_err(malformed)?;
            dump(node, &frame, range).await
        }
        wire::DECIDE => {
            let items = frame::take_all::<Decided>(body).map_err(malformed)?;
            let words: Vec<Word> =
                items.iter().map(Decided::word).collect::<Result<_, _>>().map_err(malformed)?;
            // Finished even if the caller gives up.
            let node = node.clone();
            let decided = catena_rt::spawn(async move { decide(&node, &frame, words).await });
            Ok(decided.await.map_err(|_| Status::Internal)?)
        }
        wire::BASE => {
            let head = *frame::take_one::<BaseHead>(&mut body).map_err(malformed)?;
            let crcs = frame::take_checksums(&mut body, head.crc_count.get() as usize).map_err(malformed)?;
            let (from, transfer) = (TargetId(sync.from.get()), head.transfer.get());
            let data = data.into_iter().next();
            let op = contents(node, &frame.target, from, transfer, head.length.get(), data, crcs)?;
            let word = Word {
                chunk: head.chunk(),
                decision: Decision::Base(head.id()),
                need: ChunkVersion(head.need.get()),
            };
            let node = node.clone();
            let installing = node.clone();
            let status = catena_rt::spawn(async move { install(&installing, &frame, &word, op).await });
            let status = status.await.map_err(|_| Status::Internal)?;
            if transfer != 0 && status == Status::Ok {
                node.shipping.finished(from, transfer);
            }
            // Not for ever: the sender's patience is no longer than its call.
            let _ = timeout(HOLD_BACK, node.throttle.take(u64::from(head.length.get()))).await;
            Ok(Bytes::copy_from_slice(Verdict::new(status, false).as_bytes()))
        }
        wire::TAGS => {
            let items = frame::take_all::<TagEntry>(body).map_err(malformed)?;
            let may = frame.target.step(node, |replica, _, _| replica.may_dump(chain_version, joined_at));
            may.map_err(wire::refusal_status)?;
            let rows: Vec<TagRow> = items.iter().map(TagEntry::record).collect();
            let target = &frame.target;
            if catena_rt::broken("18b tags lost in resync") {
                return Ok(Bytes::new());
            }
            match target.disk.merge_tags(target.id, &rows).await {
                Ok(()) => Ok(Bytes::new()),
                Err(error) => {
                    store_failed(node, target, &error);
                    Err(error.status())
                }
            }
        }
        wire::DONE => {
            finish(node, &frame).await?;
            Ok(Bytes::new())
        }
        _ => Err(Status::UnknownMethod),
    }
}

/// What the target has, in order, from one chunk on.
async fn dump(node: &Node, frame: &Frame, range: &DumpRange) -> Result<Bytes, Status> {
    let target = &frame.target;
    let may = target.state().replica.may_dump(frame.chain_version, frame.joined_at);
    may.map_err(wire::refusal_status)?;
    let limit = (range.limit.get() as usize).clamp(1, MAX_ITEMS);
    let from = ChunkId { inode: InodeId(range.inode.get()), index: range.index.get() };
    let listed = target.disk.list(target.id, Bound::Included(from), Bound::Unbounded, limit);
    let reply = DumpReply { end: u32::from(listed.len() < limit).into(), reserved: 0.into() };
    let mut out = BytesMut::with_capacity(8 + 40 * listed.len());
    out.put_slice(reply.as_bytes());
    let entries = stream::iter(listed).map(|chunk| async move {
        let complete = target.state().replica.is_synced(chunk.chunk);
        let (checksum, unreadable) = if complete || chunk.tombstone {
            (0, false)
        } else if node.repairs.damage(target.id, chunk.chunk).is_some() {
            // The stored checksum is that of the contents as they should be.
            (0, true)
        } else {
            match target.disk.checksum(target.id, chunk.chunk).await {
                Ok(checksum) => (checksum, false),
                // Removed since it was listed, or damaged: never kept.
                Err(_) => (0, true),
            }
        };
        let entry = DumpEntry {
            chunk: chunk.chunk,
            committed: chunk.committed,
            length: chunk.length,
            checksum,
            tombstone: chunk.tombstone,
            pending: chunk.pending > 0,
            complete,
        };
        Dumped::new(&entry, unreadable)
    });
    let mut entries = std::pin::pin!(entries.buffered(LOOKUPS));
    while let Some(entry) = entries.next().await {
        out.put_slice(entry.as_bytes());
    }
    Ok(out.freeze())
}

/// The predecessor's word on chunks whose contents need not travel.
async fn decide(node: &Arc<Node>, frame: &Frame, words: Vec<Word>) -> Bytes {
    let mut out = BytesMut::with_capacity(4 * words.len());
    for word in words {
        let status = install(node, frame, &word, Op::Remove).await;
        out.put_slice(Verdict::new(status, false).as_bytes());
    }
    out.freeze()
}

/// Takes one word of the predecessor, and the contents if it is a base.
async fn install(node: &Arc<Node>, frame: &Frame, word: &Word, contents: Op) -> Status {
    let Frame { target, chain_version, joined_at } = frame;
    let Word { chunk, decision, need } = *word;
    // Before the chunk is marked as being installed: a full disk holds the resync up, and nothing else.
    if matches!(decision, Decision::Base(_))
        && target.disk.admit_forward(target.id, chunk, &contents).is_err()
    {
        return Status::NoSpace;
    }
    let decided = target.step(node, |replica, store, _| {
        replica.sync_chunk(*chain_version, *joined_at, chunk, decision, need, store)
    });
    let (id, written) = match decided {
        Err(refusal) => return wire::refusal_status(refusal),
        Ok(Install::Nothing) => return Status::Ok,
        Ok(Install::Forget) => (VersionId::default(), target.disk.forget(target.id, chunk).await),
        Ok(Install::Contents) => match decision {
            Decision::Base(id) => (id, target.disk.install(target.id, chunk, id, contents).await),
            // The protocol installs contents for bases only.
            Decision::Keep(_) | Decision::Absent => return Status::Internal,
        },
    };
    match written {
        Ok(()) => {
            target.step(node, |replica, _, _| replica.installed(*joined_at, chunk, id));
            target.installed.notify_waiters();
            Status::Ok
        }
        Err(error) => {
            // A chunk that was being replaced is in no state to be shown: the next session begins it anew.
            store_failed(node, target, &error);
            error.status()
        }
    }
}

/// The predecessor's walk is through: complete contents are noted as such before mgmtd hears of it (R20).
async fn finish(node: &Arc<Node>, frame: &Frame) -> Result<(), Status> {
    let Frame { target, chain_version, joined_at } = frame;
    target
        .step(node, |replica, _, _| replica.finish_session(*chain_version, *joined_at))
        .map_err(wire::refusal_status)?;
    let _alone = target.session.lock().await;
    let finished = target.state().replica.finished_session();
    if finished != Some(*joined_at) {
        return Err(Status::StaleRouting);
    }
    let note = Note { chain: target.chain, joined_at: *joined_at, unsynced: false };
    if let Err(error) = target.disk.set_note(target.id, &note).await {
        store_failed(node, target, &error);
        return Err(error.status());
    }
    {
        let mut state = target.state();
        if state.replica.finished_session() != Some(*joined_at) {
            // The membership broke while the note was written; what is on disk is complete as of this session all the same.
            warn!(target = %target.id, "the resync was over just as the chain changed");
            return Err(Status::StaleRouting);
        }
        state.unsynced = None;
        if state.synced.replace(*joined_at) != Some(*joined_at) {
            info!(target = %target.id, chain = %target.chain, joined_at = joined_at.0, "resync is complete");
        }
    }
    node.kick_heartbeat();
    Ok(())
}
