//! What every test of the engine needs: identities, an engine, data that tells where it came from.

use std::sync::Arc;

use catena_buf::{Buf, BufPool, PoolClass, PoolConfig};
use catena_engine::disk::Disk;
use catena_engine::{Engine, Expect, Op, Options, Superblock};
use catena_proto::checksum::piece_checksums;
use catena_proto::ids::*;

pub const CLUSTER: ClusterId = ClusterId(0xc1);
pub const NODE: NodeId = NodeId(3);
pub const T: TargetId = TargetId(11);
pub const EXPECT: Expect = Expect { cluster: CLUSTER, node: NODE };
pub const MIB: u32 = 1 << 20;

pub fn superblock() -> Superblock {
    Superblock { cluster: CLUSTER, node: NODE, disk: DiskId(0xd15c), created: 1 }
}

pub fn pool() -> BufPool {
    BufPool::new(PoolConfig { bytes: [16 << 20, 0, 0, 0, 16 << 20] }).expect("a small pool")
}

pub fn options() -> Options {
    Options { growth: 4 << 20, reserve: 0, work: 16 << 20, ..Options::default() }
}

pub fn chunk(index: u32) -> ChunkId {
    ChunkId { inode: InodeId(7), index }
}

pub fn version(number: u64) -> VersionId {
    VersionId { version: ChunkVersion(number), assigned: ChainVersion(1) }
}

pub fn tag(client: u64, sequence: u64) -> Tag {
    Tag { client: ClientId(client), channel: ChannelId(1), sequence: Sequence(sequence) }
}

/// Bytes that differ by seed and place.
pub fn bytes(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2654435761).wrapping_add(seed.wrapping_mul(40503)) >> 13) as u8)
        .collect()
}

/// In a pool buffer, placed as a write at `offset` has it; or on the heap, never as the write has it: where the
/// allocator puts memory would else decide, now and then, what the engine has to copy.
pub fn placed(pool: Option<&BufPool>, offset: u32, data: &[u8]) -> Buf {
    let skip = offset as usize % 4096;
    match pool.and_then(|pool| pool.try_alloc(skip + data.len(), PoolClass::Client)) {
        Some(mut buf) => {
            buf[skip..].copy_from_slice(data);
            let end = buf.len();
            buf.freeze().slice(skip..end)
        }
        None => {
            let mut memory = vec![0; 4096 + data.len()];
            let start = (skip + 8 + 4096 - memory.as_ptr() as usize % 4096) % 4096;
            memory[start..start + data.len()].copy_from_slice(data);
            Buf::from_vec(memory).slice(start..start + data.len())
        }
    }
}

pub fn write(pool: Option<&BufPool>, offset: u32, data: &[u8]) -> Op {
    let crcs = piece_checksums(offset, data);
    Op::Write { offset, data: placed(pool, offset, data), crcs, chunk_size: 4 * MIB }
}

pub fn replace(pool: Option<&BufPool>, length: u32, data: &[u8]) -> Op {
    let crcs = piece_checksums(0, data);
    let data = if data.is_empty() { Vec::new() } else { vec![placed(pool, 0, data)] };
    Op::Replace { length, data, crcs }
}

pub async fn fresh(disk: &Arc<dyn Disk>) -> Engine {
    Engine::format_with(disk.clone(), superblock(), 2 << 20).await.expect("formats");
    let engine = Engine::open(disk.clone(), EXPECT, pool(), options()).await.expect("opens");
    engine.create_target(T).await.expect("creates a target");
    engine
}
