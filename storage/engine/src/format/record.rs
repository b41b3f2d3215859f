//! Log batches and the records in them.
//!
//! A batch is what one log write carries. It names its own position, and the checksum of the batch before it, so that nothing left
//! over from an earlier lap of the ring or an earlier life of the disk can be taken for its successor.

use catena_proto::checksum::{BLOCK, crc32c};
use catena_proto::ids::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, DiskId, InodeId, Sequence, Tag, TargetId,
    VersionId,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{blocks, put_words, take, take_bytes, take_words};
use crate::alloc::Run;
use crate::op::{MAX_CHUNK, TagEntry};

const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"CtLB");

/// ```text
/// 0      4      8              16             24     28     32     36     40              56
/// | magic| crc  | lsn          | first rsn    | len  | count| prev | zero | disk          |
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BatchHead {
    magic: U32,
    /// Of the rest, up to `len`.
    crc: U32,
    lsn: U64,
    first: U64,
    len: U32,
    count: U32,
    prev: U32,
    zero: U32,
    disk: [u8; 16],
}
/// Bytes in front of a batch's records.
pub const BATCH_HEAD: usize = size_of::<BatchHead>();
const _: () = assert!(BATCH_HEAD == 56);

/// ```text
/// 0   1   2     4      8              16             24     28     32             40             48
/// |knd|flg| 0   | len  | target       | inode        | index| 0    | version      | assigned     |
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    kind: u8,
    flags: u8,
    zero: [u8; 2],
    /// Of the whole record.
    len: U32,
    target: U64,
    inode: U64,
    index: U32,
    zero2: U32,
    version: U64,
    assigned: U64,
}
const HEAD: usize = size_of::<Head>();
const _: () = assert!(HEAD == 48);

/// ```text
/// 0      4      8  9  10 11 12     16     20     24             32     36             44     48     52     56     60     64     68     72
/// |length|writtn|op|ro|po|0 | run  |offset| len  | client       | chan | sequence     |place1|placeN|over1 |overN |parked|resumB|resumC|
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct StageBody {
    length: U32,
    written: U32,
    op: u8,
    run_order: u8,
    parked_order: u8,
    zero: u8,
    run: U32,
    op_offset: U32,
    op_len: U32,
    client: U64,
    channel: U32,
    sequence: U64,
    place_first: U32,
    place_count: U32,
    over_first: U32,
    over_count: U32,
    parked: U32,
    resum_block: U32,
    resum_crc: U32,
}
const _: () = assert!(size_of::<StageBody>() == 72);

/// ```text
/// 0              8      12     16            24             32     36     40             48             56
/// | client       | chan | len  | sequence    | inode        | index| 0    | version      | assigned     |
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawTag {
    client: U64,
    channel: U32,
    length: U32,
    sequence: U64,
    inode: U64,
    index: U32,
    zero: U32,
    version: U64,
    assigned: U64,
}
const _: () = assert!(size_of::<RawTag>() == 56);

impl From<&TagEntry> for RawTag {
    fn from(tag: &TagEntry) -> RawTag {
        RawTag {
            client: tag.client.0.into(),
            channel: tag.channel.0.into(),
            length: tag.length.into(),
            sequence: tag.sequence.0.into(),
            inode: tag.chunk.inode.0.into(),
            index: tag.chunk.index.into(),
            zero: 0.into(),
            version: tag.version.version.0.into(),
            assigned: tag.version.assigned.0.into(),
        }
    }
}

impl From<&RawTag> for TagEntry {
    fn from(raw: &RawTag) -> TagEntry {
        TagEntry {
            client: ClientId(raw.client.get()),
            channel: ChannelId(raw.channel.get()),
            length: raw.length.get(),
            sequence: Sequence(raw.sequence.get()),
            chunk: ChunkId { inode: InodeId(raw.inode.get()), index: raw.index.get() },
            version: VersionId {
                version: ChunkVersion(raw.version.get()),
                assigned: ChainVersion(raw.assigned.get()),
            },
        }
    }
}

