//! The log's queue and its place in the ring: what group commit decides, without the I/O.
//!
//! Records gather in an open batch. Whoever needs one durable and finds no leader becomes it: takes the batch, writes it, syncs once for
//! all. Meanwhile the next batch gathers. At most one batch is on its way, so a batch in the log proves that all before it, and the
//! data that they speak of, were synced: only the last batch's data is in doubt after a crash.

use std::collections::VecDeque;
use std::task::Waker;

use catena_proto::ids::{ChunkId, TargetId, VersionId};

use crate::commit::Flight;
use crate::format::record::{BATCH_HEAD, BatchPlace};
use crate::format::superblock::Geometry;

/// A batch is closed when it has grown beyond this, or a sixteenth of the log.
const BATCH_LIMIT: usize = 512 << 10;

/// Records on their way to the log.
pub struct Gathered {
    /// With room for the batch's front.
    pub bytes: Vec<u8>,
    pub count: u32,
    /// Versions that are committed once this is durable.
    pub commits: Vec<(TargetId, ChunkId, VersionId)>,
}

pub struct Log {
    capacity: u64,
    align: u64,
    /// Size at which a batch is closed.
    limit: usize,
    open: VecDeque<Gathered>,
    /// The newest record that was enqueued,
    last: u64,
    /// that is in a batch on its way or durable,
    taken: u64,
    /// that is durable.
    durable: u64,
    /// Where the next batch goes at the earliest.
    next: u64,
    /// Checksum of the batch before it.
    prev: u32,
    /// Where replay would begin.
    tail: u64,
    /// Log bytes that stages under way may still need.
    pub reserved: usize,
    leading: bool,
    /// A batch on its way that nobody waits for any more.
    pub abandoned: Option<Flight>,
    waiting: Vec<Waker>,
    /// Vectors to be used again.
    spare: Vec<Vec<u8>>,
}

impl Log {
    pub fn new(geometry: &Geometry) -> Log {
        Log {
            capacity: geometry.log_bytes,
            align: u64::from(geometry.log_align),
            limit: BATCH_LIMIT.min(geometry.log_bytes as usize / 16),
            open: VecDeque::new(),
            last: 0,
            taken: 0,
            durable: 0,
            next: 0,
            prev: 0,
            tail: 0,
            reserved: 0,
            leading: false,
            abandoned: None,
            waiting: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Goes on behind what recovery found.
    pub fn resume(&mut self, place: BatchPlace, tail: u64) {
        (self.next, self.prev, self.tail) = (place.lsn, place.prev, tail);
        (self.last, self.taken, self.durable) = (place.first - 1, place.first - 1, place.first - 1);
    }

    /// Begins a record and returns its number.
    pub fn begin(&mut self) -> u64 {
        if self.open.back().is_none_or(|batch| batch.bytes.len() > self.limit) {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.resize(BATCH_HEAD, 0);
            self.open.push_back(Gathered { bytes, count: 0, commits: Vec::new() });
        }
        if let Some(batch) = self.open.back_mut() {
            batch.count += 1;
        }
        self.last += 1;
        self.last
    }

    /// Where the record that was begun last goes.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        let batch = self.open.back_mut().expect("a record was begun");
        &mut batch.bytes
    }
    /// The record that was begun last commits this.
    pub fn commits(&mut self, what: (TargetId, ChunkId, VersionId)) {
        if let Some(batch) = self.open.back_mut() {
            batch.commits.push(what);
        }
    }

    pub fn last(&self) -> u64 {
        self.last
    }
    /// The newest record that is on its way or durable.
    pub fn taken(&self) -> u64 {
        self.taken
    }
    pub fn durable(&self) -> u64 {
        self.durable
    }
    pub fn capacity(&self) -> u64 {
        self.capacity
    }
    /// Bytes between the tail and the head, and those that are to come.
    pub fn used(&self) -> u64 {
        let queued: usize = self.open.iter().map(|batch| batch.bytes.len()).sum();
        self.next - self.tail + queued as u64
    }
    /// Room for `bytes` more, with a part left for records that free space and for the unused end of a lap.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used() + self.reserved as u64 + bytes as u64 <= self.capacity / 16 * 13
    }
    /// A checkpoint is due.
    pub fn is_long(&self) -> bool {
        self.used() > self.capacity / 8 * 5
    }
    pub fn is_leading(&self) -> bool {
        self.leading
    }
    pub fn wait(&mut self, waker: &Waker) {
        self.waiting.push(waker.clone());
    }
    pub fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// Becomes the leader of the oldest batch: what to write, and where. `None`: the ring is full.
    pub fn lead(&mut self) -> Option<(Gathered, BatchPlace)> {
        let batch = self.open.front()?;
        let size = (batch.bytes.len() as u64).next_multiple_of(self.align);
        let at = self.next % self.capacity;
        // A batch does not wrap: the rest of the lap stays unused.
        let lsn = if at + size > self.capacity { self.next + self.capacity - at } else { self.next };
        if lsn + size > self.tail + self.capacity {
            return None;
        }
        let batch = self.open.pop_front()?;
        let place = BatchPlace { lsn, first: self.taken + 1, prev: self.prev };
        self.taken += u64::from(batch.count);
        self.next = lsn + size;
        self.leading = true;
        Some((batch, place))
    }

    /// The leader's batch is durable.
    pub fn led(&mut self, batch: Vec<u8>, crc: u32) {
        self.durable = self.taken;
        self.prev = crc;
        self.leading = false;
        if self.spare.len() < 2 && batch.capacity() <= 2 * BATCH_LIMIT {
            self.spare.push(batch);
        }
        self.wake();
    }

    /// Where a checkpoint that begins now has its replay begin. Only while nobody leads.
    pub fn place(&self) -> BatchPlace {
        BatchPlace { lsn: self.next, first: self.taken + 1, prev: self.prev }
    }
    /// A checkpoint made everything before `lsn` superfluous.
    pub fn cut(&mut self, lsn: u64) {
        self.tail = lsn;
    }
}
