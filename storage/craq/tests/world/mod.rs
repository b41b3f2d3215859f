//! A small world around the shipped `Replica`: stores with live and durable halves, a network that loses, doubles and reorders, clients
//! that retry, and an mgmtd that follows the transition table with R23 to R28. One chunk; its contents are the list of writes applied,
//! so order, loss and repetition all show.
#![allow(dead_code, unused_imports)]

mod check;
mod explore;
mod store;

use std::collections::{BTreeMap, BTreeSet};

use catena_craq::{ChainView, ChunkSummary, Decision, DumpEntry, Effect, Forward, Install, Msg, Outcome};
use catena_craq::{ReadAt, ReadDecision, ReadId, Refusal, Replica, RequestId, Role, decide};
use catena_proto::ids::*;

pub use explore::{Limits, exhaust, wander};
pub use store::{DiskStore, Entry};

/// The chunk.
pub const CHUNK: ChunkId = ChunkId { inode: InodeId(1), index: 0 };

/// What a write does: the list grows by one, or is replaced.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pay {
    Delta(u8),
    Full(Vec<u8>),
}

/// Public states, as mgmtd has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    Serving,
    Lastsrv,
    Syncing,
    Waiting,
    Offline,
}

/// What goes through the network.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Wire {
    Peer(Msg<Pay>),
    Refused(Refusal),
    Dump {
        joined_at: ChainVersion,
        entry: Option<DumpEntry>,
    },
    Word {
        joined_at: ChainVersion,
        decision: Decision,
        need: ChunkVersion,
        contents: Vec<u8>,
        tags: Vec<(Tag, VersionId)>,
    },
    WordTaken {
        joined_at: ChainVersion,
    },
    Done {
        joined_at: ChainVersion,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Packet {
    pub from: usize,
    pub to: usize,
    pub cv: ChainVersion,
    pub wire: Wire,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    pub alive: bool,
    /// Started anew, and mgmtd has not taken it out since (R28): it takes no part.
    pub fresh: bool,
    pub lease: bool,
    /// The first view that this incarnation may adopt: mgmtd hands out no older ones (R28).
    pub born: usize,
    pub replica: Replica<Pay>,
    pub store: DiskStore,
    pub staging: BTreeSet<VersionId>,
    pub beginning: Option<ChainVersion>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WriteState {
    Unsent,
    Sent,
    Acked,
}

/// A read that waits at a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Waiting {
    pub node: usize,
    pub read: ReadId,
    /// What anyone had seen when it began.
    pub floor: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub nodes: Vec<Node>,
    pub net: Vec<Packet>,
    /// mgmtd: the chain's order and states, and every view so far.
    pub order: Vec<(usize, State)>,
    pub views: Vec<ChainView>,
    pub joined_at: ChainVersion,
    pub writes: Vec<WriteState>,
    pub waiting: Option<Waiting>,
    pub reads: u64,
    /// The longest list that anyone was shown or promised.
    pub floor: Vec<u8>,
    /// Spent so far.
    pub spent: Limits,
}

/// What can happen next.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    Deliver(usize),
    Double(usize),
    Lose(usize),
    Staged(usize, VersionId),
    SessionReady(usize),
    Write { write: usize, view: usize },
    Read(usize),
    QueryTail,
    Tick(usize),
    Adopt(usize, usize),
    Crash(usize),
    Restart(usize),
    LeaseOut(usize),
    LeaseBack(usize),
    TakeOut(usize),
    BringBack(usize),
    Promote(usize),
    SendDump(usize),
}

/// A broken invariant, by name.
pub type Violation = String;

pub fn target(node: usize) -> TargetId {
    TargetId(node as u64 + 1)
}
fn node_of(target: TargetId) -> usize {
    target.0 as usize - 1
}

/// Writes go out two by two: clients 1 and 2, each on two channels.
pub fn tag(write: usize) -> Tag {
    Tag {
        client: ClientId(1 + (write as u64 & 1)),
        channel: ChannelId(write as u32 >> 1),
        sequence: Sequence(1),
    }
}

impl World {
    /// A chain of `replicas` new targets, all serving, and `writes` writes to come.
    pub fn new(replicas: usize, writes: usize) -> World {
        let order: Vec<_> = (0..replicas).map(|node| (node, State::Serving)).collect();
        let node = |index| Node {
            alive: true,
            fresh: false,
            lease: true,
            born: 0,
            replica: Replica::new(target(index)),
            store: DiskStore::default(),
            staging: BTreeSet::new(),
            beginning: None,
        };
        let mut world = World {
            nodes: (0..replicas).map(node).collect(),
            net: Vec::new(),
            order,
            views: Vec::new(),
            joined_at: ChainVersion(0),
            writes: vec![WriteState::Unsent; writes],
            waiting: None,
            reads: 0,
            floor: Vec::new(),
            spent: Limits::default(),
        };
        world.publish();
        for index in 0..replicas {
            world.apply(&Action::Adopt(index, 0)).expect("nothing has happened yet");
        }
        world
    }

