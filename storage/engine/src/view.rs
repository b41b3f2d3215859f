//! A chunk as of one of its versions: the base with the first so many pendings on top. Answers where each block is.

use std::ops::Range;
use std::sync::Arc;

use catena_proto::checksum::BLOCK;

use crate::alloc::Run;
use crate::format::{BLOCK_U32, blocks};
use crate::index::{Active, Block, Entry, Image, Pending};
use crate::sums::Sums;

/// CRC32C of a block of zeros.
pub const ZERO_CRC: u32 = 0x98f9_4189;

/// Blocks in a row that come from one place.
#[derive(Clone, Debug)]
pub struct Span {
    /// First block of the chunk.
    pub first: u32,
    pub count: u32,
    pub source: Source,
}

/// Where blocks are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In consecutive blocks of the data area.
    Disk(u32),
    Memory(Arc<Block>),
    Zero,
}

/// A version's place in its chunk: `upto` pendings count.
#[derive(Clone, Copy)]
pub struct View<'a> {
    entry: &'a Entry,
    active: Option<&'a Active>,
    upto: usize,
}

/// Pages of the checksum table that have to be loaded first.
#[derive(Debug)]
pub struct Missing(pub Vec<u32>);

impl<'a> View<'a> {
    pub fn new(entry: &'a Entry, active: Option<&'a Active>, upto: usize) -> View<'a> {
        View { entry, active, upto }
    }
    /// Newest first.
    fn pendings(&self) -> impl Iterator<Item = &'a Pending> + use<'a> {
        let upto = self.upto;
        self.active.into_iter().flat_map(move |active| active.pendings.range(..upto).rev())
    }
    fn last(&self) -> Option<&'a Pending> {
        self.active.and_then(|active| active.pendings.get(self.upto.checked_sub(1)?))
    }
    pub fn length(&self) -> u32 {
        self.last().map_or(self.entry.length, |last| last.parts.length)
    }
    pub fn written(&self) -> u32 {
        self.last().map_or(self.entry.written, |last| last.parts.written)
    }
    pub fn run(&self) -> Option<Run> {
        self.last().map_or(self.entry.run(), |last| last.parts.run)
    }
    pub fn tombstone(&self) -> bool {
        self.last().map_or(self.entry.tombstone, |last| last.parts.tombstone)
    }

    /// Bytes of the view's run that some version, or some reader, still holds: in place, only what lies behind may be written.
    pub fn floor(&self) -> u32 {
        let Some(run) = self.run() else { return 0 };
        let hold = self.active.and_then(|active| active.hold).map_or(0, |hold| hold.below);
        let mut floor = hold;
        for pending in self.pendings() {
            if pending.parts.run != Some(run) {
                return floor;
            }
            floor = floor.max(pending.parts.written);
            if pending.parts.new_run {
                return floor;
            }
        }
        if self.entry.run() == Some(run) { floor.max(self.entry.written) } else { floor }
    }

    /// The block is not, or not only, in the run.
    pub fn is_overlaid(&self, block: u32) -> bool {
        for pending in self.pendings() {
            let parts = &pending.parts;
            if part_of(parts.over_first, parts.over.len(), block).is_some() {
                return true;
            }
            if parts.new_run || parts.run.is_none() {
                return false;
            }
        }
        self.active.is_some_and(|active| active.overlays.contains_key(&block))
    }

    /// Sources and checksums of a range of blocks. Blocks behind what is written are zeros; the one that holds its end is to be masked.
    pub fn lookup(
        &self,
        range: Range<u32>,
        sums: &mut Sums,
        spans: &mut Vec<Span>,
        crcs: &mut Vec<u32>,
    ) -> Result<(), Missing> {
        let stored = blocks(self.written()).clamp(range.start, range.end);
        let mut missing = Vec::new();
        let no_pendings = self.upto == 0 && self.active.is_none_or(|active| active.overlays.is_empty());
        if let (true, Some(run)) = (no_pendings && stored > range.start, self.entry.run()) {
            // Nearly all reads: one span, checksums from the table.
            let count = stored - range.start;
            push(spans, range.start, count, Source::Disk(run.start + range.start));
            sums.get(run.start + range.start, count, crcs, &mut missing);
        } else {
            for block in range.start..stored {
                let crc = self.block(block, sums, spans, &mut missing);
                crcs.push(crc);
            }
        }
        if range.end > stored {
            push(spans, stored, range.end - stored, Source::Zero);
            crcs.resize(crcs.len() + (range.end - stored) as usize, ZERO_CRC);
        }
        if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
    }

    fn block(&self, block: u32, sums: &mut Sums, spans: &mut Vec<Span>, missing: &mut Vec<u32>) -> u32 {
        let mut resum = None;
        for pending in self.pendings() {
            let parts = &pending.parts;
            if let Some(at) = part_of(parts.over_first, parts.over.len(), block) {
                let overlay = &parts.over[at];
                push(spans, block, 1, Source::from(&overlay.image));
                return resum.unwrap_or(overlay.crc);
            }
            if let (Some(at), Some(run)) = (part_of(parts.place_first, parts.place.len(), block), parts.run) {
                push(spans, block, 1, Source::Disk(run.start + block));
                return resum.unwrap_or(parts.place[at]);
            }
            if let (Some((at, crc)), None) = (parts.resum, resum)
                && at == block
            {
                resum = Some(crc);
            }
            if parts.new_run || parts.run.is_none() {
                push(spans, block, 1, Source::Zero);
                return ZERO_CRC;
            }
        }
        if let Some(overlay) = self.active.and_then(|active| active.overlays.get(&block)) {
            push(spans, block, 1, Source::from(&overlay.image));
            return resum.unwrap_or(overlay.crc);
        }
        let Some(run) = self.entry.run() else {
            push(spans, block, 1, Source::Zero);
            return ZERO_CRC;
        };
        push(spans, block, 1, Source::Disk(run.start + block));
        resum.unwrap_or_else(|| {
            let mut crcs = Vec::with_capacity(1);
            sums.get(run.start + block, 1, &mut crcs, missing);
            crcs[0]
        })
    }
}

