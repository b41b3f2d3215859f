//! Everything in memory, behind one lock that is never held across an await: index, free space, checksums, the log's queue.
//!
//! One lock, because one order matters everywhere: the order in which records enter the log is the order in which memory changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Waker;

use catena_proto::ids::{ChunkId, TargetId, VersionId};

use crate::alloc::{Allocator, Run};
use crate::epoch::Epochs;
use crate::format::record::{Body, ImagesRef, Record, Stage, put, put_stage};
use crate::format::superblock::Geometry;
use crate::index::{Active, Entry, Hold, Image, Parts, Pending, Progress, Target};
use crate::log::Log;
use crate::op::{Options, TagEntry};
use crate::sums::Sums;
use crate::view::View;

/// A run that was given up.
#[derive(Debug)]
struct Limbo {
    run: Run,
    /// The record that gave it up is at or before this one.
    rsn: u64,
    /// Readers of this epoch may still be in it.
    epoch: u64,
}

pub struct State {
    pub failed: Option<Arc<str>>,
    pub targets: BTreeMap<TargetId, Target>,
    pub allocator: Allocator,
    /// In the order of both `rsn` and `epoch`.
    limbo: VecDeque<Limbo>,
    /// Runs of things that were dropped: spools and parked blocks.
    pub inbox: Arc<parking_lot::Mutex<Vec<Run>>>,
    pub epochs: Epochs,
    pub sums: Sums,
    pub log: Log,
    /// Bytes of overwritten blocks in memory.
    pub overlay_bytes: Arc<AtomicU64>,
    /// Chunks whose base has blocks that are not in place.
    pub unapplied: BTreeSet<(TargetId, ChunkId)>,
    /// Chunks with a [`Hold`].
    pub held: BTreeSet<(TargetId, ChunkId)>,
    /// Bytes promised to reservations.
    pub reserved: u64,
    pub tickets: u64,
    /// Number of the newest checkpoint.
    pub checkpoint: u64,
    /// Futures that wait for something to do.
    pub due: Vec<Waker>,
}

impl State {
    pub fn new(geometry: &Geometry, options: &Options) -> State {
        State {
            failed: None,
            targets: BTreeMap::new(),
            allocator: Allocator::default(),
            limbo: VecDeque::new(),
            inbox: Arc::default(),
            epochs: Epochs::default(),
            sums: Sums::new(options.sums_cache),
            log: Log::new(geometry),
            overlay_bytes: Arc::default(),
            unapplied: BTreeSet::new(),
            held: BTreeSet::new(),
            reserved: 0,
            tickets: 0,
            checkpoint: 0,
            due: Vec::new(),
        }
    }

    /// What replay gave up is free already, and nobody was reading.
    pub fn after_replay(&mut self) {
        self.limbo.clear();
        self.inbox.lock().clear();
        for (target, chunk) in std::mem::take(&mut self.held) {
            if let Some(active) =
                self.targets.get_mut(&target).and_then(|target| target.active.get_mut(&chunk))
            {
                active.hold = None;
            }
            self.tidy(target, chunk);
        }
    }

    // --- the log's queue ---

    pub fn enqueue(&mut self, record: &Record) -> u64 {
        let rsn = self.log.begin();
        put(self.log.bytes(), record);
        rsn
    }

    pub fn enqueue_about(&mut self, target: TargetId, chunk: ChunkId, version: VersionId, body: Body) -> u64 {
        self.enqueue(&Record { target, chunk, version, body })
    }

    /// Hands every pending whose turn has come to the log, in the order of the versions.
    pub fn enqueue_written(&mut self, target: TargetId, chunk: ChunkId) {
        let Some(active) = self.targets.get_mut(&target).and_then(|target| target.active.get_mut(&chunk))
        else {
            return;
        };
        for pending in active.pendings.iter_mut() {
            match pending.progress {
                Progress::Logged(_) => continue,
                Progress::Written => {}
                _ => break,
            }
            let rsn = self.log.begin();
            put_pending(self.log.bytes(), target, chunk, pending);
            if pending.committed {
                self.log.commits((target, chunk, pending.id));
            }
            pending.progress = Progress::Logged(rsn);
        }
        active.wake();
    }

    // --- free space ---

    /// Gives a run up. It is free once the last record of this moment is durable and every reader of this moment has left.
    pub fn retire(&mut self, run: Run) {
        let (rsn, epoch) = (self.log.last(), self.epochs.end());
        self.limbo.push_back(Limbo { run, rsn, epoch });
    }