    /// mgmtd: the order of R26, a new chain version.
    fn publish(&mut self) {
        self.order.sort_by_key(|&(_, state)| state);
        let version = ChainVersion(self.views.len() as u64 + 1);
        let serving = self.order.iter().filter(|(_, state)| *state == State::Serving);
        let mut path: Vec<TargetId> = serving.map(|&(node, _)| target(node)).collect();
        let syncing =
            self.order.iter().find(|(_, state)| *state == State::Syncing).filter(|_| !path.is_empty());
        path.extend(syncing.map(|&(node, _)| target(node)));
        self.views.push(ChainView { version, path, syncing: syncing.is_some(), joined_at: self.joined_at });
    }

    pub fn state(&self, node: usize) -> State {
        self.order.iter().find(|(member, _)| *member == node).map_or(State::Offline, |(_, state)| *state)
    }

    fn set_state(&mut self, node: usize, state: State) {
        let place =
            self.order.iter().position(|(member, _)| *member == node).expect("every node is a member");
        self.order.remove(place);
        self.order.push((node, state));
    }

    /// Carries out one action on the shipped code and looks at every invariant that it may touch.
    pub fn apply(&mut self, action: &Action) -> Result<(), Violation> {
        match action {
            Action::Deliver(at) => {
                let packet = self.net.remove(*at);
                self.deliver(packet)?;
            }
            Action::Double(at) => {
                self.spent.doubles += 1;
                self.deliver(self.net[*at].clone())?;
            }
            Action::Lose(at) => {
                self.spent.losses += 1;
                self.net.remove(*at);
            }
            Action::Staged(node, id) => {
                self.nodes[*node].staging.remove(id);
                self.nodes[*node].store.set_durable(*id);
                self.step(*node, |replica, _, out| replica.staged(CHUNK, *id, out))?;
            }
            Action::SessionReady(node) => {
                let joined_at = self.nodes[*node].beginning.take().expect("only offered then");
                self.nodes[*node].replica.session_ready(joined_at);
            }
            Action::Write { write, view } => {
                self.spent.sends += 1;
                if self.writes[*write] == WriteState::Unsent {
                    self.writes[*write] = WriteState::Sent;
                }
                let view = self.views[*view].clone();
                let Some(&head) = view.path.first() else { return Ok(()) };
                let node = node_of(head);
                if !self.nodes[node].alive || !self.nodes[node].lease || self.nodes[node].fresh {
                    return Ok(());
                }
                let (request, pay) = (RequestId(*write as u64), Pay::Delta(*write as u8 + 1));
                self.step(node, |replica, store, out| {
                    replica.write(request, view.version, CHUNK, Some(tag(*write)), pay, store, out);
                })?;
            }
            Action::Read(node) => self.read(*node)?,
            Action::QueryTail => {
                let waiting = self.waiting.clone().expect("only offered then");
                self.step(waiting.node, |replica, _, out| replica.query_tail(waiting.read, CHUNK, out))?;
            }
            Action::Tick(node) => {
                self.spent.ticks += 1;
                self.step(*node, |replica, _, out| replica.tick(out))?;
                self.step(*node, |replica, _, out| replica.tick(out))?;
            }
            Action::Adopt(node, view) => {
                let view = self.views[*view].clone();
                if self.nodes[*node].fresh && !view.path.contains(&target(*node)) {
                    self.nodes[*node].fresh = false;
                }
                self.step(*node, |replica, _, out| replica.adopt(view, out))?;
            }
            Action::Crash(node) => {
                self.spent.crashes += 1;
                self.crash(*node);
            }
            Action::Restart(node) => self.restart(*node),
            Action::LeaseOut(node) => {
                self.spent.leases += 1;
                self.nodes[*node].lease = false;
            }
            Action::LeaseBack(node) => self.nodes[*node].lease = true,
            Action::TakeOut(node) => self.take_out(*node),
            Action::BringBack(node) => self.bring_back(*node),
            Action::Promote(node) => {
                self.set_state(*node, State::Serving);
                self.publish();
            }
            Action::SendDump(node) => self.send_dump(*node),
        }
        self.check_path()
    }

    /// Power is cut at one node: what is not durable is gone, and so is its part of the network.
    fn crash(&mut self, node: usize) {
        let members = &mut self.nodes[node];
        members.alive = false;
        members.staging.clear();
        members.beginning = None;
        members.store.power_loss();
        members.replica = Replica::new(target(node));
        if self.waiting.as_ref().is_some_and(|waiting| waiting.node == node) {
            self.waiting = None;
        }
        self.net.retain(|packet| packet.to != node);
    }

