//! What a caller gets when an operation on a chunk fails for good.

use std::fmt;

use catena_proto::ids::{ChainId, ChunkId, NodeId, TargetId};
use catena_proto::status::Status;

/// A failed operation on a chunk: what failed, where, and why no retry helped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageError {
    /// What programs act on.
    pub status: Status,
    /// The chain.
    pub chain: ChainId,
    /// The chunk; for a listing, the first one asked for.
    pub chunk: ChunkId,
    /// The target that answered last, if any did.
    pub target: Option<TargetId>,
    /// Its node.
    pub node: Option<NodeId>,
    /// Words for people beyond what the status says; may be empty.
    pub detail: Box<str>,
}

impl StorageError {
    /// An error that no target had a part in.
    pub(crate) fn new(status: Status, chain: ChainId, chunk: ChunkId, detail: impl Into<Box<str>>) -> Self {
        StorageError { status, chain, chunk, target: None, node: None, detail: detail.into() }
    }

    /// Names the target that it is about.
    pub(crate) fn at(mut self, target: TargetId, node: NodeId) -> Self {
        (self.target, self.node) = (Some(target), Some(node));
        self
    }

    /// What a POSIX caller sees.
    pub fn errno(&self) -> i32 {
        self.status.errno()
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {} of chain {}", self.chunk, self.chain)?;
        if let (Some(target), Some(node)) = (self.target, self.node) {
            write!(f, " on target {target} of node {node}")?;
        }
        write!(f, ": {}", self.status)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for StorageError {}
