//! Reads: the committed version or a named one, straight from the disk into the buffer that goes out.
//!
//! Whole blocks are returned with their stored checksums and not looked at: the reading client checks them, and so checks the disk too.
//! A partial block is checked here, because its piece needs a checksum of its own.

use std::sync::{Arc, OnceLock};

use catena_buf::{IoBuf, PoolClass};
use catena_proto::checksum::{BLOCK, combine, crc32c, pieces};
use catena_proto::ids::{ChunkId, TargetId, VersionId};
use catena_proto::layout::MAX_IO;

use crate::core::{Core, count};
use crate::disk::Batch;
use crate::error::{EngineError, Result};
use crate::fetch::Fetch;
use crate::format::record::OpKind;
use crate::format::{BLOCK_U32, blocks};
use crate::index::Progress;
use crate::op::{At, Op, ReadData, ReadRequest};
use crate::state::State;
use crate::view::{Missing, View};

/// A version to read.
struct Resolved {
    upto: usize,
    version: VersionId,
    length: u32,
    tombstone: bool,
}

fn resolve(state: &State, target: TargetId, chunk: ChunkId, at: At) -> Result<Resolved> {
    let target = state.targets.get(&target).ok_or(EngineError::NoSuchTarget(target))?;
    let entry = target.chunks.get(&chunk).ok_or(EngineError::NotFound(chunk))?;
    let active = target.active.get(&chunk);
    let upto = match at {
        At::Committed => {
            target.committed(chunk).ok_or(EngineError::NotFound(chunk))?;
            active.map_or(0, |active| active.committed)
        }
        At::Version(version) => {
            let durable = state.log.durable();
            let found = active.and_then(|active| {
                active.pendings.iter().position(|one| {
                    one.id == version && matches!(one.progress, Progress::Logged(rsn) if rsn <= durable)
                })
            });
            match found {
                Some(at) => at + 1,
                None if entry.version == version && active.is_none_or(|active| active.committed == 0) => 0,
                None => return Err(EngineError::NoSuchVersion { chunk, version }),
            }
        }
    };
    let view = View::new(entry, active, upto);
    let version = match upto.checked_sub(1).zip(active) {
        Some((last, active)) => active.pendings[last].id,
        None => entry.version,
    };
    Ok(Resolved { upto, version, length: view.length(), tombstone: view.tombstone() })
}

/// A read under way.
struct Reading {
    place: usize,
    request: ReadRequest,
    /// Bytes that there was room made for.
    room: u32,
    version: VersionId,
    length: u32,
    buf: Option<IoBuf>,
    fetch: Option<Fetch>,
}

impl Reading {
    fn len(&self) -> u32 {
        self.request.len.min(self.length.saturating_sub(self.request.offset)).min(self.room)
    }
    fn first(&self) -> u32 {
        self.request.offset / BLOCK_U32
    }
    fn end(&self) -> u32 {
        blocks(self.request.offset + self.len())
    }
}

pub async fn read_many(
    core: &Arc<Core>,
    target: TargetId,
    requests: &[ReadRequest],
) -> Vec<Result<ReadData>> {
    let mut results: Vec<Option<Result<ReadData>>> = requests.iter().map(|_| None).collect();
    let mut reads = Vec::with_capacity(requests.len());
    {
        let state = core.state.lock();
        for (place, &request) in requests.iter().enumerate() {
            match size(core, &state, target, request) {
                Ok(room) => reads.push(Reading {
                    place,
                    request,
                    room,
                    version: VersionId::default(),
                    length: 0,
                    buf: None,
                    fetch: None,
                }),
                Err(error) => results[place] = Some(Err(error)),
            }
        }
    }
    // Buffers before anything else: waiting for one must not keep others from being overwritten. The first may wait; waiting for more
    // while holding some could end in a circle with another batch.
    for (at, read) in reads.iter_mut().enumerate() {
        let bytes = (read.request.offset % BLOCK_U32 + read.room) as usize;
        let buf = match core.pool.try_alloc(bytes, PoolClass::Local) {
            Some(buf) => Ok(buf),
            None if at == 0 => core.pool.alloc(bytes, PoolClass::Local).await.map_err(EngineError::from),
            None => Err(EngineError::Busy { what: "no buffers for so many reads at once" }),
        };
        match buf {
            Ok(buf) => read.buf = Some(buf),
            Err(error) => results[read.place] = Some(Err(error)),
        }
    }
    reads.retain(|read| read.buf.is_some());

    loop {
        let mut missing = Vec::new();
        {
            let mut state = core.state.lock();
            for read in reads.iter_mut().filter(|read| read.fetch.is_none()) {
                match capture(core, &mut state, target, read) {
                    Ok(Ok(fetch)) => read.fetch = Some(fetch),
                    Ok(Err(Missing(pages))) => missing.extend(pages),
                    Err(error) => {
                        results[read.place] = Some(Err(error));
                        read.buf = None;
                    }
                }
            }
        }
        reads.retain(|read| read.buf.is_some());
        if missing.is_empty() {
            break;
        }
        if let Err(error) = core.load_sums(Missing(missing)).await {
            reads.iter().for_each(|read| results[read.place] = Some(Err(error.clone())));
            reads.clear();
        }
    }

    match carry_out(core, &mut reads).await {
        Ok(()) => finish(core, target, reads, &mut results),
        Err(error) if reads.len() == 1 => results[reads[0].place] = Some(Err(error)),
        Err(_) => {
            // One bad sector must not take its neighbours with it.
            for read in reads {
                let mut one = vec![read];
                match carry_out(core, &mut one).await {
                    Ok(()) => finish(core, target, one, &mut results),
                    Err(error) => results[one[0].place] = Some(Err(error)),
                }
            }
        }
    }
    let lost = || Err(core.lost_buffer());
    results.into_iter().map(|result| result.unwrap_or_else(lost)).collect()
}

