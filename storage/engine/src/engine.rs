//! The public face of the chunk store.

use std::future::{Future, poll_fn};
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use catena_buf::{Buf, BufPool, PoolClass};
use catena_proto::ids::{ChannelId, ChunkId, ClientId, DiskId, Tag, TargetId, VersionId};

use crate::core::Core;
use crate::disk::Disk;
use crate::error::{EngineError, Result};
use crate::format::BLOCK_U64;
use crate::format::record::Body;
use crate::index::{Entry, Progress, Target};
use crate::op::{
    At, ChunkInfo, ChunkState, EngineStats, Expect, MAX_TARGET_STATE, Meta, Op, Options, PendingInfo,
    ReadData, ReadRequest, Staged, Superblock, TagEntry,
};
use crate::reserve::{Reservation, admit};
use crate::spool::Spool;
use crate::stage::{Manner, Stage};
use crate::state::State;
use crate::{read, recover};

/// The chunk store of one disk. Clones share it.
#[derive(Clone)]
pub struct Engine {
    core: Arc<Core>,
}

/// A stage under way. It has its place in the chunk's order from the call on; it makes progress when polled, and **must be driven to
/// its end**: dropping it half-way fails the disk, because what it left there is not known.
#[must_use]
pub struct Staging(Pin<Box<dyn Future<Output = Result<Staged>> + Send>>);

impl Future for Staging {
    type Output = Result<Staged>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

fn state_of(target: &Target, chunk: ChunkId) -> ChunkState {
    let pending = target.active.get(&chunk).map_or_else(Vec::new, |active| {
        let pendings = active.pendings.range(active.committed..).filter(|pending| !pending.renews);
        pendings.map(|pending| pending.id).collect()
    });
    ChunkState { committed: target.committed(chunk), pending }
}

impl Engine {
    /// Class of the buffers that reads return.
    pub const READ_CLASS: PoolClass = PoolClass::Local;

    /// Prepares an empty disk. Refuses one that has a superblock.
    pub async fn format(disk: Arc<dyn Disk>, superblock: Superblock) -> Result<()> {
        Self::format_with(disk, superblock, recover::LOG_BYTES).await
    }

    /// [`Engine::format`] with a log of another size than 128 MiB: a multiple of 1 MiB.
    pub async fn format_with(disk: Arc<dyn Disk>, superblock: Superblock, log_bytes: u64) -> Result<()> {
        if log_bytes == 0 || !log_bytes.is_multiple_of(1 << 20) {
            return Err(EngineError::Invalid { what: "log size: not a multiple of 1 MiB" });
        }
        recover::format(&*disk, superblock, log_bytes).await
    }

    /// Whose disk it is, without opening it. `NotFormatted` for an empty one.
    pub async fn identify(disk: &Arc<dyn Disk>) -> Result<Superblock> {
        Ok(recover::identify(&**disk).await?.superblock)
    }

    /// Opens a formatted disk: newest checkpoint, then the log. `pool` gives the buffers that reads return.
    pub async fn open(
        disk: Arc<dyn Disk>,
        expect: Expect,
        pool: BufPool,
        options: Options,
    ) -> Result<Engine> {
        Ok(Engine { core: recover::open(disk, expect, pool, options).await? })
    }

    /// The disk's identity.
    pub fn disk_id(&self) -> DiskId {
        self.core.geometry.superblock.disk
    }

    /// The disk's path, or what else names it in logs.
    pub fn name(&self) -> &str {
        self.core.disk.name()
    }

    // --- targets ---

    /// Makes a target. Durable; nothing if it is there.
    pub async fn create_target(&self, target: TargetId) -> Result<()> {
        self.change(|state| {
            if state.targets.contains_key(&target) {
                return Ok(state.log.last());
            }
            state.targets.insert(target, Target::default());
            Ok(about(state, target, Body::TargetCreate))
        })
        .await
    }

    /// Forgets a target with all its chunks and tags. Durable; nothing if it is not there. No stage of it may be under way.
    pub async fn remove_target(&self, target: TargetId) -> Result<()> {
        self.change(|state| {
            let Some(removed) = state.targets.remove(&target) else { return Ok(state.log.last()) };
            if removed
                .active
                .values()
                .any(|active| active.pendings.iter().any(|one| !is_durable(state, one.progress)))
            {
                state.targets.insert(target, removed);
                return Err(EngineError::Invalid { what: "target: stages are under way" });
            }
            let rsn = about(state, target, Body::TargetRemove);
            state.unapplied.retain(|(of, _)| *of != target);
            state.held.retain(|(of, _)| *of != target);
            let pendings = removed.active.values().flat_map(|active| &active.pendings);
            for run in pendings.filter(|one| one.parts.new_run).filter_map(|one| one.parts.run) {
                state.retire(run);
            }
            removed.chunks.values().filter_map(Entry::run).for_each(|run| state.retire(run));
            Ok(rsn)
        })
        .await
    }

