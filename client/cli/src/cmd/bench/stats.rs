//! What a measurement is made of: latencies, totals, and how they are printed.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::output::Output;
use crate::table::Table;
use crate::units;

/// Latencies are kept in nanoseconds with three significant digits, up to an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// What one task has seen; tasks' figures are added at the end, so that they share nothing while they run.
pub struct Tally {
    latencies: Histogram<u64>,
    /// Operations done.
    pub ops: u64,
    /// Bytes moved.
    pub bytes: u64,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Tally {
        let latencies =
            Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds within what the crate allows");
        Tally { latencies, ops: 0, bytes: 0 }
    }

    /// `ops` operations that all took `time`, and moved `bytes` together.
    pub fn record(&mut self, time: Duration, ops: u64, bytes: u64) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(LONGEST).clamp(1, LONGEST);
        self.latencies.saturating_record_n(nanos, ops);
        self.ops += ops;
        self.bytes += bytes;
    }

    /// Adds another task's figures.
    pub fn add(&mut self, other: &Tally) {
        self.latencies.add(&other.latencies).expect("the same bounds");
        self.ops += other.ops;
        self.bytes += other.bytes;
    }

    /// The longest that an operation took.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(if self.ops == 0 { 0 } else { self.latencies.max() })
    }

    fn quantile(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// A finished measurement.
pub struct Report {
    /// Its name: the subcommand, or a phase.
    pub op: &'static str,
    /// What was done.
    pub tally: Tally,
    /// How long it took, wall time.
    pub seconds: f64,
    /// CPU seconds of this process,
    pub client_cpu: f64,
    /// and of the cluster's services on this machine, if any are.
    pub server_cpu: Option<f64>,
}

impl Report {
    /// Operations a second.
    pub fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tally.ops as f64 / self.seconds } else { 0.0 }
    }

    /// What this share of the operations did not take longer than.
    pub fn latency(&self, share: f64) -> Duration {
        Duration::from_nanos((self.tally.quantile(share) * 1000.0) as u64)
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> Map<String, Value> {
        let value = json!({
            "op": self.op,
            "bytes": self.tally.bytes,
            "ops": self.tally.ops,
            "seconds": units::round3(self.seconds),
            "mib_s": units::round3(units::mib_s(self.tally.bytes, self.seconds)),
            "ops_s": units::round3(self.per_second()),
            "p50_us": units::round3(self.tally.quantile(0.5)),
            "p99_us": units::round3(self.tally.quantile(0.99)),
            "p999_us": units::round3(self.tally.quantile(0.999)),
            "client_cpu_s": units::round3(self.client_cpu),
            "server_cpu_s": self.server_cpu.map(units::round3),
        });
        match value {
            Value::Object(map) => map,
            _ => unreachable!("written as an object"),
        }
    }

    fn row(&self) -> [String; 9] {
        let latency = |quantile| units::duration(self.latency(quantile));
        let gib = self.tally.bytes as f64 / (1u64 << 30) as f64;
        let cpu = |seconds: Option<f64>| match seconds {
            None => "-".into(),
            Some(seconds) if gib > 0.0 => format!("{:.2} s/GiB", seconds / gib),
            Some(seconds) => format!("{seconds:.2} s"),
        };
        let throughput = format!("{:.1} MiB/s", units::mib_s(self.tally.bytes, self.seconds));
        [
            self.op.into(),
            if self.tally.bytes == 0 { "-".into() } else { throughput },
            units::count(self.per_second() as u64),
            latency(0.5),
            latency(0.99),
            latency(0.999),
            cpu(Some(self.client_cpu)),
            cpu(self.server_cpu),
            format!("{:.2} s", self.seconds),
        ]
    }
}

/// Prints reports, for people as a table.
pub fn show(reports: &[&Report], out: Output) {
    let mut table = Table::new(&[
        "OP",
        ">THROUGHPUT",
        ">OPS/S",
        ">P50",
        ">P99",
        ">P99.9",
        ">CLIENT CPU",
        ">SERVER CPU",
        ">TIME",
    ]);
    reports.iter().for_each(|report| table.row(report.row()));
    if out.json {
        eprint!("{table}");
    } else {
        out.table(&table, "");
    }
}

/// A stopwatch over wall time and CPU time.
pub struct Watch {
    start: Instant,
    client: f64,
    servers: super::cpu::Servers,
    server: Option<f64>,
}

impl Watch {
    /// Starts.
    pub fn start(servers: &super::cpu::Servers) -> Watch {
        let servers = servers.clone();
        Watch { client: super::cpu::own(), server: servers.seconds(), servers, start: Instant::now() }
    }

    /// The report of what happened since the start.
    pub fn finish(&self, op: &'static str, tally: Tally) -> Report {
        let seconds = self.start.elapsed().as_secs_f64();
        let server_cpu = match (self.server, self.servers.seconds()) {
            (Some(before), Some(after)) => Some((after - before).max(0.0)),
            _ => None,
        };
        Report { op, tally, seconds, client_cpu: super::cpu::own() - self.client, server_cpu }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_add_up() {
        let (mut one, mut two) = (Tally::new(), Tally::new());
        one.record(Duration::from_micros(100), 99, 99 * 4096);
        two.record(Duration::from_millis(10), 1, 4096);
        one.add(&two);
        let report = Report { op: "randread", tally: one, seconds: 2.0, client_cpu: 0.5, server_cpu: None };
        let json = report.json();
        let keys: Vec<_> = json.keys().map(String::as_str).collect();
        for key in
            "op bytes ops seconds mib_s ops_s p50_us p99_us p999_us client_cpu_s server_cpu_s".split(' ')
        {
            assert!(keys.contains(&key), "{key}");
        }
        assert_eq!(json["ops"], 100);
        assert_eq!(json["bytes"], 409_600);
        assert_eq!(json["ops_s"], 50.0);
        assert!((json["p50_us"].as_f64().unwrap() - 100.0).abs() < 1.0);
        assert!((json["p999_us"].as_f64().unwrap() - 10_000.0).abs() < 20.0);
    }

    #[test]
    fn nothing_done_is_no_division_by_zero() {
        let report =
            Report { op: "write", tally: Tally::new(), seconds: 0.0, client_cpu: 0.0, server_cpu: Some(0.0) };
        assert_eq!(report.json()["mib_s"], 0.0);
        assert_eq!(report.json()["ops_s"], 0.0);
    }
}
