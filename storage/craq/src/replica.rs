//! A target's part in its chain: writes, forwards, notices, acknowledgements, chain changes and reads.

use std::collections::BTreeMap;

use catena_proto::ids::{ChainVersion, ChunkId, ChunkVersion, Tag, TargetId, VersionId};

use crate::chunk::{ActiveChunk, Pending, Reader};
use crate::effect::{Effect, Fenced, Outcome, ReadAt, ReadDecision, ReadId, Refusal, RequestId, Unfit};
use crate::message::{Forward, Msg};
use crate::mutant::{Mutant, broken};
use crate::resync::Session;
use crate::view::{ChainView, Role, Store, next};

/// A message counts only from the neighbour that it has to come from. (Messages of old versions have old neighbours.)
fn may_say(from: TargetId, neighbour: Option<TargetId>) -> bool {
    neighbour == Some(from) || broken(Mutant::OldMessagesAccepted)
}

/// A pending version that the store found durable after a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The chunk.
    pub chunk: ChunkId,
    /// The version.
    pub id: VersionId,
    /// Its tag.
    pub tag: Option<Tag>,
}

/// One target's replication state. `P` is a cheap handle of a write's payload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica<P> {
    pub(crate) me: TargetId,
    pub(crate) view: ChainView,
    pub(crate) role: Role,
    /// Ordered, so that what is sent on a chain change does not depend on a hash seed.
    pub(crate) chunks: BTreeMap<ChunkId, ActiveChunk<P>>,
    pub(crate) session: Option<Session>,
}

impl<P: Clone> Replica<P> {
    /// A replica that takes no part yet.
    pub fn new(me: TargetId) -> Self {
        Replica {
            me,
            view: ChainView::default(),
            role: Role::Outside,
            chunks: BTreeMap::new(),
            session: None,
        }
    }

    /// The target.
    pub fn target(&self) -> TargetId {
        self.me
    }
    /// The chain as adopted.
    pub fn view(&self) -> &ChainView {
        &self.view
    }
    /// The target's part in it.
    pub fn role(&self) -> Role {
        self.role
    }
    /// Chunks with something under way.
    pub fn active_chunks(&self) -> usize {
        self.chunks.len()
    }
    /// Pending versions in all chunks.
    pub fn pending_versions(&self) -> usize {
        self.chunks.values().map(|chunk| chunk.pending.len()).sum()
    }
    /// The newest version that is staged here: what a resyncing successor *needs* (R15).
    pub fn last_staged(&self, chunk: ChunkId, store: &impl Store) -> VersionId {
        self.chunks.get(&chunk).map_or_else(|| store.committed(chunk), ActiveChunk::last)
    }

    /// Pendings that survived a restart, in version order per chunk. Call before the first [`Replica::adopt`].
    pub fn restore(&mut self, restored: impl IntoIterator<Item = Restored>, store: &impl Store) {
        for Restored { chunk, id, tag } in restored {
            let active = self.chunks.entry(chunk).or_insert_with(|| {
                // A run that began as a rebase stands on contents that are void: on the version before it, and nothing else.
                let (committed, before) = (store.committed(chunk), ChunkVersion(id.version.0 - 1));
                let rebased = VersionId { version: before, assigned: ChainVersion(0) };
                ActiveChunk::new(if committed.version == before { committed } else { rebased })
            });
            active.pending.push_back(Pending { id, tag, payload: None, durable: true, waiters: Vec::new() });
        }
    }