/// What an operation was, so that it can be sent again as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    /// The bytes that it wrote.
    Write {
        offset: u32,
        len: u32,
    },
    Truncate,
    Extend {
        length: u32,
    },
    Remove,
    Replace,
}

impl OpKind {
    fn encode(self) -> (u8, u32, u32) {
        match self {
            OpKind::Write { offset, len } => (1, offset, len),
            OpKind::Truncate => (2, 0, 0),
            OpKind::Extend { length } => (3, 0, length),
            OpKind::Remove => (4, 0, 0),
            OpKind::Replace => (5, 0, 0),
        }
    }
    fn decode(code: u8, offset: u32, len: u32) -> Option<OpKind> {
        Some(match code {
            1 if u64::from(offset) + u64::from(len) <= u64::from(MAX_CHUNK) => OpKind::Write { offset, len },
            2 => OpKind::Truncate,
            3 => OpKind::Extend { length: len },
            4 => OpKind::Remove,
            5 => OpKind::Replace,
            _ => return None,
        })
    }
}

/// Where a record's overwritten blocks are until they are applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Images {
    /// In the record.
    Here(Vec<Box<[u8; BLOCK]>>),
    /// In a run of their own.
    Parked(Run),
}

/// One version of a chunk: everything that recovery needs to know of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stage {
    pub op: OpKind,
    pub tag: Option<Tag>,
    /// Chunk length as of this version.
    pub length: u32,
    /// Bytes of it that are stored; the rest reads as zeros.
    pub written: u32,
    /// The chunk's run as of this version.
    pub run: Option<Run>,
    /// `run` is this version's own: nothing of what was before is in it.
    pub new_run: bool,
    /// What was before is void, its version numbers included.
    pub rebase: bool,
    /// Committed at once.
    pub committed: bool,
    /// First block written to `run`, and the checksums of what was.
    pub place_first: u32,
    pub place: Vec<u32>,
    /// First overwritten block, and the checksums.
    pub over_first: u32,
    pub over: Vec<u32>,
    pub images: Images,
    /// New checksum of the last block when the chunk is cut within it.
    pub resum: Option<(u32, u32)>,
}

/// What a record says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// A pending version.
    Stage(Box<Stage>),
    /// The version and all pendings before it are committed.
    Commit,
    /// Pendings from the version on are dropped.
    Drop,
    /// Overwritten blocks of versions up to this one are in place.
    Applied,
    /// Overwritten blocks that are committed and not yet in place: checkpoints only.
    Overlay {
        first: u32,
        crcs: Vec<u32>,
        images: Images,
        /// Where in a parked run the first block is.
        skip: u32,
    },
    /// The chunk is forgotten.
    Forget,
    TargetCreate,
    TargetRemove,
    TargetState(Vec<u8>),
    /// Tags of another replica.
    Tags(Vec<TagEntry>),
    ForgetClient(ClientId),
}

/// A record with what it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub target: TargetId,
    pub chunk: ChunkId,
    pub version: VersionId,
    pub body: Body,
}

const NEW_RUN: u8 = 1;
const REBASE: u8 = 2;
const COMMITTED: u8 = 4;
const TAGGED: u8 = 8;
const NO_ORDER: u8 = 0xff;
const NO_BLOCK: u32 = u32::MAX;

/// A record's images as the writer has them: not to be copied more often than into the log.
pub enum ImagesRef<'a> {
    Here(&'a mut dyn Iterator<Item = &'a [u8; BLOCK]>),
    Parked(Run),
}

/// Room that a stage record takes at most, for keeping log space.
pub fn stage_size(place: usize, over: usize, images: usize) -> usize {
    HEAD + size_of::<StageBody>() + (place + over) * 4 + images * BLOCK + 8
}

