//! The public face of the chunk store.

use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use catena_buf::{Buf, BufPool, PoolClass};
use catena_proto::ids::{ChannelId, ChunkId, ClientId, DiskId, Tag, TargetId, VersionId};

use crate::disk::Disk;
use crate::error::{EngineError, Result};
use crate::op::{
    At, ChunkInfo, ChunkState, EngineStats, Expect, Meta, Op, Options, PendingInfo, ReadData, ReadRequest,
    Staged, Superblock, TagEntry,
};

/// The chunk store of one disk. Clones share it.
#[derive(Clone)]
pub struct Engine {
    _inner: Arc<()>,
}

/// Space set aside by [`Engine::admit`]; given back when dropped unused.
#[derive(Debug)]
pub struct Reservation(());

/// Contents of a chunk that are being received in parts, on their way to becoming one version: see [`Engine::spool`]. Clones share it.
#[derive(Clone, Debug)]
pub struct Spool(Arc<()>);

/// A stage under way. It has its place in the chunk's order from the call on; it makes progress when polled, and **must be driven to
/// its end**: dropping it half-way fails the disk, because what it left there is not known.
pub struct Staging(Pin<Box<dyn Future<Output = Result<Staged>> + Send>>);

impl Future for Staging {
    type Output = Result<Staged>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

#[allow(unused_variables, clippy::todo, missing_docs)]
impl Engine {
    /// Prepares an empty disk. Refuses one that has a superblock or foreign files.
    pub async fn format(disk: Arc<dyn Disk>, superblock: Superblock) -> Result<()> {
        todo!()
    }

    /// Whose disk it is, without opening it. `NotFormatted` for an empty one.
    pub async fn identify(disk: &Arc<dyn Disk>) -> Result<Superblock> {
        todo!()
    }

    /// Opens a formatted disk: newest checkpoint, then the log. `pool` gives the buffers that reads return.
    pub async fn open(
        disk: Arc<dyn Disk>,
        expect: Expect,
        pool: BufPool,
        options: Options,
    ) -> Result<Engine> {
        todo!()
    }

    /// The disk's identity.
    pub fn disk_id(&self) -> DiskId {
        todo!()
    }

    /// The disk's path, or what else names it in logs.
    pub fn name(&self) -> &str {
        todo!()
    }

    // --- targets ---

    /// Makes a target. Durable; nothing if it is there.
    pub async fn create_target(&self, target: TargetId) -> Result<()> {
        todo!()
    }
    /// Forgets a target with all its chunks and tags. Durable; nothing if it is not there. No stage of it may be under way.
    pub async fn remove_target(&self, target: TargetId) -> Result<()> {
        todo!()
    }
    /// All targets, ascending.
    pub fn targets(&self) -> Vec<TargetId> {
        todo!()
    }
    /// The target's opaque state, empty at first.
    pub fn target_state(&self, target: TargetId) -> Result<Vec<u8>> {
        todo!()
    }
    /// Replaces it, durably. At most [`crate::MAX_TARGET_STATE`] bytes.
    pub async fn set_target_state(&self, target: TargetId, state: &[u8]) -> Result<()> {
        todo!()
    }

    // --- versions ---

    /// Checks an operation and sets space aside for it, before it is forwarded (R8). `NoSpace` keeps the reserve free.
    pub fn admit(&self, target: TargetId, chunk: ChunkId, op: &Op) -> Result<Reservation> {
        todo!()
    }

    /// Stages a version on top of the chunk's last one. Calls for one chunk come in version order; any number may be under way.
    /// Resolves when the version would survive power loss. Without a reservation it may use the reserve.
    pub fn stage(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: VersionId,
        tag: Option<Tag>,
        op: Op,
        reservation: Option<Reservation>,
    ) -> Staging {
        todo!()
    }

    /// The first version of a chunk in a resync session (craq's `Stage { rebase: true }`): `op` is a `Replace`, `Spooled` or `Remove`,
    /// and whatever the store has of the chunk is void from now on, equal and higher version numbers included (R16). The chunk has
    /// no pendings.
    pub fn stage_rebase(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: VersionId,
        tag: Option<Tag>,
        op: Op,
    ) -> Staging {
        todo!()
    }

    /// A base of resync: `op` (a `Replace`, `Spooled` or `Remove`) becomes the chunk's committed version, whatever the store has of it
    /// (R16). The chunk has no pendings. Durable when it resolves.
    pub fn install(&self, target: TargetId, chunk: ChunkId, version: VersionId, op: Op) -> Staging {
        todo!()
    }

    /// Makes room on the disk for `length` bytes of contents that arrive in parts: for `Op::Spooled`. Given back when dropped.
    pub async fn spool(&self, length: u32) -> Result<Spool> {
        todo!()
    }
    /// Writes a part of spooled contents. `offset` is a multiple of 4 KiB, and so is the length of all but the last part.
    pub async fn spool_write(&self, spool: &Spool, offset: u32, data: Buf, crcs: &[u32]) -> Result<()> {
        todo!()
    }

