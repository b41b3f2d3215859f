//! One key-value store for several processes, over gRPC: `catena-kv`'s semantics on both ends, so that several mgmtd and meta services
//! share a store without a database of its own kind.
//!
//! The work is split as in FoundationDB. The client ([`RemoteDatabase`]) collects writes and conflict ranges, reads its own writes, checks
//! limits and ages; the service ([`Service`]) hands out versions of its store, reads at them, and takes each commit in one call.
//!
//! - A version is readable for six seconds after it was last handed out, and not in another opening of the store.
//! - Nothing is repeated by this crate. A call that never left is [`Unavailable`](catena_kv::KvError::Unavailable); a commit whose
//!   answer was lost is [`CommitUnknown`](catena_kv::KvError::CommitUnknown).
//! - Requests and replies are values ([`KvApi`]); gRPC ([`GrpcKv`], [`start()`]) is a skin around them.

mod api;
pub mod config;
mod database;
mod fetched;
mod grpc;
mod metrics;
mod read_version;
mod service;
mod skin;
mod start;
mod transaction;
mod views;
mod wire;

pub use api::{CallError, KvApi};
pub use config::{Config, ConfigError, EXAMPLE};
pub use database::{Options, RemoteDatabase};
pub use grpc::GrpcKv;
pub use metrics::Metrics;
pub use service::Service;
pub use start::{Running, StartError, bind, start};