fn begin(
    out: &mut Vec<u8>,
    kind: u8,
    flags: u8,
    target: TargetId,
    chunk: ChunkId,
    version: VersionId,
) -> usize {
    let start = out.len();
    let head = Head {
        kind,
        flags,
        zero: [0; 2],
        len: 0.into(),
        target: target.0.into(),
        inode: chunk.inode.0.into(),
        index: chunk.index.into(),
        zero2: 0.into(),
        version: version.version.0.into(),
        assigned: version.assigned.0.into(),
    };
    out.extend_from_slice(head.as_bytes());
    start
}

fn end(out: &mut Vec<u8>, start: usize) {
    let len = (out.len() - start).next_multiple_of(8);
    out.resize(start + len, 0);
    let len = len as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
}

/// Appends a stage record. `stage.images` is ignored in favour of `images`.
pub fn put_stage(
    out: &mut Vec<u8>,
    target: TargetId,
    chunk: ChunkId,
    version: VersionId,
    stage: &Stage,
    images: ImagesRef<'_>,
) {
    let mut flags = 0;
    for (set, flag) in [
        (stage.new_run, NEW_RUN),
        (stage.rebase, REBASE),
        (stage.committed, COMMITTED),
        (stage.tag.is_some(), TAGGED),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let start = begin(out, 1, flags, target, chunk, version);
    let (op, op_offset, op_len) = stage.op.encode();
    let tag = stage.tag.unwrap_or_default();
    let (run, run_order) = stage.run.map_or((0, NO_ORDER), |run| (run.start, run.order));
    let (parked, parked_order) = match &images {
        ImagesRef::Parked(run) => (run.start, run.order),
        ImagesRef::Here(_) => (0, NO_ORDER),
    };
    let (resum_block, resum_crc) = stage.resum.unwrap_or((NO_BLOCK, 0));
    let body = StageBody {
        length: stage.length.into(),
        written: stage.written.into(),
        op,
        run_order,
        parked_order,
        zero: 0,
        run: run.into(),
        op_offset: op_offset.into(),
        op_len: op_len.into(),
        client: tag.client.0.into(),
        channel: tag.channel.0.into(),
        sequence: tag.sequence.0.into(),
        place_first: stage.place_first.into(),
        place_count: (stage.place.len() as u32).into(),
        over_first: stage.over_first.into(),
        over_count: (stage.over.len() as u32).into(),
        parked: parked.into(),
        resum_block: resum_block.into(),
        resum_crc: resum_crc.into(),
    };
    out.extend_from_slice(body.as_bytes());
    put_words(out, &stage.place);
    put_words(out, &stage.over);
    if let ImagesRef::Here(images) = images {
        for image in images {
            out.extend_from_slice(image);
        }
    }
    end(out, start);
}

/// Appends an overlay record (checkpoints).
pub fn put_overlay(
    out: &mut Vec<u8>,
    (target, chunk, version): (TargetId, ChunkId, VersionId),
    first: u32,
    crcs: &[u32],
    images: ImagesRef<'_>,
    skip: u32,
) {
    let start = begin(out, 6, 0, target, chunk, version);
    let (parked, order) = match &images {
        ImagesRef::Parked(run) => (run.start, u32::from(run.order)),
        ImagesRef::Here(_) => (0, u32::from(NO_ORDER)),
    };
    put_words(out, &[first, crcs.len() as u32, parked, order, skip]);
    put_words(out, crcs);
    if let ImagesRef::Here(images) = images {
        for image in images {
            out.extend_from_slice(image);
        }
    }
    end(out, start);
}

/// Appends any record.
pub fn put(out: &mut Vec<u8>, record: &Record) {
    let Record { target, chunk, version, body } = record;
    let (target, chunk, version) = (*target, *chunk, *version);
    let simple = |out: &mut Vec<u8>, kind, payload: &[u8]| {
        let start = begin(out, kind, 0, target, chunk, version);
        out.extend_from_slice(payload);
        end(out, start);
    };
    match body {
        Body::Stage(stage) => match &stage.images {
            Images::Here(images) => {
                let mut images = images.iter().map(|image| &**image);
                put_stage(out, target, chunk, version, stage, ImagesRef::Here(&mut images));
            }
            Images::Parked(run) => put_stage(out, target, chunk, version, stage, ImagesRef::Parked(*run)),
        },
        Body::Overlay { first, crcs, images, skip } => match images {
            Images::Here(images) => {
                let mut images = images.iter().map(|image| &**image);
                put_overlay(out, (target, chunk, version), *first, crcs, ImagesRef::Here(&mut images), *skip);
            }
            Images::Parked(run) => {
                put_overlay(out, (target, chunk, version), *first, crcs, ImagesRef::Parked(*run), *skip);
            }
        },
        Body::Commit => simple(out, 2, &[]),
        Body::Drop => simple(out, 3, &[]),
        Body::Applied => simple(out, 5, &[]),
        Body::Forget => simple(out, 7, &[]),
        Body::TargetCreate => simple(out, 8, &[]),
        Body::TargetRemove => simple(out, 9, &[]),
        Body::TargetState(state) => {
            let mut payload = (state.len() as u32).to_le_bytes().to_vec();
            payload.extend_from_slice(state);
            simple(out, 10, &payload);
        }
        Body::Tags(tags) => {
            let mut payload = (tags.len() as u32).to_le_bytes().to_vec();
            for tag in tags {
                payload.extend_from_slice(RawTag::from(tag).as_bytes());
            }
            simple(out, 11, &payload);
        }
        Body::ForgetClient(client) => simple(out, 12, &client.0.to_le_bytes()),
    }
}

fn run(start: u32, order: u8) -> Option<Option<Run>> {
    if order == NO_ORDER { Some(None) } else { Run::checked(start, order).map(Some) }
}

fn images(bytes: &mut &[u8], count: usize, parked: Option<Run>) -> Option<Images> {
    Some(match parked {
        Some(run) if count <= run.blocks() as usize => Images::Parked(run),
        Some(_) => return None,
        None => {
            let mut all = Vec::with_capacity(count.min(1024));
            for _ in 0..count {
                all.push(Box::new(take_bytes(bytes, BLOCK)?.try_into().ok()?));
            }
            Images::Here(all)
        }
    })
}

/// Takes one record off the front of `bytes`. `None`: what is there is no record.
pub fn get(bytes: &mut &[u8]) -> Option<Record> {
    let mut rest = *bytes;
    let head: &Head = take(&mut rest)?;
    let len = head.len.get() as usize;
    if len < HEAD || !len.is_multiple_of(8) {
        return None;
    }
    let mut payload = take_bytes(bytes, len)?.get(HEAD..)?;
    let bytes = &mut payload;
    let body = match head.kind {
        1 => {
            let raw: &StageBody = take(bytes)?;
            let (place_count, over_count) = (raw.place_count.get(), raw.over_count.get());
            let limit = blocks(MAX_CHUNK);
            let (place_first, over_first) = (raw.place_first.get(), raw.over_first.get());
            if place_first.checked_add(place_count)? > limit || over_first.checked_add(over_count)? > limit {
                return None;
            }
            let run_of_chunk = run(raw.run.get(), raw.run_order)?;
            let written = raw.written.get();
            let room = run_of_chunk.map_or(0, |run| run.blocks());
            if blocks(written) > room || place_first + place_count > room.max(place_first) {
                return None;
            }
            if written > raw.length.get() || raw.length.get() > MAX_CHUNK {
                return None;
            }
            let place = take_words(bytes, place_count as usize)?;
            let over = take_words(bytes, over_count as usize)?;
            let parked = run(raw.parked.get(), raw.parked_order)?;
            let images = images(bytes, over.len(), parked)?;
            let tag = Tag {
                client: ClientId(raw.client.get()),
                channel: ChannelId(raw.channel.get()),
                sequence: Sequence(raw.sequence.get()),
            };
            Body::Stage(Box::new(Stage {
                op: OpKind::decode(raw.op, raw.op_offset.get(), raw.op_len.get())?,
                tag: (head.flags & TAGGED != 0).then_some(tag),
                length: raw.length.get(),
                written,
                run: run_of_chunk,
                new_run: head.flags & NEW_RUN != 0,
                rebase: head.flags & REBASE != 0,
                committed: head.flags & COMMITTED != 0,
                place_first,
                place,
                over_first,
                over,
                images,
                resum: (raw.resum_block.get() != NO_BLOCK)
                    .then(|| (raw.resum_block.get(), raw.resum_crc.get())),
            }))
        }
        2 => Body::Commit,
        3 => Body::Drop,
        5 => Body::Applied,
        6 => {
            let words = take_words(bytes, 5)?;
            let (count, skip) = (words[1] as usize, words[4]);
            if words[0].checked_add(words[1])? > blocks(MAX_CHUNK) {
                return None;
            }
            let crcs = take_words(bytes, count)?;
            let parked = run(words[2], words[3].try_into().ok()?)?;
            if parked.is_some_and(|run| skip.saturating_add(words[1]) > run.blocks()) {
                return None;
            }
            let images = images(bytes, count, parked)?;
            Body::Overlay { first: words[0], crcs, images, skip }
        }
        7 => Body::Forget,
        8 => Body::TargetCreate,
        9 => Body::TargetRemove,
        10 => {
            let len = take_words(bytes, 1)?[0];
            Body::TargetState(take_bytes(bytes, len as usize)?.to_vec())
        }
        11 => {
            let count = take_words(bytes, 1)?[0] as usize;
            let raw = take_bytes(bytes, count.checked_mul(size_of::<RawTag>())?)?;
            let tags = <[RawTag]>::ref_from_bytes(raw).ok()?;
            Body::Tags(tags.iter().map(TagEntry::from).collect())
        }
        12 => Body::ForgetClient(ClientId(u64::from_le_bytes(take_bytes(bytes, 8)?.try_into().ok()?))),
        _ => return None,
    };
    Some(Record {
        target: TargetId(head.target.get()),
        chunk: ChunkId { inode: InodeId(head.inode.get()), index: head.index.get() },
        version: VersionId {
            version: ChunkVersion(head.version.get()),
            assigned: ChainVersion(head.assigned.get()),
        },
        body,
    })
}

/// Place of a batch in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchPlace {
    /// Log sequence number: the byte address, growing for ever; modulo the log's size it is the position in the ring.
    pub lsn: u64,
    /// Number of its first record, growing by one with each.
    pub first: u64,
    /// Checksum of the batch before it.
    pub prev: u32,
}

