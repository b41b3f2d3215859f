//! RDMA verbs behind safe types, for the data plane's transport.
//!
//! - [`provider`]: the verbs as traits; who implements them makes queue pairs.
//! - [`ibv`]: libibverbs, loaded when it is asked for: a program that is built with this starts on machines without rdma-core.
//! - [`soft`]: a double in software, for tests that run everywhere: queue pairs of one process that reach each other, with faults on demand.
//! - [`queue_pair`]: a queue pair whose states are types and that owns the memory of what it has posted.
//!
//! This crate is where the transport's unsafe code is. What it does not know: messages, credits, connections.

pub mod error;

pub mod provider;



pub use error::{CompletionError, VerbsError};
pub use provider::*;
