//! The service as its clients see it: requests and replies as values, over gRPC in production, over a simulated network in tests.

use async_trait::async_trait;
use catena_kv::KvError;
use catena_proto::pb::*;
use catena_proto::rpc::Failure;

/// What can be asked of a key-value service.
#[async_trait]
pub trait KvApi: Send + Sync + 'static {
    /// The newest version.
    async fn read_version(&self, request: KvReadVersionRequest) -> Result<KvReadVersionReply, CallError>;
    /// One key.
    async fn get(&self, request: KvGetRequest) -> Result<KvGetReply, CallError>;
    /// One page of a range.
    async fn get_range(&self, request: KvRangeRequest) -> Result<KvRangeReply, CallError>;
    /// A commit. Sent once: whoever implements this never repeats it by himself.
    async fn commit(&self, request: KvCommitRequest) -> Result<KvCommitReply, CallError>;
}

/// A call without a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// It never left: nobody listens there.
    NotSent(String),
    /// It may have been carried out; the answer is lost.
    Lost(String),
    /// It was refused before it reached the store: another cluster, a wrong token, another release.
    Refused(Failure),
}

impl CallError {
    /// What this means for a read.
    pub(crate) fn of_read(self) -> KvError {
        match self {
            CallError::NotSent(why) | CallError::Lost(why) => KvError::Unavailable(why),
            CallError::Refused(failure) => refused(failure),
        }
    }

    /// What this means for a commit.
    pub(crate) fn of_commit(self) -> KvError {
        match self {
            CallError::NotSent(why) => KvError::Unavailable(why),
            CallError::Lost(_) => KvError::CommitUnknown,
            CallError::Refused(failure) => refused(failure),
        }
    }
}

/// Asking again does not help: somebody has to correct a configuration.
fn refused(failure: Failure) -> KvError {
    KvError::Backend { code: failure.status as i32, message: failure.message }
}
