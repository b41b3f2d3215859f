//! Writing a checkpoint while everything goes on: pages are taken one lock at a time, each as of its own record.
//!
//! The order, and why:
//! 1. Note where the log stands: replay begins there.
//! 2. Take and write the pages. A page may hold what records say that are not durable yet.
//! 3. Make the log durable up to the newest page: now no page is ahead of the log.
//! 4. Write the changed pages of the checksum table and sync them: entries are there, so their checksums have to be.
//! 5. Sync the pages, write the front, sync again. From here on this checkpoint counts.
//! 6. Only now the log before the place of step 1 is free.

use std::ops::Bound;
use std::sync::Arc;

use catena_proto::checksum::{self, BLOCK};
use catena_proto::ids::{ChunkId, TargetId, VersionId};
use zerocopy::IntoBytes;

use crate::core::{Core, count};
use crate::disk::{Batch, File, Io};
use crate::error::Result;
use crate::format::checkpoint::{Front, PAGE_HEAD, Page, PageKind, RawEntry, encode_front, seal_page};
use crate::format::record::{Body, ImagesRef, Record, put, put_overlay};
use crate::format::{BLOCK_U64, put_words};
use crate::index::{Active, Image, Overlay, Progress};
use crate::state::{State, put_pending};
use crate::view::Missing;

/// Chunks in a page: what is copied under one lock.
const CHUNKS: usize = 2048;
/// Bytes that are written at once.
const WRITE: usize = 1 << 20;

/// The file of the checkpoint with this number: never that of the one before.
pub fn file(number: u64) -> File {
    if number.is_multiple_of(2) { File::CheckpointA } else { File::CheckpointB }
}

struct Writer<'a> {
    core: &'a Core,
    file: File,
    /// Where the next write goes.
    offset: u64,
    pending: Vec<u8>,
    length: u64,
    body_crc: u32,
}

impl Writer<'_> {
    /// Takes a page whose payload was appended to `pending` behind room for its front.
    fn seal(&mut self, start: usize, page: &Page) {
        let crc = seal_page(&mut self.pending, start, page);
        self.body_crc = checksum::append(self.body_crc, &crc.to_le_bytes());
        self.length += (self.pending.len() - start) as u64;
    }

    fn begin(&mut self) -> usize {
        let start = self.pending.len();
        self.pending.resize(start + PAGE_HEAD, 0);
        start
    }

    async fn write(&mut self, all: bool) -> Result<()> {
        while self.pending.len() >= WRITE || (all && !self.pending.is_empty()) {
            let len = self.pending.len().min(WRITE);
            let mut buf = self.core.work_buf(len.next_multiple_of(BLOCK)).await?;
            buf[..len].copy_from_slice(&self.pending[..len]);
            buf[len..].fill(0);
            self.pending.drain(..len);
            self.core.extend(self.file, self.offset + buf.len() as u64).await?;
            let write = Io::Write { file: self.file, offset: self.offset, data: vec![buf.freeze()] };
            self.core.write_batch(Batch { ios: vec![write], ..Batch::default() }).await?;
            self.offset += len as u64;
        }
        Ok(())
    }
}

impl Core {
    /// Writes a checkpoint. One at a time: the caller has `upkeep`.
    pub async fn checkpoint(self: &Arc<Self>) -> Result<()> {
        let place = self.log_place().await?;
        let number = self.lock()?.checkpoint + 1;
        let file = file(number);
        let mut writer =
            Writer { core: self, file, offset: BLOCK_U64, pending: Vec::new(), length: 0, body_crc: 0 };
        // The front is written last, and must find its place.
        self.extend(file, BLOCK_U64).await?;
        let newest = self.pages(&mut writer).await?;
        writer.write(true).await?;
        self.durable(newest).await?;
        self.write_sums().await?;
        self.write_batch(Batch { sync: vec![file], ..Batch::default() }).await?;
        let front = Front {
            number,
            lsn: place.lsn,
            first: place.first,
            prev: place.prev,
            body_crc: writer.body_crc,
            length: writer.length,
        };
        self.write_front(file, &front).await?;
        count(&self.counters.checkpoints, 1);
        let mut state = self.lock()?;
        state.checkpoint = number;
        state.log.cut(place.lsn);
        state.log.wake();
        Ok(())
    }

