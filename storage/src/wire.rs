//! Messages between replicas: bodies of the data plane's requests with method numbers from [`catena_proto::frame::method::PEER`] on.
//!
//! Fixed-layout and little-endian like `proto::frame`; byte rulers are in `docs/format-wire.md`. Every one names the sender's target and
//! chain version (R1). Chunk contents never lie in a body: they travel as data segments beside it.

use crate::disk::TagRow;
use catena_craq::{Decision, DumpEntry, Msg, ReadId, Refusal, TagRecord};
use catena_proto::frame::{Malformed, method};
use catena_proto::ids::*;
use catena_proto::status::Status;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// [`Control`] items; answer: one [`Verdict`] an item.
pub const CONTROL: u16 = method::PEER;
/// [`ForwardHead`] and checksums; data as segments. The number behind it is the hop: how many replicas the data has passed, itself
/// included. Each hop's data waits in buffers of its own class. Answer: one [`Verdict`].
pub const FORWARD_HOP1: u16 = method::PEER + 1;
/// As [`FORWARD_HOP1`], to the third replica.
pub const FORWARD_HOP2: u16 = method::PEER + 2;
/// As [`FORWARD_HOP1`], to the fourth replica and beyond.
pub const FORWARD_HOP3: u16 = method::PEER + 3;
/// [`SyncHead`] and [`DumpRange`]; answer: [`DumpReply`], then [`Dumped`] entries.
pub const DUMP: u16 = method::PEER + 16;
/// [`SyncHead`] and [`Decided`] items; answer: one [`Verdict`] an item.
pub const DECIDE: u16 = method::PEER + 17;
/// [`SyncHead`], [`BaseHead`], checksums; contents as segments. Answer: one [`Verdict`].
pub const BASE: u16 = method::PEER + 18;
/// [`SyncHead`] and [`TagEntry`] items; no answer body.
pub const TAGS: u16 = method::PEER + 19;
/// [`SyncHead`]: the walk is through; no answer body.
pub const DONE: u16 = method::PEER + 20;
/// [`SpoolHead`] and checksums; one segment: a part of contents that a [`BASE`] or full forward will name. No answer body.
pub const SPOOL: u16 = method::PEER + 21;

/// Requests that may come twice, late, and after the sender has gone: what is carried out for them is carried out once. Parts of
/// contents ([`SPOOL`]) are not among them: their memory is given back with their transfer.
pub const TWICE: [u16; 10] =
    [method::WRITE, method::READ, CONTROL, FORWARD_HOP1, FORWARD_HOP2, DUMP, DECIDE, BASE, TAGS, DONE];

/// What a control item says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum ControlKind {
    Notice = 1,
    Ack = 2,
    Query = 3,
    QueryReply = 4,
    /// Asks nothing but the answer's space flag.
    Space = 5,
}

/// One message without data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Control {
    /// The sender's chain version.
    pub chain_version: U64,
    /// Sending target.
    pub from: U64,
    /// Receiving target.
    pub to: U64,
    /// The chunk's inode.
    pub inode: U64,
    /// Notice: D. Ack and query answer: the committed version.
    pub version: U64,
    /// Ack and query answer: chain version at the committed version's assignment.
    pub assigned: U64,
    /// Query and its answer: the asker's handle.
    pub read: U64,
    /// The chunk's index.
    pub index: U32,
    /// 1 notice, 2 ack, 3 query, 4 query answer, 5 space.
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Answer to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Verdict {
    /// A [`Status`]: ok, or why the message does not count.
    pub status: U16,
    /// Bit 0: the receiver, or someone behind it, is short of space: take no new writes.
    pub flags: U16,
}