    /// All targets, ascending.
    pub fn targets(&self) -> Vec<TargetId> {
        self.core.state.lock().targets.keys().copied().collect()
    }

    /// The target's opaque state, empty at first.
    pub fn target_state(&self, target: TargetId) -> Result<Vec<u8>> {
        let state = self.core.state.lock();
        state.targets.get(&target).map(|of| of.state.clone()).ok_or(EngineError::NoSuchTarget(target))
    }

    /// Replaces it, durably. At most [`MAX_TARGET_STATE`] bytes.
    pub async fn set_target_state(&self, target: TargetId, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_TARGET_STATE {
            return Err(EngineError::Invalid { what: "target state: over 256 bytes" });
        }
        self.change(|state| {
            let of = state.targets.get_mut(&target).ok_or(EngineError::NoSuchTarget(target))?;
            of.state = bytes.to_vec();
            Ok(about(state, target, Body::TargetState(bytes.to_vec())))
        })
        .await
    }

    /// Changes memory and enqueues the record of it under one lock, then waits until that is durable.
    async fn change(&self, change: impl FnOnce(&mut State) -> Result<u64>) -> Result<()> {
        let rsn = change(&mut *self.core.lock()?)?;
        self.core.durable(rsn).await
    }

    // --- versions ---

    /// Checks an operation and sets space aside for it, before it is forwarded (R8). `NoSpace` keeps the reserve free.
    pub fn admit(&self, target: TargetId, chunk: ChunkId, op: &Op) -> Result<Reservation> {
        admit(&self.core, target, chunk, op)
    }

    /// Stages a version on top of the chunk's last one. Calls for one chunk come in version order; any number may be under way.
    /// Resolves when the version would survive power loss. Without a reservation it may use the reserve.
    pub fn stage(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: VersionId,
        tag: Option<Tag>,
        op: Op,
        reservation: Option<Reservation>,
    ) -> Staging {
        self.begin(target, chunk, version, tag, op, reservation, Manner::Follow)
    }

    /// The first version of a chunk in a resync session (craq's `Stage { rebase: true }`): `op` is a `Replace`, `Spooled` or `Remove`,
    /// and whatever the store has of the chunk is void from now on, equal and higher version numbers included (R16). The chunk has
    /// no pendings.
    pub fn stage_rebase(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: VersionId,
        tag: Option<Tag>,
        op: Op,
    ) -> Staging {
        self.begin(target, chunk, version, tag, op, None, Manner::Rebase)
    }

    /// A base of resync: `op` (a `Replace`, `Spooled` or `Remove`) becomes the chunk's committed version, whatever the store has of it
    /// (R16). The chunk has no pendings. Durable when it resolves.
    pub fn install(&self, target: TargetId, chunk: ChunkId, version: VersionId, op: Op) -> Staging {
        self.begin(target, chunk, version, None, op, None, Manner::Install)
    }

    /// Writes the committed version's contents anew, in another place, because those on the disk are damaged (scrub): `op` is a
    /// `Replace` or `Spooled` with all of them. Durable when it resolves; until then readers find what is there. `NoSuchVersion` if
    /// another version is committed by now, `Busy` while the chunk is being written.
    pub fn renew(&self, target: TargetId, chunk: ChunkId, version: VersionId, op: Op) -> Staging {
        self.begin(target, chunk, version, None, op, None, Manner::Renew)
    }

    #[allow(clippy::too_many_arguments)]
    fn begin(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: VersionId,
        tag: Option<Tag>,
        op: Op,
        reservation: Option<Reservation>,
        manner: Manner,
    ) -> Staging {
        match Stage::begin(&self.core, target, chunk, version, tag, op, reservation, manner) {
            Ok(stage) => Staging(Box::pin(stage.run())),
            Err(error) => Staging(Box::pin(std::future::ready(Err(error)))),
        }
    }

    /// Makes room on the disk for `length` bytes of contents that arrive in parts: for `Op::Spooled`. Given back when dropped.
    pub async fn spool(&self, length: u32) -> Result<Spool> {
        Spool::new(&self.core, length).await
    }

