//! The real clock, handed to the services. The only place in the binary that gives services a time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use catena_proto::clock::{Clock, Monotonic, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// The system's clocks.
pub struct SystemClock {
    start: Duration,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> SystemClock {
        SystemClock { start: since_boot() }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(since_boot().saturating_sub(self.start))
    }
    fn wall(&self) -> Timestamp {
        Timestamp(wall_nanos())
    }
}

/// Time since the machine started, sleep included: leases run out for a machine that was suspended, as they do for everyone else.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Nanoseconds since the Unix epoch; 0 if the system's clock stands before it.
pub fn wall_nanos() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_begins_with_the_process_and_does_not_go_back() {
        let clock = SystemClock::new();
        let first = clock.monotonic();
        assert!(first < Monotonic(Duration::from_secs(60)) && clock.monotonic() >= first);
    }
}
