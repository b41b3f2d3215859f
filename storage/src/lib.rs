//! The storage service: one node, several disks, many targets; clients in front, other replicas beside, engines behind.
//!
//! *What it is:* the shell around three pieces that know nothing of each other: the replication protocol ([`catena_craq`], a pure state
//! machine a target), the chunk store ([`catena_engine`], one a disk) and the transport ([`catena_net`]). A request comes in at
//! [`service`](self), finds its target, steps the protocol under a short lock, and what follows from the step goes to the engine and to
//! the successor at once, from the buffer that the data arrived in.
//!
//! *What it is not:* it decides nothing about membership (mgmtd does), and nothing about replication that is not in `catena_craq`.
//!
//! [`start`] makes a running service from a [`Config`] and an [`Env`]; time, randomness, disks, network and mgmtd come from outside.
//! `docs/data-path.md` follows a write and a read through these files, and says where copies remain.

mod chunks;
pub mod config;
mod disk;
mod effects;
mod forward;
mod full;
mod life;
mod metrics;
mod node;
mod payload;
mod peers;
mod progress;
mod read;
mod repair;
mod request;
mod resync;
mod scrub;
mod scrub_orders;
mod scrubber;
mod service;
mod session;
mod ship;
mod start;
mod sweep;
mod target;
mod throttle;
pub mod wire;
mod write;

pub use config::{Config, ConfigError, EXAMPLE, IoBackend, ResyncRate};
pub use disk::{Directories, DiskSource};
pub use start::{Env, Membership, Running, StartError, start};
