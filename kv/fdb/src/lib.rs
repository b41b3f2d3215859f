//! FoundationDB as a [`catena_kv::Database`]: API version 730, the client library loaded at run time.
//!
//! FoundationDB's own client does what the contract asks for: read-your-writes, conflict ranges, batching of read versions among the
//! transactions of a process. This crate adds what is Catena's: limits checked at the call, errors in the contract's classes, a bound on
//! how long one call waits, and read versions that stale reads may share ([`catena_kv::TxOptions::staleness`]).
//!
//! - [`FdbDatabase::open`] is what services use. It touches the library and the cluster file, not the cluster.
//! - [`FdbDatabase::health`] is what `catena admin kv status` shows.

mod cluster_file;
mod database;
mod error;
mod health;
mod network;
mod stale;
mod transaction;

pub use database::FdbDatabase;
pub use error::OpenError;
pub use health::Health;
pub use network::stop;
