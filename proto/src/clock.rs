//! The clock that services are given. Nothing in Catena reads the system's clock directly: the simulator hands every node a clock of
//! its own, with its own rate.

use std::time::Duration;

/// A point on one process's monotonic clock, as time since an arbitrary start. Points of two processes are never compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Monotonic(pub Duration);

impl Monotonic {
    /// Time from `earlier` to this point; zero if `earlier` is later.
    pub fn since(self, earlier: Monotonic) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Monotonic {
    type Output = Monotonic;
    fn add(self, by: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(by))
    }
}

/// Wall-clock time as stored in inodes: nanoseconds since the Unix epoch. Only ever shown to people and programs; no decision rests on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Now, on this process's monotonic clock.
    fn monotonic(&self) -> Monotonic;
    /// Now, as people read it.
    fn wall(&self) -> Timestamp;
}