/// A write on its way down the chain.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ForwardHead {
    /// The sender's chain version.
    pub chain_version: U64,
    /// Sending target.
    pub from: U64,
    /// Receiving target.
    pub to: U64,
    /// The chunk's inode.
    pub inode: U64,
    /// The version's number.
    pub version: U64,
    /// Chain version at its assignment.
    pub assigned: U64,
    /// The sender's D.
    pub durable: U64,
    /// The tag's client; 0: no tag.
    pub client: U64,
    /// The tag's sequence.
    pub sequence: U64,
    /// Replace: names contents that were sent ahead with [`SPOOL`]; 0: they are here.
    pub transfer: U64,
    /// The tag's channel.
    pub channel: U32,
    /// The chunk's index.
    pub index: U32,
    /// Write: first byte. Truncate, extend: the length. Replace: the chunk's length.
    pub offset: U32,
    /// Bytes of data in all segments.
    pub length: U32,
    /// The file's chunk size.
    pub chunk_size: U32,
    /// Checksums behind this struct.
    pub crc_count: U32,
    /// [`catena_proto::frame::WriteKind`], or 5: replace.
    pub kind: u8,
    /// Bit 0: full (the whole contents as of this version); bit 1: first behind the sender's committed version.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// [`ForwardHead::kind`] of a full replace.
pub const KIND_REPLACE: u8 = 5;
/// [`ForwardHead::flags`]: full.
pub const FLAG_FULL: u8 = 1;
/// [`ForwardHead::flags`]: first.
pub const FLAG_FIRST: u8 = 2;
/// [`Verdict::flags`]: short of space.
pub const FLAG_SHORT: u16 = 1;

/// In front of every resync message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SyncHead {
    /// The sender's chain version.
    pub chain_version: U64,
    /// The predecessor.
    pub from: U64,
    /// The syncing target.
    pub to: U64,
    /// The session (R14).
    pub joined_at: U64,
}

/// Which part of the target's chunks to dump.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DumpRange {
    /// First chunk's inode.
    pub inode: U64,
    /// First chunk's index.
    pub index: U32,
    /// Most entries.
    pub limit: U32,
}

/// In front of the dumped entries.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DumpReply {
    /// 1: nothing lies behind the last entry.
    pub end: U32,
    /// Zero.
    pub reserved: U32,
}

/// One chunk of the target.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Dumped {
    /// The chunk's inode.
    pub inode: U64,
    /// Committed version.
    pub version: U64,
    /// Chain version at its assignment.
    pub assigned: U64,
    /// The chunk's index.
    pub index: U32,
    /// Committed length.
    pub length: U32,
    /// CRC32C of its contents.
    pub checksum: U32,
    /// Bit 0: tombstone; bit 1: has pendings; bit 2: complete in this session; bit 3: its contents cannot be read.
    pub flags: U32,
}

/// The predecessor's word on one chunk, when no contents go with it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Decided {
    /// The chunk's inode.
    pub inode: U64,
    /// The version that is kept or whose tombstone is installed.
    pub version: U64,
    /// Chain version at its assignment.
    pub assigned: U64,
    /// The version to reach (R15).
    pub need: U64,
    /// The chunk's index.
    pub index: U32,
    /// 1 keep, 2 absent, 3 tombstone.
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A base: a snapshot of one chunk's committed version.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BaseHead {
    /// The chunk's inode.
    pub inode: U64,
    /// The snapshot's version.
    pub version: U64,
    /// Chain version at its assignment.
    pub assigned: U64,
    /// The version to reach (R15).
    pub need: U64,
    /// Names contents that were sent ahead with [`SPOOL`]; 0: they are here.
    pub transfer: U64,
    /// The chunk's index.
    pub index: U32,
    /// The chunk's length.
    pub length: U32,
    /// Checksums behind this struct.
    pub crc_count: U32,
    /// Zero.
    pub reserved: U32,
}

/// A part of a chunk's contents.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SpoolHead {
    /// The predecessor.
    pub from: U64,
    /// The syncing target.
    pub to: U64,
    /// Names the contents; the sender's choice, never used twice.
    pub transfer: U64,
    /// The contents' length in all.
    pub length: U32,
    /// Where this part begins: a multiple of 4096.
    pub offset: U32,
    /// Checksums behind this struct.
    pub crc_count: U32,
    /// Zero.
    pub reserved: U32,
}

