//! What a storage service counts. Everything here is cheap enough for the hot path; disk use is sampled by the maintenance loop.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use catena_proto::status::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Kinds of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum OpKind {
    Write,
    Read,
    Chunks,
    Forward,
    Control,
    Resync,
    Admin,
}

const KINDS: [&str; 7] = ["write", "read", "chunks", "forward", "control", "resync", "admin"];

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OpLabel {
    op: &'static str,
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct FailureLabel {
    op: &'static str,
    status: &'static str,
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct DiskLabel {
    disk: String,
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct TargetLabel {
    target: u64,
}

/// One kind of request.
struct Op {
    done: Counter,
    bytes: Counter,
    latency: Histogram,
    in_flight: Gauge,
}

/// One disk.
pub struct DiskMetrics {
    /// Bytes that chunks may use.
    pub capacity: Gauge,
    /// Bytes that they use.
    pub used: Gauge,
    /// Chunks.
    pub chunks: Gauge,
    /// Bytes of the metadata log.
    pub log: Gauge,
    /// 1 once it failed.
    pub failed: Gauge,
    /// Bytes written to the device.
    pub written: Gauge,
    /// Bytes read from it.
    pub read: Gauge,
    /// Blocks whose contents did not match their checksum.
    pub corrupt: Counter,
    /// Reads of chunks that the device failed.
    pub read_errors: Counter,
    /// Bytes that scrubbing has verified.
    pub scrub_verified: Counter,
    /// Passes that reached their end.
    pub scrub_passes: Counter,
    /// Damaged chunks found, by scrubbing or by reading;
    pub scrub_found: Counter,
    /// of those, repaired;
    pub scrub_repaired: Counter,
    /// of those, cannot be repaired now.
    pub scrub_unrepaired: Gauge,
    /// 1: a pass is under way.
    pub scrub_running: Gauge,
    /// When a pass last reached its end, seconds since 1970.
    pub scrub_finished: Gauge,
}

/// One resync session on the sending side.
pub struct ResyncMetrics {
    /// Chunks walked over.
    pub chunks: Gauge,
    /// Of those, sent.
    pub sent: Gauge,
    /// Bytes sent.
    pub bytes: Gauge,
}

/// All counters of one service.
pub struct Metrics {
    ops: [Op; 7],
    op_done: Family<OpLabel, Counter>,
    op_bytes: Family<OpLabel, Counter>,
    op_latency: Family<OpLabel, Histogram>,
    op_in_flight: Family<OpLabel, Gauge>,
    failures: Family<FailureLabel, Counter>,
    disk: [Family<DiskLabel, Gauge<i64, AtomicI64>>; 10],
    disk_counters: [Family<DiskLabel, Counter<u64, AtomicU64>>; 6],
    resync: [Family<TargetLabel, Gauge>; 3],
    /// Stages on their way to the disk, all targets.
    pub pending: Gauge,
    /// Reads that waited for a commit under way,
    pub dirty_reads: Counter,
    /// and those of them that had to ask the tail.
    pub tail_queries: Counter,
    /// Messages without data that wait for a peer.
    pub queued: Gauge,
    /// Messages to peers that were dropped because a queue was full; they are sent again later.
    pub dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        // 25 us to 13 s: from a cached read to a disk that is about to be given up.
        let op_latency = Family::<OpLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(25e-6, 2.0, 20))
        });
        let op_done = Family::<OpLabel, Counter>::default();
        let op_bytes = Family::<OpLabel, Counter>::default();
        let op_in_flight = Family::<OpLabel, Gauge>::default();
        let ops = KINDS.map(|op| {
            let label = OpLabel { op };
            let latency = op_latency.get_or_create(&label).clone();
            Op {
                done: op_done.get_or_create(&label).clone(),
                bytes: op_bytes.get_or_create(&label).clone(),
                in_flight: op_in_flight.get_or_create(&label).clone(),
                latency,
            }
        });
        Metrics {
            ops,
            op_done,
            op_bytes,
            op_latency,
            op_in_flight,
            failures: Family::default(),
            disk: Default::default(),
            disk_counters: Default::default(),
            resync: Default::default(),
            pending: Gauge::default(),
            dirty_reads: Counter::default(),
            tail_queries: Counter::default(),
            queued: Gauge::default(),
            dropped: Counter::default(),
        }
    }
}

/// A request under way; counts itself out when dropped.
pub struct InFlight<'a>(&'a Op);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

