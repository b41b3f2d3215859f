//! The retry loop: run a transaction until it commits.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::database::{Database, Transaction, Versionstamp};
use crate::error::KvError;

/// How long and how eagerly to retry.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Retry {
    /// Give up at this time.
    pub deadline: Duration,
    /// First pause after a conflict, doubled each time up to `longest`, with half of it random.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
    /// The randomness of the pauses: concurrent loops should differ.
    pub seed: u64,
    /// Run again after a commit whose outcome is unknown. Only for transactions that may be applied twice, or that find their own traces.
    pub idempotent: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            deadline: Duration::from_secs(10),
            first: Duration::from_micros(500),
            longest: Duration::from_millis(100),
            seed: 0,
            idempotent: true,
        }
    }
}

/// Runs `body` in a transaction, commits, and does it again while that makes sense. `body` must not have effects of its own. Its error
/// type may be wider than [`KvError`]: then `E: From<KvError>`, and [`AsKvError`](trait@AsKvError) tells which of its errors to retry.
pub async fn transact<T, E>(
    db: &(impl Database + ?Sized),
    retry: Retry,
    mut body: impl AsyncFnMut(&mut dyn Transaction) -> Result<T, E>,
) -> Result<(T, Versionstamp), E>
where
    E: From<KvError> + AsKvError,
{
    let deadline = Instant::now() + retry.deadline;
    let mut pause = retry.first;
    let mut random = retry.seed;
    loop {
        let attempt = async {
            let mut tx = db.begin().await?;
            let result = body(tx.as_mut()).await?;
            Ok((result, tx.commit().await?))
        };
        let error: E = match timeout_at(deadline, attempt).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            // The commit may have been on its way.
            Err(_) => return Err(KvError::TimedOut(Box::new(KvError::CommitUnknown)).into()),
        };
        let again = match error.as_kv_error() {
            Some(error) if error.is_maybe_committed() => retry.idempotent,
            Some(error) => error.is_retryable(),
            None => false,
        };
        if !again {
            return Err(error);
        }
        // SplitMix64 is plenty for spreading pauses.
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let jittered = pause.mul_f64(0.5 + (mixed >> 40) as f64 / (1_u64 << 25) as f64);
        if Instant::now() + jittered >= deadline {
            let last = error.as_kv_error().cloned().unwrap_or(KvError::Conflict);
            return Err(KvError::TimedOut(Box::new(last)).into());
        }
        sleep(jittered).await;
        pause = (pause * 2).min(retry.longest);
    }
}

/// Errors that may contain a [`KvError`] of the running transaction.
pub trait AsKvError {
    /// It, if that is what the error is.
    fn as_kv_error(&self) -> Option<&KvError>;
}

impl AsKvError for KvError {
    fn as_kv_error(&self) -> Option<&KvError> {
        Some(self)
    }
}
