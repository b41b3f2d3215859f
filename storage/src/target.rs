//! One target: the replication protocol's state behind a short lock, and the effects of its steps.
//!
//! **Order.** The protocol asks that effects of one step are carried out in order, that a commit is in the store before the next step,
//! and that stages of a chunk begin in the order given. All three follow from one rule: effects are *begun* under the lock, and the
//! beginning never waits. A commit is a change in memory. A stage or a forward is a future that is polled once, which puts it into the
//! engine's or the connection's queue; it is finished outside, by a task that comes back with a step of its own. A control message is
//! put into its node's queue. Nothing that is begun calls back into a target, so the lock is never wanted twice by one thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use catena_craq::{
    ChainView, Effect, Fenced, Forward, Msg, Outcome, ReadAt, ReadDecision, ReadId, Refusal, Replica,
    RequestId, Role, TagRecord,
};
use catena_engine::{EngineError, Staged, Staging};
use catena_mgmtd_client::TargetLease;
use catena_net::Call;
use catena_proto::frame;
use catena_proto::ids::*;
use catena_proto::status::Status;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tracing::{error, info, warn};

use crate::disk::Disk;
use crate::node::Node;
use crate::payload::Payload;
use crate::peers::Lane;
use crate::resync::{self, Full};
use crate::session;
use crate::wire::{self, Control, ForwardHead, Verdict};

/// How long a forward may wait at the successor for memory before it counts as lost.
const FORWARD_DEADLINE: Duration = Duration::from_secs(10);
/// After a forward that did not arrive.
const RESEND_PAUSE: Duration = Duration::from_millis(50);
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

