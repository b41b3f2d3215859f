//! Clients' requests, decoded and checked before anything acts on them: a bad one is refused here and reaches no replica.

use catena_proto::checksum::{self, BLOCK};
use catena_proto::frame::{self, ChunksRequest, MAX_ITEMS, ReadItem, WriteKind, WriteRequest};
use catena_proto::ids::*;
use catena_proto::status::Status;

/// Longest single read or write, bytes.
pub const MAX_IO: u32 = 4 << 20;
/// Smallest and greatest chunk size.
pub const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 64 << 10..=64 << 20;
/// Most bytes that one batch of reads returns; items beyond it are refused as too large.
pub const MAX_BATCH: u64 = 16 << 20;

/// A client's write, checked as far as that is possible without its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientWrite {
    /// To which chain,
    pub chain: ChainId,
    /// in which version of it.
    pub chain_version: ChainVersion,
    /// The chunk.
    pub chunk: ChunkId,
    /// What makes it unique.
    pub tag: Option<Tag>,
    /// What to do.
    pub kind: WriteKind,
    /// First byte, or the new length.
    pub offset: u32,
    /// Bytes of data.
    pub length: u32,
    /// The file's chunk size.
    pub chunk_size: u32,
    /// One for each piece of the data.
    pub crcs: Vec<u32>,
}

/// Decodes a write. `data` are the lengths of the data segments that came with it.
pub fn decode_write(mut body: &[u8], data: &[usize]) -> Result<ClientWrite, Status> {
    let head = *frame::take_one::<WriteRequest>(&mut body).map_err(|_| Status::Malformed)?;
    let crc_count = head.crc_count.get() as usize;
    let kind = WriteKind::from_code(head.kind).ok_or(Status::Malformed)?;
    let (offset, length) = (head.offset.get(), head.length.get());
    let chunk_size = check_chunk_size(head.chunk_size.get())?;
    if head.inode.get() == 0 || (head.client.get() != 0 && head.sequence.get() == 0) {
        return Err(Status::Invalid);
    }
    check_extent(kind, offset, length, chunk_size)?;
    let segments: &[usize] = if length == 0 { &[] } else { &[length as usize] };
    if data != segments || crc_count != checksum::piece_count(offset, length as usize) {
        return Err(Status::Malformed);
    }
    let crcs = frame::take_checksums(&mut body, crc_count).map_err(|_| Status::Malformed)?;
    if !body.is_empty() {
        return Err(Status::Malformed);
    }
    Ok(ClientWrite {
        chain: ChainId(head.chain.get()),
        chain_version: ChainVersion(head.chain_version.get()),
        chunk: head.chunk(),
        tag: (head.client.get() != 0).then(|| head.tag()),
        kind,
        offset,
        length,
        chunk_size,
        crcs,
    })
}

/// The offset that a write names: where in its first block the data lies. Looked at before the rest is believed.
pub fn write_offset(mut body: &[u8]) -> Option<u32> {
    let head = frame::take_one::<WriteRequest>(&mut body).ok()?;
    // Truncate and extend name a length there and carry no data.
    Some(if head.kind == WriteKind::Write as u8 { head.offset.get() } else { 0 })
}

/// A chunk size that files may have.
pub fn check_chunk_size(chunk_size: u32) -> Result<u32, Status> {
    let good = chunk_size.is_power_of_two() && CHUNK_SIZES.contains(&chunk_size);
    if good { Ok(chunk_size) } else { Err(Status::Invalid) }
}

/// Offsets and lengths that a change of a chunk may have; also what replicas check of each other.
pub fn check_extent(kind: WriteKind, offset: u32, length: u32, chunk_size: u32) -> Result<(), Status> {
    let good = match kind {
        WriteKind::Write => {
            (1..=MAX_IO).contains(&length)
                && u64::from(offset) + u64::from(length) <= u64::from(chunk_size)
                // Rounded out to whole blocks it must still fit in one buffer.
                && offset as usize % BLOCK + length as usize <= MAX_IO as usize
        }
        WriteKind::Truncate | WriteKind::Extend => length == 0 && offset <= chunk_size,
        WriteKind::Remove => length == 0 && offset == 0,
    };
    if good { Ok(()) } else { Err(Status::Invalid) }
}

/// Whether every piece of `data`, which lies at `offset` of its chunk, has the checksum that was sent with it.
pub fn verify(offset: u32, data: &[u8], crcs: &[u32]) -> bool {
    let mut expected = crcs.iter();
    checksum::pieces(offset, data.len())
        .all(|(at, size)| expected.next() == Some(&checksum::crc32c(&data[at..at + size])))
        && expected.next().is_none()
}

/// Decodes a batch of reads. What is wrong with single items is for [`check_read`].
pub fn decode_reads(body: &[u8]) -> Result<&[ReadItem], Status> {
    let items = frame::take_all::<ReadItem>(body).map_err(|_| Status::Malformed)?;
    if items.is_empty() || items.len() > MAX_ITEMS { Err(Status::Malformed) } else { Ok(items) }
}

