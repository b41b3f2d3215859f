//! Work that nobody waits for: commit marks that nothing else carried, overwritten blocks put in place, checkpoints when due.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use catena_proto::checksum::BLOCK;
use catena_proto::ids::{ChainVersion, ChunkId, ChunkVersion, TargetId, VersionId};

use crate::alloc::Run;
use crate::core::{Core, Reading};
use crate::disk::{Batch, File, Io};
use crate::error::Result;
use crate::fetch::writes;
use crate::format::record::Body;
use crate::index::Image;
use crate::state::State;

/// Blocks that are read and written in one round.
const ROUND: usize = 1024;
/// Blocks in one buffer.
const TOGETHER: usize = 256;

/// A block to be put in place.
struct Move {
    target: TargetId,
    chunk: ChunkId,
    run: Run,
    block: u32,
    origin: u64,
    image: Image,
}

impl Move {
    fn place(&self) -> u32 {
        self.run.start + self.block
    }
}

impl Core {
    fn is_due(&self, state: &State) -> bool {
        let overlays = state.overlay_bytes.load(Ordering::Relaxed);
        let unapplied = !state.unapplied.is_empty() && overlays > self.options.overlays as u64 / 4;
        unapplied || state.log.is_long() || state.sums.is_full()
    }

    /// Resolves when there is enough to do.
    pub async fn due(&self) {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if state.failed.is_some() || self.is_due(&state) {
                return Poll::Ready(());
            }
            state.due.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Wakes upkeep if it has something to do. With the lock held, after anything that may have made it so.
    pub fn notice(&self, state: &mut State) {
        if !state.due.is_empty() && self.is_due(state) {
            state.due.drain(..).for_each(std::task::Waker::wake);
        }
    }

    /// One round of all of it.
    pub async fn maintain(self: &Arc<Self>) -> Result<()> {
        let _one = self.upkeep.lock().await;
        self.orphans_ended().await?;
        self.flush().await?;
        self.apply().await?;
        let due = {
            let state = self.lock()?;
            state.log.is_long() || state.sums.is_full()
        };
        if due { self.checkpoint().await } else { Ok(()) }
    }

    /// All of it, and a checkpoint; then nothing more is taken.
    pub async fn close(self: &Arc<Self>) -> Result<()> {
        let _one = self.upkeep.lock().await;
        self.orphans_ended().await?;
        self.flush().await?;
        self.apply().await?;
        self.checkpoint().await?;
        self.flush().await?;
        self.state.lock().failed.get_or_insert_with(|| "it was closed".into());
        Ok(())
    }

    /// Makes room in the log by a checkpoint; when that cannot help, waits for stages under way.
    pub async fn make_log_room(self: &Arc<Self>) -> Result<()> {
        let _one = self.upkeep.lock().await;
        self.orphans_ended().await?;
        let long = {
            let state = self.lock()?;
            state.log.used() > state.log.capacity() / 8
        };
        if long {
            return self.checkpoint().await;
        }
        let mut waited = false;
        poll_fn(|context| {
            let mut state = match self.lock() {
                Ok(state) => state,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if waited || state.log.reserved == 0 {
                return Poll::Ready(Ok(()));
            }
            waited = true;
            state.log.wait(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Puts committed overwritten blocks in place.
    ///
    /// 1. Only blocks of the base: their commit mark is durable, so no crash asks for what they overwrite.
    /// 2. Readers that came before they were visible may be reading what they overwrite: wait until those have left.
    /// 3. Write, then sync: a torn block is whole again after replay, because its record is still in the log.
    /// 4. Only then the record that says so, and from then on the blocks may be appended to in place, and parked runs freed.
    async fn apply(self: &Arc<Self>) -> Result<()> {
        let (mut moves, before, applying) = {
            let mut state = self.lock()?;
            let moves = collect(&mut state);
            if moves.is_empty() {
                return Ok(());
            }
            let before = state.epochs.end();
            // Keeps the runs from being given to others meanwhile.
            let reading = Arc::new(Reading::new(self, state.epochs.enter()));
            let mut chunks: Vec<_> = moves.iter().map(|one| (one.target, one.chunk)).collect();
            chunks.dedup();
            (moves, before, Applying { core: self.clone(), reading, chunks })
        };
        self.epoch_over(before).await?;
        moves.sort_unstable_by_key(Move::place);
        for round in moves.chunks(ROUND) {
            self.put_in_place(round, &applying.reading).await?;
        }
        self.write_batch(Batch { sync: vec![File::Store], ..Batch::default() }).await?;
        let mut state = self.lock()?;
        moves.sort_unstable_by_key(|one| (one.target, one.chunk, one.block));
        for of_chunk in moves.chunk_by(|a, b| (a.target, a.chunk) == (b.target, b.chunk)) {
            settle(&mut state, of_chunk);
        }
        drop(state);
        applying.ended();
        Ok(())
    }

    async fn put_in_place(&self, moves: &[Move], reading: &Arc<Reading>) -> Result<()> {
        // Blocks that lie together travel together.
        let mut groups: Vec<&[Move]> = Vec::new();
        for together in moves.chunk_by(|a, b| a.place() + 1 == b.place()) {
            groups.extend(together.chunks(TOGETHER));
        }
        let (mut bufs, mut reads) = (Vec::with_capacity(groups.len()), Vec::new());
        for group in &groups {
            let mut buf = self.work_buf(group.len() * BLOCK).await?;
            for (at, (one, bytes)) in group.iter().zip(buf.chunks_exact_mut(BLOCK)).enumerate() {
                match &one.image {
                    Image::Memory(block) => bytes.copy_from_slice(&block.bytes[..]),
                    Image::Parked(block, _) => reads.push(Io::Read {
                        file: File::Store,
                        offset: self.place(*block),
                        buf: bufs.len(),
                        at: at * BLOCK,
                        len: BLOCK,
                    }),
                }
            }
            bufs.push(buf);
        }
        if !reads.is_empty() {
            bufs = self.read_batch(Batch { bufs, ios: merge(reads), sync: Vec::new() }).await?;
        }
        let mut ios = Vec::with_capacity(groups.len());
        for (group, buf) in groups.iter().zip(bufs) {
            ios.extend(writes(self, group[0].place(), vec![buf.freeze()]));
        }
        let batch = Batch { bufs: Vec::new(), ios, sync: Vec::new() };
        self.write_keeping(batch, || Some(Box::new(reading.clone()))).await
    }
}

/// Blocks on their way to their places. Dropped before the end, they are to be applied once more.
struct Applying {
    core: Arc<Core>,
    reading: Arc<Reading>,
    chunks: Vec<(TargetId, ChunkId)>,
}

impl Applying {
    fn ended(mut self) {
        self.chunks.clear();
    }
}

impl Drop for Applying {
    fn drop(&mut self) {
        if !self.chunks.is_empty() {
            self.core.state.lock().unapplied.extend(self.chunks.drain(..));
        }
    }
}

/// Reads that continue each other become one.
fn merge(reads: Vec<Io>) -> Vec<Io> {
    let mut merged: Vec<Io> = Vec::with_capacity(reads.len());
    for read in reads {
        if let (
            Some(Io::Read { offset: o, buf: b, at: a, len: l, .. }),
            Io::Read { offset, buf, at, len, .. },
        ) = (merged.last_mut(), &read)
            && (*b, *o + *l as u64, *a + *l) == (*buf, *offset, *at)
        {
            *l += len;
            continue;
        }
        merged.push(read);
    }
    merged
}

fn collect(state: &mut State) -> Vec<Move> {
    let mut moves = Vec::new();
    for (target_id, chunk) in std::mem::take(&mut state.unapplied) {
        let Some(target) = state.targets.get(&target_id) else { continue };
        let (Some(entry), Some(active)) = (target.chunks.get(&chunk), target.active.get(&chunk)) else {
            continue;
        };
        let Some(run) = entry.run() else { continue };
        moves.extend(active.overlays.iter().map(|(&block, overlay)| Move {
            target: target_id,
            chunk,
            run,
            block,
            origin: overlay.origin,
            image: overlay.image.clone(),
        }));
    }
    moves
}

/// What was put in place is no longer beside it.
fn settle(state: &mut State, moves: &[Move]) {
    let (target_id, chunk, run) = (moves[0].target, moves[0].chunk, moves[0].run);
    let State { targets, sums, .. } = state;
    let Some(target) = targets.get_mut(&target_id) else { return };
    let (Some(entry), Some(active)) = (target.chunks.get(&chunk), target.active.get_mut(&chunk)) else {
        return;
    };
    if entry.run() != Some(run) {
        // It was replaced meanwhile; what is there now was collected for the next round by the fold that brought it.
        return;
    }
    let mut newest = 0;
    for one in moves {
        newest = newest.max(one.origin);
        if let Some(overlay) = active.overlays.get(&one.block).filter(|overlay| overlay.origin == one.origin)
        {
            sums.put(run.start + one.block, &[overlay.crc]);
            active.overlays.remove(&one.block);
        }
    }
    let left = !active.overlays.is_empty();
    let version = VersionId { version: ChunkVersion(newest), assigned: ChainVersion(0) };
    state.enqueue_about(target_id, chunk, version, Body::Applied);
    if left {
        state.unapplied.insert((target_id, chunk));
    }
    state.tidy(target_id, chunk);
}
