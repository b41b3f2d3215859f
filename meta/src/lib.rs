//! Catena's metadata service: the namespace, layouts, file sessions, and the removal of what nobody needs any more.
//!
//! A service keeps no state of its own that matters; everything is in a transactional key-value store, and any number of services work
//! side by side on one. [`Service`] has the calls as plain async functions, a [`Member`] registers it with mgmtd and runs the
//! background work, and [`start`] puts gRPC around that. `ops` holds the operations, one a file, each a function of a transaction and
//! a request; [`schema`] every key and value.

mod access;
mod chunks;
mod collect;
pub mod config;
mod context;
mod cut;
mod error;
mod layout;
mod member;
mod metrics;
mod op;
mod ops;
mod pace;
mod reclaim;
mod resolve;
mod run;
pub mod schema;
mod service;
mod sessions;
mod skin;
mod start;
mod storage;
mod tx;

pub use chunks::{Chunks, Extent, MemChunks};
pub use config::{Config, ConfigError, EXAMPLE};
pub use member::Member;
pub use metrics::Metrics;
pub use reclaim::Progress;
pub use service::{Background, Parts, Service, Settings};
pub use sessions::{Clients, FileSession};
pub use start::{Env, Running, StartError, start, start_with};
