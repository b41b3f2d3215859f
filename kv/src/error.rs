//! What can go wrong with a transaction, in classes a retry loop can act on.

use crate::{KEY_LIMIT, TRANSACTION_LIMIT, VALUE_LIMIT};

/// Failure of a key-value operation. [`retryable`](KvError::retryable) and [`maybe_committed`](KvError::maybe_committed) are the
/// classes; [`transact`](crate::transact) acts on them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// Something this transaction read was changed before it committed. Nothing was written; run it again.
    #[error("conflict with another transaction; run it again")]
    Conflict,
    /// The transaction's read version is older than the database keeps. Nothing was written; run it again, or make it shorter.
    #[error("transaction is too old to read or commit; run it again, with less work in it")]
    TooOld,
    /// The commit was sent and its outcome was lost: it may or may not have happened.
    #[error("the outcome of the commit is unknown; read back whether it happened before repeating it")]
    CommitUnknown,
    /// The database cannot be reached or does not accept work now. Nothing was written.
    #[error("the key-value database is unavailable: {0}")]
    Unavailable(String),
    /// The deadline passed. Nothing was written (a deadline that passes during a commit is `CommitUnknown`).
    #[error("the transaction was not done within its deadline")]
    TimedOut,
    /// The transaction was cancelled.
    #[error("the transaction was cancelled")]
    Cancelled,
    /// The transaction was already committed (or its commit is under way).
    #[error("the transaction was already committed; begin a new one")]
    Used,
    /// Writes and conflict ranges are larger than a transaction may be.
    #[error("transaction of {0} bytes; at most {TRANSACTION_LIMIT}: split it")]
    TransactionTooLarge(usize),
    /// A key is longer than allowed.
    #[error("key of {0} bytes; at most {KEY_LIMIT}")]
    KeyTooLarge(usize),
    /// A value is longer than allowed.
    #[error("value of {0} bytes; at most {VALUE_LIMIT}: split it")]
    ValueTooLarge(usize),
    /// A key is at or above `0xff`, where FoundationDB keeps its own.
    #[error("key begins with 0xff, which is reserved")]
    KeyOutsideRange,
    /// The begin of a range is behind its end.
    #[error("the range's begin is greater than its end")]
    InvertedRange,
    /// The ten bytes of a versionstamp do not fit at the offset given.
    #[error("no room for a versionstamp at byte {offset} of {length}")]
    BadVersionstampOffset {
        /// Where the stamp should have gone.
        offset: usize,
        /// Length of the key or value.
        length: usize,
    },
    /// A read touched a key that this transaction writes with a versionstamp: its value is not known before the commit.
    #[error("read of a key whose versionstamp is only known after the commit")]
    Unreadable,
    /// The database's storage failed; nothing more is accepted until it is repaired and reopened.
    #[error("key-value storage failed: {0}; check the disk and its logs, then restart")]
    Storage(String),
    /// Any other failure of a backend, with its own code.
    #[error("key-value backend error {code}: {message}")]
    Backend {
        /// The backend's code (FoundationDB's error code).
        code: i32,
        /// The backend's text.
        message: String,
    },
}

impl KvError {
    /// Whether running the same transaction again may help. True for [`KvError::CommitUnknown`] too: see
    /// [`maybe_committed`](KvError::maybe_committed).
    pub fn retryable(&self) -> bool {
        matches!(self, KvError::Conflict | KvError::TooOld | KvError::CommitUnknown | KvError::Unavailable(_))
    }

    /// Whether the writes may have been committed although this error was returned. A body that is run again must then find out
    /// by itself (an idempotency record) or be idempotent.
    pub fn maybe_committed(&self) -> bool {
        matches!(self, KvError::CommitUnknown)
    }
}
