//! A checkpoint: the index as pages, each as of one record number, and a front that is written last and makes it count.

use catena_proto::checksum::{BLOCK, crc32c};
use catena_proto::ids::{ChainVersion, ChunkId, ChunkVersion, DiskId, InodeId, TargetId, VersionId};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FORMAT, blocks};
use crate::alloc::Run;
use crate::index::Entry;
use crate::op::MAX_CHUNK;

const MAGIC: [u8; 8] = *b"CATENACP";

/// ```text
/// 0        8     12    16       24       32       40    44    48       56           72
/// | magic  | ver | crc | number | lsn    | rsn    | prev| body| length | disk       |
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFront {
    magic: [u8; 8],
    format: U32,
    /// Of all that follows.
    crc: U32,
    number: U64,
    lsn: U64,
    first: U64,
    prev: U32,
    /// Of the pages' own checksums, in order.
    body_crc: U32,
    length: U64,
    disk: [u8; 16],
}
const _: () = assert!(size_of::<RawFront>() == 72);
/// In one sector: a torn front is no front.
const _: () = assert!(size_of::<RawFront>() <= 512);

/// What a checkpoint's front says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    /// Growing; the newest counts.
    pub number: u64,
    /// Replay begins here,
    pub lsn: u64,
    /// with this record,
    pub first: u64,
    /// behind a batch with this checksum.
    pub prev: u32,
    pub body_crc: u32,
    /// Bytes of the pages, which begin behind the front's block.
    pub length: u64,
}

pub fn encode_front(front: &Front, disk: DiskId) -> [u8; BLOCK] {
    let mut raw = RawFront {
        magic: MAGIC,
        format: FORMAT.into(),
        crc: 0.into(),
        number: front.number.into(),
        lsn: front.lsn.into(),
        first: front.first.into(),
        prev: front.prev.into(),
        body_crc: front.body_crc.into(),
        length: front.length.into(),
        disk: disk.0.to_le_bytes(),
    };
    raw.crc = crc32c(&raw.as_bytes()[16..]).into();
    let mut block = [0; BLOCK];
    block[..size_of::<RawFront>()].copy_from_slice(raw.as_bytes());
    block
}

pub fn decode_front(bytes: &[u8], disk: DiskId) -> Option<Front> {
    let (raw, _) = RawFront::ref_from_prefix(bytes).ok()?;
    let valid = raw.magic == MAGIC
        && raw.format.get() == FORMAT
        && raw.crc.get() == crc32c(&raw.as_bytes()[16..])
        && raw.disk == disk.0.to_le_bytes();
    valid.then(|| Front {
        number: raw.number.get(),
        lsn: raw.lsn.get(),
        first: raw.first.get(),
        prev: raw.prev.get(),
        body_crc: raw.body_crc.get(),
        length: raw.length.get(),
    })
}

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageKind {
    /// A target; the payload is its state.
    Target = 1,
    /// Entries of consecutive chunks, then records of what is active among them. Covers everything behind the page before it.
    Chunks = 2,
    /// The last of a target's chunk pages: covers everything behind.
    LastChunks = 3,
    /// Tags.
    Tags = 4,
}

/// ```text
/// 0      4      8              16             24     28     32
/// | crc  | len  | rsn          | target       | kind | count|
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPage {
    /// Of the rest, payload included.
    crc: U32,
    len: U32,
    rsn: U64,
    target: U64,
    kind: U32,
    count: U32,
}
/// Bytes in front of a page's payload.
pub const PAGE_HEAD: usize = size_of::<RawPage>();
const _: () = assert!(PAGE_HEAD == 32);

/// A page's front.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    pub kind: PageKind,
    pub target: TargetId,
    /// Everything up to this record is in the page.
    pub rsn: u64,
    pub count: u32,
}

/// Fills in the front of a page, which begins at `start` of `out` with [`PAGE_HEAD`] bytes left free for it. Returns its checksum.
pub fn seal_page(out: &mut [u8], start: usize, page: &Page) -> u32 {
    let mut raw = RawPage {
        crc: 0.into(),
        len: ((out.len() - start) as u32).into(),
        rsn: page.rsn.into(),
        target: page.target.0.into(),
        kind: (page.kind as u32).into(),
        count: page.count.into(),
    };
    out[start..start + PAGE_HEAD].copy_from_slice(raw.as_bytes());
    let crc = crc32c(&out[start + 4..]);
    raw.crc = crc.into();
    out[start..start + PAGE_HEAD].copy_from_slice(raw.as_bytes());
    crc
}

/// Length of the page at the front of `bytes`, if that much can be seen of it.
pub fn page_len(bytes: &[u8]) -> Option<usize> {
    let (raw, _) = RawPage::ref_from_prefix(bytes).ok()?;
    Some(raw.len.get() as usize)
}

/// A whole page: its front, payload and checksum.
pub fn decode_page(bytes: &[u8]) -> Option<(Page, &[u8], u32)> {
    let (raw, payload) = RawPage::ref_from_prefix(bytes).ok()?;
    let crc = raw.crc.get();
    if bytes.len() != raw.len.get() as usize || crc32c(&bytes[4..]) != crc {
        return None;
    }
    let kind = match raw.kind.get() {
        1 => PageKind::Target,
        2 => PageKind::Chunks,
        3 => PageKind::LastChunks,
        4 => PageKind::Tags,
        _ => return None,
    };
    let target = TargetId(raw.target.get());
    Some((Page { kind, target, rsn: raw.rsn.get(), count: raw.count.get() }, payload, crc))
}

/// ```text
/// 0              8      12             20             28     32     36     40  41  42    44
/// | inode        | index| version      | assigned     |length|writtn| run  |ord|flg| 0   |
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawEntry {
    inode: U64,
    index: U32,
    version: U64,
    assigned: U64,
    length: U32,
    written: U32,
    run: U32,
    order: u8,
    flags: u8,
    zero: [u8; 2],
}
const _: () = assert!(size_of::<RawEntry>() == 44);

impl RawEntry {
    pub fn new(chunk: ChunkId, entry: &Entry) -> RawEntry {
        let (run, order) = entry.run().map_or((0, 0xff), |run| (run.start, run.order));
        RawEntry {
            inode: chunk.inode.0.into(),
            index: chunk.index.into(),
            version: entry.version.version.0.into(),
            assigned: entry.version.assigned.0.into(),
            length: entry.length.into(),
            written: entry.written.into(),
            run: run.into(),
            order,
            flags: entry.tombstone as u8,
            zero: [0; 2],
        }
    }

    pub fn decode(&self) -> Option<(ChunkId, Entry)> {
        let run = match self.order {
            0xff => None,
            order => Some(Run::checked(self.run.get(), order)?),
        };
        let (length, written) = (self.length.get(), self.written.get());
        if written > length || length > MAX_CHUNK || blocks(written) > run.map_or(0, Run::blocks) {
            return None;
        }
        let version = VersionId {
            version: ChunkVersion(self.version.get()),
            assigned: ChainVersion(self.assigned.get()),
        };
        let chunk = ChunkId { inode: InodeId(self.inode.get()), index: self.index.get() };
        Some((chunk, Entry::new(version, length, written, run, self.flags & 1 != 0)))
    }
}
