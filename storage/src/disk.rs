//! One disk of the node: its engine, whether it still works, and the engine's answers in the words of this service.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use catena_buf::{Buf, BufPool};
use catena_craq::{ReadAt, Restored, TagRecord};
use catena_engine::disk::{Backend, DirConfig};
use catena_engine::{DiskError, Engine, EngineError, Meta, Op, ReadRequest, Reservation, Staging, TagEntry};
use catena_proto::ids::*;
use catena_proto::status::Status;
use tracing::error;

use crate::config::IoBackend;
use crate::metrics::DiskMetrics;
use crate::node::Node;
use crate::payload::Payload;
use crate::request::MAX_IO;
use crate::scrub::Scrub;
use crate::target::Target;

pub(crate) use catena_engine::At;

/// Where disks come from: directories, or the simulator's.
pub trait DiskSource: Send + Sync + 'static {
    /// Opens the disk at a path of the configuration.
    fn open(
        &self,
        path: &Path,
        io: IoBackend,
        pool: &BufPool,
    ) -> Result<Arc<dyn catena_engine::disk::Disk>, DiskError>;
}

/// Directories of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Directories;

impl DiskSource for Directories {
    fn open(
        &self,
        path: &Path,
        io: IoBackend,
        pool: &BufPool,
    ) -> Result<Arc<dyn catena_engine::disk::Disk>, DiskError> {
        let backend = match io {
            IoBackend::Auto => Backend::Auto,
            IoBackend::Uring => Backend::Uring,
            IoBackend::Threads => Backend::Threads,
        };
        catena_engine::disk::open_dir(path, DirConfig { backend, region: Some(pool.region()) })
    }
}

/// Bytes that clients' writes leave free, so that a replica can always take what its predecessor has accepted (R8).
const RESERVE: u64 = 64 << 20;

/// The reserve of a disk with so much room; 0: all that the file system has.
pub(crate) fn reserve(capacity: u64) -> u64 {
    if capacity == 0 { RESERVE } else { RESERVE.min(capacity / 8) }
}

/// A disk of this node.
pub(crate) struct Disk {
    engine: Engine,
    path: String,
    reserve: u64,
    /// Formatted by this start: it holds nothing, and may not serve from lastsrv (R25).
    pub fresh: bool,
    failed: AtomicBool,
    /// Admission has met the reserve lately.
    short: AtomicBool,
    pub metrics: DiskMetrics,
    pub scrub: Scrub,
}

/// One chunk of a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    pub chunk: ChunkId,
    /// The default for a chunk that exists only as pendings.
    pub committed: VersionId,
    pub length: u32,
    pub tombstone: bool,
    pub pending: usize,
}

/// A part of a chunk's contents as of one version, as long as a buffer; or its tombstone.
pub(crate) struct Part {
    pub version: VersionId,
    /// The chunk's, not the part's.
    pub length: u32,
    pub tombstone: bool,
    pub data: Option<Buf>,
    pub crcs: Vec<u32>,
}

/// What a target's store remembers of its membership (`docs/format-engine.md`, target state).
///
/// ```text
///  0        1         2       4        8                 16
/// +--------+---------+-------+--------+-----------------+
/// | format | unsynced|   0   | chain  | joined-at       |
/// +--------+---------+-------+--------+-----------------+
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    pub chain: ChainId,
    /// The resync session that the contents are from.
    pub joined_at: ChainVersion,
    /// The session was not finished: contents are a mixture.
    pub unsynced: bool,
}

