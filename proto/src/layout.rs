//! Where a file's bytes are: layouts, chunks, and the one exactly specified shuffle that picks a file's chains.
//!
//! The shuffle is part of the on-disk format: two builds that disagree on it read each other's files wrong. It is written down, with
//! test vectors, in `docs/layout.md`, and the tests pin it.

use crate::ids::{ChainId, ChunkId, InodeId, TableId};
#[cfg(feature = "control")]
use crate::pb;

/// Smallest chunk size, bytes.
pub const MIN_CHUNK_SIZE: u32 = 64 << 10;
/// Largest chunk size, bytes.
pub const MAX_CHUNK_SIZE: u32 = 64 << 20;
/// Chunk size where nobody chose one.
pub const DEFAULT_CHUNK_SIZE: u32 = 1 << 20;
/// Longest data of one chunk read or write on the wire, bytes. Longer ones are split at multiples of it.
pub const MAX_IO: u32 = 4 << 20;

/// Why a layout was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two in range.
    #[error("chunk size {0} is not a power of two between 65536 (64 KiB) and 67108864 (64 MiB)")]
    ChunkSize(u32),
    /// A stripe must name at least one chain and at most all of the table's.
    #[error("stripe {stripe} is not between 1 and {chains}, the number of chains in the table")]
    Stripe {
        /// What was asked for.
        stripe: u32,
        /// What there is.
        chains: u32,
    },
    /// Table ids and versions start at 1.
    #[error("the layout names no chain table")]
    Table,
    /// The file's end would lie behind its last addressable chunk.
    #[error("offset {end} is beyond {limit}, the longest file with this chunk size")]
    TooLong {
        /// End of the range.
        end: u64,
        /// Longest file.
        limit: u64,
    },
}

/// A file's layout. Fixed when the file is created.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// The chain table,
    pub table: TableId,
    /// and its version: tables change, files keep the version that they were created with.
    pub table_version: u32,
    /// Bytes in a chunk, a power of two.
    pub chunk_size: u32,
    /// Number of chains that the file's chunks go round.
    pub stripe: u32,
    /// Which chains, and in which order.
    pub seed: u64,
}

/// A part of a byte range that lies in one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Chunk index in the file.
    pub index: u32,
    /// First byte within the chunk.
    pub offset: u32,
    /// Bytes, at least 1, at most [`MAX_IO`].
    pub length: u32,
    /// First byte within the caller's range.
    pub at: u64,
}

impl Layout {
    /// Checks everything that does not need the table.
    pub fn validate(&self) -> Result<(), LayoutError> {
        check_chunk_size(self.chunk_size)?;
        if self.table.0 == 0 || self.table_version == 0 {
            return Err(LayoutError::Table);
        }
        if self.stripe == 0 {
            return Err(LayoutError::Stripe { stripe: 0, chains: u32::MAX });
        }
        Ok(())
    }

    /// The longest file, bytes: chunk indices are 32 bits.
    pub fn max_length(&self) -> u64 {
        u64::from(self.chunk_size) << 32
    }

    /// The chunk that holds byte `offset`.
    pub fn chunk_at(&self, inode: InodeId, offset: u64) -> Result<ChunkId, LayoutError> {
        let index = u32::try_from(offset / u64::from(self.chunk_size))
            .map_err(|_| LayoutError::TooLong { end: offset, limit: self.max_length() })?;
        Ok(ChunkId { inode, index })
    }

    /// Splits `length` bytes at `offset` into pieces of one chunk each, at most [`MAX_IO`] long and cut at multiples of it.
    pub fn pieces(
        &self,
        offset: u64,
        length: u64,
    ) -> Result<impl Iterator<Item = Piece> + use<>, LayoutError> {
        let limit = self.max_length();
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= limit)
            .ok_or(LayoutError::TooLong { end: offset.saturating_add(length), limit })?;
        let chunk_size = u64::from(self.chunk_size);
        let step = chunk_size.min(u64::from(MAX_IO));
        let mut at = offset;
        Ok(std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let next = (at / step + 1).saturating_mul(step).min(end);
            let piece = Piece {
                index: (at / chunk_size) as u32,
                offset: (at % chunk_size) as u32,
                length: (next - at) as u32,
                at: at - offset,
            };
            at = next;
            Some(piece)
        }))
    }

    /// The file's chains, in stripe order: chunk `i` is in `chains[i % stripe]`. `table` is the table's list of chains.
    pub fn chains(&self, table: &[ChainId]) -> Result<Vec<ChainId>, LayoutError> {
        let chains = table.len() as u32;
        if self.stripe == 0 || self.stripe > chains {
            return Err(LayoutError::Stripe { stripe: self.stripe, chains });
        }
        Ok(shuffle(self.seed, chains, self.stripe).into_iter().map(|i| table[i as usize]).collect())
    }
}