/// Whether one read of a batch is in order; `before` are the bytes that the items before it want.
pub fn check_read(item: &ReadItem, before: u64) -> Result<(), Status> {
    let (offset, length) = (item.offset.get(), item.length.get());
    if length == 0
        || length > MAX_IO
        || u64::from(offset) + u64::from(length) > u64::from(*CHUNK_SIZES.end())
        || offset as usize % BLOCK + length as usize > MAX_IO as usize
    {
        return Err(Status::Invalid);
    }
    if before + u64::from(length) > MAX_BATCH {
        return Err(Status::TooLarge);
    }
    Ok(())
}

/// Decodes a question about a range of chunks.
pub fn decode_chunks(body: &[u8]) -> Result<ChunksRequest, Status> {
    let mut rest = body;
    let request = *frame::take_one::<ChunksRequest>(&mut rest).map_err(|_| Status::Malformed)?;
    if !rest.is_empty() {
        return Err(Status::Malformed);
    }
    if request.from_inode.get() > request.to_inode.get() {
        return Err(Status::Invalid);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromBytes, IntoBytes};

    fn head(kind: WriteKind, offset: u32, length: u32) -> WriteRequest {
        let mut head = WriteRequest::read_from_bytes(&[0; 64]).unwrap();
        head.inode = 1.into();
        head.kind = kind as u8;
        head.offset = offset.into();
        head.length = length.into();
        head.chunk_size = (1 << 20).into();
        head.crc_count = (checksum::piece_count(offset, length as usize) as u32).into();
        head
    }

    fn decode(head: &WriteRequest) -> Result<ClientWrite, Status> {
        let body = frame::body(head, &vec![0; head.crc_count.get() as usize]);
        let data = [head.length.get() as usize];
        decode_write(&body, if data[0] == 0 { &[] } else { &data })
    }

    #[test]
    fn a_write_in_order_is_decoded() {
        let write = decode(&head(WriteKind::Write, 4000, 200)).unwrap();
        assert_eq!((write.offset, write.length, write.crcs.len(), write.tag), (4000, 200, 2, None));
        assert!(decode(&head(WriteKind::Truncate, 1 << 20, 0)).is_ok());
        assert!(decode(&head(WriteKind::Remove, 0, 0)).is_ok());
    }

    #[test]
    fn what_no_chunk_can_hold_is_invalid() {
        let refused = |head: WriteRequest| decode(&head).unwrap_err();
        assert_eq!(refused(head(WriteKind::Write, 0, 0)), Status::Invalid);
        assert_eq!(refused(head(WriteKind::Write, 1 << 20, 1)), Status::Invalid);
        assert_eq!(refused(head(WriteKind::Write, u32::MAX, 100)), Status::Invalid);
        assert_eq!(refused(head(WriteKind::Extend, (1 << 20) + 1, 0)), Status::Invalid);
        assert_eq!(refused(head(WriteKind::Remove, 5, 0)), Status::Invalid);
        for chunk_size in [0, 4096, 65_537, 128 << 20] {
            let head = WriteRequest { chunk_size: chunk_size.into(), ..head(WriteKind::Write, 0, 1) };
            assert_eq!(refused(head), Status::Invalid);
        }
        let long = WriteRequest {
            chunk_size: (64 << 20).into(),
            offset: 100.into(),
            length: MAX_IO.into(),
            crc_count: 1025.into(),
            ..head(WriteKind::Write, 0, 1)
        };
        assert_eq!(refused(long), Status::Invalid, "beyond one buffer when rounded out");
    }

    #[test]
    fn a_body_that_contradicts_itself_is_malformed() {
        let head = head(WriteKind::Write, 0, 5000);
        let short = frame::body(&head, &[1]);
        assert_eq!(decode_write(&short, &[5000]), Err(Status::Malformed));
        let body = frame::body(&head, &[1, 2]);
        assert_eq!(decode_write(&body, &[4999]), Err(Status::Malformed));
        assert_eq!(decode_write(&body, &[]), Err(Status::Malformed));
        assert_eq!(decode_write(&body[..63], &[5000]), Err(Status::Malformed));
        let unknown = WriteRequest { kind: 9, ..head };
        assert_eq!(decode_write(&frame::body(&unknown, &[1, 2]), &[5000]), Err(Status::Malformed));
    }

    #[test]
    fn data_verifies_only_with_exactly_its_checksums() {
        let data = vec![7; 9000];
        let crcs = checksum::piece_checksums(100, &data);
        assert!(verify(100, &data, &crcs));
        assert!(!verify(101, &data, &crcs));
        assert!(!verify(100, &data, &crcs[..2]));
        let mut bad = data.clone();
        bad[8999] ^= 1;
        assert!(!verify(100, &bad, &crcs));
    }

    #[test]
    fn a_read_beyond_the_batch_is_refused_without_the_others() {
        let mut item = ReadItem::read_from_bytes(&[0; 32]).unwrap();
        assert_eq!(check_read(&item, 0), Err(Status::Invalid));
        item.length = MAX_IO.into();
        assert_eq!(check_read(&item, 0), Ok(()));
        assert_eq!(check_read(&item, MAX_BATCH - 1), Err(Status::TooLarge));
        assert_eq!(decode_reads(&[0; 31]).err(), Some(Status::Malformed));
        assert_eq!(decode_reads(&[]).err(), Some(Status::Malformed));
        assert_eq!(decode_reads(item.as_bytes()).unwrap().len(), 1);
    }
}
