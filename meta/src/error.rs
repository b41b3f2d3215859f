//! How an operation ends when it does not end well.

use catena_kv::KvError;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use crate::schema::CorruptValue;

/// Why an attempt at an operation ended. Only `Failed` reaches the caller as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The answer: the operation is refused.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The store failed, or wants the transaction again.
    #[error(transparent)]
    Store(#[from] KvError),
    /// The store holds something that this release cannot read.
    #[error(transparent)]
    Corrupt(#[from] CorruptValue),
    /// The operation needs an inode id and the reserve is used up: refill it, then again.
    #[error("out of reserved inode ids")]
    NeedIds,
    /// What was observed outside the transaction is out of date: observe again, then again.
    #[error("the file was cut meanwhile")]
    Observe,
}

impl From<Status> for OpError {
    fn from(status: Status) -> OpError {
        OpError::Failed(status.into())
    }
}

/// A refusal with its own words.
pub fn refuse<T>(status: Status, message: impl Into<String>) -> Result<T, OpError> {
    Err(OpError::Failed(Failure::new(status, message)))
}
