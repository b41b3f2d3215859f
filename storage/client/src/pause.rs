//! Growing, spread-out pauses between attempts, and the one source of randomness.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catena_mgmtd_client::RoutingWatch;
use catena_proto::ids::RoutingVersion;
use catena_rt::time::{Instant, sleep_until};

use crate::options::Options;

/// SplitMix64 over an atomic counter: no lock, the same numbers for the same seed and order of calls.
pub(crate) struct Random(AtomicU64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(AtomicU64::new(seed))
    }

    pub fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in `0..n`; `n` is at least 1.
    pub fn below(&self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// The pauses of one operation.
pub(crate) struct Pauses<'a> {
    random: &'a Random,
    next: Duration,
    longest: Duration,
}

impl<'a> Pauses<'a> {
    pub fn new(random: &'a Random, options: &Options) -> Pauses<'a> {
        Pauses { random, next: options.first_pause, longest: options.longest_pause }
    }

    /// When the next attempt may start: half to all of the present pause from now. The pause doubles.
    fn until(&mut self) -> Instant {
        let fraction = (self.random.next() >> 48) as f64 / 65536.0;
        let pause = self.next / 2 + (self.next / 2).mul_f64(fraction);
        self.next = (self.next * 2).min(self.longest);
        Instant::now() + pause
    }

    /// Sleeps, at most until `deadline`. False: the deadline came first.
    pub async fn sleep(&mut self, deadline: Instant) -> bool {
        let until = self.until();
        sleep_until(until.min(deadline)).await;
        until < deadline
    }

    /// As [`Pauses::sleep`], but newer routing information than `known` ends it early.
    pub async fn sleep_or_news(
        &mut self,
        routing: &RoutingWatch,
        known: RoutingVersion,
        deadline: Instant,
    ) -> bool {
        let until = self.until();
        routing.newer_than(known, until.min(deadline)).await.is_some() || until < deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let random = Random::new(seed);
            (0..100).map(|_| random.below(3)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for face in 0..3 {
            assert!(draw(1).iter().filter(|&&n| n == face).count() > 20);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_their_bound_and_end_at_the_deadline() {
        let random = Random::new(0);
        let mut pauses = Pauses::new(&random, &Options::default());
        let start = Instant::now();
        let mut last = start;
        for _ in 0..20 {
            assert!(pauses.sleep(start + Duration::from_secs(3600)).await);
            assert!(last.elapsed() <= Duration::from_millis(502));
            last = Instant::now();
        }
        let deadline = last + Duration::from_millis(100);
        assert!(!pauses.sleep(deadline).await);
        assert!(Instant::now() <= deadline + Duration::from_millis(2));
    }
}
