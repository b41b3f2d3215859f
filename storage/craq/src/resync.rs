//! Bringing a returning target up to date (R14 to R20): what the target remembers of its session, and what its predecessor decides.
//!
//! The predecessor walks the chunks of both in order, page by page: it asks the target for a dump of a range, and for every chunk that
//! either has it sends *keep*, *base* or *absent* with the version the target *needs* before the chunk counts as complete. Writes flow
//! meanwhile as full replaces. When the walk is through, the tags are merged and every needed version is committed, the session is done.

use std::collections::BTreeMap;

use catena_proto::ids::{ChainVersion, ChunkId, ChunkVersion, VersionId};

use crate::effect::Refusal;
use crate::mutant::{Mutant, broken};
use crate::replica::Replica;
use crate::view::{Role, Store};

/// A chunk in the target's dump.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DumpEntry {
    /// The chunk.
    pub chunk: ChunkId,
    /// Committed version in the target's store.
    pub committed: VersionId,
    /// Its length.
    pub length: u32,
    /// Its checksum.
    pub checksum: u32,
    /// It is a tombstone.
    pub tombstone: bool,
    /// The chunk has pending versions: never *keep* (R18).
    pub pending: bool,
    /// Complete in this session already (R19): nothing needs to be sent.
    pub complete: bool,
}

/// A chunk as the predecessor has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkSummary {
    /// The committed version; number 0 if the chunk exists only as pendings.
    pub committed: VersionId,
    /// Its length.
    pub length: u32,
    /// Its checksum.
    pub checksum: u32,
    /// It is a tombstone.
    pub tombstone: bool,
    /// Newest staged version (R15).
    pub last_staged: ChunkVersion,
}

/// What the predecessor says of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// What the target has is what is committed.
    Keep(VersionId),
    /// A snapshot of this committed version follows (for a tombstone: none, the chunk is removed with that version).
    Base(VersionId),
    /// A base of version 0: the chunk is not to exist.
    Absent,
}

/// Decides about one chunk. `None`: nothing has to be sent. When in doubt, send: 3FS got stuck by comparing too cleverly.
pub fn decide(mine: Option<&ChunkSummary>, theirs: Option<&DumpEntry>) -> Option<(Decision, ChunkVersion)> {
    if theirs.is_some_and(|theirs| theirs.complete) {
        return None;
    }
    let Some(mine) = mine else {
        return theirs.map(|_| (Decision::Absent, ChunkVersion(0)));
    };
    if mine.committed.version == ChunkVersion(0) {
        return Some((Decision::Absent, mine.last_staged));
    }
    let same = theirs.is_some_and(|theirs| {
        !theirs.pending
            && (theirs.committed, theirs.length, theirs.checksum, theirs.tombstone)
                == (mine.committed, mine.length, mine.checksum, mine.tombstone)
    });
    let decision = if same { Decision::Keep(mine.committed) } else { Decision::Base(mine.committed) };
    Some((decision, mine.last_staged))
}

/// How far a session is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SyncProgress {
    /// Chunks that the session has heard of,
    pub known: usize,
    /// and those that are complete.
    pub complete: usize,
    /// The predecessor's walk is through and nothing is missing.
    pub finished: bool,
}

/// What a session knows of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct SyncChunk {
    /// The newest version that this session brought: by keep, by base, or by a committed replace.
    committed: Option<VersionId>,
    /// The version to reach; `None` while the base is not known.
    need: Option<ChunkVersion>,
    /// A base is being written to the store.
    installing: bool,
}

impl SyncChunk {
    fn is_complete(&self) -> bool {
        match (self.need, self.committed) {
            (Some(_), Some(_)) if broken(Mutant::NoNeed) => !self.installing,
            (Some(need), Some(committed)) => !self.installing && committed.version >= need,
            _ => false,
        }
    }
}

