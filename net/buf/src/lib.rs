//! Buffers that hardware can be told about once: one bounded pool per process.
//!
//! All bulk data of a process lives in one page-aligned region, mapped at start and divided into an *arena* per [`PoolClass`]. The
//! region can be registered with io_uring, and with an RDMA device, as a whole; nothing is registered on the hot path. Buffers are
//! powers of two from 4 KiB to 4 MiB, so a buffer is always fit for O_DIRECT.
//!
//! *Why arenas:* a write waits at each replica of its chain for a buffer of the next. Chains cross (A->B->C beside B->C->A), so with one
//! pool a cluster full of first-hop buffers would wait for itself. With a class per hop, buffers of hop `k` only ever wait for buffers
//! of hop `k + 1`, and the last hop waits for nobody.
//!
//! *Memory of a program's own* can be such a pool as well ([`BufPool::for_claims`], [`BufPool::adopt`]): its buffers lie where the program
//! wants them.
//!
//! ```
//! use catena_buf::{BufPool, PoolClass, PoolConfig};
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let pool = BufPool::new(PoolConfig::client(8 << 20)).unwrap();
//! let mut buf = pool.alloc(5000, PoolClass::Client).await.unwrap();
//! buf[..3].copy_from_slice(b"abc");
//! let shared = buf.freeze();
//! assert_eq!(&shared.slice(1..3)[..], b"bc");
//! # });
//! ```

mod arena;
mod buf;
mod claims;
mod pool;
mod region;

pub use buf::{Buf, IoBuf};
pub use pool::{BufPool, ClassStats, PoolClass, PoolConfig, PoolError, PoolStats, Region, WeakPool};

/// Smallest buffer and alignment of all, bytes.
pub const PAGE: usize = 4096;
/// Largest buffer, bytes.
pub const MAX_BUF: usize = 4 << 20;