/// What a channel last committed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TagEntry {
    /// The tag's client.
    pub client: U64,
    /// The newest committed sequence.
    pub sequence: U64,
    /// The chunk's inode.
    pub inode: U64,
    /// The version that it became.
    pub version: U64,
    /// Chain version at its assignment.
    pub assigned: U64,
    /// The tag's channel.
    pub channel: U32,
    /// The chunk's index.
    pub index: U32,
    /// The chunk's length after it.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = {
    assert!(size_of::<Control>() == 64);
    assert!(size_of::<Verdict>() == 4);
    assert!(size_of::<ForwardHead>() == 112);
    assert!(size_of::<SyncHead>() == 32);
    assert!(size_of::<DumpRange>() == 16);
    assert!(size_of::<DumpReply>() == 8);
    assert!(size_of::<Dumped>() == 40);
    assert!(size_of::<Decided>() == 40);
    assert!(size_of::<BaseHead>() == 56);
    assert!(size_of::<SpoolHead>() == 40);
    assert!(size_of::<TagEntry>() == 56);
};

/// The status that carries a refusal over the wire.
pub fn refusal_status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NotYet => Status::NotYet,
        Refusal::Stale => Status::StaleRouting,
        Refusal::Gap => Status::Gap,
        Refusal::NotHead => Status::NotHead,
        Refusal::NotServing => Status::NotServing,
        Refusal::StaleSequence => Status::StaleSequence,
    }
}

/// What a peer's status means to the replica that sent the message: anything but a clear word is "try again".
pub fn status_refusal(status: Status) -> Option<Refusal> {
    match status {
        Status::Ok => None,
        Status::StaleRouting => Some(Refusal::Stale),
        Status::Gap => Some(Refusal::Gap),
        _ => Some(Refusal::NotYet),
    }
}

impl Verdict {
    /// An answer.
    pub fn new(status: Status, short_of_space: bool) -> Verdict {
        let flags = if short_of_space { FLAG_SHORT } else { 0 };
        Verdict { status: (status as u16).into(), flags: flags.into() }
    }
    /// Its status.
    pub fn status(&self) -> Status {
        Status::from_code(self.status.get())
    }
    /// Whether the chain behind the receiver, it included, is short of space.
    pub fn short_of_space(&self) -> bool {
        self.flags.get() & FLAG_SHORT != 0
    }
}

/// A control item's meaning.
pub enum Controlled<P> {
    /// For the replica.
    Msg(Msg<P>),
    /// Asks only for the answer's flags.
    Space,
}

impl Control {
    /// A message without data for the wire; `None` for a forward.
    pub fn from_msg<P>(from: TargetId, to: TargetId, cv: ChainVersion, msg: &Msg<P>) -> Option<Control> {
        let none = VersionId::default();
        let (kind, version, read) = match msg {
            Msg::Forward(_) => return None,
            Msg::Notice { durable, .. } => {
                (ControlKind::Notice, VersionId { version: *durable, ..none }, ReadId(0))
            }
            Msg::Ack { committed, .. } => (ControlKind::Ack, *committed, ReadId(0)),
            Msg::Query { read, .. } => (ControlKind::Query, none, *read),
            Msg::QueryReply { read, committed, .. } => (ControlKind::QueryReply, *committed, *read),
        };
        Some(Control::build(from, to, cv, msg.chunk(), kind, version, read))
    }

    /// A question about space.
    pub fn space(from: TargetId, to: TargetId, cv: ChainVersion) -> Control {
        let none = VersionId::default();
        Control::build(from, to, cv, ChunkId::default(), ControlKind::Space, none, ReadId(0))
    }

    fn build(
        from: TargetId,
        to: TargetId,
        cv: ChainVersion,
        chunk: ChunkId,
        kind: ControlKind,
        version: VersionId,
        read: ReadId,
    ) -> Control {
        Control {
            chain_version: cv.0.into(),
            from: from.0.into(),
            to: to.0.into(),
            inode: chunk.inode.0.into(),
            version: version.version.0.into(),
            assigned: version.assigned.0.into(),
            read: read.0.into(),
            index: chunk.index.into(),
            kind: kind as u8,
            reserved: [0; 3],
        }
    }

    /// The chunk.
    pub fn chunk(&self) -> ChunkId {
        chunk(self.inode, self.index)
    }

    /// "Durable up to me".
    pub fn is_notice(&self) -> bool {
        self.kind == ControlKind::Notice as u8
    }

