//! Errors: of opening, as an operator reads them; of transactions, in the contract's classes.

use std::path::PathBuf;

use catena_kv::KvError;
use foundationdb::FdbError;

/// Why FoundationDB cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The client library.
    #[error(transparent)]
    Library(#[from] foundationdb_sys::LoadError),
    /// The client library is of an older release.
    #[error(
        "FoundationDB's client library has API version {found}, Catena needs 730: install foundationdb-clients 7.3"
    )]
    Version {
        /// The newest API version it has.
        found: i32,
    },
    /// The cluster file cannot be read.
    #[error(
        "FoundationDB's cluster file {} cannot be read ({reason}): copy it from a server of the cluster, where it is \
         /etc/foundationdb/fdb.cluster, or correct `store.cluster_file`",
        path.display()
    )]
    NoClusterFile {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is no cluster file.
    #[error(
        "{} is no FoundationDB cluster file ({reason}): it has one line of the form description:id@host:port,host:port",
        path.display()
    )]
    BadClusterFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The library refused.
    #[error("FoundationDB's client could not be started: {message} (error {code})")]
    Client {
        /// FoundationDB's error code.
        code: i32,
        /// FoundationDB's words.
        message: String,
    },
}

impl From<FdbError> for OpenError {
    fn from(error: FdbError) -> OpenError {
        OpenError::Client { code: error.code(), message: error.message().to_owned() }
    }
}

// Codes of `error_definitions.h`.
const TRANSACTION_TOO_OLD: i32 = 1007;
const NOT_COMMITTED: i32 = 1020;
const TRANSACTION_CANCELLED: i32 = 1025;
const TRANSACTION_TIMED_OUT: i32 = 1031;
const ACCESSED_UNREADABLE: i32 = 1036;
const OPERATION_CANCELLED: i32 = 1101;
const KEY_OUTSIDE_LEGAL_RANGE: i32 = 2003;
const INVERTED_RANGE: i32 = 2005;
const USED_DURING_COMMIT: i32 = 2017;
const TRANSACTION_TOO_LARGE: i32 = 2101;

/// What a failure is to a caller. `size` is the transaction's.
pub(crate) fn classify(error: FdbError, size: usize) -> KvError {
    match error.code() {
        NOT_COMMITTED => KvError::Conflict,
        TRANSACTION_TOO_OLD => KvError::TooOld,
        TRANSACTION_CANCELLED | OPERATION_CANCELLED => KvError::Cancelled,
        USED_DURING_COMMIT => KvError::Used,
        ACCESSED_UNREADABLE => KvError::Unreadable,
        KEY_OUTSIDE_LEGAL_RANGE => KvError::KeyOutsideRange,
        INVERTED_RANGE => KvError::InvertedRange,
        TRANSACTION_TOO_LARGE => KvError::TransactionTooLarge(size),
        // Sent or not, FoundationDB does not say.
        TRANSACTION_TIMED_OUT => KvError::CommitUnknown,
        _ if error.is_maybe_committed() => KvError::CommitUnknown,
        // Throttled, a proxy out of memory, a version from the future, a locked database: it may pass.
        _ if error.is_retryable() => KvError::Unavailable(format!("{} ({})", error.message(), error.code())),
        code => KvError::Backend { code, message: error.message().to_owned() },
    }
}
