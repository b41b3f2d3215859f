//! What a caller gets when a call fails for good.

use catena_proto::rpc::Failure;
use catena_proto::status::Status;

/// A metadata call that failed: the operation, the place, and the service's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation} {subject}: {failure}")]
pub struct MetaError {
    /// The call.
    pub operation: &'static str,
    /// The path or inode that it was about.
    pub subject: String,
    /// The last answer, or why there was none.
    pub failure: Failure,
}

impl MetaError {
    /// What programs act on.
    pub fn status(&self) -> Status {
        self.failure.status
    }
    /// What a POSIX caller sees.
    pub fn errno(&self) -> i32 {
        self.failure.status.errno()
    }
}