    /// What it says.
    pub fn decode<P>(&self) -> Result<Controlled<P>, Malformed> {
        let chunk = self.chunk();
        let committed = version(self.version, self.assigned);
        let read = ReadId(self.read.get());
        Ok(Controlled::Msg(match self.kind {
            1 => Msg::Notice { chunk, durable: committed.version },
            2 => Msg::Ack { chunk, committed },
            3 => Msg::Query { chunk, read },
            4 => Msg::QueryReply { chunk, read, committed },
            5 => return Ok(Controlled::Space),
            _ => return Err(Malformed("a control message of an unknown kind")),
        }))
    }
}

impl ForwardHead {
    /// The chunk.
    pub fn chunk(&self) -> ChunkId {
        chunk(self.inode, self.index)
    }
    /// The version.
    pub fn id(&self) -> VersionId {
        version(self.version, self.assigned)
    }
    /// The tag, if there is one.
    pub fn tag(&self) -> Option<Tag> {
        (self.client.get() != 0).then(|| Tag {
            client: ClientId(self.client.get()),
            channel: ChannelId(self.channel.get()),
            sequence: Sequence(self.sequence.get()),
        })
    }
    /// The method of the forward to the replica at `place` of the path (the head is 0).
    pub fn method(place: usize) -> u16 {
        FORWARD_HOP1 + (place.clamp(1, 3) - 1) as u16
    }
}

impl Dumped {
    /// For the wire. `unreadable`: the contents do not verify, whatever the checksum says.
    pub fn new(entry: &DumpEntry, unreadable: bool) -> Dumped {
        let bits = [entry.tombstone, entry.pending, entry.complete, unreadable];
        let flags = bits.iter().rev().fold(0, |flags, &bit| flags << 1 | u32::from(bit));
        Dumped {
            inode: entry.chunk.inode.0.into(),
            version: entry.committed.version.0.into(),
            assigned: entry.committed.assigned.0.into(),
            index: entry.chunk.index.into(),
            length: entry.length.into(),
            checksum: entry.checksum.into(),
            flags: flags.into(),
        }
    }
    /// From the wire. An unreadable chunk is shown as one with pendings: it is never kept.
    pub fn entry(&self) -> DumpEntry {
        let bit = |place: u32| self.flags.get() >> place & 1 == 1;
        DumpEntry {
            chunk: chunk(self.inode, self.index),
            committed: version(self.version, self.assigned),
            length: self.length.get(),
            checksum: self.checksum.get(),
            tombstone: bit(0),
            pending: bit(1) || bit(3),
            complete: bit(2),
        }
    }
}

/// What a [`Decided`] item says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// The chunk.
    pub chunk: ChunkId,
    /// Keep, absent, or a base whose contents are a tombstone.
    pub decision: Decision,
    /// The version to reach.
    pub need: ChunkVersion,
}

impl Decided {
    /// For the wire; a base here is a tombstone's.
    pub fn new(word: &Word) -> Decided {
        let (kind, id) = match word.decision {
            Decision::Keep(id) => (1, id),
            Decision::Absent => (2, VersionId::default()),
            Decision::Base(id) => (3, id),
        };
        Decided {
            inode: word.chunk.inode.0.into(),
            version: id.version.0.into(),
            assigned: id.assigned.0.into(),
            need: word.need.0.into(),
            index: word.chunk.index.into(),
            kind,
            reserved: [0; 3],
        }
    }
    /// From the wire.
    pub fn word(&self) -> Result<Word, Malformed> {
        let id = version(self.version, self.assigned);
        let decision = match self.kind {
            1 => Decision::Keep(id),
            2 => Decision::Absent,
            3 => Decision::Base(id),
            _ => return Err(Malformed("a resync decision of an unknown kind")),
        };
        Ok(Word { chunk: chunk(self.inode, self.index), decision, need: ChunkVersion(self.need.get()) })
    }
}

impl BaseHead {
    /// The chunk.
    pub fn chunk(&self) -> ChunkId {
        chunk(self.inode, self.index)
    }
    /// The snapshot's version.
    pub fn id(&self) -> VersionId {
        version(self.version, self.assigned)
    }
}

