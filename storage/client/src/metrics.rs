//! What the client has done, as plain numbers for whoever shows them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets per power of two.
const STEPS: usize = 4;
const BUCKETS: usize = 32 * STEPS;

/// Latencies in logarithmic buckets (microseconds, a quarter of an octave wide), counted without locks.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

fn bucket_of(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let octave = us.ilog2() as usize;
    let step = (us >> (octave - 2)) as usize & (STEPS - 1);
    ((octave - 1) * STEPS + step).min(BUCKETS - 1)
}

/// First microsecond behind a bucket.
fn bucket_end(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64 + 1;
    }
    let (octave, step) = (bucket / STEPS + 1, bucket % STEPS);
    (STEPS + step + 1) as u64 * (1 << (octave - 2))
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// The counts as they are now.
    pub fn snapshot(&self) -> LatencySnapshot {
        let buckets: Vec<u64> = self.buckets.iter().map(|count| count.load(Relaxed)).collect();
        LatencySnapshot { count: buckets.iter().sum(), sum_us: self.sum_us.load(Relaxed), buckets }
    }
}

/// Latencies at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencySnapshot {
    /// Operations.
    pub count: u64,
    /// Sum of their latencies, microseconds.
    pub sum_us: u64,
    buckets: Vec<u64>,
}

impl LatencySnapshot {
    /// An upper bound, 25 % wide, of the latency that the fraction `q` (0 to 1) of the operations stayed below. Zero without any.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = ((self.count as f64 * q).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(bucket_end(bucket));
            }
        }
        Duration::ZERO
    }

    /// The mean; zero without any operation.
    pub fn mean(&self) -> Duration {
        Duration::from_micros(self.sum_us.checked_div(self.count).unwrap_or(0))
    }
}

/// Counters of one client.
#[derive(Default)]
pub struct Metrics {
    /// Chunk reads that succeeded, holes included.
    pub reads: AtomicU64,
    /// Messages that carried reads.
    pub read_messages: AtomicU64,
    /// Bytes that they brought.
    pub read_bytes: AtomicU64,
    /// Chunk mutations that succeeded.
    pub writes: AtomicU64,
    /// Bytes that they carried, each counted once however often it was sent.
    pub write_bytes: AtomicU64,
    /// Operations that failed for good.
    pub failures: AtomicU64,
    /// Messages that were sent again, to the same place or another.
    pub retries: AtomicU64,
    /// Waits for newer routing information.
    pub refreshes: AtomicU64,
    /// Replies whose data did not match its checksums, and replicas that said so of themselves.
    pub corrupt: AtomicU64,
    /// Connections made.
    pub connects: AtomicU64,
    /// From the call to the last answer, per batch of reads.
    pub read_latency: Histogram,
    /// From the call to the commit, per mutation.
    pub write_latency: Histogram,
}

/// [`Metrics`] at one moment; the fields are explained there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MetricsSnapshot {
    pub reads: u64,
    pub read_messages: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub failures: u64,
    pub retries: u64,
    pub refreshes: u64,
    pub corrupt: u64,
    pub connects: u64,
    pub read_latency: LatencySnapshot,
    pub write_latency: LatencySnapshot,
}

impl Metrics {
    /// The counts as they are now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            reads: self.reads.load(Relaxed),
            read_messages: self.read_messages.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            writes: self.writes.load(Relaxed),
            write_bytes: self.write_bytes.load(Relaxed),
            failures: self.failures.load(Relaxed),
            retries: self.retries.load(Relaxed),
            refreshes: self.refreshes.load(Relaxed),
            corrupt: self.corrupt.load(Relaxed),
            connects: self.connects.load(Relaxed),
            read_latency: self.read_latency.snapshot(),
            write_latency: self.write_latency.snapshot(),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lies_in_its_bucket() {
        for us in (0..5000).chain([1 << 20, (1 << 20) + 1, 3_000_000, 1 << 31]) {
            let bucket = bucket_of(us);
            assert!(us < bucket_end(bucket), "{us}");
            assert!(bucket == 0 || us >= bucket_end(bucket - 1), "{us}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_bound_what_was_recorded() {
        let histogram = Histogram::default();
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count, 1000);
        for (q, exact) in [(0.5, 500), (0.99, 990), (1.0, 1000)] {
            let bound = snapshot.quantile(q).as_micros();
            assert!(bound >= exact && bound <= exact * 5 / 4 + 1, "{q}: {bound}");
        }
        assert_eq!(LatencySnapshot::default().quantile(0.5), Duration::ZERO);
    }
}
