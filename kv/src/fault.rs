//! Injected failures around any database, so that what calls it can be tested against everything FoundationDB may answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_rt::time::sleep;
use parking_lot::Mutex;

use crate::{
    Atomic, BoxFuture, Database, Isolation, KvError, RangeQuery, RangeResult, Transaction, Tx, TxOptions,
    Versionstamp,
};

/// Where a failure can be injected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Point {
    /// A transaction begins.
    Begin,
    /// A read of a key, a range or the read version.
    Read,
    /// A commit that has something to commit, or not: asked for each.
    Commit,
}

/// What is injected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The call fails with this error and does nothing. At [`Point::Commit`], [`KvError::CommitUnknown`] is the unknown result
    /// that did *not* happen.
    Fail(KvError),
    /// At [`Point::Commit`]: the commit happens and [`KvError::CommitUnknown`] is answered all the same. Elsewhere: no fault.
    CommitThenUnknown,
    /// The call takes this much longer (on tokio's clock) and then goes on. No effect at [`Point::Begin`].
    Delay(Duration),
}

/// Asked at every [`Point`], in the order of the calls; `None` lets the call through.
pub type Hook = Box<dyn FnMut(Point) -> Option<Fault> + Send>;

/// Chances, in parts per thousand, of a random hook.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chances {
    /// A commit answers [`KvError::Conflict`].
    pub conflict: u16,
    /// A commit happens and answers [`KvError::CommitUnknown`].
    pub unknown_applied: u16,
    /// A commit does not happen and answers [`KvError::CommitUnknown`].
    pub unknown_lost: u16,
    /// A read or commit answers [`KvError::TooOld`].
    pub too_old: u16,
    /// Any call answers [`KvError::Unavailable`].
    pub unavailable: u16,
}

/// A hook that draws faults from `chances`, the same ones for the same `seed` and sequence of calls.
pub fn random(seed: u64, chances: Chances) -> Hook {
    let draws = crate::Jitter::new(seed);
    Box::new(move |point| {
        let draw = (draws.next() % 1000) as u16;
        let mut upto = 0;
        let mut hit = |chance: u16| {
            let from = upto;
            upto += chance;
            (from..upto).contains(&draw)
        };
        if hit(chances.unavailable) {
            return Some(Fault::Fail(KvError::Unavailable("injected".into())));
        }
        if point != Point::Begin && hit(chances.too_old) {
            return Some(Fault::Fail(KvError::TooOld));
        }
        if point != Point::Commit {
            return None;
        }
        if hit(chances.conflict) {
            Some(Fault::Fail(KvError::Conflict))
        } else if hit(chances.unknown_applied) {
            Some(Fault::CommitThenUnknown)
        } else if hit(chances.unknown_lost) {
            Some(Fault::Fail(KvError::CommitUnknown))
        } else {
            None
        }
    })
}

/// A database with a [`Hook`] in front. Clones share the hook.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Database>,
    hook: Arc<Mutex<Hook>>,
}

impl Faulty {
    /// `inner` behind `hook`.
    pub fn new(inner: Arc<dyn Database>, hook: Hook) -> Faulty {
        Faulty { inner, hook: Arc::new(Mutex::new(hook)) }
    }

    /// Puts another hook in place, for transactions already begun too.
    pub fn set_hook(&self, hook: Hook) {
        *self.hook.lock() = hook;
    }
}

impl Database for Faulty {
    fn begin(&self, options: TxOptions) -> Result<Tx, KvError> {
        let fault = (self.hook.lock())(Point::Begin);
        if let Some(Fault::Fail(error)) = fault {
            return Err(error);
        }
        let inner = self.inner.begin(options)?;
        Ok(Arc::new(FaultyTransaction { inner, hook: self.hook.clone() }))
    }
}

struct FaultyTransaction {
    inner: Tx,
    hook: Arc<Mutex<Hook>>,
}

impl FaultyTransaction {
    /// Fails or delays the call; true if it is a commit that is to be done and denied.
    async fn strike(&self, point: Point) -> Result<bool, KvError> {
        let fault = (self.hook.lock())(point);
        match fault {
            None => Ok(false),
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::CommitThenUnknown) => Ok(point == Point::Commit),
            Some(Fault::Delay(pause)) => {
                sleep(pause).await;
                Ok(false)
            }
        }
    }
}

impl Transaction for FaultyTransaction {
    fn get<'a>(
        &'a self,
        key: &'a [u8],
        isolation: Isolation,
    ) -> BoxFuture<'a, Result<Option<Bytes>, KvError>> {
        Box::pin(async move {
            self.strike(Point::Read).await?;
            self.inner.get(key, isolation).await
        })
    }

    fn get_range(&self, query: RangeQuery) -> BoxFuture<'_, Result<RangeResult, KvError>> {
        Box::pin(async move {
            self.strike(Point::Read).await?;
            self.inner.get_range(query).await
        })
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.inner.set(key, value)
    }

    fn clear(&self, key: &[u8]) -> Result<(), KvError> {
        self.inner.clear(key)
    }

    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.inner.clear_range(begin, end)
    }

    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        self.inner.atomic(key, op, operand)
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        self.inner.set_versionstamped_key(key, offset, value)
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError> {
        self.inner.set_versionstamped_value(key, value, offset)
    }

    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.inner.add_read_conflict(begin, end)
    }

    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.inner.add_write_conflict(begin, end)
    }

    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>> {
        Box::pin(async move {
            self.strike(Point::Read).await?;
            self.inner.read_version().await
        })
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn cancel(&self) {
        self.inner.cancel()
    }

    fn commit(&self) -> BoxFuture<'_, Result<Option<Versionstamp>, KvError>> {
        Box::pin(async move {
            let deny = self.strike(Point::Commit).await.inspect_err(|_| self.inner.cancel())?;
            let stamp = self.inner.commit().await?;
            if deny { Err(KvError::CommitUnknown) } else { Ok(stamp) }
        })
    }
}
