//! One target: the replication protocol's state behind a short lock, and the effects of its steps.
//! Here: its state, and what clients and peers ask of it. `effects.rs` has what follows from a step, `life.rs` its membership.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use catena_craq::{Effect, Fenced, Msg, ReadAt, ReadDecision, ReadId, Replica, RequestId, TagRecord};
use catena_mgmtd_client::TargetLease;
use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::routing::PublicState;
use catena_proto::status::Status;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use crate::disk::Disk;
use crate::effects::Outbox;
use crate::node::Node;
use crate::payload::Payload;
use crate::resync;
use crate::wire::{self, Control, Verdict};

/// Most writes of one target between admission and commit. Beyond it clients back off.
pub(crate) const MAX_PENDING: usize = 1024;

/// How a client's write ended: its version and the chunk's length after it.
pub(crate) type WriteOutcome = Result<(VersionId, u32), Status>;

/// What a waiting read is told.
pub(crate) enum ReadWake {
    /// Read this, then look at the lease.
    Serve(Fenced<ReadAt>),
    /// Ask again: the chain changed.
    Again,
}

pub(crate) struct WriteWaiter {
    pub chunk: ChunkId,
    pub tag: Option<Tag>,
    pub answer: oneshot::Sender<WriteOutcome>,
}

/// A replica's home on a disk of this node.
pub(crate) struct Target {
    pub id: TargetId,
    pub chain: ChainId,
    pub disk: Arc<Disk>,
    pub lease: TargetLease,
    /// The adopted chain version, for a look without the lock.
    adopted: AtomicU64,
    pub adoption: Notify,
    /// A base is in the store.
    pub installed: Notify,
    /// Held by whoever begins or ends a resync session of this target.
    pub session: tokio::sync::Mutex<()>,
    pub used: AtomicU64,
    pub chunks: AtomicU64,
    /// The disk's number of stages when they were counted.
    pub counted_at: AtomicU64,
    state: Mutex<State>,
    /// There is an outage: nothing is answered any more, not even what was read before.
    pub stopped: AtomicBool,
    pub outbox: Mutex<Outbox>,
}

pub(crate) struct State {
    pub replica: Replica<Payload>,
    pub out: Vec<Effect<Payload>>,
    pub writes: BTreeMap<RequestId, WriteWaiter>,
    pub reads: BTreeMap<ReadId, oneshot::Sender<ReadWake>>,
    next_handle: u64,
    /// Stages begun and not yet answered.
    pub staging: usize,
    /// Why the target takes no part although the chain names it.
    pub outage: Option<&'static str>,
    /// The successor, or someone behind it, is short of space.
    pub successor_short: bool,
    /// The store's note of a session that is not complete; such contents are never served from lastsrv.
    pub unsynced: Option<ChainVersion>,
    /// A finished session whose end is durably noted: what may be reported as up-to-date (R20).
    pub synced: Option<ChainVersion>,
    pub resync: Option<resync::Driver>,
    /// The target's own public state, as adopted,
    pub public: PublicState,
    /// and the session or membership that it belongs to.
    pub joined_at: ChainVersion,
    /// The lease was seen to have run out.
    pub fenced: bool,
    /// The service stops; there is no way back.
    pub retired: bool,
}

/// What the protocol asks of the store, answered from the engine's index.
pub(crate) struct StoreView<'a> {
    disk: &'a Disk,
    target: TargetId,
}

impl catena_craq::Store for StoreView<'_> {
    fn committed(&self, chunk: ChunkId) -> VersionId {
        self.disk.committed(self.target, chunk)
    }
    fn tag(&self, client: ClientId, channel: ChannelId) -> Option<TagRecord> {
        self.disk.tag(self.target, client, channel)
    }
}