    /// Frees what may be freed, and returns whether something is still waiting.
    pub fn settle(&mut self) -> bool {
        let dropped = std::mem::take(&mut *self.inbox.lock());
        dropped.into_iter().for_each(|run| self.retire(run));
        while let Some(limbo) = self.limbo.front()
            && limbo.rsn <= self.log.durable()
            && self.epochs.is_over(limbo.epoch)
        {
            self.allocator.give(limbo.run);
            self.limbo.pop_front();
        }
        !self.limbo.is_empty()
    }

    pub fn limbo_blocks(&self) -> u64 {
        self.limbo.iter().map(|limbo| u64::from(limbo.run.blocks())).sum()
    }
    pub fn limbo_epoch(&self) -> Option<u64> {
        self.limbo.back().map(|limbo| limbo.epoch)
    }

    // --- chunks ---

    /// A chunk's entry and what is under way on it.
    pub fn chunk(&self, target: TargetId, chunk: ChunkId) -> Option<(&Entry, Option<&Active>)> {
        let target = self.targets.get(&target)?;
        Some((target.chunks.get(&chunk)?, target.active.get(&chunk)))
    }

    pub fn pending_mut(
        &mut self,
        target: TargetId,
        chunk: ChunkId,
        ticket: u64,
    ) -> Option<(usize, &mut Active)> {
        let active = self.targets.get_mut(&target)?.active.get_mut(&chunk)?;
        let at = active.pendings.iter().position(|pending| pending.ticket == ticket)?;
        Some((at, active))
    }

    /// Makes committed pendings up to `id` the base: their mark is durable.
    pub fn fold(&mut self, target_id: TargetId, chunk: ChunkId, id: VersionId) {
        let Some(target) = self.targets.get_mut(&target_id) else { return };
        let (Some(entry), Some(active)) = (target.chunks.get_mut(&chunk), target.active.get_mut(&chunk))
        else {
            return;
        };
        let Some(last) = active.pendings.iter().position(|pending| pending.id == id) else { return };
        let before = View::new(entry, Some(active), active.pendings.len());
        let (run_before, floor_before) = (before.run(), before.floor());
        let mut retired = Vec::new();
        for pending in active.pendings.drain(..=last) {
            fold_one(entry, &mut active.overlays, &mut self.sums, pending, &mut retired);
        }
        active.committed = active.committed.saturating_sub(last + 1);
        let after = View::new(entry, Some(active), active.pendings.len());
        let lowered = after.run() == run_before && after.floor() < floor_before;
        if lowered {
            // Readers of what was cut may still be reading there: nothing is written there in place until they have left.
            let hold = Hold { below: floor_before, rsn: self.log.last(), epoch: self.epochs.end() };
            active.hold = Some(hold);
            self.held.insert((target_id, chunk));
        }
        if !active.overlays.is_empty() {
            self.unapplied.insert((target_id, chunk));
        }
        active.wake();
        retired.into_iter().for_each(|run| self.retire(run));
        self.tidy(target_id, chunk);
    }

    /// Removes pendings from position `at` on. The record that says so is enqueued already.
    pub fn drop_from(&mut self, target_id: TargetId, chunk: ChunkId, at: usize) {
        let Some(target) = self.targets.get_mut(&target_id) else { return };
        let (Some(entry), Some(active)) = (target.chunks.get(&chunk), target.active.get_mut(&chunk)) else {
            return;
        };
        let dropped = active.pendings.split_off(at);
        active.committed = active.committed.min(at);
        let run = View::new(entry, Some(active), at).run();
        // Until the log says that they are gone, a crash brings them back, and they need their bytes; so do their readers.
        let in_run = dropped.iter().filter(|pending| run.is_some() && pending.parts.run == run);
        if let Some(below) = in_run.map(|pending| pending.parts.written).max() {
            let below = below.max(active.hold.map_or(0, |hold| hold.below));
            active.hold = Some(Hold { below, rsn: self.log.last(), epoch: self.epochs.end() });
            self.held.insert((target_id, chunk));
        }
        active.wake();
        for pending in &dropped {
            if let (true, Some(run)) = (pending.parts.new_run, pending.parts.run) {
                self.retire(run);
            }
        }
        drop(dropped);
        self.tidy(target_id, chunk);
    }

    /// Removes a chunk altogether. The record that says so is enqueued already.
    pub fn forget(&mut self, target_id: TargetId, chunk: ChunkId) {
        self.drop_from(target_id, chunk, 0);
        let Some(target) = self.targets.get_mut(&target_id) else { return };
        let entry = target.chunks.remove(&chunk);
        target.active.remove(&chunk);
        self.unapplied.remove(&(target_id, chunk));
        self.held.remove(&(target_id, chunk));
        if let Some(run) = entry.and_then(|entry| entry.run()) {
            self.retire(run);
        }
    }