    /// A client's write, named with the chain version that it was sent with.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &mut self,
        request: RequestId,
        chain_version: ChainVersion,
        chunk: ChunkId,
        tag: Option<Tag>,
        payload: P,
        store: &impl Store,
        out: &mut Vec<Effect<P>>,
    ) {
        if let Err(refusal) = self.accepts_write(chain_version) {
            return out.push(Effect::Answer { request, outcome: Outcome::Refused(refusal) });
        }
        if let Some(tag) = tag
            && let Some(outcome) = self.seen_before(request, chunk, tag, store)
        {
            return out.extend(outcome.map(|outcome| Effect::Answer { request, outcome }));
        }
        let assigned = self.view.version;
        let active = self.activate(chunk, store);
        let id = VersionId { version: next(active.last().version), assigned };
        active.pending.push_back(Pending {
            id,
            tag,
            payload: Some(payload.clone()),
            durable: false,
            waiters: vec![request],
        });
        // Stage and forward start together: latency is the slowest replica, not their sum.
        out.push(Effect::Stage { chunk, id, tag, payload, rebase: false });
        self.send_pendings(chunk, out);
    }

    fn accepts_write(&self, chain_version: ChainVersion) -> Result<(), Refusal> {
        self.same_version(chain_version)?;
        match self.role {
            Role::Serving(0) => Ok(()),
            Role::Serving(_) | Role::Syncing => Err(Refusal::NotHead),
            Role::Outside => Err(Refusal::NotServing),
        }
    }

    /// Decides a retry (R21): `None` for a write never seen, `Some(None)` if it attached to a pending one.
    fn seen_before(
        &mut self,
        request: RequestId,
        chunk: ChunkId,
        tag: Tag,
        store: &impl Store,
    ) -> Option<Option<Outcome>> {
        if let Some(record) = store.tag(tag.client, tag.channel) {
            if record.sequence == tag.sequence && record.chunk == chunk {
                return Some(Some(Outcome::Repeated(record.version, record.length)));
            }
            if record.sequence >= tag.sequence {
                return Some(Some(Outcome::Refused(Refusal::StaleSequence)));
            }
        }
        let pendings = self.chunks.get_mut(&chunk)?.pending.iter_mut();
        for pending in pendings {
            let Some(known) =
                pending.tag.filter(|known| (known.client, known.channel) == (tag.client, tag.channel))
            else {
                continue;
            };
            if known.sequence == tag.sequence {
                if broken(Mutant::RetryAnsweredAtOnce) {
                    return Some(Some(Outcome::Committed(pending.id)));
                }
                pending.waiters.push(request);
                return Some(None);
            }
            if known.sequence > tag.sequence {
                return Some(Some(Outcome::Refused(Refusal::StaleSequence)));
            }
        }
        None
    }

    /// A stage that [`Effect::Stage`] asked for is durable.
    pub fn staged(&mut self, chunk: ChunkId, id: VersionId, out: &mut Vec<Effect<P>>) {
        let Some(active) = self.chunks.get_mut(&chunk) else { return };
        // A session may have dropped it meanwhile, and its number may be in use again: the identity decides.
        let Some(pending) = active.pending_mut(id.version).filter(|pending| pending.id == id) else { return };
        pending.durable = true;
        self.advance(chunk, out);
    }

    /// A stage failed: what was forwarded cannot be withdrawn, so the target goes (R8).
    pub fn stage_failed(&mut self, out: &mut Vec<Effect<P>>) {
        out.push(Effect::TakeOffline { unfit: Unfit::NotStaged });
    }

    /// A message from another replica of the chain. An error is the answer to it; the sender feeds it to its [`Replica::refused`].
    pub fn receive(
        &mut self,
        from: TargetId,
        chain_version: ChainVersion,
        msg: Msg<P>,
        store: &impl Store,
        out: &mut Vec<Effect<P>>,
    ) -> Result<(), Refusal> {
        let exempt =
            matches!(msg, Msg::Query { .. } | Msg::QueryReply { .. }) && broken(Mutant::QueryWithoutVersion);
        if let Err(refusal) = self.same_version(chain_version)
            && !exempt
        {
            if refusal == Refusal::NotYet {
                out.push(Effect::RefreshRouting);
            }
            return Err(refusal);
        }
        match msg {
            Msg::Forward(forward) => self.receive_forward(from, forward, store, out),
            Msg::Notice { chunk, durable } => self.receive_notice(from, chunk, durable, store, out),
            Msg::Ack { chunk, committed } => self.receive_ack(from, chunk, committed, out),
            Msg::Query { chunk, read } => self.receive_query(from, chunk, read, store, out),
            Msg::QueryReply { chunk, read, committed } => {
                self.receive_query_reply(from, chunk, read, committed, out);
                Ok(())
            }
        }
    }

    /// R1: a message counts only in the chain version that it names.
    pub(crate) fn same_version(&self, chain_version: ChainVersion) -> Result<(), Refusal> {
        match chain_version.cmp(&self.view.version) {
            std::cmp::Ordering::Less if broken(Mutant::OldMessagesAccepted) => Ok(()),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(Refusal::NotYet),
            std::cmp::Ordering::Less => Err(Refusal::Stale),
        }
    }

    fn receive_forward(
        &mut self,
        from: TargetId,
        forward: Forward<P>,
        store: &impl Store,
        out: &mut Vec<Effect<P>>,
    ) -> Result<(), Refusal> {
        if !may_say(from, self.view.predecessor(self.me)) {
            return Err(Refusal::Stale);
        }
        let Forward { chunk, id, tag, payload, full, first, durable } = forward;
        let begins = self.begins_in_session(chunk, id, full && first)?;
        let view = self.view.version;
        let active = match begins {
            // Nothing that the store has of this chunk counts (R16): the version before is the sender's committed one.
            Some(before) => self.chunks.entry(chunk).or_insert_with(|| ActiveChunk::new(before)),
            None => self.activate(chunk, store),
        };
        debug_assert!(id.assigned <= view, "a version cannot have been assigned later than now");
        let last = active.last().version;
        if id.version <= active.committed.version {
            let committed = active.committed;
            self.settle(chunk);
            // What a session found below its first forward is known by number only: the predecessor of then had it committed. The
            // acknowledgement of that forward, which is still to come, covers it.
            if committed.assigned != ChainVersion(0) {
                self.send(from, Msg::Ack { chunk, committed }, out);
            }
            return Ok(());
        }
        if id.version > next(last) && !broken(Mutant::GapFilled) {
            self.settle(chunk);
            return Err(Refusal::Gap);
        }
        active.notice = active.notice.max(durable);
        if id.version <= last {
            let known = active.pending(id.version).map(|pending| pending.id);
            if known != Some(id) {
                out.push(Effect::TakeOffline { unfit: Unfit::TwoWrites });
                return Ok(());
            }
        } else {
            active.pending.push_back(Pending {
                id,
                tag,
                payload: Some(payload.clone()),
                durable: false,
                waiters: Vec::new(),
            });
            out.push(Effect::Stage { chunk, id, tag, payload, rebase: begins.is_some() });
        }
        self.advance(chunk, out);
        Ok(())
    }

    fn receive_notice(
        &mut self,
        from: TargetId,
        chunk: ChunkId,
        durable: ChunkVersion,
        store: &impl Store,
        out: &mut Vec<Effect<P>>,
    ) -> Result<(), Refusal> {
        if !may_say(from, self.view.predecessor(self.me)) {
            return Err(Refusal::Stale);
        }
        if !self.chunks.contains_key(&chunk)
            && (self.role == Role::Syncing || durable <= store.committed(chunk).version)
        {
            // Syncing and never told of the chunk: the forward that begins it carries D again.
            return Ok(());
        }
        let active = self.activate(chunk, store);
        active.notice = active.notice.max(durable);
        self.advance(chunk, out);
        Ok(())
    }

    fn receive_ack(
        &mut self,
        from: TargetId,
        chunk: ChunkId,
        committed: VersionId,
        out: &mut Vec<Effect<P>>,
    ) -> Result<(), Refusal> {
        if !may_say(from, self.view.successor(self.me).map(|(successor, _)| successor)) {
            return Err(Refusal::Stale);
        }
        let Some(active) = self.chunks.get(&chunk) else { return Ok(()) };
        if committed.version <= active.committed.version {
            return Ok(());
        }
        // The tail commits up to its D, and D is durable at everyone before it.
        if committed.version > active.durable_prefix()
            || active.pending(committed.version).map(|p| p.id) != Some(committed)
        {
            out.push(Effect::TakeOffline { unfit: Unfit::SuccessorAhead });
            return Ok(());
        }
        self.commit_to(chunk, committed.version, out);
        Ok(())
    }

    /// What a peer answered to a message that does not count.
    pub fn refused(
        &mut self,
        from: TargetId,
        chain_version: ChainVersion,
        chunk: ChunkId,
        refusal: Refusal,
        out: &mut Vec<Effect<P>>,
    ) {
        if chain_version != self.view.version || self.view.successor(self.me).map(|(to, _)| to) != Some(from)
        {
            return;
        }
        match refusal {
            Refusal::Stale => out.push(Effect::RefreshRouting),
            Refusal::Gap => {
                let Some(active) = self.chunks.get_mut(&chunk) else { return };
                // Each of a run of pipelined forwards is refused: one answer is enough, the next tick gives another chance.
                if !std::mem::replace(&mut active.resent, true) {
                    active.rewind();
                    self.send_pendings(chunk, out);
                }
            }
            _ => {
                if let Some(active) = self.chunks.get_mut(&chunk) {
                    active.stalled = true;
                }
            }
        }
    }

    /// Some time has passed (the caller says how much: about a round trip's worst case). What has not moved since the last tick is
    /// sent again.
    pub fn tick(&mut self, out: &mut Vec<Effect<P>>) {
        let chunks: Vec<ChunkId> = self.chunks.keys().copied().collect();
        for chunk in chunks {
            let Some(active) = self.chunks.get_mut(&chunk) else { continue };
            active.resent = false;
            if active.pending.is_empty() {
                continue;
            }
            if std::mem::replace(&mut active.stalled, true) && !broken(Mutant::PendingsNotResent) {
                active.rewind();
                self.advance(chunk, out);
            }
        }
    }

    /// The chain changed. Older and known versions are ignored; versions may be skipped.
    ///
    /// R7, atomically: the predecessor's notice is forgotten, D is kept; a tail commits to D; a sole replica and a new head take
    /// their own durable prefix as D. Then everything under way is sent again.
    pub fn adopt(&mut self, view: ChainView, out: &mut Vec<Effect<P>>) {
        if view.version <= self.view.version {
            return;
        }
        let role = view.role(self.me);
        let joined_at = view.joined_at;
        self.view = view;
        self.role = role;
        self.release_clients(out);
        match role {
            Role::Outside => self.session = None,
            Role::Syncing => {
                if self.session.as_ref().is_none_or(|session| session.joined_at() != joined_at) {
                    // R14: whether or not it ever saw itself offline.
                    self.session = Some(Session::new(joined_at));
                    if !broken(Mutant::PendingsKept) {
                        self.chunks.clear();
                    }
                    return out.push(Effect::BeginSession { joined_at });
                }
                let chunks = &self.chunks;
                let has_pendings =
                    |chunk: &ChunkId| chunks.get(chunk).is_some_and(|active| !active.pending.is_empty());
                if let Some(session) = &mut self.session {
                    session.forget_unfinished(has_pendings);
                }
            }
            Role::Serving(_) => self.session = None,
        }
        let is_tail = self.view.tail() == Some(self.me);
        let chunks: Vec<ChunkId> = self.chunks.keys().copied().collect();
        for chunk in chunks {
            let Some(active) = self.chunks.get_mut(&chunk) else { continue };
            active.notice = active.committed.version;
            if !broken(Mutant::PendingsNotResent) {
                active.rewind();
            }
            if broken(Mutant::WatermarkCleared) {
                active.durable = active.committed.version;
            }
            if broken(Mutant::NewTailCommitsDurable) && is_tail {
                active.durable = active.durable_prefix();
            }
            if broken(Mutant::NewTailCommitsStaged) && is_tail {
                active.durable = active.last().version;
            }
            active.stalled = false;
            active.resent = false;
            let committed = active.committed;
            if role == Role::Outside {
                continue;
            }
            self.advance(chunk, out);
            if let Some(predecessor) = self.view.predecessor(self.me)
                && self.chunks.get(&chunk).is_some_and(|active| active.committed == committed)
                && committed.assigned != ChainVersion(0)
            {
                // Had it committed just now, the acknowledgement would be out already.
                self.send(predecessor, Msg::Ack { chunk, committed }, out);
            }
            self.settle(chunk);
        }
    }

    /// On a chain change: clients of a replica that is not the head any more ask elsewhere; reads are decided anew.
    fn release_clients(&mut self, out: &mut Vec<Effect<P>>) {
        let still_head = self.role == Role::Serving(0);
        for active in self.chunks.values_mut() {
            out.extend(active.readers.drain(..).map(|reader| Effect::RetryRead { read: reader.read }));
            if still_head {
                continue;
            }
            for pending in &mut active.pending {
                let outcome = Outcome::Refused(Refusal::Stale);
                out.extend(pending.waiters.drain(..).map(|request| Effect::Answer { request, outcome }));
            }
        }
    }

    /// A client's read, named with the chain version that it was sent with (R10).
    pub fn read(
        &mut self,
        read: ReadId,
        chain_version: ChainVersion,
        chunk: ChunkId,
        store: &impl Store,
    ) -> ReadDecision {
        if let Err(refusal) = self.same_version(chain_version) {
            return ReadDecision::Refuse(refusal);
        }
        if !matches!(self.role, Role::Serving(_)) {
            return ReadDecision::Refuse(Refusal::NotServing);
        }
        let is_tail = self.view.tail() == Some(self.me) || broken(Mutant::DirtyReadLocal);
        match self.chunks.get_mut(&chunk).filter(|active| !active.pending.is_empty() && !is_tail) {
            None => ReadDecision::Serve(Fenced::new(ReadAt::Committed(store.committed(chunk)))),
            Some(active) => {
                let until = active.last().version;
                active.readers.push(Reader { read, until });
                ReadDecision::Wait
            }
        }
    }

    /// A waiting read has waited long enough: ask the tail of the path. A lost query may be asked again.
    pub fn query_tail(&mut self, read: ReadId, chunk: ChunkId, out: &mut Vec<Effect<P>>) {
        let waits = self
            .chunks
            .get(&chunk)
            .is_some_and(|active| active.readers.iter().any(|reader| reader.read == read));
        let mut tail = self.view.tail();
        if broken(Mutant::QueryLastServing) && self.view.syncing {
            tail = self.view.path.iter().rev().nth(1).copied();
        }
        if let Some(tail) = tail.filter(|_| waits) {
            self.send(tail, Msg::Query { chunk, read }, out);
        }
    }

    /// The reader has gone.
    pub fn cancel_read(&mut self, read: ReadId, chunk: ChunkId) {
        if let Some(active) = self.chunks.get_mut(&chunk) {
            active.readers.retain(|reader| reader.read != read);
            self.settle(chunk);
        }
    }

    fn receive_query(
        &mut self,
        from: TargetId,
        chunk: ChunkId,
        read: ReadId,
        store: &impl Store,
        out: &mut Vec<Effect<P>>,
    ) -> Result<(), Refusal> {
        let may_answer = match self.role {
            Role::Serving(_) if broken(Mutant::QueryLastServing) => true,
            _ if self.view.tail() != Some(self.me) => return Err(Refusal::Stale),
            Role::Syncing if broken(Mutant::UnsyncedTailAnswers) => true,
            Role::Serving(_) => true,
            // A chunk that is not complete in this session may lack what readers have seen (T5, T7).
            Role::Syncing => self.session.as_ref().is_some_and(|session| session.is_complete(chunk)),
            Role::Outside => false,
        };
        if !may_answer {
            return Err(Refusal::NotYet);
        }
        let committed =
            self.chunks.get(&chunk).map_or_else(|| store.committed(chunk), |active| active.committed);
        let msg = Fenced::new(Msg::QueryReply { chunk, read, committed });
        out.push(Effect::SendFenced { to: from, chain_version: self.view.version, msg });
        Ok(())
    }

    fn receive_query_reply(
        &mut self,
        from: TargetId,
        chunk: ChunkId,
        read: ReadId,
        committed: VersionId,
        out: &mut Vec<Effect<P>>,
    ) {
        let Some(active) = self
            .chunks
            .get_mut(&chunk)
            .filter(|_| self.view.tail() == Some(from) || broken(Mutant::QueryLastServing))
        else {
            return;
        };
        let Some(place) = active.readers.iter().position(|reader| reader.read == read) else { return };
        let at = if committed.version <= active.committed.version {
            ReadAt::Committed(active.committed)
        } else if active
            .pending(committed.version)
            .is_some_and(|pending| pending.id == committed && pending.durable)
        {
            ReadAt::Pending(committed)
        } else {
            return out.push(Effect::TakeOffline { unfit: Unfit::TailAhead });
        };
        active.readers.swap_remove(place);
        out.push(Effect::ServeRead { read, at: Fenced::new(at) });
        self.settle(chunk);
    }

    /// Moves D (R5), tells the successor, and commits what may be committed (R6).
    pub(crate) fn advance(&mut self, chunk: ChunkId, out: &mut Vec<Effect<P>>) {
        let (is_head, is_tail) =
            (self.view.predecessor(self.me).is_none(), self.view.tail() == Some(self.me));
        let Some(active) = self.chunks.get_mut(&chunk).filter(|_| self.role != Role::Outside) else { return };
        let own = active.durable_prefix();
        let alone = is_head
            || broken(Mutant::NoticeIgnoresPredecessor)
            || (is_tail && broken(Mutant::NoNotice))
            || (self.role == Role::Syncing && broken(Mutant::ReplaceCommitted));
        let last_serving = self.view.syncing && self.view.path.iter().rev().nth(1) == Some(&self.me);
        let commits = is_tail || (last_serving && broken(Mutant::LastServingCommits));
        let reached = if alone { own } else { own.min(active.notice) };
        active.durable = active.durable.max(reached);
        let durable = active.durable;
        if !is_tail {
            self.send_pendings(chunk, out);
        }
        if commits {
            self.commit_to(chunk, durable, out);
        }
    }

    /// Sends the successor every pending that it was not sent in this chain version, and D.
    fn send_pendings(&mut self, chunk: ChunkId, out: &mut Vec<Effect<P>>) {
        let Some((to, syncing)) = self.view.successor(self.me).filter(|_| self.role != Role::Outside) else {
            return;
        };
        let chain_version = self.view.version;
        let Some(active) = self.chunks.get_mut(&chunk) else { return };
        let (durable, prefix) = (active.durable, active.durable_prefix());
        for pending in &active.pending {
            let (id, tag) = (pending.id, pending.tag);
            if id.version <= active.sent {
                continue;
            }
            let first = id.version == next(active.committed.version);
            match &pending.payload {
                Some(payload) if !syncing => {
                    let payload = payload.clone();
                    let msg = Msg::Forward(Forward { chunk, id, tag, payload, full: false, first, durable });
                    out.push(Effect::Send { to, chain_version, msg });
                }
                // Contents as of a version can be read once it, and all before it, are staged.
                _ if id.version <= prefix => {
                    out.push(Effect::SendFull { to, chain_version, chunk, id, tag, first, durable });
                }
                _ => break,
            }
            active.sent = id.version;
            active.noticed = active.noticed.max(durable);
        }
        if durable > active.noticed {
            active.noticed = durable;
            out.push(Effect::Send { to, chain_version, msg: Msg::Notice { chunk, durable } });
        }
    }

    /// Commits everything up to `version`, acknowledges, answers whoever waited.
    fn commit_to(&mut self, chunk: ChunkId, version: ChunkVersion, out: &mut Vec<Effect<P>>) {
        let Some(active) = self.chunks.get_mut(&chunk) else { return };
        let mut answers = Vec::new();
        let before = active.committed;
        while let Some(pending) = active.pending.front() {
            if pending.id.version > version {
                break;
            }
            debug_assert!(pending.durable, "committed means durable here");
            active.committed = pending.id;
            let Some(pending) = active.pending.pop_front() else { break };
            answers.extend(pending.waiters.into_iter().map(|request| (request, pending.id)));
        }
        let committed = active.committed;
        if committed != before {
            active.stalled = false;
            active.durable = active.durable.max(committed.version);
            active.sent = active.sent.max(committed.version);
            out.push(Effect::Commit { chunk, id: committed });
            if let Some(session) = &mut self.session {
                session.committed(chunk, committed);
            }
            active.readers.retain(|reader| {
                let served = reader.until <= committed.version;
                if served {
                    let at = Fenced::new(ReadAt::Committed(committed));
                    out.push(Effect::ServeRead { read: reader.read, at });
                }
                !served
            });
            if let Some(predecessor) = self.view.predecessor(self.me) {
                self.send(predecessor, Msg::Ack { chunk, committed }, out);
            }
        }
        for (request, id) in answers {
            out.push(Effect::Answer { request, outcome: Outcome::Committed(id) });
        }
        self.settle(chunk);
    }

    fn send(&self, to: TargetId, msg: Msg<P>, out: &mut Vec<Effect<P>>) {
        out.push(Effect::Send { to, chain_version: self.view.version, msg });
    }

    fn activate(&mut self, chunk: ChunkId, store: &impl Store) -> &mut ActiveChunk<P> {
        self.chunks.entry(chunk).or_insert_with(|| ActiveChunk::new(store.committed(chunk)))
    }

    /// Forgets a chunk with nothing under way.
    pub(crate) fn settle(&mut self, chunk: ChunkId) {
        if self.chunks.get(&chunk).is_some_and(ActiveChunk::is_idle) {
            self.chunks.remove(&chunk);
        }
    }
}