impl<'a> StoreView<'a> {
    pub fn new(disk: &'a Disk, target: TargetId) -> StoreView<'a> {
        StoreView { disk, target }
    }
}

impl Target {
    pub fn new(
        id: TargetId,
        chain: ChainId,
        disk: Arc<Disk>,
        lease: TargetLease,
        replica: Replica<Payload>,
        unsynced: Option<ChainVersion>,
    ) -> Target {
        let state = State {
            replica,
            out: Vec::new(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_handle: 1,
            staging: 0,
            outage: None,
            successor_short: false,
            unsynced,
            synced: None,
            resync: None,
            public: PublicState::Unspecified,
            joined_at: ChainVersion(0),
            fenced: false,
            retired: false,
        };
        Target {
            id,
            chain,
            disk,
            lease,
            adopted: AtomicU64::new(0),
            adoption: Notify::new(),
            installed: Notify::new(),
            session: Default::default(),
            used: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            counted_at: AtomicU64::new(u64::MAX),
            state: Mutex::new(state),
            stopped: AtomicBool::new(false),
            outbox: Mutex::default(),
        }
    }

    /// The protocol's state, for a look.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The adopted chain version.
    pub fn adopted(&self) -> ChainVersion {
        ChainVersion(self.adopted.load(Ordering::Acquire))
    }

    pub fn store(&self) -> StoreView<'_> {
        StoreView { disk: &self.disk, target: self.id }
    }

    /// Whether the lease holds at this moment (R13).
    pub fn lease_holds(&self, node: &Node) -> bool {
        self.may_answer(node.clock.monotonic())
    }

    /// The fence, at `now`: a valid lease, and not given up by the target itself. mgmtd takes the report of an outage for the confirmed
    /// stop that R23 asks for and goes on without the target at once, whatever is left of the lease.
    pub fn may_answer(&self, now: Monotonic) -> bool {
        let stopped = self.stopped.load(Ordering::Acquire)
            && !catena_rt::broken("storage: a target answers after it has reported an outage");
        (self.lease.valid(now) && !stopped) || catena_rt::broken("10 fenced target answers")
    }

