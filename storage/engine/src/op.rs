//! The words of the public interface: operations on chunks, what reads return, what the index says of a chunk.

use catena_buf::Buf;
use catena_proto::ids::{ChannelId, ChunkId, ClientId, ClusterId, DiskId, NodeId, Sequence, Tag, VersionId};

/// Largest chunk, bytes.
pub const MAX_CHUNK: u32 = 64 << 20;
/// Longest opaque state of a target, bytes.
pub const MAX_TARGET_STATE: usize = 256;

/// What a version does to its chunk.
#[derive(Clone, Debug)]
pub enum Op {
    /// Puts bytes at an offset; a gap behind the present length becomes zeros.
    Write {
        /// Where in the chunk.
        offset: u32,
        /// What. Not empty, at most 4 MiB. Written to the device from where it lies if it is a pool buffer whose first byte lies at
        /// `offset % 4096` of a page; copied otherwise.
        data: Buf,
        /// CRC32C of every piece of it ([`catena_proto::checksum::pieces`]), verified by the caller.
        crcs: Vec<u32>,
        /// The largest size that the chunk may reach: a power of two, 64 KiB to 64 MiB. A hint for the size class, and a limit.
        chunk_size: u32,
    },
    /// Sets the length, to at most [`MAX_CHUNK`]; what is added reads as zeros.
    Truncate {
        /// The length.
        length: u32,
    },
    /// Raises the length if it is smaller; what is added reads as zeros.
    Extend {
        /// The length, at most [`MAX_CHUNK`].
        length: u32,
    },
    /// Removes the contents and leaves a tombstone with the version.
    Remove,
    /// Makes this the chunk's whole contents.
    Replace {
        /// The length; what `data` does not cover reads as zeros.
        length: u32,
        /// Contents from offset 0. Every part but the last is a multiple of 4 KiB long.
        data: Vec<Buf>,
        /// CRC32C of every 4 KiB piece.
        crcs: Vec<u32>,
    },
    /// Like `Replace`, of contents that are on the disk already: see [`crate::Engine::spool`].
    Spooled(crate::Spool),
}

/// A durable version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Staged {
    /// The chunk's length as of it.
    pub length: u32,
}

/// Which version a read wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// The committed one.
    Committed,
    /// This one, committed or pending.
    Version(VersionId),
}

/// One read of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    /// The chunk.
    pub chunk: ChunkId,
    /// Which version.
    pub at: At,
    /// Where in the chunk.
    pub offset: u32,
    /// Bytes, at most 4 MiB with `offset % 4096` added.
    pub len: u32,
    /// Check whole blocks against their stored checksums too. The reading client does that anyway; scrub and resync set it.
    pub verify: bool,
}

/// Bytes of a chunk.
#[derive(Clone, Debug)]
pub struct ReadData {
    /// Of this version.
    pub version: VersionId,
    /// The chunk's length as of it.
    pub chunk_length: u32,
    /// The bytes, short at the chunk's end. The first lies at `offset % 4096` of a page of its pool buffer.
    pub data: Buf,
    /// CRC32C of every piece. For whole blocks it is what is stored, so the receiver's check covers the disk too.
    pub crcs: Vec<u32>,
}

/// A committed version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// Its identity.
    pub version: VersionId,
    /// The chunk's length, bytes.
    pub length: u32,
    /// The chunk is removed; this remembers its version.
    pub tombstone: bool,
}

/// What the index says of a chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChunkState {
    /// The committed version; absent for a chunk that was only ever staged.
    pub committed: Option<Meta>,
    /// Staged, durable or not, not committed, in order.
    pub pending: Vec<VersionId>,
}

/// One chunk of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkInfo {
    /// The chunk.
    pub chunk: ChunkId,
    /// As [`crate::Engine::chunk`] answers.
    pub state: ChunkState,
    /// Bytes that it takes of the disk.
    pub allocated: u64,
}

/// A durable pending version, as found after a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingInfo {
    /// The chunk.
    pub chunk: ChunkId,
    /// The version.
    pub id: VersionId,
    /// Its tag.
    pub tag: Option<Tag>,
    /// The chunk's length as of it.
    pub length: u32,
}

/// What committed last in a channel (rule R21).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagEntry {
    /// The client.
    pub client: ClientId,
    /// Its channel.
    pub channel: ChannelId,
    /// The newest committed sequence.
    pub sequence: Sequence,
    /// The chunk that it wrote.
    pub chunk: ChunkId,
    /// The version that it became.
    pub version: VersionId,
    /// The chunk's length after it.
    pub length: u32,
}

/// Whose disk it is. Written once, by [`crate::Engine::format`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The disk.
    pub disk: DiskId,
    /// When, in nanoseconds since the Unix epoch; shown to people only.
    pub created: i64,
}

/// Whose disk [`crate::Engine::open`] is to find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expect {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// Bounds of one engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Most bytes of chunk data; 0: what the file system has.
    pub capacity: u64,
    /// Bytes that [`crate::Engine::admit`] leaves free, for versions that a predecessor has accepted already (R8).
    pub reserve: u64,
    /// The data area grows by this many bytes at a time, and at least by what is needed.
    pub growth: u64,
    /// Memory for cached pages of the checksum table.
    pub sums_cache: usize,
    /// Memory for overwritten blocks that are not applied yet.
    pub overlays: usize,
    /// Memory for the engine's own I/O (log, checkpoints, edges of writes).
    pub work: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            capacity: 0,
            reserve: 64 << 20,
            growth: 256 << 20,
            sums_cache: 32 << 20,
            overlays: 16 << 20,
            work: 24 << 20,
        }
    }
}

/// Counters and gauges of one engine; counters start at 0 when it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineStats {
    /// Bytes that chunks may use.
    pub capacity: u64,
    /// Bytes that they use, in whole size classes.
    pub used: u64,
    /// Chunks, tombstones included.
    pub chunks: u64,
    /// Chunks with pending versions or unapplied overwrites.
    pub active: u64,
    /// Log bytes since the last checkpoint.
    pub log_used: u64,
    /// Log bytes in all.
    pub log_capacity: u64,
    /// Unapplied overwritten blocks, bytes.
    pub overlay_bytes: u64,
    /// Bytes written to the device: data, log, checkpoints, sums.
    pub device_written: u64,
    /// Bytes read from the device.
    pub device_read: u64,
    /// Versions staged.
    pub stages: u64,
    /// Reads answered.
    pub reads: u64,
    /// Log writes, each with one sync: `stages / log_writes` is what group commit saves.
    pub log_writes: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Bulk bytes that had to be copied because they did not lie right in memory.
    pub copied: u64,
    /// Blocks that did not match their checksum.
    pub corrupt: u64,
}