/// The target's memory of its resync session.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Session {
    joined_at: ChainVersion,
    /// Pendings are dropped: the dump may be answered (R14).
    ready: bool,
    finished: bool,
    chunks: BTreeMap<ChunkId, SyncChunk>,
}

impl Session {
    pub fn new(joined_at: ChainVersion) -> Session {
        Session { joined_at, ready: false, finished: false, chunks: BTreeMap::new() }
    }

    pub fn joined_at(&self) -> ChainVersion {
        self.joined_at
    }

    pub fn is_complete(&self, chunk: ChunkId) -> bool {
        self.chunks.get(&chunk).is_some_and(SyncChunk::is_complete)
    }

    pub fn committed(&mut self, chunk: ChunkId, id: VersionId) {
        self.chunks.entry(chunk).or_default().committed = Some(id);
    }

    /// The chain changed: complete chunks stay so (R19), the others wait for a new word, since what the last predecessor wanted them
    /// to reach may have died with it.
    pub fn forget_unfinished(&mut self, has_pendings: impl Fn(&ChunkId) -> bool) {
        self.chunks.retain(|chunk, state| {
            if !state.is_complete() {
                state.need = None;
            }
            state.installing || state.committed.is_some() || has_pendings(chunk)
        });
    }
}

/// What to do with a base.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Install {
    /// Nothing: it is known by now, or the session has brought something newer.
    Nothing,
    /// Make the snapshot the chunk's only contents, whatever the store has of it, then call [`Replica::installed`].
    Contents,
    /// Forget the chunk altogether, then call [`Replica::installed`] with the default version.
    Forget,
}

impl<P: Clone> Replica<P> {
    /// [`crate::Effect::BeginSession`] was carried out.
    pub fn session_ready(&mut self, joined_at: ChainVersion) {
        if let Some(session) = self.session.as_mut().filter(|session| session.joined_at == joined_at) {
            session.ready = true;
        }
    }

    /// The session that a resync message is about, if this replica is in it and ready.
    fn session(
        &mut self,
        chain_version: ChainVersion,
        joined_at: ChainVersion,
    ) -> Result<&mut Session, Refusal> {
        self.same_version(chain_version)?;
        match (self.role, &mut self.session) {
            (Role::Syncing, Some(session)) if session.joined_at == joined_at => {
                if session.ready {
                    Ok(session)
                } else {
                    Err(Refusal::NotYet)
                }
            }
            _ => Err(Refusal::Stale),
        }
    }

    /// May the dump be answered? Completion marks for it come from [`Replica::is_synced`].
    pub fn may_dump(&mut self, chain_version: ChainVersion, joined_at: ChainVersion) -> Result<(), Refusal> {
        self.session(chain_version, joined_at).map(|_| ())
    }