    /// Commits a durable pending version and all before it; their tags enter the table. In memory, at once; after a crash the
    /// versions are pending or committed. Nothing if it is committed already.
    pub fn commit(&self, target: TargetId, chunk: ChunkId, version: VersionId) -> Result<Meta> {
        todo!()
    }

    /// Drops pending versions from `from` on, with their tags. Durable when it resolves. Waits for their stages under way.
    pub async fn drop_pending(&self, target: TargetId, chunk: ChunkId, from: VersionId) -> Result<()> {
        todo!()
    }

    /// Drops all pending versions of the target with their tags (R14). Durable when it resolves.
    pub async fn drop_all_pending(&self, target: TargetId) -> Result<()> {
        todo!()
    }

    /// Forgets a chunk altogether: contents, tombstone, pendings. Durable when it resolves; nothing if it is not there.
    pub async fn forget(&self, target: TargetId, chunk: ChunkId) -> Result<()> {
        todo!()
    }

    /// What the index says of a chunk; `None` if it was never here.
    pub fn chunk(&self, target: TargetId, chunk: ChunkId) -> Option<ChunkState> {
        todo!()
    }

    /// Committed version, `None` if there is none: the cheap half of [`Engine::chunk`].
    pub fn committed(&self, target: TargetId, chunk: ChunkId) -> Option<Meta> {
        todo!()
    }

    /// All pending versions of a target, by chunk and order: what craq restores after a restart.
    pub fn pendings(&self, target: TargetId) -> Vec<PendingInfo> {
        todo!()
    }

    /// Chunks in order, at most `limit`; a page's last chunk, excluded, begins the next.
    pub fn list(
        &self,
        target: TargetId,
        from: Bound<ChunkId>,
        to: Bound<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>> {
        todo!()
    }

    // --- contents ---

    /// Reads into a buffer of class `Local`. Short at the end of the chunk, empty behind it; `NotFound` for an absent or removed one.
    pub async fn read(
        &self,
        target: TargetId,
        chunk: ChunkId,
        at: At,
        offset: u32,
        len: u32,
    ) -> Result<ReadData> {
        todo!()
    }

    /// Reads many ranges of one target with one trip to the disk. Results in the order of the requests.
    pub async fn read_many(&self, target: TargetId, requests: &[ReadRequest]) -> Vec<Result<ReadData>> {
        todo!()
    }

    /// A pending version's operation, to be sent again: as it was staged, or as a `Replace` of the whole contents.
    pub async fn read_op(&self, target: TargetId, chunk: ChunkId, version: VersionId) -> Result<Op> {
        todo!()
    }

    /// CRC32C of the committed contents, zero-padded to whole blocks, from the stored block checksums. 0 for an empty one.
    pub async fn checksum(&self, target: TargetId, chunk: ChunkId) -> Result<u32> {
        todo!()
    }

    /// Reads all committed contents and checks every block: scrub. Returns the bytes read, `Corrupt` at the first bad block.
    pub async fn verify(&self, target: TargetId, chunk: ChunkId) -> Result<u64> {
        todo!()
    }

    // --- tags (R21) ---

    /// What the channel last committed on this target.
    pub fn tag(&self, target: TargetId, client: ClientId, channel: ChannelId) -> Option<TagEntry> {
        todo!()
    }
    /// Tags behind `after`, in order of (client, channel), at most `limit`.
    pub fn tags(
        &self,
        target: TargetId,
        after: Option<(ClientId, ChannelId)>,
        limit: usize,
    ) -> Result<Vec<TagEntry>> {
        todo!()
    }
    /// Takes in another replica's tags (resync): per channel the highest sequence stays. Durable.
    pub async fn merge_tags(&self, target: TargetId, tags: &[TagEntry]) -> Result<()> {
        todo!()
    }
    /// Forgets a client whose session is dead. Durable.
    pub async fn forget_client(&self, target: TargetId, client: ClientId) -> Result<()> {
        todo!()
    }

    // --- upkeep ---

    /// Resolves when there is enough to do for [`Engine::maintain`].
    pub async fn maintenance_due(&self) {
        todo!()
    }
    /// Writes commit marks that nothing else carried, applies committed overwrites in place, writes a checkpoint when one is due.
    pub async fn maintain(&self) -> Result<()> {
        todo!()
    }
    /// Counters and gauges.
    pub fn stats(&self) -> EngineStats {
        todo!()
    }
    /// Why the disk is out of service, if it is.
    pub fn failure(&self) -> Option<EngineError> {
        todo!()
    }
    /// Applies, checkpoints, and refuses everything afterwards. A disk that is not closed is recovered when it is opened.
    pub async fn close(&self) -> Result<()> {
        todo!()
    }
    /// Class of the buffers that reads return.
    pub const READ_CLASS: PoolClass = PoolClass::Local;
}
#[allow(dead_code)]
fn unused(_: EngineError) {}
