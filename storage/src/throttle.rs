//! What a resync may take from the clients: nothing that they notice much.
//!
//! While no client wants anything a rebuild goes as fast as disks and network do. While clients are at work it gets a share *beside*
//! what they get, in proportion to it: if a rebuild holds clients up, they get less, and so does the rebuild, until they are through.
//! A floor keeps rebuilds going under any load. Both ends count, because either may be the busy one: the sender takes before it sends,
//! the receiver before it answers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use catena_rt::time::{Instant, sleep};
use parking_lot::Mutex;

use crate::config::ResyncRate;

/// Of what the clients get, so much beside them.
const SHARE: f64 = 0.25;
/// Bytes a second that a rebuild gets under any load.
const FLOOR: f64 = (32 << 20) as f64;
/// An operation costs as much as this many bytes, besides its own: small ones cost seeks and processor time.
const OPERATION: u64 = 64 << 10;
/// Clients that were gone for so long do not count. Longer than the pause between two requests of one busy client.
const QUIET: Duration = Duration::from_millis(20);
/// Over which time the clients' rate is taken.
const MEMORY: f64 = 0.2;
/// Between two looks at it.
const SAMPLE: Duration = Duration::from_millis(20);
/// A rate is believed for so long at most before it is looked at again.
const SLICE: Duration = Duration::from_millis(50);

/// The clients' requests at this node, and what resync may take beside them.
pub(crate) struct Throttle {
    limit: ResyncRate,
    epoch: Instant,
    /// What the clients have had so far.
    served: AtomicU64,
    in_flight: AtomicUsize,
    /// Microseconds since the epoch when a client's request was last under way.
    busy: AtomicU64,
    /// Whoever has its turn; the others wait in order.
    turn: tokio::sync::Mutex<()>,
    bucket: Mutex<Bucket>,
}

/// A budget that time refills. It may be overdrawn by one taker, who is through at once; the next one waits.
struct Bucket {
    at: Instant,
    balance: f64,
    served: u64,
    sampled: Instant,
    /// What clients get a second, of late.
    rate: f64,
}

/// A client's request under way.
pub(crate) struct Foreground<'a>(&'a Throttle);

impl Foreground<'_> {
    /// It moved so many bytes.
    pub fn moved(&self, bytes: u64) {
        self.0.served.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        self.0.served.fetch_add(OPERATION, Ordering::Relaxed);
        self.0.busy.store(self.0.epoch.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Throttle {
    pub fn new(limit: ResyncRate) -> Throttle {
        let now = Instant::now();
        let bucket = Bucket { at: now, balance: 0.0, served: 0, sampled: now, rate: 0.0 };
        Throttle {
            limit,
            epoch: now,
            served: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            busy: AtomicU64::new(0),
            turn: Default::default(),
            bucket: Mutex::new(bucket),
        }
    }

    /// A client's request begins.
    pub fn foreground(&self) -> Foreground<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Foreground(self)
    }

    fn quiet(&self, now: Instant) -> bool {
        let busy = self.epoch + Duration::from_micros(self.busy.load(Ordering::Relaxed));
        self.in_flight.load(Ordering::Relaxed) == 0
            && (self.served.load(Ordering::Relaxed) == 0 || now.saturating_duration_since(busy) >= QUIET)
    }

    /// Waits until a resync may move `bytes`.
    pub async fn take(&self, bytes: u64) {
        if self.limit == ResyncRate::Unlimited {
            return;
        }
        let _turn = self.turn.lock().await;
        loop {
            let now = Instant::now();
            let served = self.served.load(Ordering::Relaxed);
            let asked = match self.limit {
                ResyncRate::Adaptive if self.quiet(now) => return self.bucket.lock().forgive(now, served),
                ResyncRate::Adaptive => self.bucket.lock().ask_beside(now, served, bytes),
                ResyncRate::Bytes(rate) => self.bucket.lock().ask(now, rate as f64, bytes),
                ResyncRate::Unlimited => return,
            };
            match asked {
                None => return,
                Some(wait) => sleep(wait.min(SLICE)).await,
            }
        }
    }
}

impl Bucket {
    /// Nobody is held up: no debts.
    fn forgive(&mut self, now: Instant, served: u64) {
        *self = Bucket { at: now, balance: 0.0, served, sampled: now, rate: 0.0 };
    }

    /// Takes `bytes` beside clients who have had `served` so far, or says how long to wait.
    fn ask_beside(&mut self, now: Instant, served: u64, bytes: u64) -> Option<Duration> {
        let passed = now - self.sampled;
        if passed >= SAMPLE {
            let rate = served.saturating_sub(self.served) as f64 / passed.as_secs_f64();
            self.rate += (rate - self.rate) * (1.0 - (-passed.as_secs_f64() / MEMORY).exp());
            (self.served, self.sampled) = (served, now);
        }
        self.ask(now, FLOOR + SHARE * self.rate, bytes + OPERATION)
    }

    fn ask(&mut self, now: Instant, rate: f64, bytes: u64) -> Option<Duration> {
        let refill = (now - self.at).as_secs_f64() * rate;
        self.at = now;
        // Nothing is saved up: what was not used is gone.
        self.balance = (self.balance + refill).min(0.0);
        if self.balance < 0.0 {
            return Some(
                Duration::from_secs_f64(-self.balance / rate.max(1.0)).max(Duration::from_millis(1)),
            );
        }
        self.balance -= bytes as f64;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Bytes that a resync moves in `seconds` while `clients` moves theirs in the same steps.
    async fn moved(throttle: &Throttle, seconds: u64, mut clients: impl FnMut(&Throttle)) -> u64 {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut moved = 0;
        while Instant::now() < end {
            tokio::select! {
                biased;
                () = throttle.take(MIB) => moved += MIB,
                () = sleep(Duration::from_millis(1)) => {}
            }
            clients(throttle);
            if moved >= 1 << 40 {
                break;
            }
        }
        moved
    }

    #[tokio::test(start_paused = true)]
    async fn without_clients_there_is_no_limit() {
        let throttle = Throttle::new(ResyncRate::Adaptive);
        let begun = Instant::now();
        for _ in 0..1000 {
            throttle.take(4 * MIB).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn beside_clients_it_gets_a_share_of_what_they_get() {
        let throttle = Throttle::new(ResyncRate::Adaptive);
        let _busy = throttle.foreground();
        let mut last = Instant::now();
        // 800 MiB a second.
        let clients = |throttle: &Throttle| {
            let passed = last.elapsed();
            last = Instant::now();
            throttle.served.fetch_add((passed.as_secs_f64() * 800.0 * MIB as f64) as u64, Ordering::Relaxed);
        };
        let rate = moved(&throttle, 10, clients).await / 10 / MIB;
        assert!((190..=240).contains(&rate), "{rate} MiB/s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gets_nothing_still_leaves_the_floor() {
        let throttle = Throttle::new(ResyncRate::Adaptive);
        let stuck = throttle.foreground();
        let rate = moved(&throttle, 10, |_| {}).await / 10 / MIB;
        assert!((25..=33).contains(&rate), "{rate} MiB/s");
        drop(stuck);
        sleep(QUIET).await;
        let begun = Instant::now();
        for _ in 0..100 {
            throttle.take(4 * MIB).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "the debt is forgiven when nobody is held up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_configured_rate_is_kept() {
        let throttle = Throttle::new(ResyncRate::Bytes(10 * MIB));
        let rate = moved(&throttle, 10, |_| {}).await / 10 / MIB;
        assert!((9..=10).contains(&rate), "{rate} MiB/s");
    }
}
