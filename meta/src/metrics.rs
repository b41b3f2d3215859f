//! What a metadata service counts about itself.

use std::time::Duration;

use catena_proto::status::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct FailureLabels {
    call: &'static str,
    status: &'static str,
}

/// Counters of one service.
pub struct Metrics {
    latency: Family<CallLabels, Histogram, fn() -> Histogram>,
    failures: Family<FailureLabels, Counter>,
    in_flight: Gauge,
    /// Transactions that had to start over.
    pub conflicts: Counter,
    /// Retries that were answered from a recorded outcome.
    pub replayed: Counter,
    /// Files whose chunks were removed.
    pub reclaimed_files: Counter,
    /// Chunks removed, of removed files and by cuts.
    pub removed_chunks: Counter,
    /// Names of removed directories that were taken apart.
    pub reclaimed_entries: Counter,
    /// Files that could not be reclaimed yet.
    pub reclaim_failures: Counter,
    /// Cuts that were finished for a service that did not.
    pub resumed_cuts: Counter,
    /// File sessions of dead clients that were ended.
    pub reaped_sessions: Counter,
    /// Outcomes of requests that were forgotten.
    pub forgotten: Counter,
}

fn buckets() -> Histogram {
    // 50 us to 26 s.
    Histogram::new(exponential_buckets(50e-6, 2.0, 20))
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            latency: Family::new_with_constructor(buckets as fn() -> Histogram),
            failures: Family::default(),
            in_flight: Gauge::default(),
            conflicts: Counter::default(),
            replayed: Counter::default(),
            reclaimed_files: Counter::default(),
            removed_chunks: Counter::default(),
            reclaimed_entries: Counter::default(),
            reclaim_failures: Counter::default(),
            resumed_cuts: Counter::default(),
            reaped_sessions: Counter::default(),
            forgotten: Counter::default(),
        }
    }
}

impl Metrics {
    /// A call comes in.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight { metrics: self }
    }

    /// Makes everything known to a registry; names get the prefix `meta` behind the registry's own.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("meta");
        let family = self.latency.clone();
        registry.register("call_seconds", "Time that calls took, and how many there were", family);
        registry.register("call_failures", "Calls that were refused or failed", self.failures.clone());
        registry.register("calls_in_flight", "Calls being worked on", self.in_flight.clone());
        let counters = [
            ("transaction_retries", "Transactions that had to start over", &self.conflicts),
            ("requests_replayed", "Retries answered from a recorded outcome", &self.replayed),
            ("requests_forgotten", "Recorded outcomes that were removed", &self.forgotten),
            ("reclaimed_files", "Removed files whose chunks are gone", &self.reclaimed_files),
            ("reclaimed_entries", "Names of removed directories taken apart", &self.reclaimed_entries),
            ("reclaim_failures", "Attempts to reclaim a file that failed", &self.reclaim_failures),
            ("removed_chunks", "Chunks removed, of removed and of cut files", &self.removed_chunks),
            ("reaped_sessions", "File sessions of dead clients that were ended", &self.reaped_sessions),
            ("resumed_cuts", "Cuts finished for a service that did not", &self.resumed_cuts),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
    }
}

/// A call being worked on. One whose caller goes away is dropped in the middle, and still counted as gone.
pub(crate) struct InFlight<'a> {
    metrics: &'a Metrics,
}

impl InFlight<'_> {
    /// The call was answered.
    pub(crate) fn end(self, call: &'static str, took: Duration, failed: Option<Status>) {
        self.metrics.latency.get_or_create(&CallLabels { call }).observe(took.as_secs_f64());
        if let Some(status) = failed {
            self.metrics.failures.get_or_create(&FailureLabels { call, status: status.text() }).inc();
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
    }
}