    /// The chunk is complete in the current session.
    pub fn is_synced(&self, chunk: ChunkId) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_complete(chunk))
    }

    /// A base of the chunk is being written to the store: forwards of it are refused until it is in.
    pub fn is_installing(&self, chunk: ChunkId) -> bool {
        self.session
            .as_ref()
            .and_then(|session| session.chunks.get(&chunk))
            .is_some_and(|state| state.installing)
    }

    /// Progress of the current session.
    pub fn sync_progress(&self) -> Option<SyncProgress> {
        self.session.as_ref().map(|session| SyncProgress {
            known: session.chunks.len(),
            complete: session.chunks.values().filter(|chunk| chunk.is_complete()).count(),
            finished: session.finished,
        })
    }

    /// The session whose completion may be reported to mgmtd as *up-to-date* (R20).
    pub fn finished_session(&self) -> Option<ChainVersion> {
        self.session.as_ref().filter(|session| session.finished).map(|session| session.joined_at)
    }

    /// The predecessor's word on a chunk (R15, R16, R18).
    pub fn sync_chunk(
        &mut self,
        chain_version: ChainVersion,
        joined_at: ChainVersion,
        chunk: ChunkId,
        decision: Decision,
        need: ChunkVersion,
        store: &impl Store,
    ) -> Result<Install, Refusal> {
        let has_pendings = self.chunks.get(&chunk).is_some_and(|active| !active.pending.is_empty());
        let session = self.session(chain_version, joined_at)?;
        let state = session.chunks.entry(chunk).or_default();
        if state.installing {
            return Err(Refusal::NotYet);
        }
        // Replaces of this session are newer than any base: the tail of the path commits first, and this replica is the tail.
        let brought = state.committed.is_some() || has_pendings;
        let install = match decision {
            Decision::Keep(_) if brought => Install::Nothing,
            Decision::Keep(id) if store.committed(chunk) == id => {
                state.committed = Some(id);
                Install::Nothing
            }
            // It changed since the dump was made.
            Decision::Keep(_) => {
                session.chunks.remove(&chunk);
                return Err(Refusal::Gap);
            }
            Decision::Base(_) if has_pendings => Install::Nothing,
            Decision::Base(_) if broken(Mutant::LateBaseOverwrites) => Install::Contents,
            Decision::Base(id)
                if state.committed.is_some_and(|committed| committed.version >= id.version) =>
            {
                Install::Nothing
            }
            Decision::Base(_) => Install::Contents,
            Decision::Absent if brought => Install::Nothing,
            Decision::Absent => Install::Forget,
        };
        if let Some(state) = session.chunks.get_mut(&chunk) {
            state.installing = install != Install::Nothing;
            state.need = Some(state.need.map_or(need, |known| known.max(need)));
        }
        Ok(install)
    }

    /// A base is in the store. `id` is its version, the default for an absent chunk.
    pub fn installed(&mut self, joined_at: ChainVersion, chunk: ChunkId, id: VersionId) {
        let Some(session) = self.session.as_mut().filter(|session| session.joined_at == joined_at) else {
            return;
        };
        if let Some(state) = session.chunks.get_mut(&chunk) {
            state.installing = false;
            state.committed = Some(id);
        }
        // What was known of the chunk without its base no longer holds.
        if self
            .chunks
            .get(&chunk)
            .is_some_and(|active| active.pending.is_empty() && active.readers.is_empty())
        {
            self.chunks.remove(&chunk);
        }
    }

    /// The predecessor's walk is through, tags included. `NotYet` while a needed version is not committed.
    pub fn finish_session(
        &mut self,
        chain_version: ChainVersion,
        joined_at: ChainVersion,
    ) -> Result<(), Refusal> {
        let session = self.session(chain_version, joined_at)?;
        // A chunk without a base was born in this session: everything of it came down the path.
        if session
            .chunks
            .values()
            .any(|chunk| chunk.installing || (chunk.need.is_some() && !chunk.is_complete()))
        {
            return Err(Refusal::NotYet);
        }
        session.finished = true;
        Ok(())
    }

    /// Forward to a syncing target: `Some(version before)` if it begins the chunk in this session, `None` if the chunk is known.
    pub(crate) fn begins_in_session(
        &mut self,
        chunk: ChunkId,
        id: VersionId,
        may_begin: bool,
    ) -> Result<Option<VersionId>, Refusal> {
        if self.role != Role::Syncing {
            return Ok(None);
        }
        let active = self.chunks.contains_key(&chunk);
        let Some(session) = self.session.as_mut().filter(|session| session.ready) else {
            return Err(Refusal::NotYet);
        };
        match session.chunks.get(&chunk) {
            Some(state) if state.installing => Err(Refusal::NotYet),
            Some(state) if state.committed.is_some() || active => Ok(None),
            _ if active => Ok(None),
            _ if may_begin => {
                session.chunks.entry(chunk).or_default();
                let version = ChunkVersion(id.version.0 - 1);
                Ok(Some(VersionId { version, assigned: ChainVersion(0) }))
            }
            _ => Err(Refusal::Gap),
        }
    }
}