    /// Lets go of holds whose time has come.
    pub fn release_holds(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let durable = self.log.durable();
        let mut released = Vec::new();
        for &(target, chunk) in &self.held {
            let active = self.targets.get_mut(&target).and_then(|target| target.active.get_mut(&chunk));
            match active {
                Some(active) => {
                    let over = |hold: &mut Hold| hold.rsn <= durable && self.epochs.is_over(hold.epoch);
                    if active.hold.as_mut().is_none_or(over) {
                        active.hold = None;
                        released.push((target, chunk));
                    }
                }
                None => released.push((target, chunk)),
            }
        }
        for (target, chunk) in released {
            self.held.remove(&(target, chunk));
            self.tidy(target, chunk);
        }
    }

    /// Forgets that something was under way when nothing is, and a chunk that was only ever pending.
    pub fn tidy(&mut self, target: TargetId, chunk: ChunkId) {
        let Some(target) = self.targets.get_mut(&target) else { return };
        let Some(active) = target.active.get(&chunk) else { return };
        if active.is_idle() {
            target.active.remove(&chunk);
            if target.chunks.get(&chunk).is_some_and(|entry| !entry.exists()) {
                target.chunks.remove(&chunk);
            }
        }
    }

    /// A committed version's tag enters the table.
    pub fn remember(&mut self, target: TargetId, chunk: ChunkId, from: usize, to: usize) {
        let Some(target) = self.targets.get_mut(&target) else { return };
        let Some(active) = target.active.get(&chunk) else { return };
        let tags: Vec<TagEntry> =
            active.pendings.range(from..to).filter_map(|one| tag_entry(chunk, one)).collect();
        tags.into_iter().for_each(|tag| target.remember(tag));
    }
}

fn tag_entry(chunk: ChunkId, pending: &Pending) -> Option<TagEntry> {
    let tag = pending.tag?;
    Some(TagEntry {
        client: tag.client,
        channel: tag.channel,
        sequence: tag.sequence,
        chunk,
        version: pending.id,
        length: pending.parts.length,
    })
}

fn fold_one(
    entry: &mut Entry,
    overlays: &mut BTreeMap<u32, crate::index::Overlay>,
    sums: &mut Sums,
    pending: Pending,
    retired: &mut Vec<Run>,
) {
    let Pending { id, parts, .. } = pending;
    let Parts { length, written, run, new_run, tombstone, place_first, place, over_first, over, resum } =
        parts;
    if new_run || run.is_none() {
        retired.extend(entry.run());
        overlays.clear();
    }
    if let Some(run) = run {
        sums.put(run.start + place_first, &place);
        for (block, overlay) in (over_first..).zip(over) {
            overlays.insert(block, overlay);
        }
        if let Some((block, crc)) = resum {
            match overlays.get_mut(&block) {
                Some(overlay) => overlay.crc = crc,
                None => sums.put(run.start + block, &[crc]),
            }
        }
        // Blocks behind the end are nobody's.
        overlays.retain(|&block, _| block < crate::format::blocks(written));
    }
    *entry = Entry::new(id, length, written, run, tombstone);
}

/// Appends a pending's record.
pub fn put_pending(out: &mut Vec<u8>, target: TargetId, chunk: ChunkId, pending: &Pending) {
    let parts = &pending.parts;
    let stage = Stage {
        op: pending.op,
        tag: pending.tag,
        length: parts.length,
        written: parts.written,
        run: parts.run,
        new_run: parts.new_run,
        rebase: pending.rebase,
        committed: pending.committed,
        place_first: parts.place_first,
        place: parts.place.clone(),
        over_first: parts.over_first,
        over: parts.over.iter().map(|overlay| overlay.crc).collect(),
        images: crate::format::record::Images::Here(Vec::new()),
        resum: parts.resum,
    };
    match parts.over.first().map(|overlay| &overlay.image) {
        Some(Image::Parked(_, parked)) => {
            put_stage(out, target, chunk, pending.id, &stage, ImagesRef::Parked(parked.run));
        }
        _ => {
            let mut images = parts.over.iter().filter_map(|overlay| match &overlay.image {
                Image::Memory(block) => Some(&*block.bytes),
                Image::Parked(..) => None,
            });
            put_stage(out, target, chunk, pending.id, &stage, ImagesRef::Here(&mut images));
        }
    }
}