struct WriteWaiter {
    chunk: ChunkId,
    tag: Option<Tag>,
    answer: oneshot::Sender<WriteOutcome>,
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
    /// Held by whoever begins or ends a resync session of this target.
    pub session: tokio::sync::Mutex<()>,
    used: AtomicU64,
    chunks: AtomicU64,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub replica: Replica<Payload>,
    out: Vec<Effect<Payload>>,
    writes: BTreeMap<RequestId, WriteWaiter>,
    reads: BTreeMap<ReadId, oneshot::Sender<ReadWake>>,
    next_handle: u64,
    /// Stages begun and not yet answered.
    staging: usize,
    /// Why the target takes no part although the chain names it.
    pub outage: Option<&'static str>,
    /// The successor, or someone behind it, is short of space.
    pub successor_short: bool,
    /// The store's note of a session that is not complete; such contents are never served from lastsrv.
    pub unsynced: Option<ChainVersion>,
    /// A finished session whose end is durably noted: what may be reported as up-to-date (R20).
    pub synced: Option<ChainVersion>,
    pub resync: Option<resync::Driver>,
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
        };
        Target {
            id,
            chain,
            disk,
            lease,
            adopted: AtomicU64::new(0),
            adoption: Notify::new(),
            session: Default::default(),
            used: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            state: Mutex::new(state),
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
        self.lease.valid(node.clock.monotonic())
    }

    /// Lets something happen to the replica and begins what follows from it.
    pub fn step<R>(
        self: &Arc<Self>,
        node: &Arc<Node>,
        happens: impl FnOnce(&mut Replica<Payload>, &StoreView<'_>, &mut Vec<Effect<Payload>>) -> R,
    ) -> R {
        let mut state = self.state.lock();
        let state = &mut *state;
        let result = happens(&mut state.replica, &self.store(), &mut state.out);
        self.carry_out(node, state);
        result
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
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.outage.is_some() {
            return Err(Status::NotServing);
        }
        if state.staging.max(state.writes.len()) >= MAX_PENDING {
            return Err(Status::Busy);
        }
        let request = RequestId(state.handle());
        state.writes.insert(request, WriteWaiter { chunk, tag, answer });
        state.replica.write(request, chain_version, chunk, tag, payload, &self.store(), &mut state.out);
        self.carry_out(node, state);
        Ok((Waiting { target: self.clone(), what: What::Write(request) }, outcome))
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
                Reading::Wait(Waiting { target: self.clone(), what: What::Read(read, chunk) }, woken)
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
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.outage.is_some() {
            return Err(Status::NotYet);
        }
        let received = state.replica.receive(from, chain_version, msg, &self.store(), &mut state.out);
        self.carry_out(node, state);
        received.map_err(wire::refusal_status)
    }

    /// The chain as it is now. Older versions change nothing.
    pub fn adopt(self: &Arc<Self>, node: &Arc<Node>, view: ChainView) -> bool {
        let mut state = self.state.lock();
        let state = &mut *state;
        if view.version <= state.replica.view().version {
            return false;
        }
        let (version, before) = (view.version, state.replica.role());
        state.replica.adopt(view, &mut state.out);
        let (role, view) = (state.replica.role(), state.replica.view());
        let successor = view.successor(self.id).filter(|_| matches!(role, Role::Serving(_)));
        let joined_at = view.joined_at;
        if role == Role::Outside && state.outage.is_some() && !self.disk.has_failed() {
            // The chain goes on without it: it may come back through a resync.
            state.outage = None;
        }
        state.successor_short = false;
        state.resync = None;
        self.carry_out(node, state);
        if let Some((to, true)) = successor.filter(|_| state.outage.is_none()) {
            state.resync = Some(resync::drive(self, node, to, version, joined_at));
        }
        let path = &state.replica.view().path;
        info!(target = %self.id, chain = %self.chain, chain_version = version.0, ?role, ?before, ?path, "chain version adopted");
        self.adopted.store(version.0, Ordering::Release);
        self.adoption.notify_waiters();
        true
    }

    /// The target takes no further part until the chain has gone on without it.
    pub fn take_offline(self: &Arc<Self>, node: &Arc<Node>, reason: &'static str) {
        let mut state = self.state.lock();
        self.go_offline(node, &mut state, reason);
    }

    /// Bytes and chunks, as last counted.
    pub fn usage(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.chunks.load(Ordering::Relaxed))
    }

    /// Counts them anew. A page at a time, so that nobody waits for the index.
    pub async fn count_usage(&self) {
        const PAGE: usize = 1024;
        let (mut used, mut chunks, mut from) = (0, 0, Bound::Unbounded);
        loop {
            let page = self.disk.engine().list(self.id, from, Bound::Unbounded, PAGE).unwrap_or_default();
            used += page.iter().map(|info| info.allocated).sum::<u64>();
            chunks +=
                page.iter().filter(|info| info.state.committed.is_some_and(|meta| !meta.tombstone)).count()
                    as u64;
            match page.last() {
                Some(last) if page.len() == PAGE => from = Bound::Excluded(last.chunk),
                _ => break,
            }
            tokio::task::yield_now().await;
        }
        self.used.store(used, Ordering::Relaxed);
        self.chunks.store(chunks, Ordering::Relaxed);
    }

    /// The service ends: nothing more is begun.
    pub fn retire(&self) {
        let mut state = self.state.lock();
        state.outage = Some("the service stops");
        state.resync = None;
        state.writes.clear();
        state.reads.clear();
    }

    fn go_offline(&self, node: &Arc<Node>, state: &mut State, reason: &'static str) {
        if state.outage.is_some() {
            return;
        }
        error!(target = %self.id, chain = %self.chain, disk = %self.disk.path(), reason, "the target goes offline");
        state.outage = Some(reason);
        state.resync = None;
        for waiter in std::mem::take(&mut state.writes).into_values() {
            let _ = waiter.answer.send(Err(Status::NotServing));
        }
        for wake in std::mem::take(&mut state.reads).into_values() {
            let _ = wake.send(ReadWake::Again);
        }
        node.kick_heartbeat();
    }

    /// Begins everything that the last step asked for, in order.
    fn carry_out(self: &Arc<Self>, node: &Arc<Node>, state: &mut State) {
        while !state.out.is_empty() {
            let mut out = std::mem::take(&mut state.out);
            for effect in out.drain(..) {
                self.begin(node, state, effect);
            }
            if state.out.is_empty() {
                state.out = out; // keeps its capacity
                return;
            }
        }
    }

    fn begin(self: &Arc<Self>, node: &Arc<Node>, state: &mut State, effect: Effect<Payload>) {
        if state.outage.is_some() {
            // Nobody counts on this target any more; those who waited were told when it went.
            return;
        }
        match effect {
            Effect::Stage { chunk, id, tag, payload, rebase } => {
                let staging = self.disk.stage(self.id, chunk, id, tag, &payload, rebase);
                self.begin_stage(node, state, chunk, id, staging);
            }
            Effect::Commit { chunk, id } => {
                if let Err(error) = self.disk.commit(self.id, chunk, id) {
                    error!(target = %self.id, %chunk, version = ?id, %error, "a commit was refused by the chunk store");
                    self.go_offline(node, state, "a staged version could not be committed");
                }
            }
            Effect::Send { to, chain_version, msg } => self.send(node, state, to, chain_version, msg),
            Effect::SendFenced { to, chain_version, msg } => {
                if let Some(msg) = msg.open(|| self.lease_holds(node)) {
                    self.send(node, state, to, chain_version, msg);
                }
            }
            Effect::SendFull { to, chain_version, chunk, id, tag, first, durable } => {
                let place = state.replica.view().path.iter().position(|&member| member == to).unwrap_or(1);
                let full = Full { to, place, chain_version, chunk, id, tag, full: true, first, durable };
                resync::send_full(self.clone(), node.clone(), full);
            }
            Effect::Answer { request, outcome } => {
                if let Some(waiter) = state.writes.remove(&request) {
                    let outcome = self.outcome(waiter.chunk, waiter.tag, outcome);
                    let _ = waiter.answer.send(outcome);
                }
            }
            Effect::ServeRead { read, at } => {
                if let Some(wake) = state.reads.remove(&read) {
                    let _ = wake.send(ReadWake::Serve(at));
                }
            }
            Effect::RetryRead { read } => {
                if let Some(wake) = state.reads.remove(&read) {
                    let _ = wake.send(ReadWake::Again);
                }
            }
            Effect::BeginSession { joined_at } => session::begin(self.clone(), node.clone(), joined_at),
            // The long poll brings it; whoever sent us a newer version has made sure that there is one.
            Effect::RefreshRouting => {}
            Effect::TakeOffline { reason } => self.go_offline(node, state, reason),
        }
    }

    /// The length after a write is the tag's record; for an untagged one, what is committed now.
    fn outcome(&self, chunk: ChunkId, tag: Option<Tag>, outcome: Outcome) -> WriteOutcome {
        match outcome {
            Outcome::Refused(refusal) => Err(wire::refusal_status(refusal)),
            Outcome::Repeated(id, length) => Ok((id, length)),
            Outcome::Committed(id) => {
                let record = tag.and_then(|tag| self.disk.tag(self.id, tag.client, tag.channel));
                let length = match record.filter(|record| record.version == id) {
                    Some(record) => record.length,
                    None => self.disk.committed_length(self.id, chunk),
                };
                Ok((id, length))
            }
        }
    }

    fn begin_stage(
        self: &Arc<Self>,
        node: &Arc<Node>,
        state: &mut State,
        chunk: ChunkId,
        id: VersionId,
        mut staging: Staging,
    ) {
        // On its way to the disk now; the task polls again and leaves the waker that counts.
        if let Poll::Ready(staged) = Pin::new(&mut staging).poll(&mut Context::from_waker(Waker::noop())) {
            return self.staged(node, state, chunk, id, staged);
        }
        state.staging += 1;
        node.metrics.pending.inc();
        let (target, node) = (self.clone(), node.clone());
        tokio::spawn(async move {
            let staged = staging.await;
            node.metrics.pending.dec();
            let mut state = target.state.lock();
            let state = &mut *state;
            state.staging -= 1;
            target.staged(&node, state, chunk, id, staged);
            target.carry_out(&node, state);
        });
    }

    fn staged(
        &self,
        node: &Arc<Node>,
        state: &mut State,
        chunk: ChunkId,
        id: VersionId,
        staged: Result<Staged, EngineError>,
    ) {
        match staged {
            Ok(_) => state.replica.staged(chunk, id, &mut state.out),
            Err(error) => {
                error!(target = %self.id, disk = %self.disk.path(), %chunk, version = ?id, %error, "a write could not be staged");
                state.replica.stage_failed(&mut state.out);
                if self.disk.has_failed() {
                    node.disk_failed(&self.disk);
                }
            }
        }
    }

    /// Stages that were begun are over.
    pub fn is_staging(&self) -> bool {
        self.state.lock().staging > 0
    }

    fn send(
        self: &Arc<Self>,
        node: &Arc<Node>,
        state: &State,
        to: TargetId,
        cv: ChainVersion,
        msg: Msg<Payload>,
    ) {
        match msg {
            Msg::Forward(forward) if forward.payload.is_spooled() => {
                let place = state.replica.view().path.iter().position(|&member| member == to).unwrap_or(1);
                let Forward { chunk, id, tag, full, first, durable, .. } = forward;
                let full = Full { to, place, chain_version: cv, chunk, id, tag, full, first, durable };
                resync::send_full(self.clone(), node.clone(), full);
            }
            Msg::Forward(forward) => {
                let place = state.replica.view().path.iter().position(|&member| member == to).unwrap_or(1);
                self.forward(node, to, place, cv, forward);
            }
            msg => {
                if let Some(item) = Control::from_msg(self.id, to, cv, &msg) {
                    node.send_control(to, item);
                }
            }
        }
    }

    /// Sends a forward to the replica at `place` of the path.
    pub fn forward(
        self: &Arc<Self>,
        node: &Arc<Node>,
        to: TargetId,
        place: usize,
        chain_version: ChainVersion,
        forward: Forward<Payload>,
    ) {
        let chunk = forward.chunk;
        let mut sending = Box::pin(self.send_forward(node, to, place, chain_version, forward));
        let polled = sending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let (target, node) = (self.clone(), node.clone());
        tokio::spawn(async move {
            let answered = match polled {
                Poll::Ready(answered) => answered,
                Poll::Pending => sending.await,
            };
            target.forward_answered(&node, to, chain_version, chunk, answered).await;
        });
    }

    /// The call that carries a forward. Its outcome is the successor's verdict, or nothing if it did not arrive.
    pub fn send_forward(
        &self,
        node: &Node,
        to: TargetId,
        place: usize,
        chain_version: ChainVersion,
        forward: Forward<Payload>,
    ) -> impl Future<Output = Option<Verdict>> + Send + use<> {
        let Forward { chunk, id, tag, payload, full, first, durable } = forward;
        let tag = tag.unwrap_or_default();
        let head = ForwardHead {
            chain_version: chain_version.0.into(),
            from: self.id.0.into(),
            to: to.0.into(),
            inode: chunk.inode.0.into(),
            version: id.version.0.into(),
            assigned: id.assigned.0.into(),
            durable: durable.0.into(),
            client: tag.client.0.into(),
            sequence: tag.sequence.0.into(),
            transfer: 0.into(),
            channel: tag.channel.0.into(),
            index: chunk.index.into(),
            offset: 0.into(),
            length: 0.into(),
            chunk_size: 0.into(),
            crc_count: 0.into(),
            kind: 0,
            flags: if full { wire::FLAG_FULL } else { 0 } | if first { wire::FLAG_FIRST } else { 0 },
            reserved: [0; 6],
        };
        let (body, data) = payload.forward(head);
        let method = ForwardHead::method(place);
        let call = Call { method, body, deadline: FORWARD_DEADLINE, data, ..Call::default() };
        let calling = node.peers.call(to, Lane::hop(place), call);
        async move {
            let reply = calling.await.ok()?;
            let answer = frame::take_one::<Verdict>(&mut &reply.body[..]).ok().copied();
            Some(answer.unwrap_or(Verdict::new(reply.status, false)))
        }
    }

    /// What became of a forward.
    pub async fn forward_answered(
        self: &Arc<Self>,
        node: &Arc<Node>,
        to: TargetId,
        chain_version: ChainVersion,
        chunk: ChunkId,
        answered: Option<Verdict>,
    ) {
        let refusal = match answered {
            Some(verdict) => {
                self.hear_of_space(verdict);
                match verdict.status() {
                    // Broken on its way: the same bytes once more.
                    Status::Damaged => Some(Refusal::Gap),
                    status => wire::status_refusal(status),
                }
            }
            None => {
                tokio::time::sleep(RESEND_PAUSE).await;
                Some(Refusal::Gap)
            }
        };
        if let Some(refusal) = refusal {
            self.step(node, |replica, _, out| replica.refused(to, chain_version, chunk, refusal, out));
        }
    }

    /// The answer to a control message of this target.
    pub fn control_answered(self: &Arc<Self>, node: &Arc<Node>, item: &Control, verdict: Verdict) {
        self.hear_of_space(verdict);
        if let Some(refusal) = wire::status_refusal(verdict.status()) {
            let (to, cv) = (TargetId(item.to.get()), ChainVersion(item.chain_version.get()));
            self.step(node, |replica, _, out| replica.refused(to, cv, item.chunk(), refusal, out));
        }
    }

    fn hear_of_space(&self, verdict: Verdict) {
        let mut state = self.state.lock();
        if verdict.short_of_space() != state.successor_short {
            state.successor_short = verdict.short_of_space();
            if state.successor_short {
                warn!(target = %self.id, chain = %self.chain, "a replica behind this one is short of space: no new writes");
            }
        }
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
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.replica.active_chunks() > 0 {
            state.replica.tick(&mut state.out);
            self.carry_out(node, state);
        }
        if state.successor_short
            && let Some((to, _)) = state.replica.view().successor(self.id)
        {
            node.send_control(to, Control::space(self.id, to, state.replica.view().version));
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
    target: Arc<Target>,
    what: What,
}

impl Waiting {
    /// Asks the tail which version is committed, for a read that has waited long enough.
    pub fn ask_tail(&self, node: &Arc<Node>) {
        if let What::Read(read, chunk) = self.what {
            self.target.step(node, |replica, _, out| replica.query_tail(read, chunk, out));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.target.state.lock();
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
