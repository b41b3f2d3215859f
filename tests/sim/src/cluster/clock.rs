//! Clocks that go at rates of their own.

use std::time::Duration;

use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_rt::sim::Sim;

/// One process's clock. Leases hold as long as any two rates differ by less than a factor of two (`docs/membership.md`).
pub struct SimClock {
    sim: Sim,
    rate: f64,
    started: Duration,
    /// Wall clocks may say anything.
    wall: i64,
}

impl SimClock {
    /// A clock that begins at 0 now.
    pub fn new(sim: &Sim, rate: f64, wall: i64) -> SimClock {
        SimClock { sim: sim.clone(), rate, started: sim.now(), wall }
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic((self.sim.now() - self.started).mul_f64(self.rate))
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.wall + self.sim.now().as_nanos() as i64)
    }
}
