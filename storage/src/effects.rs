//! What a step of the protocol asks for, carried out in the order in which it was asked.
//!
//! The protocol asks that effects of one step are carried out in order, that a commit is in the store before the next step, and that
//! stages of a chunk begin in the order given. Effects fall into two kinds.
//!
//! *On this node*: commits, stages, answers. They are begun under the target's lock, and the beginning never waits and never calls
//! back into a target: a commit changes memory, a stage is a future that is polled once, which puts it on its way to the disk, and
//! finished by a task that comes back with a step of its own.
//!
//! *To other nodes*: messages. Under the lock they only get their place in the target's outbox. Whoever finds the outbox unattended
//! empties it after the lock is free again, in order, while others may step on and add to it. (A transport may hand a message over
//! within the call that sends it, and the answer may come back on the same stack: with the lock held that would never end.)
//!
//! So the order of messages among themselves and of local effects among themselves is the order of steps. A message may leave a
//! little after a later step's local effect. No rule rests on that: the network delays messages too, a message says what was true in
//! the step that made it, and what it says stays true (durable stays durable, committed stays committed) or is bound to its chain
//! version. The one exception is the lease, and it is looked at when the message leaves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use catena_craq::{Effect, Fenced, Forward, Msg, Outcome, Refusal};
use catena_engine::{EngineError, Staged, Staging};
use catena_net::Call;
use catena_proto::frame;
use catena_proto::ids::*;
use catena_proto::status::Status;
use parking_lot::MutexGuard;
use tracing::error;

use crate::full::{self, Full};
use crate::node::Node;
use crate::payload::Payload;
use crate::peers::Lane;
use crate::session;
use crate::target::{ReadWake, State, Target, WriteOutcome};
use crate::wire::{self, Control, ForwardHead, Verdict};

/// How long a forward may wait at the successor for memory before it counts as lost.
const FORWARD_DEADLINE: Duration = Duration::from_secs(10);
/// After a forward that did not arrive.
const RESEND_PAUSE: Duration = Duration::from_millis(50);

/// A message to another node.
pub(crate) enum Outgoing {
    Forward {
        to: TargetId,
        place: usize,
        chain_version: ChainVersion,
        forward: Forward<Payload>,
    },
    Full(Full),
    Control {
        to: TargetId,
        item: Control,
    },
    /// Only if the lease holds when it leaves (R10, R11).
    Fenced {
        to: TargetId,
        chain_version: ChainVersion,
        msg: Fenced<Msg<Payload>>,
    },
}

impl Outgoing {
    /// What a forward is told from others by.
    fn forward(&self) -> Option<UnderWay> {
        match self {
            Outgoing::Forward { to, chain_version, forward, .. } => {
                Some(UnderWay::of(*to, *chain_version, forward))
            }
            Outgoing::Full(full) => Some(full.under_way()),
            _ => None,
        }
    }
}

/// Messages that wait for the lock to be free.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Outgoing>,
    /// Somebody is emptying it.
    attended: bool,
    /// Forwards whose calls are under way. The protocol sends again what has not moved for a second, because a message may be lost. A
    /// call that is under way is not: it ends with an answer, with its connection or with its deadline. To send its data once more
    /// would only make a slow link slower, until nothing gets through in time.
    forwards: BTreeSet<UnderWay>,
    /// Chunks whose whole contents are being read and sent.
    fulls: BTreeMap<ChunkId, Fulls>,
}

/// A forward, as far as one sent again is the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnderWay {
    pub to: TargetId,
    pub chain_version: ChainVersion,
    pub chunk: ChunkId,
    pub id: VersionId,
    /// The chunk's whole contents, not a change.
    pub full: bool,
}

impl UnderWay {
    fn of(to: TargetId, chain_version: ChainVersion, forward: &Forward<Payload>) -> UnderWay {
        UnderWay { to, chain_version, chunk: forward.chunk, id: forward.id, full: forward.full }
    }
}

/// Full forwards of one chunk that are under way, and the newest notice that waits for them. A notice takes no time and a full forward
/// does. A syncing target that is told of D before it is told of the chunk forgets it, and would hear of it only by the next tick.
#[derive(Default)]
struct Fulls {
    under_way: usize,
    notice: Option<Outgoing>,
}

impl Target {
    /// Changes the state, begins what follows from it, and sends what is to be sent.
    pub fn act<R>(self: &Arc<Self>, node: &Arc<Node>, change: impl FnOnce(&mut State) -> R) -> R {
        let result = {
            let mut state = self.state();
            let result = change(&mut state);
            self.carry_out(node, &mut state);
            result
        };
        self.send_all(node);
        result
    }

    /// Empties the outbox, unless somebody is at it.
    fn send_all(self: &Arc<Self>, node: &Arc<Node>) {
        let mut outbox = self.outbox.lock();
        if std::mem::replace(&mut outbox.attended, true) {
            return;
        }
        while let Some(message) = outbox.queue.pop_front() {
            MutexGuard::unlocked(&mut outbox, || self.send_one(node, message));
        }
        outbox.attended = false;
    }

    fn send_one(self: &Arc<Self>, node: &Arc<Node>, message: Outgoing) {
        match message {
            Outgoing::Forward { to, place, chain_version, forward } => {
                self.forward(node, to, place, chain_version, forward);
            }
            Outgoing::Full(full) => full::send_full(self.clone(), node.clone(), full),
            Outgoing::Control { to, item } => node.send_control(to, item),
            Outgoing::Fenced { to, chain_version, msg } => {
                let msg = msg.open(|| self.lease_holds(node));
                catena_rt::witness("answers", || if msg.is_some() { vec![self.id.0] } else { Vec::new() });
                if let Some(item) = msg.and_then(|msg| Control::from_msg(self.id, to, chain_version, &msg)) {
                    node.send_control(to, item);
                }
            }
        }
    }

