//! The retry loop in which services run transactions.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catena_rt::time::{Instant, sleep, timeout_at};

use crate::{Database, KvError, Tx, TxOptions, Versionstamp};

/// How long and how a transaction is retried.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Everything together, from the call of [`transact`] on, takes at most this long.
    pub deadline: Duration,
    /// The body finds out by itself whether an earlier attempt of it was committed (or does no harm twice), so an unknown commit
    /// result is retried too. Otherwise [`KvError::CommitUnknown`] is returned.
    pub idempotent: bool,
    /// The first pause; each later one is twice as long. The actual pause is random, up to this.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_limit: Duration,
    /// What each attempt is begun with.
    pub options: TxOptions,
}

impl Default for Retry {
    /// Ten seconds, not idempotent, pauses from 1 ms to 500 ms.
    fn default() -> Retry {
        Retry {
            deadline: Duration::from_secs(10),
            idempotent: false,
            backoff: Duration::from_millis(1),
            backoff_limit: Duration::from_millis(500),
            options: TxOptions::default(),
        }
    }
}

impl Retry {
    /// The same with another deadline.
    pub fn within(self, deadline: Duration) -> Retry {
        Retry { deadline, ..self }
    }

    /// The same, also retrying when the commit's outcome is unknown.
    pub fn idempotent(self) -> Retry {
        Retry { idempotent: true, ..self }
    }
}

/// The randomness of the pauses: one per service, from a seed, so that a simulated run repeats exactly and services that started
/// together do not collide for ever.
#[derive(Debug)]
pub struct Jitter(AtomicU64);

impl Jitter {
    /// The sequence that `seed` determines.
    pub fn new(seed: u64) -> Jitter {
        Jitter(AtomicU64::new(seed))
    }

    /// The next number (splitmix64).
    pub(crate) fn next(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let mut z = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A pause between a half and the whole of `longest`.
    fn pause(&self, longest: Duration) -> Duration {
        let half = longest / 2;
        half + half.mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// An error type of a transaction's body: a service's own, into which and out of which [`KvError`] goes.
pub trait KvFailure: From<KvError> {
    /// The key-value error this is, if it is one. Any other error ends the transaction at once, without retry and without commit.
    fn kv(&self) -> Option<&KvError>;
}

impl KvFailure for KvError {
    fn kv(&self) -> Option<&KvError> {
        Some(self)
    }
}

/// Runs `body` in a transaction and commits it; runs it again on a retryable error, with random, growing pauses. An error of the body
/// that is no retryable [`KvError`] drops the transaction and is returned.
///
/// The body may run several times, so let it have no effects besides those on the transaction.
pub async fn transact<T, E, F, Fut>(db: &dyn Database, retry: Retry, jitter: &Jitter, body: F) -> Result<T, E>
where
    E: KvFailure,
    F: FnMut(Tx) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    Ok(transact_versioned(db, retry, jitter, body).await?.0)
}

/// [`transact`], also returning the commit's stamp (`None` if nothing was written).
pub async fn transact_versioned<T, E, F, Fut>(
    db: &dyn Database,
    retry: Retry,
    jitter: &Jitter,
    mut body: F,
) -> Result<(T, Option<Versionstamp>), E>
where
    E: KvFailure,
    F: FnMut(Tx) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + retry.deadline;
    let mut backoff = retry.backoff;
    // Once an attempt's outcome was unknown, giving up must say so: a later attempt's plain failure does not mean nothing was written.
    let mut unknown = false;
    loop {
        let error = match attempt(db, retry.options, deadline, &mut body).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(kv) = error.kv() else { return Err(error) };
        if !kv.retryable() || (kv.maybe_committed() && !retry.idempotent) {
            return Err(if unknown && *kv == KvError::TimedOut {
                KvError::CommitUnknown.into()
            } else {
                error
            });
        }
        unknown |= kv.maybe_committed();
        let pause = jitter.pause(backoff);
        if Instant::now() + pause >= deadline {
            return Err(if unknown { KvError::CommitUnknown.into() } else { error });
        }
        sleep(pause).await;
        backoff = (backoff * 2).min(retry.backoff_limit);
    }
}

async fn attempt<T, E, F, Fut>(
    db: &dyn Database,
    options: TxOptions,
    deadline: Instant,
    body: &mut F,
) -> Result<(T, Option<Versionstamp>), E>
where
    E: KvFailure,
    F: FnMut(Tx) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let tx = db.begin(options)?;
    let value = timeout_at(deadline, body(tx.clone())).await.map_err(|_| KvError::TimedOut)??;
    let stamp = timeout_at(deadline, tx.commit()).await.map_err(|_| KvError::CommitUnknown)??;
    Ok((value, stamp))
}
