//! Opening a disk: superblock, newest checkpoint, log, free space. And preparing one.
//!
//! *Which records count.* A batch is written only when the one before it, and all data that it speaks of, was synced. So a batch that
//! another follows is beyond doubt, and so is its data. Of the last batch, data may be missing or torn although the batch is whole: every
//! version in it is compared with what is on the disk, block by block. One that does not match was never acknowledged, nor was anything
//! staged on it; they are left out, and a checkpoint is written at once, so that no later recovery, for which this batch is not the
//! last any more, takes them for good.

use std::collections::BTreeSet;
use std::sync::Arc;

use catena_buf::{BufPool, PoolClass, PoolConfig};
use catena_proto::checksum::{self, BLOCK, crc32c};
use catena_proto::ids::{ChunkId, DiskId, TargetId};

use crate::alloc::{Allocator, Run};
use crate::core::Core;
use crate::disk::{Batch, Disk, File, Io};
use crate::error::{EngineError, Result};
use crate::format::checkpoint::{Front, PAGE_HEAD, decode_front, decode_page, page_len};
use crate::format::record::{BATCH_HEAD, BatchPlace, Body, Images, Record, Stage, front, get};
use crate::format::superblock::{Bad, Geometry, decode, encode};
use crate::format::{BLOCK_U32, BLOCK_U64};
use crate::op::{Expect, Options, Superblock};
use crate::replay::Replay;
use crate::state::State;
use crate::view::mask;

/// Default size of the log: a checkpoint of a million chunks costs little beside it.
pub const LOG_BYTES: u64 = 128 << 20;
/// The longest batch that a reader believes in.
const MAX_BATCH: usize = 4 << 20;
/// Bytes that are read at once.
const READ: usize = 1 << 20;

fn bad(disk: &dyn Disk, what: impl Into<String>) -> EngineError {
    EngineError::BadFormat { disk: disk.name().to_owned(), what: what.into() }
}

fn os(disk: &dyn Disk, error: std::io::Error) -> EngineError {
    EngineError::DiskFailed { disk: disk.name().to_owned(), reason: error.to_string() }
}

async fn read(disk: &dyn Disk, pool: &BufPool, file: File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        let part = (len - all.len()).min(READ);
        let buf = pool.alloc(part, PoolClass::Local).await?;
        let read = Io::Read { file, offset: offset + all.len() as u64, buf: 0, at: 0, len: part };
        let done = disk.submit(Batch { bufs: vec![buf], ios: vec![read], sync: Vec::new() }).await;
        done.result.map_err(|error| os(disk, error))?;
        all.extend_from_slice(&done.bufs[0][..part]);
    }
    Ok(all)
}

async fn write(disk: &dyn Disk, ios: Vec<Io>, sync: Vec<File>) -> Result<()> {
    disk.submit(Batch { bufs: Vec::new(), ios, sync }).await.result.map_err(|error| os(disk, error))
}

fn small_pool() -> Result<BufPool> {
    Ok(BufPool::new(PoolConfig { bytes: [0, 0, 0, 0, 8 << 20] })?)
}

/// Whose disk it is.
pub async fn identify(disk: &dyn Disk) -> Result<Geometry> {
    let name = || disk.name().to_owned();
    if disk.len(File::Superblock)? < BLOCK_U64 {
        return Err(EngineError::NotFormatted { disk: name() });
    }
    let bytes = read(disk, &small_pool()?, File::Superblock, 0, BLOCK).await?;
    match decode(&bytes) {
        Ok(geometry) => Ok(geometry),
        Err(Bad::Absent) => Err(EngineError::NotFormatted { disk: name() }),
        Err(Bad::Damaged(what)) => Err(bad(disk, what)),
    }
}

/// Checksum that the first batch of all names as the one before it.
fn first_prev(disk: DiskId) -> u32 {
    crc32c(&disk.0.to_le_bytes())
}

