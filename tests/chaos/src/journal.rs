//! What happened when, and how often.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// More than losing one service costs.
const SLOW: Duration = Duration::from_millis(5500);

/// The run's diary: shown as it is written, or only if something goes wrong.
pub struct Journal {
    begun: Instant,
    loud: bool,
    lines: Mutex<Vec<String>>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    /// Operations done, by kind.
    pub writes: AtomicU64,
    pub reads: AtomicU64,
    pub names: AtomicU64,
    /// Histories of the shared namespace that one order explains.
    pub histories: AtomicU64,
    pub appends: AtomicU64,
    /// Operations that were refused because a disk was full.
    pub refused: AtomicU64,
    /// The longest that one operation took, milliseconds.
    longest: AtomicU64,
}

impl Journal {
    pub fn new(loud: bool) -> Journal {
        Journal {
            begun: Instant::now(),
            loud,
            lines: Mutex::default(),
            faults: Mutex::default(),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            names: AtomicU64::new(0),
            histories: AtomicU64::new(0),
            appends: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }

    pub fn say(&self, what: impl AsRef<str>) {
        let line = format!("{:8.3} {}", self.begun.elapsed().as_secs_f64(), what.as_ref());
        if self.loud {
            println!("{line}");
        }
        self.lines.lock().push(line);
    }

    pub fn fault(&self, kind: &'static str, what: impl AsRef<str>) {
        *self.faults.lock().entry(kind).or_default() += 1;
        self.say(what);
    }

    /// How long an operation took. What took long is told, so that it can be laid beside the faults.
    pub fn took(&self, what: impl Display, begun: Instant) {
        let took = begun.elapsed();
        self.longest.fetch_max(took.as_millis() as u64, Relaxed);
        if took > SLOW {
            self.say(format!("{what} took {:.1} s", took.as_secs_f64()));
        }
    }

    /// What was not shown yet.
    pub fn dump(&self) {
        if !self.loud {
            self.lines.lock().iter().for_each(|line| println!("{line}"));
        }
    }

    /// One line.
    pub fn sums(&self) -> String {
        let faults = self.faults.lock();
        let all: u64 = faults.values().sum();
        let kinds: Vec<String> = faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        format!(
            "{:.0} s, {} writes, {} reads, {} appends, {} namespace operations, {} shared histories explained, {} refused by full disks, longest {:.1} s, {all} faults ({})",
            self.begun.elapsed().as_secs_f64(),
            self.writes.load(Relaxed),
            self.reads.load(Relaxed),
            self.appends.load(Relaxed),
            self.names.load(Relaxed),
            self.histories.load(Relaxed),
            self.refused.load(Relaxed),
            self.longest.load(Relaxed) as f64 / 1000.0,
            kinds.join(", "),
        )
    }
}