impl Note {
    fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = 1;
        bytes[1] = self.unsynced.into();
        bytes[4..8].copy_from_slice(&self.chain.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.joined_at.0.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Note> {
        let bytes: &[u8; 16] = bytes.try_into().ok()?;
        let (chain, joined_at) = (bytes[4..8].try_into().ok()?, bytes[8..16].try_into().ok()?);
        (bytes[0] == 1).then_some(Note {
            chain: ChainId(u32::from_le_bytes(chain)),
            joined_at: ChainVersion(u64::from_le_bytes(joined_at)),
            unsynced: bytes[1] != 0,
        })
    }
}

/// A read at a version that is no longer there: it was committed and overtaken, or the chunk is gone.
pub(crate) fn is_gone(error: &EngineError) -> bool {
    matches!(error, EngineError::NoSuchVersion { .. } | EngineError::NotFound(_))
}

impl From<&TagEntry> for TagRow {
    fn from(tag: &TagEntry) -> TagRow {
        let record =
            TagRecord { sequence: tag.sequence, chunk: tag.chunk, version: tag.version, length: tag.length };
        TagRow { client: tag.client, channel: tag.channel, record }
    }
}

/// A row of the tag table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TagRow {
    pub client: ClientId,
    pub channel: ChannelId,
    pub record: TagRecord,
}

