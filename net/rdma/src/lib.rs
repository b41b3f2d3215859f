//! RDMA verbs behind safe types, for the data plane's transport.
//!
//! - [`provider`]: the verbs as traits; who implements them makes queue pairs.
//! - [`ibv`]: libibverbs, loaded when it is asked for: a program that is built with this starts on machines without rdma-core.
//! - [`soft`]: a double in software, for tests that run everywhere: queue pairs of one process that reach each other, with faults on demand.
//! - [`nic`]: an open device that knows the process's memory.
//! - [`queue_pair`]: a queue pair whose states are types and that owns the memory of what it has posted.
//!
//! This crate is where the transport's unsafe code is. What it does not know: messages, credits, connections.
// Registered memory is read and written by hardware behind the compiler's back: every block says why that is sound.
#![allow(unsafe_code)]

pub mod error;
pub mod ibv;
pub mod nic;
pub mod provider;
pub mod queue_pair;
pub mod soft;

pub use error::{CompletionError, VerbsError};
pub use nic::Nic;
pub use provider::*;
pub use queue_pair::QueuePair;