/// Prepares a disk. The superblock comes last: without it there is nothing, whatever else was written.
pub async fn format(disk: &dyn Disk, superblock: Superblock, log_bytes: u64) -> Result<()> {
    match identify(disk).await {
        Err(EngineError::NotFormatted { .. }) => {}
        Ok(Geometry { superblock: Superblock { cluster, node, .. }, .. }) => {
            return Err(EngineError::AlreadyFormatted { disk: disk.name().to_owned(), cluster, node });
        }
        Err(error) => return Err(error),
    }
    let pool = small_pool()?;
    let geometry = Geometry { superblock, log_bytes, log_align: disk.granularity().clamp(512, 4096) };
    let buf = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        let pool = &pool;
        async move {
            let mut buf = pool.alloc(bytes.len(), PoolClass::Local).await?;
            buf.copy_from_slice(&bytes);
            Ok::<_, EngineError>(buf.freeze())
        }
    };
    let allocate = Io::Allocate { file: File::Store, length: log_bytes };
    let done = disk.submit(Batch { ios: vec![allocate], ..Batch::default() }).await;
    if let Err(error) = done.result {
        if error.kind() == std::io::ErrorKind::StorageFull {
            let free = disk.available()?;
            return Err(EngineError::NoSpace {
                disk: disk.name().to_owned(),
                needed: log_bytes,
                free,
                reserve: 0,
            });
        }
        return Err(os(disk, error));
    }
    // Zeros, written out: later writes to the log find their blocks and need no change to the file system's own records.
    let zeros = buf(&vec![0; READ]).await?;
    for lap in (0..log_bytes).step_by(8 * READ) {
        let end = log_bytes.min(lap + 8 * READ as u64);
        let ios = (lap..end)
            .step_by(READ)
            .map(|offset| Io::Write {
                file: File::Store,
                offset,
                data: vec![zeros.slice(0..READ.min((end - offset) as usize))],
            })
            .collect();
        write(disk, ios, Vec::new()).await?;
    }
    let empty =
        Front { number: 0, lsn: 0, first: 1, prev: first_prev(superblock.disk), body_crc: 0, length: 0 };
    let front = buf(&crate::format::checkpoint::encode_front(&empty, superblock.disk)).await?;
    let clear = buf(&[0; BLOCK]).await?;
    let ios = vec![
        Io::Write { file: File::CheckpointA, offset: 0, data: vec![front] },
        Io::Write { file: File::CheckpointB, offset: 0, data: vec![clear] },
    ];
    write(disk, ios, vec![File::Store, File::CheckpointA, File::CheckpointB]).await?;
    let data = vec![buf(&encode(&geometry)).await?];
    write(disk, vec![Io::Write { file: File::Superblock, offset: 0, data }], vec![File::Superblock]).await
}

/// Opens a disk.
pub async fn open(disk: Arc<dyn Disk>, expect: Expect, pool: BufPool, options: Options) -> Result<Arc<Core>> {
    let geometry = identify(&*disk).await?;
    let found = geometry.superblock;
    let name = disk.name().to_owned();
    if found.cluster != expect.cluster {
        return Err(EngineError::WrongCluster { disk: name, found: found.cluster, expected: expect.cluster });
    }
    if found.node != expect.node {
        return Err(EngineError::WrongNode { disk: name, found: found.node, expected: expect.node });
    }
    if disk.granularity() > geometry.log_align {
        return Err(bad(
            &*disk,
            "the device's blocks are larger than those of the device it was formatted on",
        ));
    }
    // A process that died, not the machine, leaves things that are seen but not synced. What is built on must stay.
    write(&*disk, Vec::new(), vec![File::Store, File::Sums, File::CheckpointA, File::CheckpointB]).await?;

    let core = Arc::new(Core::new(disk, geometry, pool, options)?);
    let mut replay = Replay::new(State::new(&geometry, &options));
    let front = newest_front(&core).await?;
    pages(&core, &front, &mut replay).await?;
    let mut log = LogReader::new(&core, &front);
    let broken = log.replay(&mut replay).await?;
    let place = log.place;

    let store = core.disk.len(File::Store)?;
    let end = store.saturating_sub(geometry.log_bytes) / BLOCK_U64;
    let allocator = Allocator::rebuild(end as u32, replay.used()).map_err(|Run { start, order }| {
        bad(&*core.disk, format!("space is taken twice or lies outside: {} blocks at {start}", 1u32 << order))
    })?;
    let mut state = replay.finish();
    state.allocator = allocator;
    state.checkpoint = front.number;
    state.log.resume(place, front.lsn);
    let unapplied = state.targets.iter().flat_map(|(&target, of)| {
        of.active
            .iter()
            .filter(|(_, active)| !active.overlays.is_empty())
            .map(move |(&chunk, _)| (target, chunk))
    });
    state.unapplied = unapplied.collect();
    state.after_replay();
    *core.state.lock() = state;

    let sums = (end * 4).next_multiple_of(BLOCK_U64);
    if core.disk.len(File::Sums)? < sums {
        core.write_batch(Batch {
            ios: vec![Io::Allocate { file: File::Sums, length: sums }],
            ..Batch::default()
        })
        .await?;
    }
    if broken {
        core.checkpoint().await?;
    }
    Ok(core)
}

