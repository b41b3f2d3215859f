//! The superblock: whose disk this is. Written last when a disk is formatted, never again.

use catena_proto::checksum::{BLOCK, crc32c};
use catena_proto::ids::{ClusterId, DiskId, NodeId};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::FORMAT;
use crate::op::Superblock;

const MAGIC: [u8; 8] = *b"CATENA\0D";

/// ```text
/// 0        8     12    16             32             48    52    56      64      72    76
/// | magic  | ver | crc | cluster      | disk         | node| blk | made  | log   | aln |
/// ```
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    format: U32,
    /// Of all that follows.
    crc: U32,
    cluster: [u8; 16],
    disk: [u8; 16],
    node: U32,
    block: U32,
    created: I64,
    log_bytes: U64,
    log_align: U32,
}
const _: () = assert!(size_of::<Raw>() == 76);
/// All of it lies in one sector, so it is there or not.
const _: () = assert!(size_of::<Raw>() <= 512);

/// A superblock and the geometry that was chosen with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub superblock: Superblock,
    /// Bytes of the log, at the start of the store.
    pub log_bytes: u64,
    /// Log writes begin and end at multiples of this: what the device can write without reading first.
    pub log_align: u32,
}

/// Why a superblock is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bad {
    /// There is none.
    Absent,
    /// There is one, but.
    Damaged(String),
}

pub fn encode(geometry: &Geometry) -> [u8; BLOCK] {
    let mut raw = Raw {
        magic: MAGIC,
        format: FORMAT.into(),
        crc: 0.into(),
        cluster: geometry.superblock.cluster.0.to_le_bytes(),
        disk: geometry.superblock.disk.0.to_le_bytes(),
        node: geometry.superblock.node.0.into(),
        block: (BLOCK as u32).into(),
        created: geometry.superblock.created.into(),
        log_bytes: geometry.log_bytes.into(),
        log_align: geometry.log_align.into(),
    };
    raw.crc = crc32c(&raw.as_bytes()[16..]).into();
    let mut block = [0; BLOCK];
    block[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
    block
}

pub fn decode(bytes: &[u8]) -> Result<Geometry, Bad> {
    let Ok((raw, _)) = Raw::ref_from_prefix(bytes) else { return Err(Bad::Absent) };
    if raw.magic != MAGIC {
        // A format that was cut short leaves zeros or nothing.
        return if bytes.iter().all(|&byte| byte == 0) {
            Err(Bad::Absent)
        } else {
            Err(Bad::Damaged("the superblock is not Catena's".into()))
        };
    }
    if raw.format.get() != FORMAT {
        let found = raw.format.get();
        return Err(Bad::Damaged(format!(
            "on-disk format {found} is not the {FORMAT} that this version knows"
        )));
    }
    if raw.crc.get() != crc32c(&raw.as_bytes()[16..]) {
        return Err(Bad::Damaged("the superblock does not match its checksum".into()));
    }
    let (log_bytes, log_align) = (raw.log_bytes.get(), raw.log_align.get());
    if raw.block.get() != BLOCK as u32
        || !log_bytes.is_multiple_of(BLOCK as u64)
        || log_bytes < (1 << 20)
        || ![512, 1024, 2048, 4096].contains(&log_align)
    {
        return Err(Bad::Damaged("the superblock's geometry makes no sense".into()));
    }
    Ok(Geometry {
        superblock: Superblock {
            cluster: ClusterId(u128::from_le_bytes(raw.cluster)),
            node: NodeId(raw.node.get()),
            disk: DiskId(u128::from_le_bytes(raw.disk)),
            created: raw.created.get(),
        },
        log_bytes,
        log_align,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        let superblock =
            Superblock { cluster: ClusterId(7 << 100), node: NodeId(3), disk: DiskId(9), created: -1 };
        Geometry { superblock, log_bytes: 1 << 20, log_align: 512 }
    }

    #[test]
    fn a_superblock_survives_and_any_flipped_bit_is_noticed() {
        let bytes = encode(&geometry());
        assert_eq!(decode(&bytes), Ok(geometry()));
        for bit in 0..size_of::<Raw>() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&bad), Err(Bad::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn an_empty_disk_has_none() {
        assert_eq!(decode(&[]), Err(Bad::Absent));
        assert_eq!(decode(&[0; BLOCK]), Err(Bad::Absent));
    }
}
