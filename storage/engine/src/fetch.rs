//! Getting blocks of a version together: where they are, the reads, the checks.

use std::ops::Range;
use std::sync::Arc;

use catena_buf::{Buf, IoBuf};
use catena_proto::checksum::{BLOCK, crc32c};
use catena_proto::ids::{ChunkId, TargetId};

use crate::core::{Core, Reading, count};
use crate::disk::{Batch, File, Io};
use crate::error::{EngineError, Result};
use crate::state::State;
use crate::view::{Missing, Source, Span, View, mask};

/// Pages of the checksum table that are read at once.
const PAGES: usize = 64;

/// Blocks of a version that are to be read. While it lives, nothing that it names is overwritten or given to others.
pub struct Fetch {
    pub range: Range<u32>,
    pub written: u32,
    pub crcs: Vec<u32>,
    spans: Vec<Span>,
    _reading: Reading,
}

impl Fetch {
    /// With the lock held. `Err` names pages of the checksum table to be loaded first.
    pub fn capture(
        core: &Arc<Core>,
        state: &mut State,
        target: TargetId,
        chunk: ChunkId,
        upto: usize,
        range: Range<u32>,
    ) -> Result<Result<Fetch, Missing>> {
        let reading = state.epochs.enter();
        let State { targets, sums, .. } = state;
        let found = targets
            .get(&target)
            .and_then(|target| Some((target.chunks.get(&chunk)?, target.active.get(&chunk))));
        let looked_up = match found {
            None => Err(EngineError::NotFound(chunk)),
            Some((entry, active)) => {
                let view = View::new(entry, active, upto);
                let (mut spans, mut crcs) = (Vec::with_capacity(1), Vec::with_capacity(range.len()));
                Ok(view
                    .lookup(range.clone(), sums, &mut spans, &mut crcs)
                    .map(|()| (spans, crcs, view.written())))
            }
        };
        match looked_up {
            Ok(Ok((spans, crcs, written))) => {
                let _reading = Reading::new(core, reading);
                Ok(Ok(Fetch { range, written, crcs, spans, _reading }))
            }
            Ok(Err(missing)) => {
                state.epochs.leave(reading);
                Ok(Err(missing))
            }
            Err(error) => {
                state.epochs.leave(reading);
                Err(error)
            }
        }
    }

    /// The reads, into buffer `buf` of a batch from byte `at` on.
    pub fn ios(&self, core: &Core, buf: usize, at: usize, out: &mut Vec<Io>) {
        for span in &self.spans {
            if let Source::Disk(block) = span.source {
                let at = at + (span.first - self.range.start) as usize * BLOCK;
                let len = span.count as usize * BLOCK;
                out.push(Io::Read { file: File::Store, offset: core.place(block), buf, at, len });
            }
        }
    }

    /// What is not read but known, into the buffer's part; and what is behind the end, out.
    pub fn fill(&self, bytes: &mut [u8]) {
        for span in &self.spans {
            let at = (span.first - self.range.start) as usize * BLOCK;
            let part = &mut bytes[at..at + span.count as usize * BLOCK];
            match &span.source {
                Source::Disk(..) => {}
                Source::Memory(block) => part.copy_from_slice(&block.bytes[..]),
                Source::Zero => part.fill(0),
            }
        }
        mask(bytes, self.range.clone(), self.written);
    }

    /// The first of some blocks, counted within the fetched ones, that does not match its checksum.
    pub fn damaged(&self, bytes: &[u8], blocks: Range<usize>) -> Option<u32> {
        let mut blocks = blocks;
        let bad = blocks.find(|&at| crc32c(&bytes[at * BLOCK..][..BLOCK]) != self.crcs[at])?;
        Some(self.range.start + bad as u32)
    }
}

impl Core {
    /// Loads pages of the checksum table.
    pub async fn load_sums(&self, missing: Missing) -> Result<()> {
        let mut pages = missing.0;
        pages.sort_unstable();
        pages.dedup();
        for pages in pages.chunks(PAGES) {
            loop {
                let generation = self.lock()?.sums.generation;
                let buf = self.work_buf(pages.len() * BLOCK).await?;
                let ios = pages
                    .iter()
                    .enumerate()
                    .map(|(at, &page)| Io::Read {
                        file: File::Sums,
                        offset: u64::from(page) * BLOCK as u64,
                        buf: 0,
                        at: at * BLOCK,
                        len: BLOCK,
                    })
                    .collect();
                let bufs = self.read_batch(Batch { bufs: vec![buf], ios, sync: Vec::new() }).await?;
                let mut state = self.lock()?;
                if state.sums.generation != generation {
                    continue;
                }
                for (&page, bytes) in pages.iter().zip(bufs[0].chunks_exact(BLOCK)) {
                    state.sums.loaded(page, bytes);
                }
                break;
            }
        }
        Ok(())
    }

    /// Finds blocks of the version that `upto` pendings make.
    pub async fn fetch(
        self: &Arc<Self>,
        target: TargetId,
        chunk: ChunkId,
        upto: impl Fn(&State) -> Result<usize>,
        range: Range<u32>,
    ) -> Result<Fetch> {
        loop {
            let missing = {
                let mut state = self.lock()?;
                let upto = upto(&state)?;
                match Fetch::capture(self, &mut state, target, chunk, upto, range.clone())? {
                    Ok(fetch) => return Ok(fetch),
                    Err(missing) => missing,
                }
            };
            self.load_sums(missing).await?;
        }
    }

    /// Reads what was found into a buffer of the engine's own.
    pub async fn read_fetched(&self, fetch: &Fetch) -> Result<IoBuf> {
        let mut buf = self.work_buf(fetch.range.len() * BLOCK).await?;
        let mut ios = Vec::new();
        fetch.ios(self, 0, 0, &mut ios);
        if !ios.is_empty() {
            let bufs = self.read_batch(Batch { bufs: vec![buf], ios, sync: Vec::new() }).await?;
            buf = bufs.into_iter().next().ok_or_else(|| self.lost_buffer())?;
        }
        fetch.fill(&mut buf);
        Ok(buf)
    }

    pub fn lost_buffer(&self) -> EngineError {
        EngineError::DiskFailed { disk: self.name(), reason: "the disk kept a buffer".into() }
    }

    pub fn corrupt(&self, target: TargetId, chunk: ChunkId, block: u32) -> EngineError {
        count(&self.counters.corrupt, 1);
        EngineError::Corrupt { target, chunk, block }
    }
}

/// Writes of parts that lie one after the other from block `block` of the data area on.
pub fn writes(core: &Core, block: u32, parts: Vec<Buf>) -> Vec<Io> {
    /// The kernel takes at most this many parts in one call.
    const PARTS: usize = 1000;
    let mut offset = core.place(block);
    let mut ios = Vec::with_capacity(1);
    let mut parts = parts;
    while !parts.is_empty() {
        let rest = parts.split_off(parts.len().min(PARTS));
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        ios.push(Io::Write { file: File::Store, offset, data: parts });
        offset += len;
        parts = rest;
    }
    ios
}