    /// R28: a new incarnation, which mgmtd takes out at once.
    fn restart(&mut self, node: usize) {
        let member = &mut self.nodes[node];
        (member.alive, member.lease, member.fresh) = (true, true, true);
        let restored = member.store.pendings();
        member.replica.restore(restored, &member.store);
        if matches!(self.state(node), State::Serving | State::Syncing) {
            self.take_out(node);
        }
        self.nodes[node].born = self.views.len() - 1;
    }

    /// The transition of a target that is lost; the last serving one becomes lastsrv.
    fn take_out(&mut self, node: usize) {
        let serving = self.order.iter().filter(|(_, state)| *state == State::Serving).count();
        let next =
            if self.state(node) == State::Serving && serving == 1 { State::Lastsrv } else { State::Offline };
        self.set_state(node, next);
        if next == State::Lastsrv {
            // Nobody is left to sync from.
            let syncing: Vec<usize> =
                self.order.iter().filter(|(_, s)| *s == State::Syncing).map(|(n, _)| *n).collect();
            for member in syncing {
                self.set_state(member, State::Waiting);
            }
        }
        self.publish();
    }

    /// A target that is there again: the lastsrv serves, another one syncs.
    fn bring_back(&mut self, node: usize) {
        if self.state(node) == State::Lastsrv {
            self.set_state(node, State::Serving);
        } else {
            self.joined_at = ChainVersion(self.views.len() as u64 + 1);
            self.set_state(node, State::Syncing);
        }
        self.publish();
    }

    fn read(&mut self, node: usize) -> Result<(), Violation> {
        self.reads += 1;
        let (read, member) = (ReadId(self.reads), &mut self.nodes[node]);
        let version = member.replica.view().version;
        match member.replica.read(read, version, CHUNK, &member.store) {
            ReadDecision::Refuse(_) => Ok(()),
            ReadDecision::Wait => {
                self.waiting = Some(Waiting { node, read, floor: self.floor.clone() });
                Ok(())
            }
            ReadDecision::Serve(at) => {
                let seen = member.store.contents(*at.peek());
                let lease = member.lease;
                match at.open(|| lease) {
                    Some(_) => self.show(seen, &self.floor.clone(), "a read"),
                    None => Ok(()),
                }
            }
        }
    }

    fn deliver(&mut self, packet: Packet) -> Result<(), Violation> {
        let Packet { from, to, cv, wire } = packet;
        if !self.nodes[to].alive || self.nodes[to].fresh {
            return Ok(());
        }
        match wire {
            Wire::Peer(msg) => {
                let is_answer = matches!(msg, Msg::Ack { .. } | Msg::QueryReply { .. });
                let mut answer = Ok(());
                self.step(to, |replica, store, out| {
                    answer = replica.receive(target(from), cv, msg, store, out)
                })?;
                if let Err(refusal) = answer
                    && !is_answer
                {
                    self.net.push(Packet { from: to, to: from, cv, wire: Wire::Refused(refusal) });
                }
            }
            Wire::Refused(refusal) => {
                self.step(to, |replica, _, out| replica.refused(target(from), cv, CHUNK, refusal, out))?;
            }
            Wire::Dump { joined_at, entry } => self.answer_dump(to, from, cv, joined_at, entry),
            Wire::Word { joined_at, decision, need, contents, tags } => {
                let member = &mut self.nodes[to];
                let Ok(install) =
                    member.replica.sync_chunk(cv, joined_at, CHUNK, decision, need, &member.store)
                else {
                    return Ok(());
                };
                let id = match decision {
                    Decision::Keep(id) | Decision::Base(id) => id,
                    Decision::Absent => VersionId::default(),
                };
                if install != Install::Nothing {
                    member.store.install(id, contents);
                    member.replica.installed(joined_at, CHUNK, id);
                }
                member.store.merge_tags(&tags);
                self.net.push(Packet { from: to, to: from, cv, wire: Wire::WordTaken { joined_at } });
            }
            Wire::WordTaken { joined_at } => {
                if self.nodes[to].replica.view().version == cv {
                    self.net.push(Packet { from: to, to: from, cv, wire: Wire::Done { joined_at } });
                }
            }
            Wire::Done { joined_at } => {
                // Refused while a needed version is missing: a later dump asks again.
                let _ = self.nodes[to].replica.finish_session(cv, joined_at);
            }
        }
        Ok(())
    }

