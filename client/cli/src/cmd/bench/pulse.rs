//! One operation after the other, to find out for how long it does not go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::exit::{Exit, Failure, Result};

/// An operation that a task of its own does again and again.
pub struct Pulse {
    what: &'static str,
    /// When the last one that succeeded began and ended.
    last: watch::Receiver<Option<(Instant, Instant)>>,
    longest: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Pulse {
    /// Begins. An operation that fails ends it.
    pub fn start<F, O>(what: &'static str, mut operation: F) -> Pulse
    where
        F: FnMut() -> O + Send + 'static,
        O: Future<Output = Result<()>> + Send,
    {
        let (ended, last) = watch::channel(None);
        let (longest, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (most, over) = (longest.clone(), done.clone());
        let task = tokio::spawn(async move {
            while !over.load(Relaxed) {
                let began = Instant::now();
                operation().await?;
                let now = Instant::now();
                most.fetch_max((now - began).as_nanos() as u64, Relaxed);
                ended.send_replace(Some((began, now)));
            }
            Ok(())
        });
        Pulse { what, last, longest, done, task }
    }

    /// The time from `loss` until an operation that began after it has succeeded.
    pub async fn goes_on_after(&self, loss: Instant, patience: Duration) -> Result<Duration> {
        let what = self.what;
        let mut last = self.last.clone();
        let next = timeout(patience, last.wait_for(|last| last.is_some_and(|(began, _)| began > loss))).await;
        let next =
            next.map_err(|_| Failure::new(Exit::Unreachable, format!("{what} do not go on after the loss")))?;
        let next = next.map_err(|_| Failure::failed(format!("{what}: one failed")))?;
        Ok(next.map_or(Duration::ZERO, |(_, ended)| ended - loss))
    }

    /// The longest one since [`Pulse::forget`].
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest.load(Relaxed))
    }

    /// What was before no longer counts.
    pub fn forget(&self) {
        self.longest.store(0, Relaxed);
    }

    /// Lets the last one end. The error is that of an operation that failed.
    pub async fn end(self) -> Result<()> {
        self.done.store(true, Relaxed);
        self.task.await.map_err(|error| Failure::failed(error.to_string()))?
    }
}