impl Disk {
    pub fn new(engine: Engine, reserve: u64, fresh: bool, metrics: DiskMetrics, scrub: Scrub) -> Disk {
        let path = engine.name().to_owned();
        Disk {
            engine,
            path,
            reserve,
            fresh,
            failed: AtomicBool::new(false),
            short: AtomicBool::new(false),
            metrics,
            scrub,
        }
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }
    pub fn id(&self) -> DiskId {
        self.engine.disk_id()
    }
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Out of service: noted by this node, or known to the engine.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) || self.engine.failure().is_some()
    }
    /// Notes the failure; true the first time.
    pub fn mark_failed(&self) -> bool {
        self.metrics.failed.set(1);
        !self.failed.swap(true, Ordering::AcqRel)
    }

    // --- what the protocol asks ---

    pub fn committed(&self, target: TargetId, chunk: ChunkId) -> VersionId {
        self.meta(target, chunk).version
    }
    pub fn committed_length(&self, target: TargetId, chunk: ChunkId) -> u32 {
        self.meta(target, chunk).length
    }
    fn meta(&self, target: TargetId, chunk: ChunkId) -> Meta {
        self.engine.committed(target, chunk).unwrap_or_default()
    }
    pub fn tag(&self, target: TargetId, client: ClientId, channel: ChannelId) -> Option<TagRecord> {
        self.engine.tag(target, client, channel).map(|tag| TagRow::from(&tag).record)
    }
    pub fn restored(&self, target: TargetId) -> Vec<Restored> {
        let pendings = self.engine.pendings(target).into_iter();
        pendings.map(|pending| Restored { chunk: pending.chunk, id: pending.id, tag: pending.tag }).collect()
    }

    // --- writes ---

    /// Checks a client's change and sets space aside, leaving the reserve alone.
    pub fn admit(&self, target: TargetId, chunk: ChunkId, op: &Op) -> Result<Reservation, Status> {
        self.engine.admit(target, chunk, op).map_err(|error| error.status())
    }

    /// Checks a change that a predecessor has accepted; it may use the reserve. A full replica pushes back while there is still room
    /// for what has been admitted, so that no stage ever fails for want of space (R8).
    pub fn admit_forward(
        &self,
        target: TargetId,
        chunk: ChunkId,
        op: &Op,
    ) -> Result<Option<Reservation>, Status> {
        let admitted = self.engine.admit(target, chunk, op);
        self.short.store(matches!(admitted, Err(EngineError::NoSpace { .. })), Ordering::Relaxed);
        match admitted {
            Ok(reservation) => Ok(Some(reservation)),
            Err(EngineError::NoSpace { needed, free, .. }) if free >= needed + self.reserve / 4 => {
                // What is under way without a reservation may still take the last quarter.
                Ok(None)
            }
            Err(EngineError::NoSpace { .. }) => Err(Status::Busy),
            Err(error) => Err(error.status()),
        }
    }

    /// Forwards had to use the reserve: the head is told to take no new writes.
    pub fn short_of_space(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    pub fn stage(
        &self,
        target: TargetId,
        chunk: ChunkId,
        id: VersionId,
        tag: Option<Tag>,
        payload: &Payload,
        rebase: bool,
    ) -> Staging {
        if rebase {
            self.engine.stage_rebase(target, chunk, id, tag, payload.op())
        } else {
            self.engine.stage(target, chunk, id, tag, payload.op(), payload.take_reservation())
        }
    }

    pub fn commit(&self, target: TargetId, chunk: ChunkId, id: VersionId) -> Result<Meta, EngineError> {
        self.engine.commit(target, chunk, id)
    }

    // --- reads ---

    pub fn list(
        &self,
        target: TargetId,
        from: Bound<ChunkId>,
        to: Bound<ChunkId>,
        limit: usize,
    ) -> Vec<Listed> {
        // The only error is a target that is not there, and it has no chunks.
        let page = self.engine.list(target, from, to, limit).unwrap_or_default();
        page.into_iter()
            .map(|info| {
                let meta = info.state.committed.unwrap_or_default();
                Listed {
                    chunk: info.chunk,
                    committed: meta.version,
                    length: meta.length,
                    tombstone: meta.tombstone,
                    pending: info.state.pending.len(),
                }
            })
            .collect()
    }

    /// The last chunk of an inode that has contents. The index has no way backwards: halving finds the last entry, and pages before it
    /// are searched while they hold tombstones only.
    pub fn last(&self, target: TargetId, inode: InodeId) -> Option<Listed> {
        const PAGE: u32 = 256;
        let at = |index| ChunkId { inode, index };
        let range =
            |from, to, limit| self.list(target, Bound::Included(at(from)), Bound::Included(at(to)), limit);
        let mut last = range(0, u32::MAX, 1).first()?.chunk.index;
        let mut end = u32::MAX;
        while last < end {
            let middle = last + (end - last).div_ceil(2);
            match range(middle, end, 1).first() {
                Some(found) => last = found.chunk.index,
                None => end = middle - 1,
            }
        }
        let visible = |listed: &Listed| listed.committed.version != ChunkVersion(0) && !listed.tombstone;
        let mut to = last;
        loop {
            let from = to.saturating_sub(PAGE - 1);
            if let Some(found) = range(from, to, PAGE as usize).into_iter().rfind(visible) {
                return Some(found);
            }
            to = from.checked_sub(1)?;
        }
    }

    pub async fn checksum(&self, target: TargetId, chunk: ChunkId) -> Result<u32, EngineError> {
        self.engine.checksum(target, chunk).await
    }

    /// Contents as of a version from `offset` on, as much as a buffer holds, checked against the stored checksums.
    pub async fn part(
        &self,
        target: TargetId,
        chunk: ChunkId,
        at: At,
        offset: u32,
    ) -> Result<Part, EngineError> {
        let request = ReadRequest { chunk, at, offset, len: MAX_IO, verify: true };
        let read = match self.engine.read_many(target, &[request]).await.pop() {
            Some(Ok(read)) => read,
            Some(Err(EngineError::NotFound(_))) | None => return self.tombstone(target, chunk, at),
            Some(Err(error)) => return Err(error),
        };
        let data = Some(read.data).filter(|data| !data.is_empty());
        Ok(Part { version: read.version, length: read.chunk_length, tombstone: false, data, crcs: read.crcs })
    }

    fn tombstone(&self, target: TargetId, chunk: ChunkId, at: At) -> Result<Part, EngineError> {
        let removed = match at {
            At::Committed => {
                self.engine.committed(target, chunk).filter(|meta| meta.tombstone).map(|meta| meta.version)
            }
            // A pending remove: the read would have said if the version was not there.
            At::Version(id) => Some(id),
        };
        let version = removed.ok_or(EngineError::NotFound(chunk))?;
        Ok(Part { version, length: 0, tombstone: true, data: None, crcs: Vec::new() })
    }

    /// A read went wrong: counted, logged with everything that names the place, turned into the item's status.
    pub fn read_failed(
        &self,
        node: &Arc<Node>,
        target: &Arc<Target>,
        chunk: ChunkId,
        error: &EngineError,
    ) -> Status {
        match error {
            EngineError::Corrupt { block, .. } => {
                self.metrics.corrupt.inc();
                error!(node = %node.id, disk = %self.path, chain = %target.chain, target = %target.id, %chunk, block, "stored data is corrupt on this replica");
                node.repairs.report(node, self, target.id, chunk, error);
            }
            EngineError::ReadFailed { reason, .. } => {
                self.metrics.read_errors.inc();
                error!(node = %node.id, disk = %self.path, chain = %target.chain, target = %target.id, %chunk, reason, "stored data cannot be read from the disk");
                node.repairs.report(node, self, target.id, chunk, error);
            }
            EngineError::DiskFailed { .. } => node.disk_failed(&target.disk),
            EngineError::NotFound(_) => {}
            error => {
                error!(node = %node.id, disk = %self.path, chain = %target.chain, target = %target.id, %chunk, %error, "a read failed")
            }
        }
        error.status()
    }

    // --- resync ---

    /// Chunks of a target, tombstones and those that only are pending included.
    pub fn count(&self, target: TargetId) -> usize {
        self.engine.count(target).unwrap_or_default()
    }

    pub async fn install(
        &self,
        target: TargetId,
        chunk: ChunkId,
        id: VersionId,
        op: Op,
    ) -> Result<(), EngineError> {
        self.engine.install(target, chunk, id, op).await.map(|_| ())
    }
    pub async fn forget(&self, target: TargetId, chunk: ChunkId) -> Result<(), EngineError> {
        self.engine.forget(target, chunk).await
    }
    pub async fn drop_pendings(&self, target: TargetId) -> Result<(), EngineError> {
        self.engine.drop_all_pending(target).await
    }
    pub fn tags(&self, target: TargetId, after: Option<(ClientId, ChannelId)>, limit: usize) -> Vec<TagRow> {
        let page = self.engine.tags(target, after, limit).unwrap_or_default();
        page.iter().map(TagRow::from).collect()
    }
    pub async fn merge_tags(&self, target: TargetId, rows: &[TagRow]) -> Result<(), EngineError> {
        let tags: Vec<TagEntry> = rows
            .iter()
            .map(|TagRow { client, channel, record }| TagEntry {
                client: *client,
                channel: *channel,
                sequence: record.sequence,
                chunk: record.chunk,
                version: record.version,
                length: record.length,
            })
            .collect();
        self.engine.merge_tags(target, &tags).await
    }
    pub fn note(&self, target: TargetId) -> Option<Note> {
        Note::decode(&self.engine.target_state(target).ok()?)
    }
    pub async fn set_note(&self, target: TargetId, note: &Note) -> Result<(), EngineError> {
        self.engine.set_target_state(target, &note.encode()).await
    }

    /// Counters for the metrics.
    pub fn sample(&self) {
        let (stats, metrics) = (self.engine.stats(), &self.metrics);
        if stats.capacity.saturating_sub(stats.used) > 2 * self.reserve {
            // Removes may have made room without any forward to notice it.
            self.short.store(false, Ordering::Relaxed);
        }
        metrics.capacity.set(stats.capacity as i64);
        metrics.used.set(stats.used as i64);
        metrics.chunks.set(stats.chunks as i64);
        metrics.log.set(stats.log_used as i64);
        metrics.written.set(stats.device_written as i64);
        metrics.read.set(stats.device_read as i64);
        metrics.failed.set(self.has_failed().into());
    }
}

/// The protocol's word for what to read, in the engine's.
pub(crate) fn at(at: &ReadAt) -> At {
    match at {
        ReadAt::Committed(_) => At::Committed,
        ReadAt::Pending(id) => At::Version(*id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_survives_its_bytes_and_nothing_else_passes_for_one() {
        for unsynced in [false, true] {
            let note = Note { chain: ChainId(7), joined_at: ChainVersion(9), unsynced };
            assert_eq!(Note::decode(&note.encode()), Some(note));
        }
        assert_eq!(Note::decode(&[]), None);
        assert_eq!(Note::decode(&[2; 16]), None);
    }
}