/// Refuses a chunk size that is not a power of two from [`MIN_CHUNK_SIZE`] to [`MAX_CHUNK_SIZE`].
pub fn check_chunk_size(chunk_size: u32) -> Result<(), LayoutError> {
    if chunk_size.is_power_of_two() && (MIN_CHUNK_SIZE..=MAX_CHUNK_SIZE).contains(&chunk_size) {
        Ok(())
    } else {
        Err(LayoutError::ChunkSize(chunk_size))
    }
}

/// The first `take` elements of the permutation of `0..n` that `seed` names: Fisher-Yates from the front, driven by SplitMix64
/// (Steele, Lea, Flood, OOPSLA 2014), indices by the high half of a 64x64-bit product. `take` is clipped to `n`.
pub fn shuffle(seed: u64, n: u32, take: u32) -> Vec<u32> {
    let take = take.min(n);
    let mut order: Vec<u32> = (0..n).collect();
    let mut state = seed;
    for i in 0..take {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let j = i + ((u128::from(z) * u128::from(n - i)) >> 64) as u32;
        order.swap(i as usize, j as usize);
    }
    order.truncate(take as usize);
    order
}

#[cfg(feature = "control")]
impl From<Layout> for pb::Layout {
    fn from(layout: Layout) -> Self {
        pb::Layout {
            table: layout.table.0,
            table_version: layout.table_version,
            chunk_size: layout.chunk_size,
            stripe: layout.stripe,
            seed: layout.seed,
        }
    }
}

#[cfg(feature = "control")]
impl TryFrom<pb::Layout> for Layout {
    type Error = LayoutError;
    fn try_from(wire: pb::Layout) -> Result<Self, LayoutError> {
        let layout = Layout {
            table: TableId(wire.table),
            table_version: wire.table_version,
            chunk_size: wire.chunk_size,
            stripe: wire.stripe,
            seed: wire.seed,
        };
        layout.validate()?;
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { table: TableId(1), table_version: 1, chunk_size: 1 << 20, stripe: 3, seed: 7 };

    #[test]
    fn the_shuffle_is_the_documented_one() {
        // The vectors of docs/layout.md. Changing them loses every file.
        let vectors = include_str!("../tests/shuffle-vectors.txt");
        let mut seen = 0;
        for line in vectors.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let numbers: Vec<u64> =
                line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
            let expected: Vec<u32> = numbers[3..].iter().map(|&n| n as u32).collect();
            assert_eq!(shuffle(numbers[0], numbers[1] as u32, numbers[2] as u32), expected, "{line}");
            seen += 1;
        }
        assert!(seen >= 6);
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_a_prefix_of_the_longer_one() {
        for seed in 0..50 {
            let mut whole = shuffle(seed, 17, 17);
            assert_eq!(shuffle(seed, 17, 5), whole[..5]);
            whole.sort_unstable();
            assert_eq!(whole, (0..17).collect::<Vec<_>>());
        }
    }

    #[test]
    fn ranges_split_at_chunks_and_at_the_largest_io() {
        let pieces: Vec<_> = LAYOUT.pieces((1 << 20) - 10, 30).unwrap().collect();
        assert_eq!(
            pieces,
            [
                Piece { index: 0, offset: (1 << 20) - 10, length: 10, at: 0 },
                Piece { index: 1, offset: 0, length: 20, at: 10 }
            ]
        );
        let big = Layout { chunk_size: 64 << 20, ..LAYOUT };
        let lengths: Vec<_> = big.pieces(1 << 20, 8 << 20).unwrap().map(|p| p.length >> 20).collect();
        assert_eq!(lengths, [3, 4, 1]);
        assert_eq!(LAYOUT.pieces(5, 0).unwrap().count(), 0);
    }

    #[test]
    fn offsets_beyond_the_last_chunk_are_refused() {
        assert!(LAYOUT.pieces(LAYOUT.max_length() - 1, 1).is_ok());
        assert!(LAYOUT.pieces(LAYOUT.max_length(), 1).is_err());
        assert!(LAYOUT.pieces(i64::MAX as u64, 4096).is_err());
        assert!(LAYOUT.pieces(u64::MAX, u64::MAX).is_err());
        assert!(LAYOUT.chunk_at(InodeId(1), u64::MAX).is_err());
    }

    #[test]
    fn bad_layouts_are_named() {
        for size in [0, 1, 4096, 65_537, 100_000, 128 << 20] {
            assert_eq!(check_chunk_size(size), Err(LayoutError::ChunkSize(size)));
        }
        let table = [ChainId(1), ChainId(2)];
        assert_eq!(LAYOUT.chains(&table), Err(LayoutError::Stripe { stripe: 3, chains: 2 }));
    }
}
