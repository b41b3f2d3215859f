//! Frames: a fixed header, the segment tables, the body; over a stream, bulk data in frames of its own. Byte rulers: `docs/format-wire.md`.
//!
//! Order within a frame: the header first, because it says how long the rest is; the checksum first in the header, because it covers
//! everything behind it up to the bulk data. Bulk data carries the checksums of its service, end to end, and none here.

use std::io;

use bytes::Bytes;
use catena_proto::checksum;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;

/// A frame's kind.
pub(crate) mod kind {
    /// A call. Its bulk data follows in [`DATA`] frames: at once, or when asked for.
    pub const REQUEST: u8 = 1;
    /// The answer to one. Its bulk data follows.
    pub const REPLY: u8 = 2;
    /// A part of a request's or reply's bulk data: `body_len` bytes behind the header, which the checksum does not cover.
    pub const DATA: u8 = 3;
    /// Server to client: there is room for the request's bulk data now, send it (again).
    pub const PULL: u8 = 4;
    /// Client to server: the caller has gone. The server still answers, so that the credit comes back.
    pub const CANCEL: u8 = 5;
    /// Server to client: send no more requests.
    pub const GOODBYE: u8 = 6;
}

/// Bits of [`Header::flags`].
pub(crate) mod flag {
    /// Request: its bulk data follows without being asked for.
    pub const EAGER: u8 = 1;
    /// Data: sent because of a [`PULL`](super::kind::PULL).
    pub const PULLED: u8 = 2;
    /// Reply: requests of this connection wait for buffers; wait to be asked for bulk data.
    pub const CROWDED: u8 = 4;
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    /// CRC32C of the header from here on, the tables and the body.
    pub crc: U32,
    pub kind: u8,
    pub flags: u8,
    /// Request: the method. Reply: the status.
    pub code: U16,
    /// Low 16 bits: the slot, below the number of credits; above: the client's serial number, never used twice.
    pub id: U64,
    /// Bytes of the body; of a data frame: bytes of bulk data behind this header.
    pub body_len: U32,
    /// Request, reply: bytes of bulk data in all, the sum of its table.
    pub bulk_len: U32,
    /// Request: microseconds left.
    pub deadline_us: U32,
    /// Entries of the table of bulk data
    pub segments: U16,
    /// and, in a request, of the table of room for the reply's.
    pub room: U16,
}

/// An entry of a segment table: TCP's is an [`Entry`], RDMA's says also where the bytes are.
pub(crate) trait Row: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + Copy {
    fn len(&self) -> usize;
    fn align(&self) -> usize;
}

/// A segment of bulk data, or of room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Entry {
    pub len: U32,
    /// Byte of a 4 KiB page at which the data begins where it is received.
    pub align: U16,
    pub reserved: U16,
}

pub(crate) const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 32 && size_of::<Entry>() == 8);

/// A frame that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Garbled(pub &'static str);

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum Broken {
    /// By the peer, between two frames.
    Closed,
    Io(io::Error),
    /// The queue pair failed.
    #[cfg(feature = "rdma")]
    QueuePair(String),
    Garbled(Garbled),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Closed => f.write_str("closed by the peer"),
            Broken::Io(error) => error.fmt(f),
            #[cfg(feature = "rdma")]
            Broken::QueuePair(reason) => f.write_str(reason),
            Broken::Garbled(Garbled(what)) => write!(f, "garbled message: {what}"),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Io(error)
    }
}

impl From<Garbled> for Broken {
    fn from(garbled: Garbled) -> Broken {
        Broken::Garbled(garbled)
    }
}

impl Entry {
    pub fn new(len: usize, align: usize) -> Entry {
        Entry { len: (len as u32).into(), align: (align as u16).into(), reserved: 0.into() }
    }
}

impl Row for Entry {
    fn len(&self) -> usize {
        self.len.get() as usize
    }
    fn align(&self) -> usize {
        self.align.get().into()
    }
}

/// A frame taken apart, its checksum verified.
#[derive(Debug)]
pub(crate) struct Frame<'a, R = Entry> {
    pub data: &'a [R],
    pub room: &'a [R],
    pub body: &'a [u8],
}

impl Header {
    /// A frame with nothing but a header.
    pub fn bare(kind: u8, id: u64) -> Header {
        Header { kind, id: id.into(), ..Header::default() }
    }