/// A batch's front as read from the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchFront {
    pub len: usize,
    pub count: u32,
    crc: u32,
}

/// Fills in the front of `batch`, whose first [`BATCH_HEAD`] bytes are left free for it. Returns the checksum for the next one's `prev`.
pub fn seal(batch: &mut [u8], place: BatchPlace, count: u32, disk: DiskId) -> u32 {
    let mut head = BatchHead {
        magic: BATCH_MAGIC.into(),
        crc: 0.into(),
        lsn: place.lsn.into(),
        first: place.first.into(),
        len: (batch.len() as u32).into(),
        count: count.into(),
        prev: place.prev.into(),
        zero: 0.into(),
        disk: disk.0.to_le_bytes(),
    };
    batch[..BATCH_HEAD].copy_from_slice(head.as_bytes());
    let crc = crc32c(&batch[8..]);
    head.crc = crc.into();
    batch[..BATCH_HEAD].copy_from_slice(head.as_bytes());
    crc
}

/// The front of the batch that has to be at `place`, if it looks like one; [`BatchFront::check`] completes the judgement.
pub fn front(bytes: &[u8], place: BatchPlace, disk: DiskId, max: usize) -> Option<BatchFront> {
    let (head, _) = BatchHead::ref_from_prefix(bytes).ok()?;
    let len = head.len.get() as usize;
    let fits = (BATCH_HEAD..=max).contains(&len);
    let same = head.magic.get() == BATCH_MAGIC
        && head.lsn.get() == place.lsn
        && head.first.get() == place.first
        && head.prev.get() == place.prev
        && head.disk == disk.0.to_le_bytes();
    (fits && same).then(|| BatchFront { len, count: head.count.get(), crc: head.crc.get() })
}