impl From<&Image> for Source {
    fn from(image: &Image) -> Source {
        match image {
            Image::Memory(bytes) => Source::Memory(bytes.clone()),
            Image::Parked(block, _) => Source::Disk(*block),
        }
    }
}

fn part_of(first: u32, count: usize, block: u32) -> Option<usize> {
    let at = block.checked_sub(first)? as usize;
    (at < count).then_some(at)
}

/// Appends to the last span where the block continues it.
fn push(spans: &mut Vec<Span>, first: u32, count: u32, source: Source) {
    if let (Some(last), Source::Disk(start)) = (spans.last_mut(), &source)
        && let Source::Disk(before) = last.source
        && before + last.count == *start
        && last.first + last.count == first
    {
        last.count += count;
        return;
    }
    spans.push(Span { first, count, source });
}

/// Zeroes what lies behind the written bytes in a buffer that holds `range` of the chunk's blocks.
pub fn mask(bytes: &mut [u8], range: Range<u32>, written: u32) {
    let Some(at) = written.checked_sub(range.start * BLOCK_U32) else { return };
    if !written.is_multiple_of(BLOCK_U32) && blocks(written) <= range.end && blocks(written) > range.start {
        let at = at as usize;
        let end = at.next_multiple_of(BLOCK).min(bytes.len());
        bytes[at..end].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_block_of_zeros_is_a_constant() {
        assert_eq!(ZERO_CRC, catena_proto::checksum::crc32c(&[0; BLOCK]));
    }

    #[test]
    fn the_mask_touches_only_the_block_that_holds_the_end() {
        let mut bytes = vec![1; 2 * BLOCK];
        mask(&mut bytes, 3..5, 4 * 4096 + 10);
        assert!(bytes[..BLOCK + 10].iter().all(|&byte| byte == 1));
        assert!(bytes[BLOCK + 10..].iter().all(|&byte| byte == 0));
        for written in [5 * 4096, 3 * 4096, 100, 5 * 4096 + 1] {
            let mut bytes = vec![1; 2 * BLOCK];
            mask(&mut bytes, 3..5, written);
            assert!(bytes.iter().all(|&byte| byte == 1), "{written}");
        }
    }
}