/// Bytes of buffer that a read needs, at most.
fn size(core: &Core, state: &State, target: TargetId, request: ReadRequest) -> Result<u32> {
    if let Some(error) = core.failure(state) {
        return Err(error);
    }
    let found = resolve(state, target, request.chunk, request.at)?;
    if found.tombstone {
        return Err(EngineError::NotFound(request.chunk));
    }
    let len = request.len.min(found.length.saturating_sub(request.offset));
    if request.offset % BLOCK_U32 + len > MAX_IO {
        return Err(EngineError::Invalid { what: "read: longer than 4 MiB in whole blocks" });
    }
    Ok(len)
}

fn capture(
    core: &Arc<Core>,
    state: &mut State,
    target: TargetId,
    read: &mut Reading,
) -> Result<Result<Fetch, Missing>> {
    let chunk = read.request.chunk;
    let found = resolve(state, target, chunk, read.request.at)?;
    if found.tombstone {
        return Err(EngineError::NotFound(chunk));
    }
    (read.version, read.length) = (found.version, found.length);
    let range = if read.len() == 0 { read.first()..read.first() } else { read.first()..read.end() };
    Fetch::capture(core, state, target, chunk, found.upto, range)
}

async fn carry_out(core: &Arc<Core>, reads: &mut [Reading]) -> Result<()> {
    let (mut bufs, mut ios) = (Vec::with_capacity(reads.len()), Vec::with_capacity(reads.len()));
    for read in reads.iter_mut() {
        let buf = match read.buf.take() {
            Some(buf) => buf,
            // A batch that failed kept it.
            None => {
                core.pool
                    .alloc((read.request.offset % BLOCK_U32 + read.room) as usize, PoolClass::Local)
                    .await?
            }
        };
        if let Some(fetch) = &read.fetch {
            fetch.ios(core, bufs.len(), 0, &mut ios);
        }
        bufs.push(buf);
    }
    if !ios.is_empty() {
        bufs = core.read_batch(Batch { bufs, ios, sync: Vec::new() }).await?;
    }
    for (read, buf) in reads.iter_mut().zip(bufs) {
        read.buf = Some(buf);
    }
    Ok(())
}

fn finish(core: &Arc<Core>, target: TargetId, reads: Vec<Reading>, results: &mut [Option<Result<ReadData>>]) {
    count(&core.counters.reads, reads.len() as u64);
    for read in reads {
        let place = read.place;
        results[place] = Some(check(core, target, read));
    }
}

/// Masks what is behind the end, checks what has to be checked, and cuts out what was asked for.
fn check(core: &Arc<Core>, target: TargetId, mut read: Reading) -> Result<ReadData> {
    let (chunk, offset, len) = (read.request.chunk, read.request.offset, read.len() as usize);
    let (Some(mut buf), Some(fetch)) = (read.buf.take(), read.fetch.take()) else {
        return Err(core.lost_buffer());
    };
    let held = fetch.range.len() * BLOCK;
    if held > 0 {
        // `held` is what `len` rounds out to: within the buffer's capacity, which is whole pages.
        fetch.fill(&mut buf.whole_mut()[..held]);
    }
    let skip = (offset % BLOCK_U32) as usize;
    buf.set_len(skip + len);
    let mut crcs = Vec::with_capacity(fetch.crcs.len());
    let bytes = &buf.whole_mut()[..held];
    if read.request.verify
        && let Some(block) = fetch.damaged(bytes, 0..fetch.crcs.len())
    {
        return Err(core.corrupt(target, chunk, block));
    }
    for (at, (start, size)) in pieces(offset, len).enumerate() {
        if size == BLOCK {
            crcs.push(fetch.crcs[at]);
            continue;
        }
        if !read.request.verify
            && let Some(block) = fetch.damaged(bytes, at..at + 1)
        {
            return Err(core.corrupt(target, chunk, block));
        }
        crcs.push(crc32c(&bytes[skip + start..][..size]));
    }
    drop(fetch);
    let data = buf.freeze().slice(skip..skip + len);
    Ok(ReadData { version: read.version, chunk_length: read.length, data, crcs })
}

