//! Why a transaction failed, and whether it makes sense to try again.

/// A failed transaction or read. FoundationDB's error codes are in brackets.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KvError {
    /// Something it read was written meanwhile \[1020\].
    #[error("the transaction conflicts with another one")]
    Conflict,
    /// Its read version has left the window \[1007\].
    #[error("the transaction is older than 5 seconds")]
    TooOld,
    /// Whether it was committed is not known \[1021\].
    #[error("whether the transaction was committed is not known")]
    CommitUnknown,
    /// The database does not answer now \[1009, 1031, ...\].
    #[error("the metadata store is not available: {0}")]
    Unavailable(String),
    /// The transaction was cancelled \[1025\].
    #[error("the transaction was cancelled")]
    Cancelled,
    /// Over [`crate::limits::TRANSACTION`] \[2101\].
    #[error("the transaction has {0} bytes; the limit is 10000000")]
    TransactionTooLarge(usize),
    /// Over [`crate::limits::KEY`] \[2102\].
    #[error("a key has {0} bytes; the limit is 10000")]
    KeyTooLarge(usize),
    /// Over [`crate::limits::VALUE`] \[2103\].
    #[error("a value has {0} bytes; the limit is 100000")]
    ValueTooLarge(usize),
    /// A read of what this transaction wrote with a versionstamp that is not known yet \[1036\].
    #[error("the transaction reads a versionstamp that it has not been given yet")]
    Unreadable,
    /// A malformed argument: a range whose end is before its start, a versionstamp offset outside the key \[2005, 2018\].
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The retry loop's deadline passed; the last failure is named.
    #[error("gave up after the deadline; the last failure was: {0}")]
    TimedOut(Box<KvError>),
    /// The store itself failed and will not recover by itself.
    #[error("the metadata store failed: {0}")]
    Failed(String),
}

impl KvError {
    /// The same transaction, run again from the start, may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, KvError::Conflict | KvError::TooOld | KvError::CommitUnknown | KvError::Unavailable(_))
    }

    /// It may have been committed all the same: only an idempotent transaction may simply be run again.
    pub fn is_maybe_committed(&self) -> bool {
        match self {
            KvError::CommitUnknown => true,
            KvError::TimedOut(last) => last.is_maybe_committed(),
            _ => false,
        }
    }
}