impl Metrics {
    /// A request begins.
    pub fn begin(&self, kind: OpKind) -> InFlight<'_> {
        let op = &self.ops[kind as usize];
        op.in_flight.inc();
        InFlight(op)
    }

    /// A request is answered.
    pub fn done(&self, kind: OpKind, status: Status, bytes: u64, took: Duration) {
        let op = &self.ops[kind as usize];
        op.done.inc();
        op.bytes.inc_by(bytes);
        op.latency.observe(took.as_secs_f64());
        if status != Status::Ok {
            self.failed(kind, status);
        }
    }

    /// A request, or one item of a batch, was not carried out.
    pub fn failed(&self, kind: OpKind, status: Status) {
        let label = FailureLabel { op: KINDS[kind as usize], status: status.text() };
        self.failures.get_or_create(&label).inc();
    }

    /// Clients' requests under way.
    pub fn clients_in_flight(&self) -> i64 {
        let kinds = [OpKind::Write, OpKind::Read, OpKind::Chunks];
        kinds.iter().map(|&kind| self.ops[kind as usize].in_flight.get()).sum()
    }

    /// The gauges of a disk.
    pub fn disk(&self, path: &str) -> DiskMetrics {
        let label = DiskLabel { disk: path.to_owned() };
        let [capacity, used, chunks, log, failed, written, read, unrepaired, running, finished] =
            self.disk.each_ref().map(|family| family.get_or_create(&label).clone());
        let [corrupt, read_errors, scrub_verified, scrub_passes, scrub_found, scrub_repaired] =
            self.disk_counters.each_ref().map(|family| family.get_or_create(&label).clone());
        DiskMetrics {
            capacity,
            used,
            chunks,
            log,
            failed,
            written,
            read,
            corrupt,
            read_errors,
            scrub_verified,
            scrub_passes,
            scrub_found,
            scrub_repaired,
            scrub_unrepaired: unrepaired,
            scrub_running: running,
            scrub_finished: finished,
        }
    }

    /// The gauges of a resync session of `target`.
    pub fn resync(&self, target: u64) -> ResyncMetrics {
        let label = TargetLabel { target };
        let [chunks, sent, bytes] = self.resync.each_ref().map(|family| family.get_or_create(&label).clone());
        ResyncMetrics { chunks, sent, bytes }
    }

    /// Shows everything under `storage_`; the process adds its own prefix.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("storage");
        registry.register("operations", "Requests answered", self.op_done.clone());
        registry.register_with_unit("data", "Data carried", Unit::Bytes, self.op_bytes.clone());
        registry.register_with_unit("latency", "Time to answer", Unit::Seconds, self.op_latency.clone());
        registry.register("in_flight", "Requests under way", self.op_in_flight.clone());
        registry.register("failures", "Requests and batch items not carried out", self.failures.clone());
        let disk = [
            ("disk_capacity_bytes", "Bytes that chunks may use"),
            ("disk_used_bytes", "Bytes that chunks use"),
            ("disk_chunks", "Chunks"),
            ("disk_log_bytes", "Metadata log"),
            ("disk_failed", "1: out of service"),
            ("disk_written_bytes", "Written to the device"),
            ("disk_read_bytes", "Read from the device"),
            ("scrub_unrepaired_chunks", "Damaged chunks that no other replica can help with now"),
            ("scrub_running", "1: a scrub pass is under way"),
            ("scrub_finished_seconds", "When a scrub pass last reached its end, since 1970"),
        ];
        for ((name, help), family) in disk.into_iter().zip(&self.disk) {
            registry.register(name, help, family.clone());
        }
        let counters = [
            ("corrupt_blocks", "Blocks that failed their checksum when they were read"),
            ("read_errors", "Reads of chunks that the device failed"),
            ("scrub_verified_bytes", "Bytes that scrubbing found to be as they were written"),
            ("scrub_passes", "Scrub passes that reached their end"),
            ("scrub_found_chunks", "Damaged chunks found, by scrubbing or by reading"),
            ("scrub_repaired_chunks", "Damaged chunks repaired from another replica"),
        ];
        for ((name, help), family) in counters.into_iter().zip(&self.disk_counters) {
            registry.register(name, help, family.clone());
        }
        let resync = [
            ("resync_chunks", "Chunks that the walk has passed"),
            ("resync_sent_chunks", "Chunks sent"),
            ("resync_sent_bytes", "Bytes sent"),
        ];
        for ((name, help), family) in resync.into_iter().zip(&self.resync) {
            registry.register(name, help, family.clone());
        }
        registry.register("stages_in_flight", "Stages on their way to the disk", self.pending.clone());
        registry.register("dirty_reads", "Reads that waited for a commit", self.dirty_reads.clone());
        registry.register("tail_queries", "Reads that asked the tail", self.tail_queries.clone());
        registry.register("queued_messages", "Messages that wait for a peer", self.queued.clone());
        registry.register(
            "dropped_messages",
            "Messages to peers dropped at a full queue",
            self.dropped.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        {
            let _under_way = metrics.begin(OpKind::Write);
            metrics.done(OpKind::Write, Status::NoSpace, 10, Duration::from_millis(1));
        }
        metrics.disk("/d0").used.set(77);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "storage_operations_total{op=\"write\"} 1",
            "storage_data_bytes_total{op=\"write\"} 10",
            "storage_in_flight{op=\"write\"} 0",
            "storage_failures_total{op=\"write\",status=\"no space left on the storage targets\"} 1",
            "storage_disk_used_bytes{disk=\"/d0\"} 77",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
