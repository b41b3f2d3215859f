//! What is known of every chunk: a small entry for each, and more for those with something under way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use catena_proto::checksum::BLOCK;
use catena_proto::ids::{ChannelId, ChunkId, ClientId, Tag, VersionId};

use crate::alloc::Run;
use crate::format::record::OpKind;
use crate::op::{Meta, TagEntry};

/// A chunk's *base*: the committed version whose commit mark is durable. 32 bytes, because there are millions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The default if nothing is committed: the chunk exists only as pendings.
    pub version: VersionId,
    pub length: u32,
    /// Bytes that are stored. What lies behind, up to `length`, reads as zeros; in the run it is whatever dropped or cut appends left.
    pub written: u32,
    run: u32,
    order: u8,
    pub tombstone: bool,
}
const _: () = assert!(size_of::<Entry>() == 32);

const NO_RUN: u8 = 0xff;

impl Default for Entry {
    fn default() -> Entry {
        Entry::new(VersionId::default(), 0, 0, None, false)
    }
}

impl Entry {
    pub fn new(version: VersionId, length: u32, written: u32, run: Option<Run>, tombstone: bool) -> Entry {
        let (run, order) = run.map_or((0, NO_RUN), |run| (run.start, run.order));
        Entry { version, length, written, run, order, tombstone }
    }
    pub fn run(&self) -> Option<Run> {
        (self.order != NO_RUN).then_some(Run { start: self.run, order: self.order })
    }
    pub fn exists(&self) -> bool {
        self.version != VersionId::default()
    }
    pub fn meta(&self) -> Option<Meta> {
        let Entry { version, length, tombstone, .. } = *self;
        self.exists().then_some(Meta { version, length, tombstone })
    }
}

/// Where an overwritten block's new contents are until they are applied.
#[derive(Clone, Debug)]
pub enum Image {
    /// In memory (and in the log).
    Memory(Arc<Block>),
    /// In this block of a parked run.
    Parked(u32, Arc<Parked>),
}

/// A block in memory, counted.
#[derive(Debug)]
pub struct Block {
    pub bytes: Box<[u8; BLOCK]>,
    gauge: Arc<AtomicU64>,
}

impl Block {
    pub fn new(bytes: Box<[u8; BLOCK]>, gauge: &Arc<AtomicU64>) -> Arc<Block> {
        gauge.fetch_add(BLOCK as u64, Ordering::Relaxed);
        Arc::new(Block { bytes, gauge: gauge.clone() })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.gauge.fetch_sub(BLOCK as u64, Ordering::Relaxed);
    }
}

/// A run that holds overwritten blocks. Freed when the last of them is applied or dropped.
#[derive(Debug)]
pub struct Parked {
    pub run: Run,
    pub inbox: Arc<parking_lot::Mutex<Vec<Run>>>,
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.inbox.lock().push(self.run);
    }
}

/// A block that is not, or not yet, in its place in the chunk's run.
#[derive(Clone, Debug)]
pub struct Overlay {
    pub image: Image,
    pub crc: u32,
    /// The chunk version that wrote it.
    pub origin: u64,
}

/// What a planned version writes and where.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    pub length: u32,
    pub written: u32,
    pub run: Option<Run>,
    /// `run` is this version's own.
    pub new_run: bool,
    pub tombstone: bool,
    /// First block written to `run`, and the checksums.
    pub place_first: u32,
    pub place: Vec<u32>,
    pub over_first: u32,
    pub over: Vec<Overlay>,
    pub resum: Option<(u32, u32)>,
}

/// How far a pending version is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Progress {
    /// Has its place in the order.
    Queued,
    /// Its parts are known: the next one may plan.
    Planned,
    /// Its data writes have ended.
    Written,
    /// Its record is on its way to the log under this number; durable once the log is durable up to it.
    Logged(u64),
}

/// A version that is not part of the base yet: pending, or committed without a durable mark.
#[derive(Debug)]
pub struct Pending {
    pub id: VersionId,
    pub tag: Option<Tag>,
    pub op: OpKind,
    /// What was before is void.
    pub rebase: bool,
    /// It is what was before, written anew: nothing is void until it is durable.
    pub renews: bool,
    /// The record commits it too.
    pub committed: bool,
    pub progress: Progress,
    /// Which stage call it belongs to.
    pub ticket: u64,
    pub parts: Parts,
}

/// A part of the run that nothing may be written to in place yet, though no version holds it any more.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// Bytes below this.
    pub below: u32,
    /// Until the log is durable up to here
    pub rsn: u64,
    /// and readers of this epoch are gone.
    pub epoch: u64,
}

/// What is under way on a chunk.
#[derive(Debug, Default)]
pub struct Active {
    /// Blocks of the base that are not in place.
    pub overlays: BTreeMap<u32, Overlay>,
    pub pendings: VecDeque<Pending>,
    /// How many of them, from the front, are committed in memory.
    pub committed: usize,
    pub hold: Option<Hold>,
    /// Futures that wait for a pending of this chunk to get on.
    pub waiting: Vec<Waker>,
}

impl Active {
    pub fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
    pub fn is_idle(&self) -> bool {
        self.overlays.is_empty() && self.pendings.is_empty() && self.hold.is_none() && self.waiting.is_empty()
    }
    /// The pending that is committed and newest, as far as memory knows.
    pub fn newest_committed(&self) -> Option<&Pending> {
        self.committed.checked_sub(1).map(|last| &self.pendings[last])
    }
}

/// One target.
#[derive(Debug, Default)]
pub struct Target {
    pub state: Vec<u8>,
    pub chunks: BTreeMap<ChunkId, Entry>,
    pub active: BTreeMap<ChunkId, Active>,
    pub tags: BTreeMap<(ClientId, ChannelId), TagEntry>,
}

impl Target {
    /// What memory has committed.
    pub fn committed(&self, chunk: ChunkId) -> Option<Meta> {
        let entry = self.chunks.get(&chunk)?;
        let Some(active) = self.active.get(&chunk) else { return entry.meta() };
        if active.pendings.get(active.committed).is_some_and(|next| next.rebase && !next.renews) {
            // What is there is void once a rebase is on its way.
            return None;
        }
        match active.newest_committed() {
            Some(pending) => Some(Meta {
                version: pending.id,
                length: pending.parts.length,
                tombstone: pending.parts.tombstone,
            }),
            None => entry.meta(),
        }
    }

    /// A committed write's tag: the highest sequence stays.
    pub fn remember(&mut self, tag: TagEntry) {
        if catena_rt::broken("18a only a chunk's last tag is kept") {
            self.tags.retain(|_, known| known.chunk != tag.chunk);
        }
        let known = self.tags.entry((tag.client, tag.channel)).or_insert(tag);
        if tag.sequence > known.sequence {
            *known = tag;
        }
    }
}
