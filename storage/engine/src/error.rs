//! What can go wrong, each error naming the thing and the next step, and the wire status that a caller answers with.

use std::path::PathBuf;

use catena_buf::PoolError;
use catena_proto::ids::{ChunkId, ClusterId, NodeId, TargetId, VersionId};
use catena_proto::status::Status;

/// A disk that cannot be opened or prepared. Nothing was changed on it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// Another process has the directory.
    #[error("{} is in use by another process (its `lock` file is held); stop that process or name another directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The directory holds something that is not Catena's.
    #[error("{} contains `{name}`, which is not Catena's; name an empty directory", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The first such entry.
        name: String,
    },
    /// The operating system refused.
    #[error("{what} {}: {error}", path.display())]
    Os {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        error: String,
    },
    /// io_uring was demanded and is not to be had.
    #[error("io_uring is not available for {}: {error}; use `io = \"auto\"` to fall back to threads", path.display())]
    NoUring {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        error: String,
    },
}

/// An operation of the chunk store that was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    /// A write or sync failed, now or earlier: nothing on this disk is trusted any more (a failed fsync is never retried).
    #[error(
        "disk {disk} failed: {reason}; its targets are out of service until it is replaced or the process restarts"
    )]
    DiskFailed {
        /// Where.
        disk: String,
        /// The first failure.
        reason: String,
    },
    /// A read failed. The disk stays in service: another replica has the bytes, and what cannot be read is written anew elsewhere.
    #[error("disk {disk}: a read failed: {reason}; read another replica and let scrub repair this one")]
    ReadFailed {
        /// Where.
        disk: String,
        /// What the device said.
        reason: String,
    },
    /// No room; removes, reads and what is already there go on.
    #[error("disk {disk} is full: {needed} bytes needed, {free} free, {reserve} of them kept in reserve")]
    NoSpace {
        /// Where.
        disk: String,
        /// Bytes that the operation needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that only operations already accepted elsewhere may use.
        reserve: u64,
    },
    /// The caller's argument makes no sense.
    #[error("invalid {what}")]
    Invalid {
        /// Which, and why.
        what: &'static str,
    },
    /// The target is not on this disk.
    #[error("target {0} is not on this disk; create it first")]
    NoSuchTarget(TargetId),
    /// The chunk does not exist, or is removed.
    #[error("chunk {0} does not exist")]
    NotFound(ChunkId),
    /// The chunk has no such version, or it is not durable yet.
    #[error("chunk {chunk} has no durable version {version:?}")]
    NoSuchVersion {
        /// The chunk.
        chunk: ChunkId,
        /// The version asked for.
        version: VersionId,
    },
    /// A stage that does not follow the chunk's last version.
    #[error("chunk {chunk}: version {got:?} was staged on top of {last:?}; versions are contiguous")]
    Gap {
        /// The chunk.
        chunk: ChunkId,
        /// Its last version, staged or committed.
        last: VersionId,
        /// What came.
        got: VersionId,
    },
    /// Stored bytes do not match their checksum. Another replica has them.
    #[error(
        "target {target}: chunk {chunk} is corrupt in block {block}; read another replica and let scrub repair this one"
    )]
    Corrupt {
        /// The target.
        target: TargetId,
        /// The chunk.
        chunk: ChunkId,
        /// The 4 KiB block of the chunk.
        block: u32,
    },
    /// Too much at once.
    #[error("overloaded: {what}; try again later, with less at once")]
    Busy {
        /// What ran out.
        what: &'static str,
    },
    /// No superblock.
    #[error("disk {disk} is not formatted")]
    NotFormatted {
        /// Where.
        disk: String,
    },
    /// Format was asked for a disk that has a superblock.
    #[error("disk {disk} already belongs to cluster {cluster}, node {node}; refusing to format it")]
    AlreadyFormatted {
        /// Where.
        disk: String,
        /// Whose.
        cluster: ClusterId,
        /// Whose.
        node: NodeId,
    },
    /// The superblock names another cluster.
    #[error("disk {disk} belongs to cluster {found}, not {expected}; check which disk this is")]
    WrongCluster {
        /// Where.
        disk: String,
        /// In the superblock.
        found: ClusterId,
        /// Configured.
        expected: ClusterId,
    },
    /// The superblock names another node.
    #[error("disk {disk} belongs to node {found}, not {expected}; check which disk this is")]
    WrongNode {
        /// Where.
        disk: String,
        /// In the superblock.
        found: NodeId,
        /// Configured.
        expected: NodeId,
    },
    /// A structure on disk is damaged or from a newer Catena.
    #[error("disk {disk}: {what}; the disk's chunks have to come from their other replicas")]
    BadFormat {
        /// Where.
        disk: String,
        /// Which structure, and what about it.
        what: String,
    },
    /// The disk cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No buffer.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl EngineError {
    /// The wire status that a service answers with.
    pub fn status(&self) -> Status {
        match self {
            EngineError::DiskFailed { .. }
            | EngineError::ReadFailed { .. }
            | EngineError::BadFormat { .. }
            | EngineError::Disk(_) => Status::DiskFailed,
            EngineError::NoSpace { .. } => Status::NoSpace,
            EngineError::Invalid { .. } => Status::Invalid,
            EngineError::NoSuchTarget(_) => Status::NotServing,
            EngineError::NotFound(_) => Status::NotFound,
            EngineError::NoSuchVersion { .. } | EngineError::Gap { .. } => Status::Gap,
            EngineError::Corrupt { .. } => Status::Corrupt,
            EngineError::Pool(_) | EngineError::Busy { .. } => Status::Busy,
            _ => Status::Internal,
        }
    }
}

/// Of the chunk store.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
