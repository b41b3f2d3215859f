//! Bodies of the data plane's requests and replies between clients (or meta services) and storage services.
//!
//! Fixed-layout, little-endian, no alignment, no padding: each struct is its own wire format (byte rulers in `docs/format-wire.md`),
//! and its size is asserted at compile time. Bulk data never lies in a body: it travels by reference beside it. Messages between
//! replicas are the storage service's own (`storage::wire`).

use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::*;
use crate::status::Status;

/// What a request asks for: the transport's method number.
pub mod method {
    /// [`super::WriteRequest`] + piece checksums; one data segment. Answer: [`super::WriteReply`].
    pub const WRITE: u16 = 1;
    /// [`super::ReadItem`]s; answer: one [`super::ReadResult`] an item, then all piece checksums in order; one data segment an item.
    pub const READ: u16 = 2;
    /// [`super::ChunksRequest`]; answer: the last chunk of the inode in the chain, as one or no [`super::ChunkEntry`].
    pub const LAST_CHUNK: u16 = 3;
    /// [`super::ChunksRequest`]; answer: up to `limit` [`super::ChunkEntry`]s in order.
    pub const LIST_CHUNKS: u16 = 4;
    /// [`super::ScrubRequest`]; answer: [`super::ScrubHead`], then [`super::ScrubDisk`]s and [`super::ScrubDamage`]s.
    pub const SCRUB: u16 = 5;
    /// [`super::ResyncsRequest`]; answer: up to [`super::MAX_ITEMS`] [`super::ResyncEntry`]s, by the target that is brought up to date.
    pub const RESYNCS: u16 = 6;
    /// Methods from here on are between replicas.
    pub const PEER: u16 = 64;
}

/// Longest list in one request or reply.
pub const MAX_ITEMS: usize = 1024;

/// Kinds of chunk mutation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum WriteKind {
    /// Bytes at an offset.
    Write = 1,
    /// Set the length, shorter or longer (zeros).
    Truncate = 2,
    /// Raise the length to at least this; never lowers it.
    Extend = 3,
    /// Remove the chunk.
    Remove = 4,
}

impl WriteKind {
    /// From the wire.
    pub fn from_code(code: u8) -> Option<WriteKind> {
        Some(match code {
            1 => WriteKind::Write,
            2 => WriteKind::Truncate,
            3 => WriteKind::Extend,
            4 => WriteKind::Remove,
            _ => return None,
        })
    }
}

/// One chunk mutation, from a client to the head of the chunk's chain. Behind it: `crc_count` checksums (U32), one a piece
/// (`checksum::pieces`). The data segment is placed at `offset % 4096`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct WriteRequest {
    /// Chain version in the client's routing (R1).
    pub chain_version: U64,
    /// The chunk's inode.
    pub inode: U64,
    /// The tag's client (R21).
    pub client: U64,
    /// The tag's sequence.
    pub sequence: U64,
    /// The tag's channel.
    pub channel: U32,
    /// The chunk's chain.
    pub chain: U32,
    /// The chunk's index.
    pub index: U32,
    /// First byte in the chunk; new length for truncate and extend.
    pub offset: U32,
    /// Bytes of data.
    pub length: U32,
    /// The file's chunk size: nothing is written beyond it.
    pub chunk_size: U32,
    /// Checksums that follow.
    pub crc_count: U32,
    /// A [`WriteKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Answer to a write that was committed on every replica of the path.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct WriteReply {
    /// The chunk version that the write became.
    pub version: U64,
    /// The chain version in which it was assigned.
    pub assigned: U64,
    /// The chunk's length after it.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
}

/// One read of a batch.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReadItem {
    /// Chain version in the client's routing.
    pub chain_version: U64,
    /// The chunk's inode.
    pub inode: U64,
    /// The chunk's chain.
    pub chain: U32,
    /// The chunk's index.
    pub index: U32,
    /// First byte in the chunk.
    pub offset: U32,
    /// Bytes wanted; fewer come at the chunk's end.
    pub length: U32,
}

/// Outcome of one read of a batch. A chunk that does not exist is [`Status::NotFound`] with nothing read.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReadResult {
    /// Version that was read.
    pub version: U64,
    /// Bytes in this item's data segment.
    pub length: U32,
    /// Committed length of the chunk.
    pub chunk_length: U32,
    /// Checksums of this item among those behind the results.
    pub crc_count: U32,
    /// A [`Status`].
    pub status: U16,
    /// Zero.
    pub reserved: U16,
}

/// Asks about a range of chunks of one chain.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunksRequest {
    /// Chain version in the caller's routing; 0 asks a replica whatever its state (for verification and repair tools).
    pub chain_version: U64,
    /// First inode of the range.
    pub from_inode: U64,
    /// Last inode of the range, included.
    pub to_inode: U64,
    /// The chain.
    pub chain: U32,
    /// First chunk index in `from_inode`.
    pub from_index: U32,
    /// Most entries to return, at most [`MAX_ITEMS`].
    pub limit: U32,
    /// 1: with content checksums (costs reads of the checksum table).
    pub checksums: U32,
}