    pub async fn write_front(&self, file: File, front: &Front) -> Result<()> {
        let mut buf = self.work_buf(BLOCK).await?;
        buf.copy_from_slice(&encode_front(front, self.geometry.superblock.disk));
        let write = Io::Write { file, offset: 0, data: vec![buf.freeze()] };
        self.write_batch(Batch { ios: vec![write], sync: vec![file], ..Batch::default() }).await
    }

    /// Writes all pages and returns the newest record that is in one.
    async fn pages(&self, writer: &mut Writer<'_>) -> Result<u64> {
        let mut newest = 0;
        let mut after: Option<TargetId> = None;
        loop {
            let Some(target) = self.target_page(writer, after)? else { return Ok(newest) };
            let mut from = None;
            loop {
                let (last, rsn) = {
                    let state = self.lock()?;
                    newest = newest.max(state.log.last());
                    (chunk_page(writer, &state, target, from), state.log.last())
                };
                newest = newest.max(rsn);
                writer.write(false).await?;
                match last {
                    Some(last) => from = Some(last),
                    None => break,
                }
            }
            after = Some(target);
        }
    }

    fn target_page(&self, writer: &mut Writer<'_>, after: Option<TargetId>) -> Result<Option<TargetId>> {
        let state = self.lock()?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let Some((&id, target)) = state.targets.range((from, Bound::Unbounded)).next() else {
            return Ok(None);
        };
        let start = writer.begin();
        put_words(&mut writer.pending, &[target.state.len() as u32]);
        writer.pending.extend_from_slice(&target.state);
        let page = Page { kind: PageKind::Target, target: id, rsn: state.log.last(), count: 1 };
        writer.seal(start, &page);
        Ok(Some(id))
    }

    /// Writes the changed pages of the checksum table, durably.
    async fn write_sums(&self) -> Result<()> {
        let dirty = self.lock()?.sums.dirty_numbers();
        // Pages that lie together travel together.
        for together in dirty.chunk_by(|a, b| a + 1 == *b) {
            for numbers in together.chunks(WRITE / BLOCK) {
                let incomplete: Vec<u32> = {
                    let state = self.lock()?;
                    numbers.iter().copied().filter(|&number| !state.sums.is_complete(number)).collect()
                };
                if !incomplete.is_empty() {
                    self.load_sums(Missing(incomplete)).await?;
                }
                let mut buf = self.work_buf(numbers.len() * BLOCK).await?;
                {
                    let mut state = self.lock()?;
                    for (&number, bytes) in numbers.iter().zip(buf.chunks_exact_mut(BLOCK)) {
                        state.sums.clean(number, bytes);
                    }
                }
                let cleaned = Cleaned { core: self, numbers };
                let offset = u64::from(numbers[0]) * BLOCK_U64;
                let write = Io::Write { file: File::Sums, offset, data: vec![buf.freeze()] };
                self.write_batch(Batch { ios: vec![write], ..Batch::default() }).await?;
                let mut state = self.lock()?;
                numbers.iter().for_each(|&number| state.sums.written(number));
                drop(state);
                cleaned.ended();
            }
        }
        self.write_batch(Batch { sync: vec![File::Sums], ..Batch::default() }).await
    }
}

/// Pages of the checksum table on their way. Dropped before the end, they are to be written once more.
struct Cleaned<'a> {
    core: &'a Core,
    numbers: &'a [u32],
}

impl Cleaned<'_> {
    fn ended(mut self) {
        self.numbers = &[];
    }
}

