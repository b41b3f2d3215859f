//! What this client has done, as plain numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use catena_storage_client::{Histogram, LatencySnapshot, StorageClient};

/// Counters of file operations.
#[derive(Default)]
pub(crate) struct Metrics {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub opens: AtomicU64,
    pub settles: AtomicU64,
    pub read_latency: Histogram,
    pub write_latency: Histogram,
}

/// What a client has done up to one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Reads of files, each item of a batch counted.
    pub reads: u64,
    /// Bytes that they returned.
    pub read_bytes: u64,
    /// Writes to files that succeeded.
    pub writes: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Files opened.
    pub opens: u64,
    /// Lengths settled (fsync and close of written files).
    pub settles: u64,
    /// Per read call or batch.
    pub read_latency: LatencySnapshot,
    /// Per write call.
    pub write_latency: LatencySnapshot,
    /// The storage client's counters: messages, retries, corrupt replies, latencies of chunk operations.
    pub storage: catena_storage_client::MetricsSnapshot,
}

impl Metrics {
    pub fn snapshot(&self, storage: &StorageClient) -> MetricsSnapshot {
        MetricsSnapshot {
            reads: self.reads.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            writes: self.writes.load(Relaxed),
            write_bytes: self.write_bytes.load(Relaxed),
            opens: self.opens.load(Relaxed),
            settles: self.settles.load(Relaxed),
            read_latency: self.read_latency.snapshot(),
            write_latency: self.write_latency.snapshot(),
            storage: storage.metrics(),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}