/// A chunk as one replica has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkEntry {
    /// The inode.
    pub inode: U64,
    /// Committed version.
    pub version: U64,
    /// Chain version in which that was assigned.
    pub assigned: U64,
    /// Chunk index.
    pub index: U32,
    /// Committed length.
    pub length: U32,
    /// CRC32C of the contents, zero-padded to whole blocks; 0 unless asked for.
    pub checksum: U32,
    /// Pending versions behind the committed one.
    pub pending: U32,
}

/// What an operator wants of a node's scrubbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ScrubOrder {
    /// Only to know how they stand.
    Status = 0,
    /// Begin a pass now; a pass of the same scope under way goes on at the new rate.
    Start = 1,
    /// End the pass under way.
    Stop = 2,
}

impl ScrubOrder {
    /// From the wire.
    pub fn from_code(code: u8) -> Option<ScrubOrder> {
        [ScrubOrder::Status, ScrubOrder::Start, ScrubOrder::Stop]
            .into_iter()
            .find(|&order| order as u8 == code)
    }
}

/// An order to all scrubbers of a node, one a disk. The answer says how they stand afterwards.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ScrubRequest {
    /// Start: only this target; 0: all.
    pub target: U64,
    /// Start: bytes a second on each disk for this pass; 0: as configured.
    pub rate: U64,
    /// A [`ScrubOrder`].
    pub order: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// How many of what follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ScrubHead {
    /// [`ScrubDisk`]s.
    pub disks: U32,
    /// [`ScrubDamage`]s, at most [`MAX_ITEMS`].
    pub damages: U32,
}

/// One disk's scrubber. Counts without "of the pass" are since the service started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ScrubDisk {
    /// The disk's id.
    pub disk: [u8; 16],
    /// Bytes a second at most; 0: no limit.
    pub rate: U64,
    /// Bytes of the pass under way or of the last one, as counted at its beginning;
    pub total: U64,
    /// of those, verified.
    pub verified: U64,
    /// Damaged chunks that were found, by scrubbing or by reading;
    pub found: U64,
    /// of those, repaired;
    pub repaired: U64,
    /// of those, wait for their repair now;
    pub waiting: U64,
    /// of those, cannot be repaired now.
    pub unrepaired: U64,
    /// Passes that reached their end.
    pub passes: U64,
    /// When the pass under way, or the last one, began: nanoseconds since 1970; 0: never.
    pub started: U64,
    /// When a pass last reached its end; 0: never.
    pub finished: U64,
    /// 0 idle, 1 running, 2 the disk failed.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// A damaged chunk that is not repaired yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ScrubDamage {
    /// The target.
    pub target: U64,
    /// The chunk's inode.
    pub inode: U64,
    /// The chunk's index.
    pub index: U32,
    /// The first bad 4 KiB block that was met; all ones: a read failed, and the disk did not say where.
    pub block: U32,
    /// 0: it waits for its repair; 1: no other replica can help now.
    pub hopeless: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

const _: () = {
    assert!(size_of::<ScrubRequest>() == 24);
    assert!(size_of::<ScrubHead>() == 8);
    assert!(size_of::<ScrubDisk>() == 104);
    assert!(size_of::<ScrubDamage>() == 32);
};

/// Asks a node how far it is in bringing other targets up to date.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ResyncsRequest {
    /// First target of the answer.
    pub from: U64,
}

/// How a resync session goes, as its sender sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ResyncState {
    /// Chunks are compared and sent.
    Running = 1,
    /// Something did not work; it is tried again.
    HeldUp = 2,
    /// Everything is there.
    Done = 3,
    /// The chain changed, or the sender left it: another session or another sender goes on.
    BrokenOff = 4,
}

impl ResyncState {
    /// From the wire.
    pub fn from_code(code: u8) -> Option<ResyncState> {
        Some(match code {
            1 => ResyncState::Running,
            2 => ResyncState::HeldUp,
            3 => ResyncState::Done,
            4 => ResyncState::BrokenOff,
            _ => return None,
        })
    }
    /// Nothing more will happen in it.
    pub fn is_over(self) -> bool {
        matches!(self, ResyncState::Done | ResyncState::BrokenOff)
    }
}

/// A resync session that a node drives, or the last that it has driven, for one target.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ResyncEntry {
    /// The sending target.
    pub from: U64,
    /// The one that is brought up to date.
    pub to: U64,
    /// Names the session: the chain version in which the target became syncing.
    pub joined_at: U64,
    /// Milliseconds that it has taken so far, or took.
    pub elapsed_ms: U64,
    /// Chunks looked at,
    pub compared: U64,
    /// of so many.
    pub total: U64,
    /// Chunks whose contents were sent.
    pub sent: U64,
    /// Chunks that needed nothing.
    pub kept: U64,
    /// Chunks that should not exist.
    pub removed: U64,
    /// Bytes of contents sent.
    pub bytes: U64,
    /// The chain.
    pub chain: U32,
    /// A [`ResyncState`].
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<ResyncsRequest>() == 8);
    assert!(size_of::<ResyncEntry>() == 88);
    assert!(size_of::<WriteRequest>() == 64);
    assert!(size_of::<WriteReply>() == 24);
    assert!(size_of::<ReadItem>() == 32);
    assert!(size_of::<ReadResult>() == 24);
    assert!(size_of::<ChunksRequest>() == 40);
    assert!(size_of::<ChunkEntry>() == 40);
};

