//! The chunk store on one disk.
//!
//! *What it is:* [`Engine`] keeps the chunks of many targets on one disk: staged (durable, pending) and committed versions, their
//! per-block checksums, the tags of committed writes, a small state per target. A stage resolves when it would survive power loss.
//!
//! *What it is not:* it decides nothing about replication and spawns nothing: the caller's tasks carry the work, and one of them calls
//! [`Engine::maintain`] when [`Engine::maintenance_due`] resolves, and about once a second.
//!
//! `docs/format-engine.md` has the formats with byte rulers and the argument for every order of steps.

mod alloc;
mod checkpoint;
mod commit;
mod content;
mod core;
pub mod disk;
mod engine;
mod epoch;
mod error;
mod fetch;
mod format;
mod index;
mod log;
mod op;
mod plan;
mod read;
mod recover;
mod replay;
mod reserve;
#[cfg(feature = "sim")]
pub mod sim;
mod spool;
mod stage;
mod state;
mod sums;
mod upkeep;
mod view;

pub use engine::{Engine, Staging};
pub use error::{DiskError, EngineError, Result};
pub use op::{
    At, ChunkInfo, ChunkState, EngineStats, Expect, MAX_CHUNK, MAX_TARGET_STATE, Meta, Op, Options,
    PendingInfo, ReadData, ReadRequest, Staged, Superblock, TagEntry,
};
pub use reserve::Reservation;
pub use spool::Spool;