    /// The syncing target answers its predecessor's dump request.
    fn send_dump(&mut self, node: usize) {
        let member = &mut self.nodes[node];
        let view = member.replica.view().clone();
        if member.replica.may_dump(view.version, view.joined_at).is_err() {
            return;
        }
        let Some(predecessor) = view.predecessor(target(node)) else { return };
        let entry = member.store.exists().then(|| DumpEntry {
            chunk: CHUNK,
            committed: member.store.committed_id(),
            length: member.store.committed_contents().len() as u32,
            checksum: check::checksum(&member.store.committed_contents()),
            tombstone: false,
            pending: member.replica.pending_versions() > 0,
            complete: member.replica.is_synced(CHUNK),
        });
        let wire = Wire::Dump { joined_at: view.joined_at, entry };
        self.net.push(Packet { from: node, to: node_of(predecessor), cv: view.version, wire });
    }

    fn answer_dump(
        &mut self,
        node: usize,
        from: usize,
        cv: ChainVersion,
        joined_at: ChainVersion,
        entry: Option<DumpEntry>,
    ) {
        let member = &self.nodes[node];
        let view = member.replica.view();
        if view.version != cv || view.successor(target(node)) != Some((target(from), true)) {
            return;
        }
        let last_staged = member.replica.last_staged(CHUNK, &member.store).version;
        let mine = (last_staged > ChunkVersion(0)).then(|| ChunkSummary {
            committed: member.store.committed_id(),
            length: member.store.committed_contents().len() as u32,
            checksum: check::checksum(&member.store.committed_contents()),
            tombstone: false,
            last_staged,
        });
        let wire = match decide(mine.as_ref(), entry.as_ref()) {
            Some((decision, need)) => Wire::Word {
                joined_at,
                decision,
                need,
                contents: member.store.committed_contents(),
                tags: member.store.tags(),
            },
            None => Wire::Done { joined_at },
        };
        self.net.push(Packet { from: node, to: from, cv, wire });
    }

    /// One call of the shipped code, and its effects.
    fn step(
        &mut self,
        node: usize,
        call: impl FnOnce(&mut Replica<Pay>, &DiskStore, &mut Vec<Effect<Pay>>),
    ) -> Result<(), Violation> {
        let mut out = Vec::new();
        let member = &mut self.nodes[node];
        call(&mut member.replica, &member.store, &mut out);
        for effect in out {
            self.carry_out(node, effect)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, node: usize, effect: Effect<Pay>) -> Result<(), Violation> {
        let member = &mut self.nodes[node];
        match effect {
            Effect::Stage { id, tag, payload, rebase, .. } => {
                member.store.stage(Entry { id, tag, pay: payload, durable: false }, rebase);
                member.staging.insert(id);
            }
            Effect::Commit { id, .. } => member.store.commit(id)?,
            Effect::Send { to, chain_version, msg } => self.send(node, to, chain_version, msg),
            Effect::SendFenced { to, chain_version, msg } => {
                let lease = member.lease;
                if let Some(msg) = msg.open(|| lease) {
                    self.send(node, to, chain_version, msg);
                }
            }
            Effect::SendFull { to, chain_version, chunk, id, tag, first, durable } => {
                let payload = Pay::Full(member.store.contents(ReadAt::Pending(id)));
                let forward = Forward { chunk, id, tag, payload, full: true, first, durable };
                self.send(node, to, chain_version, Msg::Forward(forward));
            }
            Effect::Answer { request, outcome } => {
                let write = request.0 as usize;
                match outcome {
                    Outcome::Committed(_) | Outcome::Repeated(..) => self.acknowledge(node, write)?,
                    Outcome::Refused(Refusal::StaleSequence) => {
                        return Err(format!("once: write {write} was refused as old"));
                    }
                    Outcome::Refused(_) => {}
                }
            }
            Effect::ServeRead { read, at } => {
                let Some(waiting) = self.waiting.take_if(|waiting| waiting.read == read) else {
                    return Ok(());
                };
                let seen = member.store.contents(*at.peek());
                let lease = member.lease;
                if at.open(|| lease).is_some() {
                    self.show(seen, &waiting.floor, "a dirty read")?;
                }
            }
            Effect::RetryRead { read } => {
                self.waiting.take_if(|waiting| waiting.read == read);
            }
            Effect::BeginSession { joined_at } => {
                member.store.drop_pendings();
                member.staging.clear();
                member.beginning = Some(joined_at);
            }
            Effect::RefreshRouting => {}
            Effect::TakeOffline { unfit } => return Err(format!("assertion: {}", unfit.reason())),
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: TargetId, cv: ChainVersion, msg: Msg<Pay>) {
        self.net.push(Packet { from, to: node_of(to), cv, wire: Wire::Peer(msg) });
    }
}

/// Keeps equal worlds equal: the network is a bag.
pub fn canonical(world: &mut World) {
    world.net.sort_by_cached_key(|packet| format!("{packet:?}"));
}

pub(crate) type Tags = BTreeMap<(ClientId, ChannelId), (Sequence, VersionId)>;
pub(crate) fn role_is_serving(role: Role) -> bool {
    matches!(role, Role::Serving(_))
}
