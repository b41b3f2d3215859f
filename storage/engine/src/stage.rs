//! Staging: a version's way from its place in the order to a durable log record.
//!
//! 1. *Queued*: it has its place among the chunk's pendings from the call on.
//! 2. *Planned*: in order, one at a time: where its bytes go, with what of the old contents its edges have to be put together. From here
//!    on the next version can plan on top of it.
//! 3. *Written*: its data is with the device (not yet synced). Versions that share no block are written side by side.
//! 4. *Logged*: its record is in the log's queue, again in order.
//! 5. Durable: one sync for the record, its data, and everybody else's.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use catena_proto::checksum::BLOCK;
use catena_proto::ids::{ChunkId, Tag, TargetId, VersionId};

use crate::content::{Content, Edges, build_edges, emit};
use crate::core::{Core, MustEnd, count};
use crate::disk::{Batch, Io};
use crate::error::{EngineError, Result};
use crate::fetch::{Fetch, writes};
use crate::format::record::{OpKind, stage_size};
use crate::format::{BLOCK_U32, blocks};
use crate::index::{Block, Entry, Image, Overlay, Parked, Parts, Pending, Progress};
use crate::op::{Op, Staged};
use crate::plan::{LOGGED, Plan, RunPlan, Shape, plan};
use crate::reserve::Reservation;
use crate::state::State;
use crate::view::View;

/// Blocks that are copied at once when a chunk moves.
const COPY: u32 = 256;

/// How a version relates to what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// It follows the last version.
    Follow,
    /// What was before is void.
    Rebase,
    /// So is it here, and the version is committed at once.
    Install,
    /// It is the committed version itself with the same contents, written anew because those on the disk are damaged. Until it is
    /// durable, readers get what is there.
    Renew,
}

/// A version that has its place.
pub struct Stage {
    core: Arc<Core>,
    target: TargetId,
    chunk: ChunkId,
    id: VersionId,
    ticket: u64,
    shape: Shape,
    op: Op,
    reservation: Option<Reservation>,
}

fn kind(op: &Op) -> OpKind {
    match op {
        Op::Write { offset, data, .. } => OpKind::Write { offset: *offset, len: data.len() as u32 },
        Op::Truncate { .. } => OpKind::Truncate,
        Op::Extend { length } => OpKind::Extend { length: *length },
        Op::Remove => OpKind::Remove,
        Op::Replace { .. } | Op::Spooled(_) => OpKind::Replace,
    }
}

impl Stage {
    /// Takes the version's place in the order.
    #[allow(clippy::too_many_arguments)]
    pub fn begin(
        core: &Arc<Core>,
        target_id: TargetId,
        chunk: ChunkId,
        id: VersionId,
        tag: Option<Tag>,
        op: Op,
        reservation: Option<Reservation>,
        manner: Manner,
    ) -> Result<Stage> {
        let shape = Shape::of(&op)?;
        if id.version.0 == 0 {
            return Err(EngineError::Invalid { what: "version: 0 is \"never written\"" });
        }
        let mut state = core.lock()?;
        let ticket = state.tickets + 1;
        let target = state.targets.get_mut(&target_id).ok_or(EngineError::NoSuchTarget(target_id))?;
        let last = match target.active.get(&chunk).and_then(|active| active.pendings.back()) {
            Some(last) => last.id,
            None => target.chunks.get(&chunk).map_or(VersionId::default(), |entry| entry.version),
        };
        if manner == Manner::Follow {
            if id.version.0 != last.version.0 + 1 {
                return Err(EngineError::Gap { chunk, last, got: id });
            }
        } else if manner == Manner::Renew {
            // With nothing staged or unmarked on the chunk, the base is what is committed.
            if target.active.get(&chunk).is_some_and(|active| !active.pendings.is_empty()) {
                return Err(EngineError::Busy { what: "the chunk is being written" });
            }
            let base = target.chunks.get(&chunk).and_then(Entry::meta);
            let base = base.filter(|base| base.version == id && !base.tombstone);
            let base = base.ok_or(EngineError::NoSuchVersion { chunk, version: id })?;
            if !matches!(shape, Shape::Replace(length, given) if length == base.length && given == length) {
                return Err(EngineError::Invalid { what: "renewal: not the whole contents of the version" });
            }
        } else {
            if !matches!(shape, Shape::Replace(..) | Shape::Remove) {
                return Err(EngineError::Invalid { what: "base: neither whole contents nor a removal" });
            }
            if target.active.get(&chunk).is_some_and(|active| active.pendings.len() > active.committed) {
                return Err(EngineError::Invalid { what: "base: the chunk has pending versions" });
            }
        }
        target.chunks.entry(chunk).or_insert_with(Entry::default);
        target.active.entry(chunk).or_default().pendings.push_back(Pending {
            id,
            tag,
            op: kind(&op),
            rebase: manner != Manner::Follow,
            renews: manner == Manner::Renew,
            committed: matches!(manner, Manner::Install | Manner::Renew),
            progress: Progress::Queued,
            ticket,
            parts: Parts::default(),
        });
        state.tickets = ticket;
        drop(state);
        Ok(Stage { core: core.clone(), target: target_id, chunk, id, ticket, shape, op, reservation })
    }

