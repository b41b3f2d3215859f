//! Transactional key-value storage with FoundationDB's semantics, whatever is underneath.
//!
//! Serialisable transactions by optimistic concurrency, snapshot reads, range reads with conflict detection, atomic operations,
//! versionstamps, and FoundationDB's limits, enforced by every backend, so that what runs on one runs on all. [`mem`] is for tests and
//! the simulator; `catena-kv-embedded` keeps one machine's state on disk; FoundationDB itself is for clusters.
//!
//! ```
//! use catena_kv::{Database, KvError, Retry, mem::MemDatabase, transact};
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let db = MemDatabase::new();
//! transact(&db, Retry::default(), async |tx| {
//!     tx.set(b"name", b"catena");
//!     Ok::<_, KvError>(())
//! })
//! .await
//! .unwrap();
//! let mut tx = db.begin().await.unwrap();
//! assert_eq!(tx.get(b"name", false).await.unwrap().as_deref(), Some(b"catena".as_slice()));
//! # });
//! ```

#[cfg(feature = "conformance")]
pub mod conformance;
mod database;
mod error;
pub mod mem;
mod mutation;
pub mod optimistic;
mod overlay;
mod resolver;
mod retry;
mod subspace;

pub use database::{Database, KeyValue, RangeRead, RangeResult, Transaction, Versionstamp};
pub use error::KvError;
pub use mutation::{AtomicOp, Mutation, Versionstamped};
pub use resolver::{Resolver, Verdict};
pub use retry::{AsKvError, Retry, transact};
pub use subspace::{Subspace, strinc, successor};

/// FoundationDB's limits (its documentation, "Known limitations").
pub mod limits {
    use std::time::Duration;
    /// Longest key, bytes.
    pub const KEY: usize = 10_000;
    /// Longest value, bytes.
    pub const VALUE: usize = 100_000;
    /// Largest transaction: keys, values and conflict ranges of all mutations, bytes.
    pub const TRANSACTION: usize = 10_000_000;
    /// Oldest read version that may still read or commit.
    pub const AGE: Duration = Duration::from_secs(5);
}
