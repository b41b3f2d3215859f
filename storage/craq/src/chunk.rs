//! One chunk with something under way: its run of pending versions and the watermarks that decide what may be committed.

use std::collections::VecDeque;

use catena_proto::ids::{ChunkVersion, Tag, VersionId};

use crate::effect::{ReadId, RequestId};

/// A staged, not yet committed version.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Pending<P> {
    pub id: VersionId,
    pub tag: Option<Tag>,
    /// None after a restart: the store has it, and it travels as a full replace.
    pub payload: Option<P>,
    pub durable: bool,
    /// Clients to answer when it commits; retries of one write attach here (R21).
    pub waiters: Vec<RequestId>,
}

/// A read that waits until `until` is committed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Reader {
    pub read: ReadId,
    pub until: ChunkVersion,
}

/// State of an active chunk. Versions are `committed < pending[0] < pending[1] < ...`, contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ActiveChunk<P> {
    pub committed: VersionId,
    pub pending: VecDeque<Pending<P>>,
    /// D: durable at me and everyone before me, up to here. Never falls within one unbroken membership (R5, R7).
    pub durable: ChunkVersion,
    /// The predecessor's D, as told in this chain version.
    pub notice: ChunkVersion,
    /// Up to here the pendings were sent to the successor in this chain version,
    pub sent: ChunkVersion,
    /// and up to here it was told D.
    pub noticed: ChunkVersion,
    pub readers: Vec<Reader>,
    /// Nothing has moved since the last tick: the next one sends again.
    pub stalled: bool,
    /// A refused gap was already answered since the last tick.
    pub resent: bool,
}

impl<P> ActiveChunk<P> {
    /// An idle chunk whose newest version is `committed`.
    pub fn new(committed: VersionId) -> Self {
        ActiveChunk {
            committed,
            pending: VecDeque::new(),
            durable: committed.version,
            notice: committed.version,
            sent: committed.version,
            noticed: committed.version,
            readers: Vec::new(),
            stalled: false,
            resent: false,
        }
    }

    /// The newest staged version, or the committed one.
    pub fn last(&self) -> VersionId {
        self.pending.back().map_or(self.committed, |pending| pending.id)
    }

    /// Up to here every pending is durable at this replica.
    pub fn durable_prefix(&self) -> ChunkVersion {
        let prefix = self.pending.iter().take_while(|pending| pending.durable).last();
        prefix.map_or(self.committed.version, |pending| pending.id.version)
    }

    /// The pending with this number.
    pub fn pending(&self, version: ChunkVersion) -> Option<&Pending<P>> {
        self.index(version).map(|index| &self.pending[index])
    }

    /// The pending with this number.
    pub fn pending_mut(&mut self, version: ChunkVersion) -> Option<&mut Pending<P>> {
        self.index(version).map(|index| &mut self.pending[index])
    }

    /// Place of a version in the run; they are contiguous.
    fn index(&self, version: ChunkVersion) -> Option<usize> {
        let place = version.0.checked_sub(self.committed.version.0 + 1)? as usize;
        (place < self.pending.len()).then_some(place)
    }

    /// Nothing is left to do for it: what is kept here can be had from the store again.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.readers.is_empty() && self.notice <= self.committed.version
    }

    /// The pendings have to be sent from the first one on.
    pub fn rewind(&mut self) {
        self.sent = self.committed.version;
        self.noticed = self.committed.version;
    }
}
