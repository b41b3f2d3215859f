//! Messages between replicas. Every one travels with the sender's chain version and counts only if it equals the receiver's (R1).

use catena_proto::ids::{ChunkId, ChunkVersion, Tag, VersionId};

use crate::effect::ReadId;

/// A write on its way down the chain.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Forward<P> {
    /// The chunk.
    pub chunk: ChunkId,
    /// Assigned by the head, forwarded unchanged (R2).
    pub id: VersionId,
    /// The client write that it is (R21).
    pub tag: Option<Tag>,
    /// What to do. If `full`, the chunk's whole contents as of `id`; otherwise a change of the version before.
    pub payload: P,
    /// Sent to a syncing target: a full replace, to be staged and committed like any other version (R17).
    pub full: bool,
    /// `id` is the first version behind the sender's committed one. Only with such a version may a syncing target begin a chunk that
    /// it knows nothing of: nothing before it can be missing.
    pub first: bool,
    /// The sender's D when this was sent: "durable at me and everyone before me, up to here" (R5).
    pub durable: ChunkVersion,
}

/// What replicas say to each other. On the wire: chain, sender's target and chain version, then these fields; `payload` by reference.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Msg<P> {
    /// Down: stage this. Lost: sent again by [`crate::Replica::tick`] or when a gap is refused.
    Forward(Forward<P>),
    /// Down: D of the sender (R5). Lost: rides on the next forward, also on one sent again.
    Notice {
        /// The chunk.
        chunk: ChunkId,
        /// "Durable up to me".
        durable: ChunkVersion,
    },
    /// Up: everything up to here is committed at the sender (R6). Lost: a forward sent again is answered by it.
    Ack {
        /// The chunk.
        chunk: ChunkId,
        /// Newest committed version of the sender.
        committed: VersionId,
    },
    /// To the tail of the path: which version is committed (R10)? Lost: the reader's deadline, or the commit it waits for, ends it.
    Query {
        /// The chunk.
        chunk: ChunkId,
        /// The asker's read.
        read: ReadId,
    },
    /// The tail's answer to a query.
    QueryReply {
        /// The chunk.
        chunk: ChunkId,
        /// The asker's read.
        read: ReadId,
        /// What is committed at the tail.
        committed: VersionId,
    },
}

impl<P> Msg<P> {
    /// The chunk that the message is about.
    pub fn chunk(&self) -> ChunkId {
        match self {
            Msg::Forward(forward) => forward.chunk,
            Msg::Notice { chunk, .. }
            | Msg::Ack { chunk, .. }
            | Msg::Query { chunk, .. }
            | Msg::QueryReply { chunk, .. } => *chunk,
        }
    }
}