/// A body that cannot be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub &'static str);

/// Splits `count` structs off the front of `body`.
pub fn take<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    body: &mut &'a [u8],
    count: usize,
) -> Result<&'a [T], Malformed> {
    let (items, rest) = <[T]>::ref_from_prefix_with_elems(body, count)
        .map_err(|_| Malformed("shorter than its header says"))?;
    *body = rest;
    Ok(items)
}

/// One struct off the front of `body`.
pub fn take_one<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    body: &mut &'a [u8],
) -> Result<&'a T, Malformed> {
    let (item, rest) = T::ref_from_prefix(body).map_err(|_| Malformed("shorter than its fixed part"))?;
    *body = rest;
    Ok(item)
}

/// The whole body as a list of structs.
pub fn take_all<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Result<&[T], Malformed> {
    <[T]>::ref_from_bytes(body).map_err(|_| Malformed("not a whole number of items"))
}

/// A body of one struct and what follows it.
pub fn body<T: IntoBytes + Immutable>(head: &T, checksums: &[u32]) -> Bytes {
    let mut out = BytesMut::with_capacity(size_of::<T>() + 4 * checksums.len());
    out.put_slice(head.as_bytes());
    put_checksums(&mut out, checksums);
    out.freeze()
}

/// Appends checksums.
pub fn put_checksums(out: &mut BytesMut, checksums: &[u32]) {
    out.reserve(4 * checksums.len());
    for &crc in checksums {
        out.put_u32_le(crc);
    }
}

/// Splits `count` checksums off the front of `body`.
pub fn take_checksums(body: &mut &[u8], count: usize) -> Result<Vec<u32>, Malformed> {
    Ok(take::<U32>(body, count)?.iter().map(|crc| crc.get()).collect())
}

impl WriteRequest {
    /// The chunk.
    pub fn chunk(&self) -> ChunkId {
        ChunkId { inode: InodeId(self.inode.get()), index: self.index.get() }
    }
    /// The tag.
    pub fn tag(&self) -> Tag {
        Tag {
            client: ClientId(self.client.get()),
            channel: ChannelId(self.channel.get()),
            sequence: Sequence(self.sequence.get()),
        }
    }
}

impl ReadItem {
    /// The chunk.
    pub fn chunk(&self) -> ChunkId {
        ChunkId { inode: InodeId(self.inode.get()), index: self.index.get() }
    }
}

impl ReadResult {
    /// An item that was not read.
    pub fn failed(status: Status) -> ReadResult {
        ReadResult {
            version: 0.into(),
            length: 0.into(),
            chunk_length: 0.into(),
            crc_count: 0.into(),
            status: (status as u16).into(),
            reserved: 0.into(),
        }
    }
    /// The item's status.
    pub fn status(&self) -> Status {
        Status::from_code(self.status.get())
    }
}

impl ChunkEntry {
    /// The chunk.
    pub fn chunk(&self) -> ChunkId {
        ChunkId { inode: InodeId(self.inode.get()), index: self.index.get() }
    }
    /// Identity of the committed version.
    pub fn committed(&self) -> VersionId {
        VersionId { version: ChunkVersion(self.version.get()), assigned: ChainVersion(self.assigned.get()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_body_is_its_header_and_then_its_checksums() {
        let mut head = WriteRequest::read_from_bytes(&[0; 64]).unwrap();
        head.inode = 7.into();
        head.index = 3.into();
        head.crc_count = 2.into();
        let bytes = body(&head, &[0x0102_0304, 5]);
        assert_eq!(bytes.len(), 72);
        assert_eq!(bytes[64..68], [4, 3, 2, 1]);
        let mut rest = &bytes[..];
        let back = take_one::<WriteRequest>(&mut rest).unwrap();
        assert_eq!(back.chunk(), ChunkId { inode: InodeId(7), index: 3 });
        assert_eq!(take_checksums(&mut rest, 2).unwrap(), [0x0102_0304, 5]);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_count_beyond_the_body_is_refused() {
        let mut rest: &[u8] = &[0; 10];
        assert!(take_checksums(&mut rest, 3).is_err());
        assert!(take_checksums(&mut rest, usize::MAX).is_err());
        assert!(take_all::<ReadItem>(&[0; 33]).is_err());
        assert!(take_one::<WriteReply>(&mut &[0_u8; 3][..]).is_err());
    }
}
