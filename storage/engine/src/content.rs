//! An operation's data, cut into what goes to the disk from where it lies, what has to be put together first, and zeros.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use catena_buf::Buf;
use catena_proto::checksum::{BLOCK, crc32c};

use crate::core::{Core, count};
use crate::error::Result;
use crate::fetch::Fetch;
use crate::format::{BLOCK_U32, blocks};
use crate::view::ZERO_CRC;

/// Data at a place of the chunk, in parts that follow each other.
pub struct Content {
    parts: Vec<(u32, Buf)>,
    pub start: u32,
    pub end: u32,
    /// For each piece.
    crcs: Vec<u32>,
}

impl Content {
    pub fn new(start: u32, data: Vec<Buf>, crcs: Vec<u32>) -> Content {
        let mut end = start;
        let parts = data
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(|part| {
                let at = end;
                end += part.len() as u32;
                (at, part)
            })
            .collect();
        Content { parts, start, end, crcs }
    }

    pub fn covers(&self, block: u32) -> bool {
        block * BLOCK_U32 >= self.start && (block + 1) * BLOCK_U32 <= self.end
    }

    /// A part of it does not lie in memory as it will on the disk.
    pub fn is_misplaced(&self) -> bool {
        self.parts.iter().any(misplaced)
    }

    /// Brings every misplaced part into place, by copying it.
    pub async fn put_in_place(&mut self, core: &Core) -> Result<()> {
        for part in self.parts.iter_mut().filter(|part| misplaced(part)) {
            let at = (part.0 % BLOCK_U32) as usize;
            let mut buf = core.work_buf(at + part.1.len()).await?;
            buf[at..].copy_from_slice(&part.1);
            count(&core.counters.copied, part.1.len() as u64);
            let end = buf.len();
            part.1 = buf.freeze().slice(at..end);
        }
        Ok(())
    }

    /// Some of the `written` old bytes show in a block beside the data.
    pub fn leaves_old(&self, block: u32, written: u32) -> bool {
        let (from, to) = (block * BLOCK_U32, ((block + 1) * BLOCK_U32).min(written));
        from < to && (from < self.start || self.end < to)
    }

    /// Copies what it has of a block over `out`.
    fn copy_block(&self, block: u32, out: &mut [u8]) {
        let base = block * BLOCK_U32;
        for (start, part) in &self.parts {
            let from = (*start).max(base);
            let to = (start + part.len() as u32).min(base + BLOCK_U32);
            if from < to {
                out[(from - base) as usize..(to - base) as usize]
                    .copy_from_slice(&part[(from - start) as usize..(to - start) as usize]);
            }
        }
    }

    /// The blocks that are neither all data nor all zeros, when everything from byte `start` to the end is written.
    pub fn edges(&self, start: u32) -> Vec<u32> {
        let mut edges = Vec::with_capacity(3);
        if !start.is_multiple_of(BLOCK_U32) {
            edges.push(start / BLOCK_U32);
        }
        if !self.start.is_multiple_of(BLOCK_U32) {
            edges.push(self.start / BLOCK_U32);
        }
        if !self.end.is_multiple_of(BLOCK_U32) {
            edges.push(self.end / BLOCK_U32);
        }
        edges.sort_unstable();
        edges.dedup();
        edges
    }
}

/// Not one that reaches the disk from where it lies.
fn misplaced((start, part): &(u32, Buf)) -> bool {
    part.as_ptr() as usize % BLOCK != *start as usize % BLOCK
}

/// Blocks that were put together, with their checksums.
pub type Edges = BTreeMap<u32, (Buf, u32)>;

/// Puts edge blocks together: old contents (by block, as fetched), then data.
pub async fn build_edges(
    core: &Arc<Core>,
    content: &Content,
    edges: &[u32],
    old: &[(Fetch, catena_buf::IoBuf)],
) -> Result<Edges> {
    if edges.is_empty() {
        return Ok(Edges::new());
    }
    let mut buf = core.work_buf(edges.len() * BLOCK).await?;
    let mut crcs = Vec::with_capacity(edges.len());
    for (bytes, &block) in buf.chunks_exact_mut(BLOCK).zip(edges) {
        match old.iter().find(|(fetch, _)| fetch.range.start == block) {
            Some(_) if catena_rt::broken("engine: a partial write leaves zeros beside it") => bytes.fill(0),
            Some((_, known)) => bytes.copy_from_slice(&known[..BLOCK]),
            None => bytes.fill(0),
        }
        content.copy_block(block, bytes);
        crcs.push(crc32c(bytes));
    }
    let shared = buf.freeze();
    Ok(edges
        .iter()
        .zip(crcs)
        .enumerate()
        .map(|(at, (&block, crc))| (block, (shared.slice(at * BLOCK..(at + 1) * BLOCK), crc)))
        .collect())
}

/// A range of blocks as parts for the disk, and their checksums.
pub fn emit(core: &Core, content: &Content, edges: &Edges, range: Range<u32>) -> (Vec<Buf>, Vec<u32>) {
    let (mut parts, mut crcs) = (Vec::with_capacity(3), Vec::with_capacity(range.len()));
    let mut block = range.start;
    while block < range.end {
        if let Some((bytes, crc)) = edges.get(&block) {
            parts.push(bytes.clone());
            crcs.push(*crc);
            block += 1;
        } else if content.covers(block) {
            // As far as this part of the data goes in whole blocks.
            let from = block * BLOCK_U32;
            let Some((start, part)) = content
                .parts
                .iter()
                .find(|(start, part)| (*start..start + part.len() as u32).contains(&from))
            else {
                break;
            };
            let whole = (start + part.len() as u32) / BLOCK_U32;
            let to = whole.min(range.end).max(block + 1);
            let at = (from - start) as usize;
            parts.push(part.slice(at..at + (to - block) as usize * BLOCK));
            let first = (block - content.start / BLOCK_U32) as usize;
            crcs.extend_from_slice(&content.crcs[first..first + (to - block) as usize]);
            block = to;
        } else {
            // A gap, up to the next block with something in it.
            let edge = edges.range(block..).next().map_or(range.end, |(&edge, _)| edge);
            let data = blocks(content.start);
            let next = if data > block { data.min(edge) } else { edge }.min(range.end);
            let zeros = (next - block).min(core.zeros.len() as u32 / BLOCK_U32);
            parts.push(core.zeros.slice(0..zeros as usize * BLOCK));
            crcs.resize(crcs.len() + zeros as usize, ZERO_CRC);
            block += zeros;
        }
    }
    (parts, crcs)
}