impl TagEntry {
    /// For the wire.
    pub(crate) fn new(row: &TagRow) -> TagEntry {
        let TagRow { client, channel, record } = row;
        TagEntry {
            client: client.0.into(),
            sequence: record.sequence.0.into(),
            inode: record.chunk.inode.0.into(),
            version: record.version.version.0.into(),
            assigned: record.version.assigned.0.into(),
            channel: channel.0.into(),
            index: record.chunk.index.into(),
            length: record.length.into(),
            reserved: 0.into(),
        }
    }
    /// From the wire.
    pub(crate) fn record(&self) -> TagRow {
        let record = TagRecord {
            sequence: Sequence(self.sequence.get()),
            chunk: chunk(self.inode, self.index),
            version: version(self.version, self.assigned),
            length: self.length.get(),
        };
        TagRow { client: ClientId(self.client.get()), channel: ChannelId(self.channel.get()), record }
    }
}

fn chunk(inode: U64, index: U32) -> ChunkId {
    ChunkId { inode: InodeId(inode.get()), index: index.get() }
}

fn version(version: U64, assigned: U64) -> VersionId {
    VersionId { version: ChunkVersion(version.get()), assigned: ChainVersion(assigned.get()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkId = ChunkId { inode: InodeId(7), index: 9 };
    const ID: VersionId = VersionId { version: ChunkVersion(5), assigned: ChainVersion(2) };

    #[test]
    fn messages_without_data_survive_the_wire() {
        let messages: [Msg<()>; 4] = [
            Msg::Notice { chunk: CHUNK, durable: ChunkVersion(5) },
            Msg::Ack { chunk: CHUNK, committed: ID },
            Msg::Query { chunk: CHUNK, read: ReadId(3) },
            Msg::QueryReply { chunk: CHUNK, read: ReadId(3), committed: ID },
        ];
        for msg in messages {
            let control = Control::from_msg(TargetId(1), TargetId(2), ChainVersion(8), &msg).unwrap();
            let back = Control::read_from_bytes(control.as_bytes()).unwrap();
            assert_eq!((back.from.get(), back.to.get(), back.chain_version.get()), (1, 2, 8));
            match back.decode::<()>().unwrap() {
                Controlled::Msg(back) => assert_eq!(back, msg),
                Controlled::Space => panic!("not a question about space"),
            }
        }
        let mut unknown = Control::space(TargetId(1), TargetId(2), ChainVersion(8));
        assert!(matches!(unknown.decode::<()>(), Ok(Controlled::Space)));
        unknown.kind = 77;
        assert!(unknown.decode::<()>().is_err());
    }

    #[test]
    fn a_dump_entry_survives_the_wire_and_an_unreadable_chunk_is_never_kept() {
        let entry = DumpEntry {
            chunk: CHUNK,
            committed: ID,
            length: 100,
            checksum: 0xabcd,
            tombstone: false,
            pending: false,
            complete: true,
        };
        assert_eq!(Dumped::new(&entry, false).entry(), entry);
        assert!(Dumped::new(&entry, true).entry().pending);
        let entry = DumpEntry { tombstone: true, complete: false, ..entry };
        assert_eq!(Dumped::new(&entry, false).entry(), entry);
    }

    #[test]
    fn decisions_and_tags_survive_the_wire() {
        for decision in [Decision::Keep(ID), Decision::Absent, Decision::Base(ID)] {
            let word = Word { chunk: CHUNK, decision, need: ChunkVersion(6) };
            assert_eq!(Decided::new(&word).word(), Ok(word));
        }
        let record = TagRecord { sequence: Sequence(4), chunk: CHUNK, version: ID, length: 12 };
        let row = TagRow { client: ClientId(1), channel: ChannelId(2), record };
        assert_eq!(TagEntry::new(&row).record(), row);
    }

    #[test]
    fn each_hop_has_a_method_of_its_own_until_the_third() {
        let methods: Vec<_> = (1..6).map(ForwardHead::method).collect();
        assert_eq!(methods, [FORWARD_HOP1, FORWARD_HOP2, FORWARD_HOP3, FORWARD_HOP3, FORWARD_HOP3]);
    }
}
