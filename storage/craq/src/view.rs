//! What a replica knows of its surroundings: the chain as of one chain version, and what its own store has committed.

use catena_proto::ids::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, Sequence, TargetId, VersionId,
};

/// A chain, as one target sees it at one chain version.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ChainView {
    /// The chain version.
    pub version: ChainVersion,
    /// The write path: serving targets in order, then at most one syncing target (R4).
    pub path: Vec<TargetId>,
    /// The last of `path` is syncing.
    pub syncing: bool,
    /// Chain version at which the syncing target's session began (R14); meaningful only if `syncing`.
    pub joined_at: ChainVersion,
}

/// What a target is in its chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Not in the path: offline, waiting or lastsrv.
    Outside,
    /// Serving, at this place of the path.
    Serving(usize),
    /// Being brought up to date: the tail of the path.
    Syncing,
}

impl ChainView {
    /// The part that `target` has.
    pub fn role(&self, target: TargetId) -> Role {
        match self.path.iter().position(|&member| member == target) {
            None => Role::Outside,
            Some(place) if self.syncing && place + 1 == self.path.len() => Role::Syncing,
            Some(place) => Role::Serving(place),
        }
    }

    /// The target before `target` in the path.
    pub fn predecessor(&self, target: TargetId) -> Option<TargetId> {
        let place = self.path.iter().position(|&member| member == target)?;
        place.checked_sub(1).map(|before| self.path[before])
    }

    /// The target behind `target` in the path, and whether it is syncing.
    pub fn successor(&self, target: TargetId) -> Option<(TargetId, bool)> {
        let place = self.path.iter().position(|&member| member == target)?;
        let next = *self.path.get(place + 1)?;
        Some((next, self.syncing && place + 2 == self.path.len()))
    }

    /// The tail of the path, the syncing target included (R10: asking the last *serving* target reads stale).
    pub fn tail(&self) -> Option<TargetId> {
        self.path.last().copied()
    }
}

/// The outcome that a committed write's tag remembers (R21).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TagRecord {
    /// The channel's newest committed sequence.
    pub sequence: Sequence,
    /// The chunk that it wrote.
    pub chunk: ChunkId,
    /// The version that it became.
    pub version: VersionId,
    /// The chunk's length after it.
    pub length: u32,
}

/// What the target's store has committed. Answers come from memory.
pub trait Store {
    /// Committed version of a chunk, tombstones included; the default if the chunk was never there.
    fn committed(&self, chunk: ChunkId) -> VersionId;
    /// What the channel last committed on this target.
    fn tag(&self, client: ClientId, channel: ChannelId) -> Option<TagRecord>;
}

/// The version behind `version`.
pub(crate) fn next(version: ChunkVersion) -> ChunkVersion {
    ChunkVersion(version.0 + 1)
}
