//! CRC32C (Castagnoli, RFC 3720 appendix B.4), the one checksum of Catena.
//!
//! A chunk is divided into *blocks* of [`BLOCK`] bytes. Data in flight carries one checksum per *piece*: the part of one block that
//! the data covers. Stored blocks carry the checksum of the whole block, zero-padded behind the chunk's length, so a whole piece's
//! checksum can be stored as it arrived and sent as it is stored.

/// Bytes in a checksummed block of a chunk.
pub const BLOCK: usize = 4096;

/// CRC32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// Continues `crc` over `data`: `append(crc32c(a), b) == crc32c(a ++ b)`.
pub fn append(crc: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, data)
}

/// CRC32C of `a ++ b` from the checksums of both and the length of `b`.
pub fn combine(a: u32, b: u32, b_len: usize) -> u32 {
    crc32c::crc32c_combine(a, b, b_len)
}

/// The pieces of `len` bytes at `offset` of a chunk: (start within the data, length), split at block boundaries of the chunk.
pub fn pieces(offset: u32, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = BLOCK - offset as usize % BLOCK;
    let mut at = 0;
    std::iter::from_fn(move || {
        let size = (if at == 0 { first } else { BLOCK }).min(len - at);
        (size > 0).then(|| {
            at += size;
            (at - size, size)
        })
    })
}

/// How many pieces `len` bytes at `offset` have.
pub fn piece_count(offset: u32, len: usize) -> usize {
    if len == 0 { 0 } else { (offset as usize % BLOCK + len).div_ceil(BLOCK) }
}

/// The checksum of every piece of `data`, which lies at `offset` of its chunk.
pub fn piece_checksums(offset: u32, data: &[u8]) -> Vec<u32> {
    pieces(offset, data.len()).map(|(at, size)| crc32c(&data[at..at + size])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_hold() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn pieces_end_at_block_boundaries_of_the_chunk() {
        assert_eq!(pieces(4000, 200).collect::<Vec<_>>(), [(0, 96), (96, 104)]);
        assert_eq!(pieces(0, 8192).collect::<Vec<_>>(), [(0, 4096), (4096, 4096)]);
        assert_eq!(pieces(5, 0).count(), 0);
        for (offset, len) in [(0, 1), (4095, 2), (4096, 4096), (1, 8192), (9, 0)] {
            assert_eq!(pieces(offset, len).count(), piece_count(offset, len), "{offset} {len}");
        }
    }

    #[test]
    fn a_checksum_can_be_combined_from_its_parts() {
        let (a, b) = (b"catena".as_slice(), b" is a chain".as_slice());
        let whole = [a, b].concat();
        assert_eq!(combine(crc32c(a), crc32c(b), b.len()), crc32c(&whole));
        assert_eq!(append(crc32c(a), b), crc32c(&whole));
    }
}
