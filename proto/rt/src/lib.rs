//! What runs tasks and tells time: tokio, or the simulator.
//!
//! Services never call tokio's `spawn` and `time` themselves. In production these functions are tokio's own, with nothing between; with
//! the feature `sim` a thread inside [`sim::Sim::run`] gets a single-threaded executor instead, whose clock stands still while
//! anything can run and whose scheduling is drawn from one seed. tokio's channels, locks and notifications do not care who polls them.
//!
//! Tasks belong to a [`Process`]: what a process spawns dies with it. Outside the simulator there is one process, this one.

mod process;
#[cfg(feature = "sim")]
pub mod sim;
mod task;
pub mod time;

pub use process::Process;
pub use task::{AbortHandle, JoinError, JoinHandle, JoinSet, can_spawn, spawn, spawn_blocking, yield_now};

/// Whether the rule `name` is to be broken, by a test that must notice: always false in what is shipped, where this costs nothing.
#[inline(always)]
pub fn broken(_name: &str) -> bool {
    #[cfg(feature = "sim")]
    return sim::is_broken(_name);
    #[cfg(not(feature = "sim"))]
    false
}

/// Tells a test that knows more than any process does, all disks and clocks for instance, that this happens now, so that it can say
/// whether it may: nothing at all in what is shipped.
#[inline(always)]
pub fn witness(_what: &'static str, _about: impl FnOnce() -> Vec<u64>) {
    #[cfg(feature = "sim")]
    sim::witnessed(_what, _about);
}