/// A pending's operation again.
pub async fn read_op(core: &Arc<Core>, target: TargetId, chunk: ChunkId, version: VersionId) -> Result<Op> {
    let gone = || EngineError::NoSuchVersion { chunk, version };
    let (kind, length, written) = {
        let state = core.lock()?;
        let found = resolve(&state, target, chunk, At::Version(version))?;
        if found.tombstone {
            return Ok(Op::Remove);
        }
        let (entry, active) = state.chunk(target, chunk).ok_or_else(gone)?;
        let view = View::new(entry, active, found.upto);
        let kind = match found.upto.checked_sub(1).zip(active) {
            Some((last, active)) => active.pendings[last].op,
            None => OpKind::Replace,
        };
        (kind, found.length, view.written())
    };
    let at = At::Version(version);
    let read = async |offset: u32, len: u32| {
        let request = ReadRequest { chunk, at, offset, len, verify: true };
        read_many(core, target, &[request]).await.pop().unwrap_or_else(|| Err(core.lost_buffer()))
    };
    match kind {
        OpKind::Truncate => Ok(Op::Truncate { length }),
        OpKind::Extend { length } => Ok(Op::Extend { length }),
        OpKind::Remove => Ok(Op::Remove),
        OpKind::Write { offset, len } => {
            let found = read(offset, len).await?;
            let chunk_size = length.next_power_of_two().clamp(64 << 10, crate::op::MAX_CHUNK);
            Ok(Op::Write { offset, data: found.data, crcs: found.crcs, chunk_size })
        }
        OpKind::Replace => {
            let (mut data, mut crcs) = (Vec::new(), Vec::new());
            for offset in (0..written).step_by(MAX_IO as usize) {
                let found = read(offset, MAX_IO.min(written - offset)).await?;
                data.push(found.data);
                crcs.extend(found.crcs);
            }
            Ok(Op::Replace { length, data, crcs })
        }
    }
}

/// CRC32C of the committed contents, zero-padded to whole blocks.
pub async fn checksum(core: &Arc<Core>, target: TargetId, chunk: ChunkId) -> Result<u32> {
    loop {
        let missing = {
            let mut state = core.lock()?;
            let found = resolve(&state, target, chunk, At::Committed)?;
            let range = 0..blocks(found.length);
            match Fetch::capture(core, &mut state, target, chunk, found.upto, range)? {
                Ok(fetch) => {
                    drop(state);
                    return Ok(fetch.crcs.iter().fold(0, |all, &crc| shift(all) ^ crc));
                }
                Err(missing) => missing,
            }
        };
        core.load_sums(missing).await?;
    }
}

/// A checksum as if a block of zeros followed, but for the zeros' own part: [`combine`] with a fixed length, by table.
fn shift(crc: u32) -> u32 {
    static TABLE: OnceLock<Box<[[u32; 256]; 4]>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let bits: Vec<u32> = (0..32).map(|bit| combine(1 << bit, 0, BLOCK)).collect();
        let mut table = Box::new([[0; 256]; 4]);
        for (place, row) in table.iter_mut().enumerate() {
            for (value, cell) in row.iter_mut().enumerate() {
                *cell = (0..8)
                    .filter(|bit| value & (1 << bit) != 0)
                    .fold(0, |all, bit| all ^ bits[place * 8 + bit]);
            }
        }
        table
    });
    crc.to_le_bytes().iter().zip(table.iter()).fold(0, |all, (&byte, row)| all ^ row[byte as usize])
}

/// Reads and checks all committed contents.
pub async fn verify(core: &Arc<Core>, target: TargetId, chunk: ChunkId) -> Result<u64> {
    let mut offset = 0;
    loop {
        let request = ReadRequest { chunk, at: At::Committed, offset, len: 1 << 20, verify: true };
        let found = match read_many(core, target, &[request]).await.pop() {
            Some(result) => result?,
            None => return Err(core.lost_buffer()),
        };
        offset += found.data.len() as u32;
        if found.data.is_empty() || offset >= found.chunk_length {
            return Ok(u64::from(offset));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_blocks_combine_to_the_checksum_of_all() {
        let bytes: Vec<u8> = (0..5 * BLOCK).map(|at| (at * 7 / 3) as u8).collect();
        let all = bytes.chunks(BLOCK).map(crc32c).fold(0, |all, crc| shift(all) ^ crc);
        assert_eq!(all, crc32c(&bytes));
    }
}
