//! The transactional key-value layer below Catena's metadata and cluster manager: one object-safe trait with FoundationDB's semantics,
//! and what its backends share.
//!
//! - [`Database`] and [`Transaction`] are the contract; [`transact`] is how services use it.
//! - [`mem`] keeps everything in memory and is deterministic (simulator, unit tests); `catena-kv-embedded` keeps it on one machine's
//!   disk; FoundationDB fits the same traits.
//! - [`fault`] wraps any database and injects conflicts, unknown commit results and outages.
//! - [`local`] is the kit of which `mem` and `embedded` are built: conflict window, read-your-writes overlay, limits.
//! - [`reserved`] has the keys of the tools that look after a store.
//! - `conformance` (feature of that name) is the suite that every backend must pass.
//!
//! ```
//! use catena_kv::{transact, Isolation, Jitter, KvError, MemDatabase, Retry};
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
//! # runtime.block_on(async {
//! let db = MemDatabase::new();
//! let jitter = Jitter::new(7);
//! let visits = transact(&db, Retry::default(), &jitter, |tx| async move {
//!     let old = tx.get(b"visits", Isolation::Serializable).await?.map_or(0, |v| v[0]);
//!     tx.set(b"visits", &[old + 1])?;
//!     Ok::<_, KvError>(old + 1)
//! })
//! .await?;
//! assert_eq!(visits, 1);
//! # Ok::<_, KvError>(())
//! # }).unwrap();
//! ```

mod atomic;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod database;
mod error;
pub mod fault;
pub mod limits;
pub mod local;
pub mod mem;
mod range;
pub mod reserved;
mod retry;
mod subspace;
mod versionstamp;

pub use atomic::Atomic;
pub use config::{FdbConfig, StoreConfig};
pub use database::{BoxFuture, Database, Isolation, Transaction, Tx, TxOptions};
pub use error::KvError;
pub use limits::{KEY_LIMIT, TRANSACTION_AGE, TRANSACTION_LIMIT, USER_KEY_END, VALUE_LIMIT};
pub use mem::MemDatabase;
pub use range::{KeyValue, RangeQuery, RangeResult, key_after, prefix_end};
pub use retry::{Jitter, KvFailure, Retry, transact, transact_versioned};
pub use subspace::{Prefixed, Subspace};
pub use versionstamp::{VERSIONSTAMP_LEN, Versionstamp};
