//! The contract: what a database and a transaction promise. Semantics follow FoundationDB (API 7.3); where a sentence here is silent,
//! FoundationDB's documentation holds. The conformance suite tests every sentence.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{Atomic, KvError, RangeQuery, RangeResult, Versionstamp};

/// A boxed future, the same type as `futures_util::future::BoxFuture`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A transaction as it is handed around: cheap to clone, so several reads may be in flight at once.
pub type Tx = Arc<dyn Transaction>;

/// A transactional, ordered key-value store.
pub trait Database: Send + Sync + 'static {
    /// Starts a transaction. Does no I/O: the read version is taken by the first read (or by [`Transaction::read_version`]), and
    /// that is where the age of a transaction starts to count.
    fn begin(&self, options: TxOptions) -> Result<Tx, KvError>;
}

/// What a transaction is begun with.
#[derive(Clone, Copy, Debug, Default)]
pub struct TxOptions {
    /// The transaction may read from a version this old. A backend with expensive read versions (FoundationDB) may reuse a cached
    /// one; others always read the newest. Meant for read-only transactions: a writing one stays serialisable but conflicts more.
    pub staleness: Option<Duration>,
}

/// Whether a read takes part in conflict detection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// What is read here is guaranteed unchanged at commit, or the commit fails with [`KvError::Conflict`].
    Serializable,
    /// Read from the same consistent version, but without a conflict if it changes before the commit.
    Snapshot,
}

/// One transaction: reads from one consistent version overlaid with its own writes; writes become visible to others all at once,
/// at [`commit`](Transaction::commit).
///
/// - Serialisable: a commit succeeds only if nothing read with [`Isolation::Serializable`] was changed since the read version.
/// - Dropping it without commit cancels it. After commit or cancel every call fails ([`KvError::Used`], [`KvError::Cancelled`]).
/// - Keys are below `0xff` and at most [`KEY_LIMIT`](crate::KEY_LIMIT) bytes, values at most [`VALUE_LIMIT`](crate::VALUE_LIMIT),
///   a transaction (keys and values written, conflict ranges) at most [`TRANSACTION_LIMIT`](crate::TRANSACTION_LIMIT). The first
///   three are checked by the call, the last by commit.
/// - [`TRANSACTION_AGE`](crate::TRANSACTION_AGE) after its read version was taken, reads fail with [`KvError::TooOld`], and so does
///   the commit if it depends on reads.
/// - Futures may start their work at the call. Dropping a read's future is harmless; dropping a commit's future leaves its outcome
///   unknown, as [`KvError::CommitUnknown`] would.
pub trait Transaction: Send + Sync {
    /// The value of `key`, own writes included.
    fn get<'a>(
        &'a self,
        key: &'a [u8],
        isolation: Isolation,
    ) -> BoxFuture<'a, Result<Option<Bytes>, KvError>>;

    /// One page of a range, own writes included. Only the part that was actually returned (up to the last key of a page with
    /// `more`) takes part in conflict detection. See [`RangeQuery::next_page`] for going on.
    fn get_range(&self, query: RangeQuery) -> BoxFuture<'_, Result<RangeResult, KvError>>;

    /// Sets `key` to `value`.
    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), KvError>;

    /// Removes `key`; no error if it is absent.
    fn clear(&self, key: &[u8]) -> Result<(), KvError>;

    /// Removes every key in `begin..end`; an empty range is no write. Costs the embedded backends time for each key present, at commit.
    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError>;

    /// Changes the value at commit without reading it here, so that concurrent ones do not conflict.
    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError>;

    /// Sets a key in which the ten bytes from `offset` are replaced by this transaction's [`Versionstamp`] at commit.
    /// The range of keys it might become cannot be read in this transaction any more ([`KvError::Unreadable`]).
    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError>;

    /// Sets `key` to a value in which the ten bytes from `offset` are replaced by this transaction's [`Versionstamp`] at commit.
    /// `key` cannot be read in this transaction any more ([`KvError::Unreadable`]), even if it is written again.
    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError>;

    /// As if `begin..end` had been read serialisably. Takes effect against the read version, so read something (or call
    /// [`read_version`](Transaction::read_version)) in the same transaction.
    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError>;

    /// As if `begin..end` had been written: conflicts with concurrent transactions that read it. A transaction with only this and
    /// no writes is committed like a writing one.
    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError>;

    /// The version this transaction reads at; takes it if no read has yet. Versions only grow, also across restarts.
    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>>;

    /// Bytes counted so far towards [`TRANSACTION_LIMIT`](crate::TRANSACTION_LIMIT): approximate, never too low for the limit check.
    fn size(&self) -> usize;

    /// Makes this and all later calls fail with [`KvError::Cancelled`], reads in flight included. A commit that is under way is not
    /// undone. Its outcome is then unknown.
    fn cancel(&self);

    /// Commits. The stamp orders all committed transactions; `None` if there was nothing to commit (no write and no write conflict
    /// range), which always succeeds. When this returns `Ok` the writes are as durable as the backend makes them (`embedded` and
    /// FoundationDB: on disk).
    fn commit(&self) -> BoxFuture<'_, Result<Option<Versionstamp>, KvError>>;
}
