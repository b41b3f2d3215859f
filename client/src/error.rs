//! The one error of this library: what failed, on which path, why, and what to do.

use std::fmt;
use std::io;

use catena_meta_client::MetaError;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_storage_client::StorageError;

use crate::cluster_file::ClusterFileError;

/// What calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<Parts>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    operation: &'static str,
    path: String,
    status: Status,
    detail: String,
}

impl Error {
    /// An error of this library or of a program built on it.
    pub fn new(
        operation: &'static str,
        path: impl Into<String>,
        status: Status,
        detail: impl Into<String>,
    ) -> Error {
        Error(Box::new(Parts { operation, path: path.into(), status, detail: detail.into() }))
    }

    /// The call that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The path (or inode, or address) that it was about.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// What programs act on.
    pub fn status(&self) -> Status {
        self.0.status
    }

    /// What a POSIX caller sees.
    pub fn errno(&self) -> i32 {
        self.0.status.errno()
    }

    /// The reason in words; empty if the status says it all.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// What the person at the keyboard can do about it, where there is something.
    pub fn next_step(&self) -> Option<&'static str> {
        Some(match self.0.status {
            Status::NoSpace => "remove files (`catena fs du /` shows where the space is) or add disks",
            Status::TimedOut | Status::Disconnected | Status::NoPrimary => {
                "see whether all services run: `catena admin nodes`, `catena admin chains`"
            }
            Status::Busy => "try again; if it stays, the servers have too little memory or too slow disks",
            Status::Corrupt => "no intact replica is left for these bytes: restore the file from its source",
            Status::DiskFailed => "replace the disk that `catena admin targets` shows as offline",
            Status::BadToken => "copy `token` from the cluster file of the machine that made the cluster",
            Status::WrongCluster => "use the cluster file that belongs to these servers (CATENA_CLUSTER)",
            Status::WrongProtocol => "run the same release of catena on both ends",
            Status::StaleHandle => "open the file again",
            Status::Internal | Status::Malformed => "see the service's log; this is a bug",
            _ => return None,
        })
    }

    /// The same error about `path`.
    pub(crate) fn about(mut self, operation: &'static str, path: &str) -> Error {
        self.0.operation = operation;
        path.clone_into(&mut self.0.path);
        self
    }

    pub(crate) fn from_storage(operation: &'static str, path: &str, error: &StorageError) -> Error {
        // A reader never asks for a chunk by name: this would be a bug, not a missing file.
        let status = if error.status == Status::NotFound { Status::Internal } else { error.status };
        Error::new(operation, path, status, error.to_string())
    }

    pub(crate) fn from_failure(operation: &'static str, path: &str, failure: Failure) -> Error {
        Error::new(operation, path, failure.status, failure.message)
    }

    pub(crate) fn from_io(operation: &'static str, path: impl fmt::Display, error: &io::Error) -> Error {
        let errno = error.raw_os_error();
        let known = Status::ALL.iter().find(|status| errno.is_some_and(|errno| errno == status.errno()));
        let status = match (known, error.kind()) {
            (Some(&status), _) if status != Status::Ok => status,
            (_, io::ErrorKind::NotFound) => Status::NotFound,
            (_, io::ErrorKind::PermissionDenied) => Status::AccessDenied,
            (_, io::ErrorKind::AlreadyExists) => Status::Exists,
            _ => Status::DiskFailed,
        };
        Error::new(operation, path.to_string(), status, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { operation, path, status, detail } = &*self.0;
        write!(f, "{operation} {path}: ")?;
        match detail.as_str() {
            "" => write!(f, "{status}")?,
            detail => f.write_str(detail)?,
        }
        match self.next_step() {
            Some(step) if !detail.contains(step) => write!(f, "; {step}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<MetaError> for Error {
    fn from(error: MetaError) -> Error {
        Error::new(error.operation, error.subject, error.failure.status, error.failure.message)
    }
}

impl From<ClusterFileError> for Error {
    fn from(error: ClusterFileError) -> Error {
        Error::new("connect", "to the cluster", Status::Invalid, error.to_string())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(io::Error::from_raw_os_error(error.errno()).kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_why_and_what_to_do() {
        let error = Error::new("write", "/a/b", Status::NoSpace, "");
        let text = error.to_string();
        assert!(text.starts_with("write /a/b: no space left") && text.contains("catena fs du"), "{text}");
        assert_eq!(error.errno(), 28);
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn local_errors_keep_their_meaning() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(Error::from_io("read", "/tmp/x", &error).status(), Status::NotFound);
        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(Error::from_io("read", "/tmp/x", &error).status(), Status::DiskFailed);
    }
}
