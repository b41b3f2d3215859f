//! Frames: a fixed header, the segment table, the body, then the bulk data. Byte rulers: `docs/format-wire.md`.

use bytes::{BufMut, Bytes, BytesMut};
use catena_proto::checksum;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;

const MAGIC: u32 = u32::from_le_bytes(*b"CTN1");

/// A frame's kind.
pub(crate) const REQUEST: u8 = 1;
pub(crate) const REPLY: u8 = 2;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub magic: U32,
    /// CRC32C of the header with this field zero, the segment table and the body. Bulk data has checksums of its own.
    pub crc: U32,
    pub id: U64,
    pub body_len: U32,
    pub bulk_len: U32,
    /// Request: milliseconds left.
    pub deadline_ms: U32,
    /// Request: the method. Reply: the status.
    pub code: U16,
    /// Entries of the table about bulk data that follows.
    pub segments: U16,
    /// Request: further entries, about room for the reply's.
    pub room: U16,
    pub kind: u8,
    pub reserved: [u8; 5],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct SegmentEntry {
    pub len: U32,
    pub align: U16,
    pub reserved: U16,
}

pub(crate) const HEADER: usize = size_of::<Header>();
pub(crate) const ENTRY: usize = size_of::<SegmentEntry>();
const _: () = assert!(HEADER == 40 && ENTRY == 8);

/// A header that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Garbled(pub &'static str);

impl Header {
    /// Checks what can be checked before the rest has been received, so that nothing is allocated for nonsense.
    pub fn parse(bytes: &[u8; HEADER], kind: u8) -> Result<Header, Garbled> {
        let header = Header::read_from_bytes(bytes).map_err(|_| Garbled("short header"))?;
        if header.magic.get() != MAGIC {
            return Err(Garbled("no frame begins here"));
        }
        if header.kind != kind {
            return Err(Garbled("unexpected kind of frame"));
        }
        if header.body_len.get() as usize > limits::BODY {
            return Err(Garbled("body beyond the limit"));
        }
        if header.bulk_len.get() as usize > limits::BULK {
            return Err(Garbled("bulk data beyond the limit"));
        }
        if usize::from(header.segments.get()) > limits::SEGMENTS
            || usize::from(header.room.get()) > limits::SEGMENTS
        {
            return Err(Garbled("segments beyond the limit"));
        }
        Ok(header)
    }

    /// Bytes between the header and the bulk data.
    pub fn rest_len(&self) -> usize {
        (usize::from(self.segments.get()) + usize::from(self.room.get())) * ENTRY
            + self.body_len.get() as usize
    }

    /// Splits what follows the header into table and body, after checking the checksum.
    pub fn open(&self, rest: Bytes) -> Result<(Vec<SegmentEntry>, Bytes), Garbled> {
        let bare = Header { crc: 0.into(), ..*self };
        let crc = checksum::append(checksum::crc32c(bare.as_bytes()), &rest);
        if crc != self.crc.get() {
            return Err(Garbled("checksum of header and body"));
        }
        let entries = usize::from(self.segments.get()) + usize::from(self.room.get());
        let table = <[SegmentEntry]>::ref_from_bytes(&rest[..entries * ENTRY])
            .map_err(|_| Garbled("segment table"))?;
        let (data, _) = table.split_at(usize::from(self.segments.get()));
        let total: u64 = data.iter().map(|entry| u64::from(entry.len.get())).sum();
        if total != u64::from(self.bulk_len.get()) {
            return Err(Garbled("the segments do not add up to the bulk data"));
        }
        if data.iter().any(|entry| usize::from(entry.align.get()) >= catena_buf::PAGE) {
            return Err(Garbled("alignment beyond a page"));
        }
        Ok((table.to_vec(), rest.slice(entries * ENTRY..)))
    }
}

/// Appends header, table and body of a frame to `out`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn put(
    out: &mut BytesMut,
    kind: u8,
    id: u64,
    code: u16,
    deadline_ms: u32,
    data: impl ExactSizeIterator<Item = (u32, u16)>,
    room: impl ExactSizeIterator<Item = u32>,
    body: &[u8],
) {
    let start = out.len();
    out.put_bytes(0, HEADER);
    let (segments, rooms, mut bulk_len) = (data.len() as u16, room.len() as u16, 0);
    for (len, align) in data {
        bulk_len += len;
        let entry = SegmentEntry { len: len.into(), align: align.into(), reserved: 0.into() };
        out.put_slice(entry.as_bytes());
    }
    for len in room {
        let entry = SegmentEntry { len: len.into(), align: 0.into(), reserved: 0.into() };
        out.put_slice(entry.as_bytes());
    }
    out.put_slice(body);
    let mut header = Header {
        magic: MAGIC.into(),
        crc: 0.into(),
        id: id.into(),
        body_len: (body.len() as u32).into(),
        bulk_len: bulk_len.into(),
        deadline_ms: deadline_ms.into(),
        code: code.into(),
        segments: segments.into(),
        room: rooms.into(),
        kind,
        reserved: [0; 5],
    };
    let crc = checksum::append(checksum::crc32c(header.as_bytes()), &out[start + HEADER..]);
    header.crc = crc.into();
    out[start..start + HEADER].copy_from_slice(header.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, REQUEST, 7, 3, 1000, [(10, 5), (20, 0)].into_iter(), [4096].into_iter(), b"body");
        out
    }

    fn parse(frame: &[u8]) -> Result<(Vec<SegmentEntry>, Bytes), Garbled> {
        let header = Header::parse(frame[..HEADER].try_into().unwrap(), REQUEST)?;
        assert!(
            header.rest_len() <= frame.len() - HEADER,
            "lengths are covered by the checksum only once received"
        );
        header.open(Bytes::copy_from_slice(&frame[HEADER..HEADER + header.rest_len()]))
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let (table, body) = parse(&frame()).unwrap();
        assert_eq!(table.iter().map(|entry| entry.len.get()).collect::<Vec<_>>(), [10, 20, 4096]);
        assert_eq!(&body[..], b"body");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = frame();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let header = Header::parse(bad[..HEADER].try_into().unwrap(), REQUEST);
            let noticed = match header {
                Err(_) => true,
                Ok(header) if header.rest_len() > bad.len() - HEADER => true,
                Ok(header) => {
                    header.open(Bytes::copy_from_slice(&bad[HEADER..HEADER + header.rest_len()])).is_err()
                }
            };
            assert!(noticed, "bit {bit}");
        }
    }
}