impl BatchFront {
    /// The checksum of the whole batch, if it is intact.
    pub fn check(&self, batch: &[u8]) -> Option<u32> {
        (crc32c(batch.get(8..self.len)?) == self.crc).then_some(self.crc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage() -> Stage {
        Stage {
            op: OpKind::Write { offset: 5, len: 6 },
            tag: Some(Tag { client: ClientId(1), channel: ChannelId(2), sequence: Sequence(3) }),
            length: 9000,
            written: 8192,
            run: Some(Run { start: 8, order: 1 }),
            new_run: true,
            rebase: false,
            committed: true,
            place_first: 1,
            place: vec![7],
            over_first: 0,
            over: vec![9],
            images: Images::Here(vec![Box::new([3; BLOCK])]),
            resum: Some((1, 77)),
        }
    }

    fn records() -> Vec<Record> {
        let chunk = ChunkId { inode: InodeId(1 << 40), index: 3 };
        let version = VersionId { version: ChunkVersion(5), assigned: ChainVersion(2) };
        let tag = TagEntry {
            client: ClientId(4),
            channel: ChannelId(5),
            sequence: Sequence(6),
            chunk,
            version,
            length: 7,
        };
        let parked = Stage { images: Images::Parked(Run { start: 16, order: 0 }), ..stage() };
        [
            Body::Stage(Box::new(stage())),
            Body::Stage(Box::new(parked)),
            Body::Commit,
            Body::Drop,
            Body::Applied,
            Body::Overlay {
                first: 3,
                crcs: vec![1],
                images: Images::Here(vec![Box::new([1; BLOCK])]),
                skip: 0,
            },
            Body::Forget,
            Body::TargetCreate,
            Body::TargetRemove,
            Body::TargetState(b"state".to_vec()),
            Body::Tags(vec![tag, tag]),
            Body::ForgetClient(ClientId(9)),
        ]
        .map(|body| Record { target: TargetId(1), chunk, version, body })
        .to_vec()
    }

    #[test]
    fn every_record_reads_as_it_was_written() {
        // Wherever they begin: in a checkpoint they follow entries of 44 bytes.
        let mut out = vec![0; 3];
        records().iter().for_each(|record| put(&mut out, record));
        let mut bytes = &out[3..];
        for record in records() {
            assert_eq!(get(&mut bytes).as_ref(), Some(&record));
        }
        assert!(bytes.is_empty());
    }

    #[test]
    fn no_damaged_record_makes_the_reader_stumble() {
        let mut out = Vec::new();
        records().iter().for_each(|record| put(&mut out, record));
        for at in 0..out.len().min(600) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = out.clone();
                bad[at] = value;
                let mut bytes = &bad[..];
                while !bytes.is_empty() && get(&mut bytes).is_some() {}
            }
        }
        for end in 0..out.len() {
            let mut bytes = &out[..end];
            while get(&mut bytes).is_some() {}
        }
    }

    #[test]
    fn a_batch_counts_only_at_its_own_place_behind_its_own_predecessor() {
        let place = BatchPlace { lsn: 4096, first: 10, prev: 5 };
        let mut batch = vec![0; BATCH_HEAD];
        put(&mut batch, &records()[2]);
        let crc = seal(&mut batch, place, 1, DiskId(3));
        let found = front(&batch, place, DiskId(3), 1 << 20).expect("at its place");
        assert_eq!((found.count, found.check(&batch)), (1, Some(crc)));
        for other in [
            BatchPlace { lsn: 8192, ..place },
            BatchPlace { first: 11, ..place },
            BatchPlace { prev: 6, ..place },
        ] {
            assert_eq!(front(&batch, other, DiskId(3), 1 << 20), None);
        }
        assert_eq!(front(&batch, place, DiskId(4), 1 << 20), None);
        let last = batch.len() - 1;
        batch[last] ^= 1;
        assert_eq!(found.check(&batch), None);
    }
}
