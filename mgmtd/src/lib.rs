//! The cluster manager: who is there, which chains exist, in which state every target is.
//!
//! Decisions are functions of values: [`chain`] (what becomes of a chain), [`placement`] (which disks form which chains), and
//! [`cluster::Cluster`] (what a message or the passing of time means), [`election`] (who of several mgmtd is primary).
//! [`service::Service`] writes what they decide to the key-value store and answers; [`start()`] puts gRPC around it. `docs/membership.md` is the operator's view.

mod campaign;
pub mod chain;
pub mod changes;
pub mod cluster;
pub mod config;
pub mod election;
mod local;
mod metrics;
mod number;
pub mod placement;
pub mod record;
mod reign;
pub mod service;
mod sessions;
mod skin;
mod start;
pub mod store;
#[cfg(test)]
mod testing;

pub use config::{Config, ConfigError, EXAMPLE};
pub use metrics::Metrics;
pub use service::{Parts, Service};
pub use start::{Env, Running, StartError, start};
