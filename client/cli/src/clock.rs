//! The real clock, handed to the services. The only place in the binary that gives services a time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use catena_proto::clock::{Clock, Monotonic, Timestamp};

/// The system's clocks.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.start.elapsed())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(wall_nanos())
    }
}

/// Nanoseconds since the Unix epoch; 0 if the system's clock stands before it.
pub fn wall_nanos() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