async fn newest_front(core: &Core) -> Result<Front> {
    let mut newest: Option<Front> = None;
    for file in [File::CheckpointA, File::CheckpointB] {
        if core.disk.len(file)? < BLOCK_U64 {
            continue;
        }
        let bytes = read(&*core.disk, &core.work, file, 0, BLOCK).await?;
        let found = decode_front(&bytes, core.geometry.superblock.disk);
        newest = newest.max_by(found);
    }
    newest.ok_or_else(|| bad(&*core.disk, "no valid checkpoint"))
}

trait MaxBy {
    fn max_by(self, other: Self) -> Self;
}
impl MaxBy for Option<Front> {
    fn max_by(self, other: Self) -> Self {
        match (self, other) {
            (Some(a), Some(b)) => Some(if a.number > b.number { a } else { b }),
            (a, b) => a.or(b),
        }
    }
}

async fn pages(core: &Core, front: &Front, replay: &mut Replay) -> Result<()> {
    let file = crate::checkpoint::file(front.number);
    let damaged = || bad(&*core.disk, format!("checkpoint {} does not match its checksums", front.number));
    let (mut body_crc, mut taken) = (0, 0u64);
    let mut window: Vec<u8> = Vec::new();
    let mut offset = BLOCK_U64;
    let stored = (front.length).next_multiple_of(BLOCK_U64) + BLOCK_U64;
    if core.disk.len(file)? < stored {
        return Err(damaged());
    }
    while taken < front.length {
        // Its front says how long the next page is.
        let wanted = page_len(&window).map_or(PAGE_HEAD, |len| len.max(PAGE_HEAD));
        if taken + wanted as u64 > front.length {
            return Err(damaged());
        }
        if window.len() < wanted {
            let len = (stored - offset).min(READ as u64) as usize;
            if len == 0 {
                return Err(damaged());
            }
            window.extend(read(&*core.disk, &core.work, file, offset, len).await?);
            offset += len as u64;
            continue;
        }
        let (page, payload, crc) = decode_page(&window[..wanted]).ok_or_else(damaged)?;
        replay.page(&page, payload).ok_or_else(|| {
            bad(
                &*core.disk,
                format!("checkpoint {} has a page that this version does not know", front.number),
            )
        })?;
        body_crc = checksum::append(body_crc, &crc.to_le_bytes());
        taken += wanted as u64;
        window.drain(..wanted);
    }
    if body_crc == front.body_crc { Ok(()) } else { Err(damaged()) }
}

/// Walks the log from a checkpoint's place to its end.
struct LogReader<'a> {
    core: &'a Core,
    place: BatchPlace,
    /// Bytes of the ring from log sequence number `start` on.
    window: Vec<u8>,
    start: u64,
}