    /// Goes the whole way.
    pub async fn run(mut self) -> Result<Staged> {
        let must_end = MustEnd::new(&self.core, "a stage");
        let result = self.steps().await;
        if result.is_err() {
            self.give_up();
        }
        must_end.ended();
        result
    }

    async fn steps(&mut self) -> Result<Staged> {
        self.until(|at, active| active.pendings.range(..at).all(|one| one.progress >= Progress::Planned))
            .await?;
        let room = self.keep_log_room().await?;
        let (writes, length) = self.plan().await?;
        self.reservation = None;
        if !writes.is_empty() {
            self.core.write_batch(Batch { bufs: Vec::new(), ios: writes, sync: Vec::new() }).await?;
        }
        {
            let mut state = self.core.lock()?;
            self.progress(&mut state, Progress::Written)?;
            state.enqueue_written(self.target, self.chunk);
        }
        let rsn = self
            .until(|at, active| match active.pendings[at].progress {
                Progress::Logged(rsn) => Some(rsn),
                _ => None,
            })
            .await?;
        // What is in the queue counts by itself.
        drop(room);
        self.core.durable(rsn).await?;
        count(&self.core.counters.stages, 1);
        Ok(Staged { length })
    }

    /// Waits until the chunk's pendings, of which this is the `at`-th, give an answer.
    async fn until<T: Answer>(
        &self,
        mut look: impl FnMut(usize, &crate::index::Active) -> T,
    ) -> Result<T::Value> {
        poll_fn(|context| {
            let mut state = match self.core.lock() {
                Ok(state) => state,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let Some((at, active)) = state.pending_mut(self.target, self.chunk, self.ticket) else {
                return Poll::Ready(Err(self.gone()));
            };
            match look(at, active).value() {
                Some(value) => Poll::Ready(Ok(value)),
                None => {
                    active.waiting.push(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// An earlier version failed, and this one with it.
    fn gone(&self) -> EngineError {
        EngineError::NoSuchVersion { chunk: self.chunk, version: self.id }
    }

    fn progress(&self, state: &mut State, progress: Progress) -> Result<()> {
        let (at, active) =
            state.pending_mut(self.target, self.chunk, self.ticket).ok_or_else(|| self.gone())?;
        active.pendings[at].progress = progress;
        active.wake();
        Ok(())
    }

    /// Nothing of it reached the log: it and what was staged on top of it leave the order. (After a failed write nothing matters.)
    fn give_up(&self) {
        let Ok(mut state) = self.core.lock() else { return };
        if let Some((at, _)) = state.pending_mut(self.target, self.chunk, self.ticket) {
            state.drop_from(self.target, self.chunk, at);
        }
    }

    /// The version's place among the pendings: what it is staged on.
    fn upto(&self) -> impl Fn(&State) -> Result<usize> + use<> {
        let (target, chunk, ticket, id) = (self.target, self.chunk, self.ticket, self.id);
        move |state: &State| {
            let active = state.targets.get(&target).and_then(|target| target.active.get(&chunk));
            active
                .and_then(|active| active.pendings.iter().position(|one| one.ticket == ticket))
                .ok_or(EngineError::NoSuchVersion { chunk, version: id })
        }
    }

    /// Keeps room in the log; when there is none, does the upkeep that makes some.
    async fn keep_log_room(&self) -> Result<LogRoom> {
        let images = if matches!(self.shape, Shape::Write { .. }) { LOGGED as usize } else { 0 };
        let crcs = match self.shape {
            Shape::Write { end, .. } => end,
            Shape::Replace(_, given) => given,
            _ => 0,
        };
        loop {
            {
                let mut state = self.core.lock()?;
                let written = state.chunk(self.target, self.chunk).map_or(0, |(entry, active)| {
                    View::new(entry, active, (self.upto())(&state).unwrap_or(0)).written()
                });
                let bytes = stage_size(blocks(crcs.max(written)) as usize, images, images);
                if state.log.has_room(bytes) {
                    state.log.reserved += bytes;
                    return Ok(LogRoom { core: self.core.clone(), bytes });
                }
            }
            self.core.make_log_room().await?;
        }
    }

    /// Plans, and gets together what has to be written. Afterwards the next version may plan.
    async fn plan(&mut self) -> Result<(Vec<Io>, u32)> {
        let (plan, before) = {
            let state = self.core.lock()?;
            let upto = (self.upto())(&state)?;
            let (entry, active) =
                state.chunk(self.target, self.chunk).ok_or(EngineError::NotFound(self.chunk))?;
            let view = View::new(entry, active, upto);
            (plan(&view, self.shape), view.written())
        };
        let op = std::mem::replace(&mut self.op, Op::Remove);
        let mut parts = Parts {
            length: plan.length,
            written: plan.written,
            tombstone: plan.tombstone,
            place_first: plan.place.start,
            over_first: plan.over.start,
            ..Parts::default()
        };
        let ios = match op {
            Op::Truncate { .. } => {
                parts.run = kept(&plan);
                parts.resum = self.cut(&plan).await?;
                Vec::new()
            }
            Op::Extend { .. } => {
                parts.run = kept(&plan);
                Vec::new()
            }
            Op::Remove => Vec::new(),
            Op::Spooled(spool) => {
                (parts.run, parts.place) = spool.take()?;
                parts.new_run = parts.run.is_some();
                Vec::new()
            }
            Op::Write { offset, data, crcs, .. } => {
                let content = Content::new(offset, vec![data], crcs);
                self.fill(&plan, content, offset.min(before), before, &mut parts).await?
            }
            Op::Replace { data, crcs, .. } => {
                let content = Content::new(0, data, crcs);
                self.fill(&plan, content, 0, 0, &mut parts).await?
            }
        };
        let length = parts.length;
        let mut state = self.core.lock()?;
        let Some((at, active)) = state.pending_mut(self.target, self.chunk, self.ticket) else {
            if let (true, Some(run)) = (parts.new_run, parts.run) {
                state.retire(run);
            }
            return Err(self.gone());
        };
        active.pendings[at].parts = parts;
        active.pendings[at].progress = Progress::Planned;
        active.wake();
        Ok((ios, length))
    }

    /// Waits until what earlier pendings write is with the device: it is going to be read, or written again.
    async fn earlier_written(&self) -> Result<()> {
        self.until(|at, active| active.pendings.range(..at).all(|one| one.progress >= Progress::Written))
            .await
    }

    /// New checksum of the block that a truncation cuts.
    async fn cut(&self, plan: &Plan) -> Result<Option<(u32, u32)>> {
        let Some(block) = plan.resum else { return Ok(None) };
        self.earlier_written().await?;
        let (_, mut bytes) = self.old_block(block).await?;
        bytes[(plan.written % BLOCK_U32) as usize..].fill(0);
        Ok(Some((block, catena_proto::checksum::crc32c(&bytes[..BLOCK]))))
    }

    /// One block of the old contents, checked: a bad block must not get a good checksum by being written again.
    async fn old_block(&self, block: u32) -> Result<(Fetch, catena_buf::IoBuf)> {
        let fetch = self.core.fetch(self.target, self.chunk, self.upto(), block..block + 1).await?;
        let bytes = self.core.read_fetched(&fetch).await?;
        match fetch.damaged(&bytes, 0..1) {
            Some(block) => Err(self.core.corrupt(self.target, self.chunk, block)),
            None => Ok((fetch, bytes)),
        }
    }

    /// Everything from byte `start` to the end of `content`, over `before` written bytes.
    async fn fill(
        &self,
        plan: &Plan,
        mut content: Content,
        start: u32,
        before: u32,
        parts: &mut Parts,
    ) -> Result<Vec<Io>> {
        let core = &self.core;
        // A new run takes nothing of the gap for granted: all of it is written.
        let edges = content.edges(start);
        if edges.iter().any(|&block| content.leaves_old(block, before))
            || plan.copy.iter().any(|range| !range.is_empty())
        {
            self.earlier_written().await?;
        }
        let misplaced = content.is_misplaced();
        let _copying = if misplaced { Some(core.copying.lock().await) } else { None };
        let mut old = Vec::new();
        for &block in edges.iter().filter(|&&block| content.leaves_old(block, before)) {
            old.push(self.old_block(block).await?);
        }
        let edges = build_edges(core, &content, &edges, &old).await?;
        drop(old);
        let mut ios = Vec::new();
        match plan.run {
            RunPlan::None => {}
            RunPlan::Keep(run) => parts.run = Some(run),
            RunPlan::New(order, least) => {
                parts.run = Some(core.take_run(order, least).await?);
                parts.new_run = true;
            }
        }
        let result = self.fill_run(plan, &mut content, &edges, parts, &mut ios).await;
        if let (Err(_), true, Some(run)) = (&result, parts.new_run, parts.run)
            && let Ok(mut state) = core.lock()
        {
            state.retire(run);
        }
        result.map(|()| ios)
    }

    async fn fill_run(
        &self,
        plan: &Plan,
        content: &mut Content,
        edges: &Edges,
        parts: &mut Parts,
        ios: &mut Vec<Io>,
    ) -> Result<()> {
        let core = &self.core;
        let [below, above] = plan.copy.clone();
        if let Some(run) = parts.run {
            let middle = if parts.new_run { below.end.max(plan.place.start) } else { plan.place.start };
            let end = if above.is_empty() { plan.place.end } else { above.start };
            // Logged images are copied into the record anyway: only what goes to the disk has to lie right.
            if content.is_misplaced() && (middle < end || plan.park.is_some()) {
                content.put_in_place(core).await?;
            }
            parts.place = self.copy(below, run.start).await?;
            let (data, crcs) = emit(core, content, edges, middle..end);
            ios.extend(writes(core, run.start + middle, data));
            parts.place.extend(crcs);
            parts.place.extend(self.copy(above, run.start).await?);
        }
        if plan.over.is_empty() {
            return Ok(());
        }
        let (data, crcs) = emit(core, content, edges, plan.over.clone());
        let origin = self.id.version.0;
        match plan.park {
            Some(order) => {
                let run = core.take_run(order, order).await?;
                ios.extend(writes(core, run.start, data));
                let parked = Arc::new(Parked { run, inbox: core.state.lock().inbox.clone() });
                let images = (run.start..).map(|block| Image::Parked(block, parked.clone()));
                parts.over = images.zip(crcs).map(|(image, crc)| Overlay { image, crc, origin }).collect();
            }
            None => {
                let gauge = core.state.lock().overlay_bytes.clone();
                let bytes = data.iter().flat_map(|part| part.chunks_exact(BLOCK));
                parts.over = bytes
                    .zip(crcs)
                    .map(|(bytes, crc)| {
                        let mut block = Box::new([0; BLOCK]);
                        block.copy_from_slice(bytes);
                        Overlay { image: Image::Memory(Block::new(block, &gauge)), crc, origin }
                    })
                    .collect();
            }
        }
        Ok(())
    }

    /// Copies blocks of the old contents to the same places of a new run. Their checksums go with them unchecked.
    async fn copy(&self, range: std::ops::Range<u32>, run_start: u32) -> Result<Vec<u32>> {
        let mut crcs = Vec::with_capacity(range.len());
        for first in range.clone().step_by(COPY as usize) {
            let part = first..range.end.min(first + COPY);
            let fetch = self.core.fetch(self.target, self.chunk, self.upto(), part).await?;
            let bytes = self.core.read_fetched(&fetch).await?;
            crcs.extend_from_slice(&fetch.crcs);
            let ios = writes(&self.core, run_start + first, vec![bytes.freeze()]);
            self.core.write_batch(Batch { bufs: Vec::new(), ios, sync: Vec::new() }).await?;
        }
        Ok(crcs)
    }
}

fn kept(plan: &Plan) -> Option<crate::alloc::Run> {
    match plan.run {
        RunPlan::Keep(run) => Some(run),
        _ => None,
    }
}

/// What [`Stage::until`] may be given: yes or no, or a value or none yet.
trait Answer {
    type Value;
    fn value(self) -> Option<Self::Value>;
}

impl Answer for bool {
    type Value = ();
    fn value(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Value = T;
    fn value(self) -> Option<T> {
        self
    }
}

/// Log bytes kept for a stage under way.
struct LogRoom {
    core: Arc<Core>,
    bytes: usize,
}

impl Drop for LogRoom {
    fn drop(&mut self) {
        let mut state = self.core.state.lock();
        state.log.reserved -= self.bytes;
        state.log.wake();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A stage that was never polled holds its place for nothing: what came after it waits in vain.
        if let Ok(mut state) = self.core.lock()
            && let Some((at, active)) = state.pending_mut(self.target, self.chunk, self.ticket)
            && active.pendings[at].progress == Progress::Queued
        {
            state.drop_from(self.target, self.chunk, at);
        }
    }
}
