//! What `put` and `get` share: one progress bar over many files, many files at once, a line at the end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use catena_client::transfer::TransferOptions;
use indicatif::ProgressBar;
use serde_json::json;

use crate::exit::{Failure, Failures, Result};
use crate::output::Output;
use crate::units;

/// A copy of many files under way.
pub struct Copy {
    bar: ProgressBar,
    start: Instant,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Copy {
    /// Begins now.
    pub fn new(bar: ProgressBar) -> Copy {
        Copy { bar, start: Instant::now(), files: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Options for one file's transfer, which moves the bar.
    pub fn options(&self) -> TransferOptions {
        let (bar, seen) = (self.bar.clone(), AtomicU64::new(0));
        let progress = move |now: catena_client::transfer::Progress| {
            // Steps end in any order and so do these calls: only what is more than was seen counts.
            let before = seen.fetch_max(now.done, Ordering::Relaxed);
            bar.inc(now.done.saturating_sub(before));
        };
        TransferOptions { progress: Some(Arc::new(progress)), ..TransferOptions::default() }
    }

    /// A file is done.
    pub fn done(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends the bar and says what was done.
    pub fn finish(self, verb: &str, failures: Failures, out: Output) -> Result<()> {
        self.bar.finish_and_clear();
        let (files, bytes) = (self.files.into_inner(), self.bytes.into_inner());
        let time = self.start.elapsed();
        let rate = units::mib_s(bytes, time.as_secs_f64());
        let ended = failures.end();
        if out.json && ended.is_ok() {
            out.object(json!({
                "ok": true, "files": files, "bytes": bytes, "seconds": units::round3(time.as_secs_f64()),
                "mib_s": units::round3(rate), "verified": true,
            }));
        } else if !out.json && std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            let what = if files == 1 { "1 file".into() } else { format!("{} files", units::count(files)) };
            eprintln!(
                "{verb} {what}, {} in {}, {rate:.0} MiB/s, verified",
                units::size(bytes),
                units::duration(time)
            );
        }
        ended
    }
}

/// `-`: stdin or stdout.
pub fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// An error about a local file.
pub fn local(path: &Path, error: std::io::Error) -> Failure {
    Failure::io(path.display(), error)
}