    /// Writes a part of spooled contents. `offset` is a multiple of 4 KiB, and so is the length of all but the last part.
    pub async fn spool_write(&self, spool: &Spool, offset: u32, data: Buf, crcs: &[u32]) -> Result<()> {
        spool.write(offset, data, crcs).await
    }

    /// Commits a durable pending version and all before it; their tags enter the table. In memory, at once; after a crash the
    /// versions are pending or committed. Nothing if it is committed already.
    pub fn commit(&self, target: TargetId, chunk: ChunkId, version: VersionId) -> Result<Meta> {
        let mut state = self.core.lock()?;
        let durable = state.log.durable();
        let of = state.targets.get_mut(&target).ok_or(EngineError::NoSuchTarget(target))?;
        let gone = EngineError::NoSuchVersion { chunk, version };
        let at = of.active.get(&chunk).and_then(|active| {
            active.pendings.iter().position(|one| one.id == version).map(|at| (at, active.committed))
        });
        let Some((at, committed)) = at else {
            // Committed and overtaken, or never here.
            return of.committed(chunk).filter(|meta| meta.version.version >= version.version).ok_or(gone);
        };
        let active = of.active.get_mut(&chunk).ok_or(gone.clone())?;
        if !matches!(active.pendings[at].progress, Progress::Logged(rsn) if rsn <= durable) {
            return Err(gone);
        }
        if at >= committed {
            active.committed = at + 1;
            state.remember(target, chunk, committed, at + 1);
            state.enqueue_about(target, chunk, version, Body::Commit);
            state.log.commits((target, chunk, version));
            self.core.notice(&mut state);
        }
        state.targets.get(&target).and_then(|of| of.committed(chunk)).ok_or(gone)
    }

    /// Drops pending versions from `from` on, with their tags. Durable when it resolves. Waits for their stages under way.
    pub async fn drop_pending(&self, target: TargetId, chunk: ChunkId, from: VersionId) -> Result<()> {
        self.settled(target, Some(chunk)).await?;
        self.change(|state| {
            let of = state.targets.get(&target).ok_or(EngineError::NoSuchTarget(target))?;
            let Some(active) = of.active.get(&chunk) else { return Ok(state.log.last()) };
            if active.pendings.range(..active.committed).any(|one| one.id == from) {
                return Err(EngineError::Invalid { what: "drop: the version is committed" });
            }
            let pending = active.pendings.range(active.committed..);
            let Some(at) = pending.into_iter().position(|one| one.id.version >= from.version) else {
                return Ok(state.log.last());
            };
            let at = at + active.committed;
            let first = active.pendings[at].id;
            let rsn = state.enqueue_about(target, chunk, first, Body::Drop);
            state.drop_from(target, chunk, at);
            Ok(rsn)
        })
        .await
    }

    /// Drops all pending versions of the target with their tags (R14). Durable when it resolves. Waits for their stages under way.
    pub async fn drop_all_pending(&self, target: TargetId) -> Result<()> {
        self.settled(target, None).await?;
        self.change(|state| {
            let of = state.targets.get(&target).ok_or(EngineError::NoSuchTarget(target))?;
            let pending: Vec<(ChunkId, usize, VersionId)> = of
                .active
                .iter()
                .filter_map(|(&chunk, active)| {
                    Some((chunk, active.committed, active.pendings.get(active.committed)?.id))
                })
                .collect();
            if catena_rt::broken("18c a tag outlives its dropped pending") {
                for &(chunk, at, _) in &pending {
                    state.remember(target, chunk, at, at + 1);
                }
            }
            let mut rsn = state.log.last();
            for (chunk, at, first) in pending {
                rsn = state.enqueue_about(target, chunk, first, Body::Drop);
                state.drop_from(target, chunk, at);
            }
            Ok(rsn)
        })
        .await
    }

    /// Forgets a chunk altogether: contents, tombstone, pendings. Durable when it resolves; nothing if it is not there.
    pub async fn forget(&self, target: TargetId, chunk: ChunkId) -> Result<()> {
        self.settled(target, Some(chunk)).await?;
        self.change(|state| {
            let of = state.targets.get(&target).ok_or(EngineError::NoSuchTarget(target))?;
            if !of.chunks.contains_key(&chunk) {
                return Ok(state.log.last());
            }
            let rsn = state.enqueue_about(target, chunk, VersionId::default(), Body::Forget);
            state.forget(target, chunk);
            Ok(rsn)
        })
        .await
    }