    fn put_out(&self, message: Outgoing) {
        let outbox = &mut *self.outbox.lock();
        if let Some(forward) = message.forward()
            && !outbox.forwards.insert(forward)
        {
            return;
        }
        match &message {
            Outgoing::Full(full) => outbox.fulls.entry(full.chunk).or_default().under_way += 1,
            Outgoing::Control { item, .. } if item.is_notice() => {
                if let Some(fulls) = outbox.fulls.get_mut(&item.chunk()) {
                    fulls.notice = Some(message);
                    return;
                }
            }
            _ => {}
        }
        outbox.queue.push_back(message);
    }

    /// A forward's call has ended, or was not made: the same may be sent again.
    pub fn forward_is_over(&self, forward: &UnderWay) {
        self.outbox.lock().forwards.remove(forward);
    }

    /// A full forward has been answered, or was not sent: what waited for it may go.
    pub fn full_is_over(self: &Arc<Self>, node: &Arc<Node>, chunk: ChunkId) {
        let waiting = {
            let mut outbox = self.outbox.lock();
            let Some(fulls) = outbox.fulls.get_mut(&chunk) else { return };
            fulls.under_way -= 1;
            if fulls.under_way > 0 {
                return;
            }
            let waiting = outbox.fulls.remove(&chunk).and_then(|fulls| fulls.notice);
            let any = waiting.is_some();
            outbox.queue.extend(waiting);
            any
        };
        if waiting {
            self.send_all(node);
        }
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
            Effect::Send { to, chain_version, msg } => self.send(state, to, chain_version, msg),
            Effect::SendFenced { to, chain_version, msg } => {
                self.put_out(Outgoing::Fenced { to, chain_version, msg });
            }
            Effect::SendFull { to, chain_version, chunk, id, tag, first, durable } => {
                let place = place(state, to);
                let full = Full { to, place, chain_version, chunk, id, tag, full: true, first, durable };
                self.put_out(Outgoing::Full(full));
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
            Effect::TakeOffline { unfit } => {
                if unfit.is_impossible() {
                    catena_rt::witness(unfit.reason(), || vec![self.id.0]);
                }
                self.go_offline(node, state, unfit.reason());
            }
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
        catena_rt::spawn(async move {
            let staged = staging.await;
            node.metrics.pending.dec();
            target.act(&node, |state| {
                state.staging -= 1;
                target.staged(&node, state, chunk, id, staged);
            });
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
                if let EngineError::Corrupt { .. } | EngineError::ReadFailed { .. } = &error {
                    // What is there stands in the way: the resync that follows is told that the chunk cannot be kept.
                    node.repairs.report(node, &self.disk, self.id, chunk, &error);
                }
                state.replica.stage_failed(&mut state.out);
                if self.disk.has_failed() {
                    node.disk_failed(&self.disk);
                }
            }
        }
    }

    fn send(&self, state: &State, to: TargetId, chain_version: ChainVersion, msg: Msg<Payload>) {
        self.put_out(match msg {
            Msg::Forward(forward) if forward.payload.is_spooled() => {
                let Forward { chunk, id, tag, full, first, durable, .. } = forward;
                let place = place(state, to);
                Outgoing::Full(Full { to, place, chain_version, chunk, id, tag, full, first, durable })
            }
            Msg::Forward(forward) => {
                Outgoing::Forward { to, place: place(state, to), chain_version, forward }
            }
            msg => match Control::from_msg(self.id, to, chain_version, &msg) {
                Some(item) => Outgoing::Control { to, item },
                None => return,
            },
        });
    }

    /// Sends a forward to the replica at `place` of the path.
    fn forward(
        self: &Arc<Self>,
        node: &Arc<Node>,
        to: TargetId,
        place: usize,
        chain_version: ChainVersion,
        forward: Forward<Payload>,
    ) {
        let under_way = UnderWay::of(to, chain_version, &forward);
        let mut sending = Box::pin(self.send_forward(node, to, place, chain_version, forward));
        let polled = sending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let (target, node) = (self.clone(), node.clone());
        catena_rt::spawn(async move {
            let answered = match polled {
                Poll::Ready(answered) => answered,
                Poll::Pending => sending.await,
            };
            target.forward_is_over(&under_way);
            target.forward_answered(&node, to, chain_version, under_way.chunk, answered).await;
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
                catena_rt::time::sleep(RESEND_PAUSE).await;
                Some(Refusal::Gap)
            }
        };
        if let Some(refusal) = refusal {
            self.step(node, |replica, _, out| replica.refused(to, chain_version, chunk, refusal, out));
        }
    }

    /// The answer to a control message of this target.
    pub fn control_answered(self: &Arc<Self>, node: &Arc<Node>, item: &Control, verdict: Verdict) {
        let (to, cv) = (TargetId(item.to.get()), ChainVersion(item.chain_version.get()));
        // Acknowledgements are answered by the predecessor, whose word on space is this target's own, come back: heeding it would keep
        // both short for ever.
        if self.is_successor(to) {
            self.hear_of_space(verdict);
        }
        if let Some(refusal) = wire::status_refusal(verdict.status()) {
            self.step(node, |replica, _, out| replica.refused(to, cv, item.chunk(), refusal, out));
        }
    }
}

/// Where a replica is in the path; the successor of a head if the chain has changed since.
fn place(state: &State, to: TargetId) -> usize {
    state.replica.view().path.iter().position(|&member| member == to).unwrap_or(1)
}