    /// What is a header, if its lengths are within limits. Its checksum is verified once the rest is here.
    pub fn parse(bytes: &[u8]) -> Result<Header, Garbled> {
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| Garbled("short header"))?;
        let tables = usize::from(header.segments.get()).max(header.room.get().into());
        let bulk = header.bulk_len.get() as usize;
        match header.kind {
            kind::REQUEST | kind::REPLY if header.body_len.get() as usize > limits::BODY => {
                Err(Garbled("body beyond the limit"))
            }
            kind::REQUEST | kind::REPLY if bulk > limits::BULK => Err(Garbled("bulk data beyond the limit")),
            kind::REQUEST | kind::REPLY if tables > limits::SEGMENTS => {
                Err(Garbled("segments beyond the limit"))
            }
            kind::REQUEST | kind::REPLY => Ok(header),
            kind::DATA if header.body_len.get() as usize > limits::BULK => {
                Err(Garbled("bulk data beyond the limit"))
            }
            kind::DATA | kind::PULL | kind::CANCEL | kind::GOODBYE if tables + bulk > 0 => {
                Err(Garbled("a table where none can be"))
            }
            kind::PULL | kind::CANCEL | kind::GOODBYE if header.body_len.get() > 0 => {
                Err(Garbled("a body where none can be"))
            }
            kind::DATA | kind::PULL | kind::CANCEL | kind::GOODBYE => Ok(header),
            _ => Err(Garbled("unknown kind of frame")),
        }
    }

    /// Bytes that the checksum covers behind the header.
    pub fn covered<R: Row>(&self) -> usize {
        let body = if self.kind == kind::DATA { 0 } else { self.body_len.get() as usize };
        (usize::from(self.segments.get()) + usize::from(self.room.get())) * size_of::<R>() + body
    }

    /// Takes apart `bytes`: the header and what its checksum covers.
    pub fn open<'a, R: Row>(&self, bytes: &'a [u8]) -> Result<Frame<'a, R>, Garbled> {
        if checksum::crc32c(&bytes[4..]) != self.crc.get() {
            return Err(Garbled("wrong checksum"));
        }
        let entries = usize::from(self.segments.get()) + usize::from(self.room.get());
        let (table, body) = bytes[HEADER..].split_at(entries * size_of::<R>());
        let table = <[R]>::ref_from_bytes(table).map_err(|_| Garbled("segment table"))?;
        let (data, room) = table.split_at(self.segments.get().into());
        if data.iter().map(|entry| entry.len() as u64).sum::<u64>() != u64::from(self.bulk_len.get()) {
            return Err(Garbled("the segments do not add up to the bulk data"));
        }
        // Pairs with `Call::check`.
        let fits = |entry: &R| {
            entry.align() < catena_buf::PAGE && entry.align() + entry.len() <= catena_buf::MAX_BUF
        };
        if !table.iter().all(fits) {
            return Err(Garbled("a segment that fits no buffer"));
        }
        Ok(Frame { data, room, body })
    }
}

/// Appends a frame to `out`; lengths and checksum of `header` are filled in.
pub(crate) fn put<R: Row>(
    out: &mut Vec<u8>,
    mut header: Header,
    data: impl Iterator<Item = R>,
    room: impl Iterator<Item = R>,
    body: &[u8],
) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    let (mut segments, mut rooms, mut bulk) = (0_u16, 0_u16, 0_u32);
    for entry in data {
        segments += 1;
        bulk += entry.len() as u32;
        out.extend_from_slice(entry.as_bytes());
    }
    for entry in room {
        rooms += 1;
        out.extend_from_slice(entry.as_bytes());
    }
    out.extend_from_slice(body);
    header.body_len = (body.len() as u32).into();
    header.bulk_len = bulk.into();
    header.segments = segments.into();
    header.room = rooms.into();
    let crc = checksum::crc32c(&header.as_bytes()[4..]);
    header.crc = checksum::append(crc, &out[start + HEADER..]).into();
    out[start..start + HEADER].copy_from_slice(header.as_bytes());
}

/// Appends a frame that is a header only.
pub(crate) fn put_bare(out: &mut Vec<u8>, mut header: Header) {
    header.crc = checksum::crc32c(&header.as_bytes()[4..]).into();
    out.extend_from_slice(header.as_bytes());
}

/// Bodies are small, and the buffer they arrive in is used again.
pub(crate) fn body(bytes: &[u8]) -> Bytes {
    if bytes.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let header = Header { code: 3.into(), deadline_us: 1000.into(), ..Header::bare(kind::REQUEST, 7) };
        let mut out = Vec::new();
        let data = [Entry::new(10, 5), Entry::new(20, 0)];
        put(&mut out, header, data.into_iter(), [Entry::new(4096, 0)].into_iter(), b"body");
        out
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let bytes = frame();
        let header = Header::parse(&bytes).unwrap();
        assert_eq!((header.id.get(), header.code.get(), header.bulk_len.get()), (7, 3, 30));
        assert_eq!(HEADER + header.covered::<Entry>(), bytes.len());
        let frame = header.open::<Entry>(&bytes).unwrap();
        assert_eq!(frame.data, [Entry::new(10, 5), Entry::new(20, 0)]);
        assert_eq!(frame.room, [Entry::new(4096, 0)]);
        assert_eq!(frame.body, b"body");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = frame();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let noticed = match Header::parse(&bad) {
                Err(_) => true,
                // Waits for more than was sent, then finds the next frame in it.
                Ok(header) if HEADER + header.covered::<Entry>() > bad.len() => true,
                Ok(header) => header.open::<Entry>(&bad[..HEADER + header.covered::<Entry>()]).is_err(),
            };
            assert!(noticed, "bit {bit}");
        }
    }

    #[test]
    fn what_no_sender_sends_is_refused_before_anything_is_allocated() {
        let sealed = |header: Header| {
            let mut out = Vec::new();
            put_bare(&mut out, header);
            out
        };
        let big = Header { body_len: (limits::BODY as u32 + 1).into(), ..Header::bare(kind::REQUEST, 1) };
        let bulky = Header { bulk_len: (limits::BULK as u32 + 1).into(), ..Header::bare(kind::REPLY, 1) };
        let many = Header { room: (limits::SEGMENTS as u16 + 1).into(), ..Header::bare(kind::REQUEST, 1) };
        let talkative = Header { body_len: 1.into(), ..Header::bare(kind::CANCEL, 1) };
        for bad in [big, bulky, many, talkative, Header::bare(0, 1), Header::bare(99, 1)] {
            assert!(Header::parse(&sealed(bad)).is_err(), "{bad:?}");
        }
        // The sum of the table must be what the header says.
        let mut out = Vec::new();
        put(&mut out, Header::bare(kind::REPLY, 1), [Entry::new(9, 0)].into_iter(), std::iter::empty(), b"");
        let mut header = Header::parse(&out).unwrap();
        header.bulk_len = 8.into();
        let table = out.split_off(HEADER);
        header.crc = checksum::append(checksum::crc32c(&header.as_bytes()[4..]), &table).into();
        let bytes = [header.as_bytes(), &table].concat();
        assert!(header.open::<Entry>(&bytes).is_err());
    }
}
