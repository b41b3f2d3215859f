//! Catena's replication protocol (CRAQ with two commit passes and pipelined writes) as a pure state machine.
//!
//! *What it is:* one [`Replica`] per target. Something happens (a client's write, a peer's message, a finished stage, a new chain
//! view); the replica changes its state and appends [`Effect`]s for the caller to carry out. The rules it follows, R1 to R22, each
//! with the counter-example that demands it, are the project's `docs/replication-states.md`; comments here name them.
//!
//! *What it is not:* it has no clock, files, sockets, threads or randomness, and no payloads: `P` is a handle that it clones and
//! passes on. The chain transition table belongs to mgmtd. The lease belongs to the caller, and [`Fenced`] makes it hard to forget.
//!
//! *What it costs:* state is kept only for chunks with something under way. A million idle chunks cost nothing here: their committed
//! version is asked of the [`Store`].
//!
//! # The caller's duties
//! 1. Effects of one call are carried out in order. [`Effect::Commit`] takes effect in the store before the next call on the replica.
//! 2. Stages of one chunk are started in the order given; they may run at once. Each ends with [`Replica::staged`] or the target goes
//!    offline ([`Replica::stage_failed`] says so).
//! 3. Messages between two replicas may be lost, doubled and reordered. [`Replica::tick`] sends again what was not answered.
//! 4. After a restart, durable pendings are handed to [`Replica::restore`] before the first [`Replica::adopt`], and no view is adopted
//!    that is older than the one in which mgmtd took the new incarnation out (R28): in an older one the target would serve with
//!    commit marks that it has lost.

mod chunk;
mod effect;
mod message;
mod replica;
mod resync;
mod view;

#[cfg(feature = "mutants")]
pub mod mutant;
#[cfg(not(feature = "mutants"))]
#[allow(dead_code)]
mod mutant;

pub use effect::{Effect, Fenced, Outcome, ReadAt, ReadDecision, ReadId, Refusal, RequestId, Unfit};
pub use message::{Forward, Msg};
pub use replica::{Replica, Restored};
pub use resync::{ChunkSummary, Decision, DumpEntry, Install, SyncProgress, decide};
pub use view::{ChainView, Role, Store, TagRecord};