    /// Waits until stages of a chunk, or of all, that are under way have ended.
    async fn settled(&self, target: TargetId, chunk: Option<ChunkId>) -> Result<()> {
        poll_fn(|context| {
            let mut state = match self.core.lock() {
                Ok(state) => state,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let durable = state.log.durable();
            let Some(of) = state.targets.get_mut(&target) else {
                return Poll::Ready(Err(EngineError::NoSuchTarget(target)));
            };
            let (mut unlogged, mut undurable) = (false, false);
            for (id, active) in of.active.iter_mut() {
                if chunk.is_some_and(|chunk| chunk != *id) {
                    continue;
                }
                for pending in &active.pendings {
                    match pending.progress {
                        Progress::Logged(rsn) => undurable |= rsn > durable,
                        _ => unlogged = true,
                    }
                }
                if unlogged {
                    active.waiting.push(context.waker().clone());
                    return Poll::Pending;
                }
            }
            if undurable {
                state.log.wait(context.waker());
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// What the index says of a chunk; `None` if it was never here.
    pub fn chunk(&self, target: TargetId, chunk: ChunkId) -> Option<ChunkState> {
        let state = self.core.state.lock();
        let of = state.targets.get(&target)?;
        of.chunks.contains_key(&chunk).then(|| state_of(of, chunk))
    }

    /// Committed version, `None` if there is none: the cheap half of [`Engine::chunk`].
    pub fn committed(&self, target: TargetId, chunk: ChunkId) -> Option<Meta> {
        self.core.state.lock().targets.get(&target)?.committed(chunk)
    }

    /// All durable pending versions of a target, by chunk and order: what craq restores after a restart.
    pub fn pendings(&self, target: TargetId) -> Vec<PendingInfo> {
        let state = self.core.state.lock();
        let Some(of) = state.targets.get(&target) else { return Vec::new() };
        let mut all = Vec::new();
        for (&chunk, active) in &of.active {
            let pendings = active.pendings.range(active.committed..);
            all.extend(pendings.filter(|one| is_durable(&state, one.progress)).map(|one| PendingInfo {
                chunk,
                id: one.id,
                tag: one.tag,
                length: one.parts.length,
            }));
        }
        all
    }

    /// Chunks in order, at most `limit`; a page's last chunk, excluded, begins the next.
    pub fn list(
        &self,
        target: TargetId,
        from: Bound<ChunkId>,
        to: Bound<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>> {
        let state = self.core.state.lock();
        let of = state.targets.get(&target).ok_or(EngineError::NoSuchTarget(target))?;
        if is_empty(from, to) {
            return Ok(Vec::new());
        }
        let page = of.chunks.range((from, to)).take(limit);
        Ok(page
            .map(|(&chunk, entry)| ChunkInfo {
                chunk,
                state: state_of(of, chunk),
                allocated: entry.run().map_or(0, crate::alloc::Run::bytes),
            })
            .collect())
    }

    /// Chunks of a target, tombstones and those that exist only as pendings included.
    pub fn count(&self, target: TargetId) -> Result<usize> {
        let state = self.core.state.lock();
        state.targets.get(&target).map(|of| of.chunks.len()).ok_or(EngineError::NoSuchTarget(target))
    }

    // --- contents ---

    /// Reads into a buffer of class `Local`. Short at the end of the chunk, empty behind it; `NotFound` for an absent or removed one.
    pub async fn read(
        &self,
        target: TargetId,
        chunk: ChunkId,
        at: At,
        offset: u32,
        len: u32,
    ) -> Result<ReadData> {
        let request = ReadRequest { chunk, at, offset, len, verify: false };
        let mut results = read::read_many(&self.core, target, &[request]).await;
        results.pop().unwrap_or_else(|| Err(self.core.lost_buffer()))
    }

    /// Reads many ranges of one target with one trip to the disk. Results in the order of the requests. Those for which there is no
    /// buffer now answer `Busy`.
    pub async fn read_many(&self, target: TargetId, requests: &[ReadRequest]) -> Vec<Result<ReadData>> {
        read::read_many(&self.core, target, requests).await
    }

    /// A pending version's operation, to be sent again: as it was staged, or as a `Replace` of the whole contents.
    pub async fn read_op(&self, target: TargetId, chunk: ChunkId, version: VersionId) -> Result<Op> {
        read::read_op(&self.core, target, chunk, version).await
    }

    /// CRC32C of the committed contents, zero-padded to whole blocks, from the stored block checksums. 0 for an empty one.
    pub async fn checksum(&self, target: TargetId, chunk: ChunkId) -> Result<u32> {
        read::checksum(&self.core, target, chunk).await
    }

    /// Reads all committed contents and checks every block: scrub. Returns the bytes read, `Corrupt` at the first bad block.
    pub async fn verify(&self, target: TargetId, chunk: ChunkId) -> Result<u64> {
        read::verify(&self.core, target, chunk).await
    }

    // --- tags (R21) ---

    /// What the channel last committed on this target.
    pub fn tag(&self, target: TargetId, client: ClientId, channel: ChannelId) -> Option<TagEntry> {
        self.core.state.lock().targets.get(&target)?.tags.get(&(client, channel)).copied()
    }

    /// Tags behind `after`, in order of (client, channel), at most `limit`.
    pub fn tags(
        &self,
        target: TargetId,
        after: Option<(ClientId, ChannelId)>,
        limit: usize,
    ) -> Result<Vec<TagEntry>> {
        let state = self.core.state.lock();
        let of = state.targets.get(&target).ok_or(EngineError::NoSuchTarget(target))?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(of.tags.range((from, Bound::Unbounded)).take(limit).map(|(_, tag)| *tag).collect())
    }

    /// Takes in another replica's tags (resync): per channel the highest sequence stays. Durable.
    pub async fn merge_tags(&self, target: TargetId, tags: &[TagEntry]) -> Result<()> {
        /// In one record.
        const TOGETHER: usize = 512;
        for tags in tags.chunks(TOGETHER) {
            self.change(|state| {
                let of = state.targets.get_mut(&target).ok_or(EngineError::NoSuchTarget(target))?;
                tags.iter().for_each(|&tag| of.remember(tag));
                Ok(about(state, target, Body::Tags(tags.to_vec())))
            })
            .await?;
        }
        Ok(())
    }

    /// Forgets a client whose session is dead. Durable.
    pub async fn forget_client(&self, target: TargetId, client: ClientId) -> Result<()> {
        self.change(|state| {
            let of = state.targets.get_mut(&target).ok_or(EngineError::NoSuchTarget(target))?;
            of.tags.retain(|(owner, _), _| *owner != client);
            Ok(about(state, target, Body::ForgetClient(client)))
        })
        .await
    }

    // --- upkeep ---

    /// Resolves when there is enough to do for [`Engine::maintain`].
    pub async fn maintenance_due(&self) {
        self.core.due().await;
    }

    /// Writes commit marks that nothing else carried, applies committed overwrites in place, writes a checkpoint when one is due.
    pub async fn maintain(&self) -> Result<()> {
        self.core.maintain().await
    }

    /// Counters and gauges.
    pub fn stats(&self) -> EngineStats {
        let state = self.core.state.lock();
        let (counters, allocator) = (&self.core.counters, &state.allocator);
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            capacity: self.core.limit(&state),
            used: (u64::from(allocator.end()) - allocator.free_blocks()) * BLOCK_U64,
            chunks: state.targets.values().map(|of| of.chunks.len() as u64).sum(),
            active: state.targets.values().map(|of| of.active.len() as u64).sum(),
            log_used: state.log.used(),
            log_capacity: state.log.capacity(),
            overlay_bytes: load(&state.overlay_bytes),
            device_written: load(&counters.written),
            device_read: load(&counters.read),
            stages: load(&counters.stages),
            reads: load(&counters.reads),
            log_writes: load(&counters.log_writes),
            checkpoints: load(&counters.checkpoints),
            copied: load(&counters.copied),
            corrupt: load(&counters.corrupt),
        }
    }

    /// Why the disk is out of service, if it is.
    pub fn failure(&self) -> Option<EngineError> {
        self.core.failure(&self.core.state.lock())
    }

    /// Applies, checkpoints, and refuses everything afterwards. A disk that is not closed is recovered when it is opened.
    pub async fn close(&self) -> Result<()> {
        self.core.close().await
    }
}

fn about(state: &mut State, target: TargetId, body: Body) -> u64 {
    state.enqueue_about(target, ChunkId::default(), VersionId::default(), body)
}

fn is_durable(state: &State, progress: Progress) -> bool {
    matches!(progress, Progress::Logged(rsn) if rsn <= state.log.durable())
}

/// Ranges that [`std::collections::BTreeMap::range`] takes for a mistake.
fn is_empty(from: Bound<ChunkId>, to: Bound<ChunkId>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
        _ => false,
    }
}
