//! The chunk store on one disk.
//!
//! *What it is:* [`Engine`] keeps the chunks of many targets on one disk: staged (durable, pending) and committed versions, their
//! per-block checksums, the tags of committed writes, a small state per target. A stage resolves when it would survive power loss.
//!
//! *What it is not:* it decides nothing about replication and spawns nothing: the caller's tasks carry the work, and one of them calls
//! [`Engine::maintain`] when [`Engine::maintenance_due`] resolves, and about once a second.
//!
//! `docs/format-engine.md` has the formats with byte rulers and the argument for every order of steps.

pub mod disk;
mod engine;
mod error;
mod op;

pub use engine::{Engine, Reservation, Spool, Staging};
pub use error::{DiskError, EngineError, Result};
pub use op::{
    At, ChunkInfo, ChunkState, EngineStats, Expect, MAX_CHUNK, MAX_TARGET_STATE, Meta, Op, Options,
    PendingInfo, ReadData, ReadRequest, Staged, Superblock, TagEntry,
};
