//! Contents that arrive in parts and become one version: written to their run as they come, so that no more than a part is in memory.

use std::fmt;
use std::sync::Arc;

use catena_buf::Buf;
use catena_proto::checksum::BLOCK;
use parking_lot::Mutex;

use crate::alloc::{Run, order_of};
use crate::content::{Content, build_edges, emit};
use crate::core::Core;
use crate::disk::Batch;
use crate::error::{EngineError, Result};
use crate::fetch::writes;
use crate::format::{BLOCK_U32, blocks};
use crate::op::MAX_CHUNK;

/// Contents of a chunk that are being received in parts, on their way to becoming one version: see [`crate::Engine::spool`]. Clones
/// share it.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    length: u32,
    parts: Mutex<Parts>,
}

struct Parts {
    /// Gone once it belongs to a version.
    run: Option<Run>,
    /// Calls under way: the run cannot be given to a version.
    writing: usize,
    crcs: Vec<Option<u32>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(run) = self.parts.lock().run.take() {
            self.core.state.lock().inbox.lock().push(run);
        }
    }
}

/// Counts a write under way.
struct Writing<'a>(&'a Spool);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.0.parts.lock().writing -= 1;
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spool({} bytes)", self.0.length)
    }
}

impl Spool {
    pub(crate) async fn new(core: &Arc<Core>, length: u32) -> Result<Spool> {
        if length > MAX_CHUNK {
            return Err(EngineError::Invalid { what: "spool: beyond 64 MiB" });
        }
        let count = blocks(length);
        let run = match count {
            0 => None,
            _ => Some(core.take_run(order_of(count), order_of(count)).await?),
        };
        let parts = Parts { run, writing: 0, crcs: vec![None; count as usize] };
        Ok(Spool(Arc::new(Inner { core: core.clone(), length, parts: Mutex::new(parts) })))
    }

    pub(crate) fn length(&self) -> u32 {
        self.0.length
    }

    pub(crate) async fn write(&self, offset: u32, data: Buf, crcs: &[u32]) -> Result<()> {
        let (core, length) = (&self.0.core, self.0.length);
        let end = u64::from(offset) + data.len() as u64;
        if data.is_empty() {
            return Ok(());
        }
        let whole = end == u64::from(length) || end.is_multiple_of(BLOCK as u64);
        if !offset.is_multiple_of(BLOCK_U32) || end > u64::from(length) || !whole {
            return Err(EngineError::Invalid { what: "spooled part: not whole blocks of its length" });
        }
        if crcs.len() != data.len().div_ceil(BLOCK) {
            return Err(EngineError::Invalid { what: "spooled part: one checksum for each block is needed" });
        }
        let run = {
            let mut parts = self.0.parts.lock();
            parts.writing += 1;
            parts.run
        };
        let _writing = Writing(self);
        let Some(run) = run else {
            return Err(EngineError::Invalid { what: "spool: it is staged already" });
        };
        let mut content = Content::new(offset, vec![data], crcs.to_vec());
        let _copying = if content.is_misplaced() { Some(core.copying.lock().await) } else { None };
        content.put_in_place(core).await?;
        let edges = build_edges(core, &content, &content.edges(offset), &[]).await?;
        let range = offset / BLOCK_U32..blocks(end as u32);
        let (data, crcs) = emit(core, &content, &edges, range.clone());
        let ios = writes(core, run.start + range.start, data);
        let batch = Batch { bufs: Vec::new(), ios, sync: Vec::new() };
        // A part that is given up half-way keeps the run from being given to others until it has ended.
        core.write_keeping(batch, || Some(Box::new(self.clone()))).await?;
        let mut parts = self.0.parts.lock();
        for (block, crc) in range.zip(crcs) {
            parts.crcs[block as usize] = Some(crc);
        }
        Ok(())
    }

    /// The run and its checksums, for the version that it becomes.
    pub(crate) fn take(&self) -> Result<(Option<Run>, Vec<u32>)> {
        let mut parts = self.0.parts.lock();
        if parts.writing > 0 || (parts.run.is_none() && self.0.length > 0) {
            return Err(EngineError::Invalid { what: "spool: still being written, or staged already" });
        }
        let crcs: Option<Vec<u32>> = parts.crcs.iter().copied().collect();
        let crcs = crcs.ok_or(EngineError::Invalid { what: "spool: parts are missing" })?;
        Ok((parts.run.take(), crcs))
    }
}