impl<'a> LogReader<'a> {
    fn new(core: &'a Core, front: &Front) -> LogReader<'a> {
        let place = BatchPlace { lsn: front.lsn, first: front.first, prev: front.prev };
        LogReader { core, place, window: Vec::new(), start: 0 }
    }

    /// `len` bytes of the ring, or as many as there are before the lap ends.
    async fn bytes(&mut self, lsn: u64, len: usize) -> Result<&[u8]> {
        let capacity = self.core.geometry.log_bytes;
        let at = lsn % capacity;
        let len = len.min((capacity - at) as usize);
        let end = self.start + self.window.len() as u64;
        if lsn < self.start || lsn + len as u64 > end {
            // Log places are aligned, so this is too.
            let wanted = len.max(READ).min((capacity - at) as usize);
            self.window = read(&*self.core.disk, &self.core.work, File::Store, at, wanted).await?;
            self.start = lsn;
        }
        let from = (lsn - self.start) as usize;
        Ok(&self.window[from..from + len])
    }

    /// The next batch: its records, and the place behind it. `None`: the log ends here.
    async fn next(&mut self) -> Result<Option<(Vec<Record>, u64)>> {
        let (capacity, disk) = (self.core.geometry.log_bytes, self.core.geometry.superblock.disk);
        let align = u64::from(self.core.geometry.log_align);
        // Where it belongs, or, when it did not fit there, at the start of the next lap.
        let lap = self.place.lsn.next_multiple_of(capacity);
        let places = [self.place.lsn, lap];
        let places = if lap == self.place.lsn { &places[..1] } else { &places[..] };
        for &lsn in places {
            let place = BatchPlace { lsn, ..self.place };
            let head = self.bytes(lsn, BATCH_HEAD).await?;
            let Some(found) = front(head, place, disk, MAX_BATCH) else { continue };
            let core = self.core;
            let batch = self.bytes(lsn, found.len).await?;
            let Some(crc) = found.check(batch) else { continue };
            let mut rest = &batch[BATCH_HEAD..];
            let mut records = Vec::with_capacity(found.count as usize);
            for _ in 0..found.count {
                let record = get(&mut rest).ok_or_else(|| {
                    bad(
                        &*core.disk,
                        format!("the log has a record that this version does not know, at {lsn}"),
                    )
                })?;
                records.push(record);
            }
            let first = place.first;
            let size = (found.len as u64).next_multiple_of(align);
            self.place = BatchPlace { lsn: lsn + size, first: first + u64::from(found.count), prev: crc };
            return Ok(Some((records, first)));
        }
        Ok(None)
    }

    /// Replays everything. True if some of the last batch had to be left out.
    async fn replay(&mut self, replay: &mut Replay) -> Result<bool> {
        let mut last: Option<(Vec<Record>, u64)> = None;
        while let Some(next) = self.next().await? {
            if let Some((records, first)) = last.replace(next) {
                for (record, rsn) in records.into_iter().zip(first..) {
                    replay.record(record, rsn);
                }
            }
        }
        let Some((records, first)) = last else { return Ok(false) };
        if catena_rt::broken("engine: recovery stops before the last batch") {
            return Ok(true);
        }
        let mut broken: BTreeSet<(TargetId, ChunkId)> = BTreeSet::new();
        for (record, rsn) in records.into_iter().zip(first..) {
            if let Body::Stage(stage) = &record.body {
                let chunk = (record.target, record.chunk);
                if broken.contains(&chunk) || !self.is_intact(stage).await? {
                    broken.insert(chunk);
                    continue;
                }
            }
            replay.record(record, rsn);
        }
        if !broken.is_empty() {
            let (disk, chunks) = (self.core.disk.name(), broken.len());
            tracing::info!(
                disk,
                chunks,
                "writes that were never acknowledged were cut short and are left out"
            );
        }
        Ok(!broken.is_empty())
    }

    /// What a version says that it wrote is there.
    async fn is_intact(&self, stage: &Stage) -> Result<bool> {
        if let (Some(run), false) = (stage.run, stage.place.is_empty())
            && !self.matches(run.start, stage.place_first, &stage.place, stage.written).await?
        {
            return Ok(false);
        }
        match stage.images {
            Images::Parked(run) => {
                // Whole blocks, as they were written.
                self.matches(run.start, 0, &stage.over, u32::MAX).await
            }
            Images::Here(_) => Ok(true),
        }
    }

    async fn matches(&self, run_start: u32, first: u32, crcs: &[u32], written: u32) -> Result<bool> {
        let store = self.core.disk.len(File::Store)?;
        let end = u64::from(run_start) + u64::from(first) + crcs.len() as u64;
        if self.core.geometry.log_bytes + end * BLOCK_U64 > store {
            // Not even the space is there.
            return Ok(false);
        }
        for (at, crcs) in crcs.chunks(READ / BLOCK).enumerate() {
            let first = first + (at * (READ / BLOCK)) as u32;
            let offset = self.core.place(run_start + first);
            let mut bytes =
                read(&*self.core.disk, &self.core.work, File::Store, offset, crcs.len() * BLOCK).await?;
            if written < u32::MAX - BLOCK_U32 {
                mask(&mut bytes, first..first + crcs.len() as u32, written);
            }
            if bytes.chunks_exact(BLOCK).zip(crcs).any(|(bytes, &crc)| crc32c(bytes) != crc) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
