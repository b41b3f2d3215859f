//! What is on the disk, byte by byte: see `docs/format-engine.md` for the rulers. Little-endian, checked by CRC32C, versioned.
//!
//! Everything here is a function of values. Structures are [`zerocopy`] views without padding; their sizes are asserted.

pub mod checkpoint;
pub mod record;
pub mod superblock;

use catena_proto::checksum::BLOCK;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Version of all structures; a superblock with another is refused.
pub const FORMAT: u32 = 1;
/// Bytes of a block, as file offsets need them.
pub const BLOCK_U64: u64 = BLOCK as u64;
/// Bytes of a block, as chunk offsets need them.
pub const BLOCK_U32: u32 = BLOCK as u32;

/// Blocks that `bytes` of a chunk take.
pub fn blocks(bytes: u32) -> u32 {
    bytes.div_ceil(BLOCK_U32)
}

/// Takes a fixed structure off the front of `bytes`.
pub fn take<'a, T: FromBytes + KnownLayout + Immutable + zerocopy::Unaligned>(
    bytes: &mut &'a [u8],
) -> Option<&'a T> {
    let (head, rest) = T::ref_from_prefix(bytes).ok()?;
    *bytes = rest;
    Some(head)
}

/// Takes `count` bytes off the front.
pub fn take_bytes<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(head)
}

/// Takes `count` little-endian words off the front.
pub fn take_words(bytes: &mut &[u8], count: usize) -> Option<Vec<u32>> {
    let words = take_bytes(bytes, count.checked_mul(4)?)?;
    Some(words.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
}

/// Appends words, little-endian.
pub fn put_words(out: &mut Vec<u8>, words: &[u32]) {
    out.reserve(words.len() * 4);
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}
