//! CRC32C of whole files from what is known of their blocks, without a second look at the bytes.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use catena_proto::checksum::{self, BLOCK};

/// Appending [`BLOCK`] zero bytes to what a checksum is of, as a table: the checksum is linear, so that four lookups do it.
struct BlockShift([[u32; 256]; 4]);

fn block_shift() -> &'static BlockShift {
    static SHIFT: OnceLock<BlockShift> = OnceLock::new();
    SHIFT.get_or_init(|| {
        let bits: [u32; 32] = std::array::from_fn(|bit| checksum::combine(1 << bit, 0, BLOCK));
        let entry = |byte: usize, value: usize| {
            (0..8).filter(|bit| value >> bit & 1 == 1).fold(0, |sum, bit| sum ^ bits[8 * byte + bit])
        };
        BlockShift(std::array::from_fn(|byte| std::array::from_fn(|value| entry(byte, value))))
    })
}

impl BlockShift {
    fn apply(&self, crc: u32) -> u32 {
        let [a, b, c, d] = crc.to_le_bytes().map(usize::from);
        self.0[0][a] ^ self.0[1][b] ^ self.0[2][c] ^ self.0[3][d]
    }
}

/// The checksum of `length` bytes that begin at a block boundary, from the checksums of their pieces.
pub(crate) fn of_pieces(checksums: &[u32], length: usize) -> u32 {
    let shift = block_shift();
    let whole = (length / BLOCK).min(checksums.len());
    let crc = checksums[..whole].iter().fold(0, |crc, &piece| shift.apply(crc) ^ piece);
    checksums[whole..].iter().fold(crc, |crc, &piece| checksum::combine(crc, piece, length % BLOCK))
}

/// The checksum of the bytes that `crc` is of, and `zeros` zero bytes behind them.
pub(crate) fn append_zeros(crc: u32, zeros: u64) -> u32 {
    static ZERO_BLOCK: OnceLock<u32> = OnceLock::new();
    let zero_block = *ZERO_BLOCK.get_or_init(|| checksum::crc32c(&[0; BLOCK]));
    let (shift, rest) = (block_shift(), zeros as usize % BLOCK);
    let crc = (0..zeros / BLOCK as u64).fold(crc, |crc, _| shift.apply(crc) ^ zero_block);
    checksum::append(crc, &[0; BLOCK][..rest])
}

/// The CRC32C (Castagnoli) of a stream of bytes.
///
/// ```
/// use catena_client::transfer::Crc;
/// let mut crc = Crc::default();
/// crc.update(b"1234");
/// crc.update(b"56789");
/// assert_eq!((crc.value(), crc.length()), (0xe306_9283, 9));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crc {
    crc: u32,
    length: u64,
}

impl Crc {
    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.crc = checksum::append(self.crc, bytes);
        self.length += bytes.len() as u64;
    }
    /// Goes on with `length` bytes of which only the checksum is known.
    pub fn join(&mut self, crc: u32, length: usize) {
        self.crc = checksum::combine(self.crc, crc, length);
        self.length += length as u64;
    }
    /// The checksum.
    pub fn value(&self) -> u32 {
        self.crc
    }
    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// What a transfer moved, step by step in any order: enough to compare each chunk, and the file, with what is stored.
#[derive(Default)]
pub(crate) struct Manifest {
    /// Length and checksum by file offset. Steps are aligned: all but a file's last are whole.
    steps: BTreeMap<u64, (u32, u32)>,
}

impl Manifest {
    pub fn add(&mut self, offset: u64, length: u32, crc: u32) {
        self.steps.insert(offset, (length, crc));
    }

    /// The checksum of everything, if it has no gap.
    pub fn whole(&self) -> Option<Crc> {
        let mut whole = Crc::default();
        for (&offset, &(length, crc)) in &self.steps {
            if offset != whole.length {
                return None;
            }
            whole.join(crc, length as usize);
        }
        Some(whole)
    }

    /// Length and checksum of each chunk.
    pub fn chunks(&self, chunk_size: u32) -> BTreeMap<u32, Crc> {
        let mut chunks: BTreeMap<u32, Crc> = BTreeMap::new();
        for (&offset, &(length, crc)) in &self.steps {
            let index = (offset / u64::from(chunk_size)) as u32;
            chunks.entry(index).or_default().join(crc, length as usize);
        }
        chunks
    }
}

/// Whether a stored chunk, of which the padded checksum is known, holds what was moved: bytes that it lacks count as zeros.
pub(crate) fn same(moved: &Crc, stored_length: u32, stored_padded: u32) -> bool {
    let block = BLOCK as u64;
    let stored = u64::from(stored_length);
    if stored > moved.length {
        return false;
    }
    let full = moved.length.next_multiple_of(block);
    let padded = append_zeros(moved.crc, full - moved.length);
    append_zeros(stored_padded, full - stored.next_multiple_of(block)) == padded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize) -> Vec<u8> {
        (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    #[test]
    fn pieces_zeros_and_steps_add_up_to_the_plain_checksum() {
        for length in [0, 1, 4095, 4096, 4097, 3 * 4096, 50_001] {
            let data = data(length);
            let pieces = checksum::piece_checksums(0, &data);
            assert_eq!(of_pieces(&pieces, length), checksum::crc32c(&data), "{length}");
            for zeros in [0, 1, 4096, 10_000] {
                let longer = [&data[..], &vec![0; zeros]].concat();
                let expected = checksum::crc32c(&longer);
                assert_eq!(append_zeros(checksum::crc32c(&data), zeros as u64), expected, "{length} {zeros}");
            }
        }
    }

    #[test]
    fn a_manifest_knows_the_file_and_its_chunks_and_notices_gaps() {
        let data = data(300_000);
        let mut manifest = Manifest::default();
        for step in [2, 0, 1, 3, 4] {
            let part = &data[step * 65_536..(step * 65_536 + 65_536).min(data.len())];
            manifest.add(step as u64 * 65_536, part.len() as u32, checksum::crc32c(part));
        }
        assert_eq!(manifest.whole().unwrap().value(), checksum::crc32c(&data));
        let chunks = manifest.chunks(131_072);
        assert_eq!(chunks[&1].value(), checksum::crc32c(&data[131_072..262_144]));
        assert_eq!((chunks.len(), chunks[&2].length()), (3, 300_000 - 262_144));
        manifest.steps.remove(&65_536);
        assert_eq!(manifest.whole(), None);
    }

    #[test]
    fn a_stored_chunk_is_compared_with_its_padding_and_its_holes() {
        let padded = |bytes: &[u8]| {
            checksum::crc32c(&[bytes, &vec![0; bytes.len().next_multiple_of(BLOCK) - bytes.len()]].concat())
        };
        let mut moved = Crc::default();
        let stored = data(5000);
        moved.update(&stored);
        assert!(same(&moved, 5000, padded(&stored)));
        assert!(!same(&moved, 5000, padded(&stored) ^ 1));
        moved.update(&[0; 20_000]);
        assert!(same(&moved, 5000, padded(&stored)), "a hole behind it");
        assert!(!same(&Crc::default(), 5000, padded(&stored)));
        let mut hole = Crc::default();
        hole.update(&[0; 9000]);
        assert!(same(&hole, 0, 0), "a missing chunk");
    }
}
