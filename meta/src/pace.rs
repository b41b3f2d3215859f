//! A bound on the rate of background work.

use std::time::Duration;

use catena_rt::time::{Instant, sleep_until};
use tokio::sync::Mutex;

/// Lets so many pass a second, evenly, after an idle time at most a tenth of a second's worth at once.
pub(crate) struct Pace {
    each: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// 0 lets everything pass.
    pub(crate) fn new(per_second: u32) -> Pace {
        let each = match per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        Pace { each, next: Mutex::new(Instant::now()) }
    }

    /// Waits until `count` more may pass.
    pub(crate) async fn take(&self, count: u32) {
        if self.each.is_zero() {
            return;
        }
        let mut next = self.next.lock().await;
        let now = Instant::now();
        let earliest = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
        *next = (*next).max(earliest) + self.each * count;
        let due = *next;
        drop(next);
        if due > now {
            sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        for _ in 0..2000 {
            pace.take(1).await;
        }
        assert_eq!(start.elapsed().as_secs_f64().round(), 2.0);
        tokio::time::advance(Duration::from_secs(3600)).await;
        let start = Instant::now();
        pace.take(1100).await;
        assert_eq!(start.elapsed().as_secs_f64().round(), 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_is_no_wait() {
        let pace = Pace::new(0);
        let start = Instant::now();
        pace.take(u32::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