impl Drop for Cleaned<'_> {
    fn drop(&mut self) {
        if !self.numbers.is_empty() {
            let mut state = self.core.state.lock();
            self.numbers.iter().for_each(|&number| state.sums.spoil(number));
        }
    }
}

/// Takes a page of chunks behind `after`, and with the last one the tags: a tag whose commit is in a page must be there too. Returns
/// the page's last chunk, `None` if it was the target's last page.
fn chunk_page(
    writer: &mut Writer<'_>,
    state: &State,
    id: TargetId,
    after: Option<ChunkId>,
) -> Option<ChunkId> {
    let rsn = state.log.last();
    let start = writer.begin();
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let (mut last, mut taken) = (None, 0);
    // A target that was removed meanwhile: its last page is empty, and the log goes on to say so.
    let target = state.targets.get(&id);
    if let Some(target) = target {
        for (&chunk, entry) in target.chunks.range((from, Bound::Unbounded)).take(CHUNKS) {
            writer.pending.extend_from_slice(RawEntry::new(chunk, entry).as_bytes());
            (last, taken) = (Some(chunk), taken + 1);
        }
        if let Some(last) = last {
            for (&chunk, active) in target.active.range((from, Bound::Included(last))) {
                put_active(&mut writer.pending, id, chunk, active);
            }
        }
    }
    let more = taken == CHUNKS;
    let kind = if more { PageKind::Chunks } else { PageKind::LastChunks };
    writer.seal(start, &Page { kind, target: id, rsn, count: taken as u32 });
    if more {
        return last;
    }
    if let Some(target) = target {
        let start = writer.begin();
        for tag in target.tags.values() {
            writer.pending.extend_from_slice(crate::format::record::RawTag::from(tag).as_bytes());
        }
        let page = Page { kind: PageKind::Tags, target: id, rsn, count: target.tags.len() as u32 };
        writer.seal(start, &page);
    }
    None
}

/// What is under way on a chunk, as records that make it so again: unapplied blocks, logged pendings, how many are committed.
fn put_active(out: &mut Vec<u8>, target: TargetId, chunk: ChunkId, active: &Active) {
    let overlays: Vec<(u32, &Overlay)> =
        active.overlays.iter().map(|(&block, overlay)| (block, overlay)).collect();
    for group in overlays.chunk_by(|(block, a), (next, b)| block + 1 == *next && follows(a, b)) {
        let (first, crcs) = (group[0].0, group.iter().map(|(_, overlay)| overlay.crc).collect::<Vec<u32>>());
        let origin = VersionId {
            version: catena_proto::ids::ChunkVersion(group[0].1.origin),
            assigned: catena_proto::ids::ChainVersion(0),
        };
        let about = (target, chunk, origin);
        match &group[0].1.image {
            Image::Parked(block, parked) => {
                let skip = block - parked.run.start;
                put_overlay(out, about, first, &crcs, ImagesRef::Parked(parked.run), skip);
            }
            Image::Memory(_) => {
                let mut images = group.iter().filter_map(|(_, overlay)| match &overlay.image {
                    Image::Memory(block) => Some(&*block.bytes),
                    Image::Parked(..) => None,
                });
                put_overlay(out, about, first, &crcs, ImagesRef::Here(&mut images), 0);
            }
        }
    }
    let logged = active.pendings.iter().take_while(|one| matches!(one.progress, Progress::Logged(_)));
    for pending in logged {
        put_pending(out, target, chunk, pending);
    }
    if let Some(committed) = active.newest_committed() {
        put(out, &Record { target, chunk, version: committed.id, body: Body::Commit });
    }
}

/// Two overwritten blocks can be told of in one record.
fn follows(a: &Overlay, b: &Overlay) -> bool {
    a.origin == b.origin
        && match (&a.image, &b.image) {
            (Image::Memory(_), Image::Memory(_)) => true,
            (Image::Parked(at, run), Image::Parked(next, same)) => Arc::ptr_eq(run, same) && at + 1 == *next,
            _ => false,
        }
}