    /// Lets something happen to the replica and begins what follows from it.
    pub fn step<R>(
        self: &Arc<Self>,
        node: &Arc<Node>,
        happens: impl FnOnce(&mut Replica<Payload>, &StoreView<'_>, &mut Vec<Effect<Payload>>) -> R,
    ) -> R {
        self.act(node, |state| happens(&mut state.replica, &self.store(), &mut state.out))
    }

    /// Waits until at least `version` is adopted.
    pub async fn adopted_at_least(&self, version: ChainVersion) {
        loop {
            let changed = self.adoption.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.adopted() >= version {
                return;
            }
            changed.await;
        }
    }

    /// Waits until no base of `chunk` is being written. False if none was.
    pub async fn base_is_in(&self, chunk: ChunkId) -> bool {
        let mut waited = false;
        loop {
            let installed = self.installed.notified();
            let mut installed = std::pin::pin!(installed);
            installed.as_mut().enable();
            if !self.state().replica.is_installing(chunk) {
                return waited;
            }
            waited = true;
            installed.await;
        }
    }

    /// A client's write. The receiver hears how it ended; dropping the returned guard forgets it.
    pub fn write(
        self: &Arc<Self>,
        node: &Arc<Node>,
        chain_version: ChainVersion,
        chunk: ChunkId,
        tag: Option<Tag>,
        payload: Payload,
    ) -> Result<(Waiting, oneshot::Receiver<WriteOutcome>), Status> {
        let (answer, outcome) = oneshot::channel();
        let request = self.act(node, |state| {
            if state.outage.is_some() {
                return Err(Status::NotServing);
            }
            if state.staging.max(state.writes.len()) >= MAX_PENDING {
                return Err(Status::Busy);
            }
            let request = RequestId(state.handle());
            state.writes.insert(request, WriteWaiter { chunk, tag, answer });
            let State { replica, out, .. } = state;
            replica.write(request, chain_version, chunk, tag, payload, &self.store(), out);
            Ok(request)
        })?;
        Ok((Waiting { target: Some(self.clone()), what: What::Write(request) }, outcome))
    }

    /// A client's read: what may be read now, or a wait.
    pub fn read(self: &Arc<Self>, chain_version: ChainVersion, chunk: ChunkId) -> Reading {
        let mut state = self.state.lock();
        if state.outage.is_some() {
            return Reading::Refused(Status::NotServing);
        }
        let read = ReadId(state.handle());
        match state.replica.read(read, chain_version, chunk, &self.store()) {
            ReadDecision::Serve(at) => Reading::Serve(at),
            ReadDecision::Refuse(refusal) => Reading::Refused(wire::refusal_status(refusal)),
            ReadDecision::Wait => {
                let (wake, woken) = oneshot::channel();
                state.reads.insert(read, wake);
                Reading::Wait(Waiting { target: Some(self.clone()), what: What::Read(read, chunk) }, woken)
            }
        }
    }

    /// A message from another replica; a forward's payload was admitted before.
    pub fn receive(
        self: &Arc<Self>,
        node: &Arc<Node>,
        from: TargetId,
        chain_version: ChainVersion,
        msg: Msg<Payload>,
    ) -> Result<(), Status> {
        self.act(node, |state| {
            if state.outage.is_some() {
                return Err(Status::NotYet);
            }
            let State { replica, out, .. } = state;
            let received = replica.receive(from, chain_version, msg, &self.store(), out);
            received.map_err(wire::refusal_status)
        })
    }

    pub(crate) fn is_successor(&self, to: TargetId) -> bool {
        self.state.lock().replica.view().successor(self.id).is_some_and(|(successor, _)| successor == to)
    }

    pub(crate) fn hear_of_space(&self, verdict: Verdict) {
        let mut state = self.state.lock();
        if verdict.short_of_space() != state.successor_short {
            state.successor_short = verdict.short_of_space();
            if state.successor_short {
                warn!(target = %self.id, chain = %self.chain, "a replica behind this one is short of space: no new writes");
            }
        }
    }

    /// Stages that were begun are over.
    pub fn is_staging(&self) -> bool {
        self.state().staging > 0
    }

    /// A chain version counts from now on.
    pub fn note_adopted(&self, version: ChainVersion) {
        self.adopted.store(version.0, Ordering::Release);
        self.adoption.notify_waiters();
    }

    /// The tag's write is committed here: a retry of it is answered, whatever else is refused.
    pub fn knows(&self, tag: Option<Tag>) -> bool {
        let known = tag.and_then(|tag| Some((tag, self.disk.tag(self.id, tag.client, tag.channel)?)));
        known.is_some_and(|(tag, record)| record.sequence >= tag.sequence)
    }

    /// A replica behind this one is short of space: the head takes no new data.
    pub fn successor_short(&self) -> bool {
        self.state.lock().successor_short
    }

    /// This disk, or one behind it in the chain, is short of space.
    pub fn short_of_space(&self) -> bool {
        self.disk.short_of_space() || self.state.lock().successor_short
    }

    /// Some time has passed: what was not answered is sent again.
    pub fn tick(self: &Arc<Self>, node: &Arc<Node>) {
        let ask = self.act(node, |state| {
            if state.replica.active_chunks() > 0 {
                state.replica.tick(&mut state.out);
            }
            let view = state.replica.view();
            view.successor(self.id).filter(|_| state.successor_short).map(|(to, _)| (to, view.version))
        });
        if let Some((to, version)) = ask {
            node.send_control(to, Control::space(self.id, to, version));
        }
    }
}

impl State {
    fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }
}

/// How a read goes on.
pub(crate) enum Reading {
    Serve(Fenced<ReadAt>),
    Wait(Waiting, oneshot::Receiver<ReadWake>),
    Refused(Status),
}

enum What {
    Write(RequestId),
    Read(ReadId, ChunkId),
}

/// A client's request that waits; dropped, it is forgotten.
pub(crate) struct Waiting {
    target: Option<Arc<Target>>,
    what: What,
}

impl Waiting {
    /// Asks the tail which version is committed, for a read that has waited long enough.
    pub fn ask_tail(&self, node: &Arc<Node>) {
        if let (What::Read(read, chunk), Some(target)) = (&self.what, &self.target) {
            let (read, chunk) = (*read, *chunk);
            target.step(node, |replica, _, out| replica.query_tail(read, chunk, out));
        }
    }
}

impl Waiting {
    /// It was answered: nothing is left to forget.
    pub fn answered(mut self) {
        self.target = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(target) = &self.target else { return };
        let mut state = target.state.lock();
        match self.what {
            // The write itself goes on: it may have been forwarded (R8).
            What::Write(request) => drop(state.writes.remove(&request)),
            What::Read(read, chunk) => {
                if state.reads.remove(&read).is_some() {
                    state.replica.cancel_read(read, chunk);
                }
            }
        }
    }
}
