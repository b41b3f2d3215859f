//! Registration: a start of a service asks to be let in.
//!
//! Every start is a new incarnation (R28). Before it is let in, every target of the service is out of its chain, because what the
//! earlier start had assigned or acknowledged is not known to this one. Two processes must never be the same node, or have the same
//! disk: the second one is refused by name.

use std::collections::BTreeSet;

use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{NodeKind, NodeState, PublicState, wide_id};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use super::heartbeat::address;
use super::{Cluster, Presence, kind_name};
use crate::chain::ChainState;
use crate::changes::{Changes, Event};
use crate::record::DiskRecord;

/// What became of a registration, once its changes are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Registration {
    /// It is let in.
    Done,
    /// Some of its targets' chains are held (see [`crate::chain::held`]); ask again when something changed.
    Held {
        /// The chains.
        chains: Vec<ChainId>,
    },
}

impl Cluster {
    /// Takes a registration in.
    pub fn register(&mut self, now: Monotonic, node: pb::Node) -> Result<(Changes, Registration), Failure> {
        let id = NodeId(node.id);
        let disks = check(&node)?;
        self.check_disks(now, id, &disks)?;
        let mut changes = Changes::default();
        let old = self.info.nodes.get(&id).cloned();
        let again = old.as_ref().is_some_and(|old| old.incarnation == node.incarnation);
        if let Some(old) = &old {
            if old.kind != node.kind {
                let message = format!(
                    "node {id} is a {} service; give this {} service another number",
                    kind_name(old.kind()),
                    kind_name(node.kind())
                );
                return Err(Failure::new(Status::Exists, message));
            }
            if !again && !catena_rt::broken("16 a restart goes on in the same chain version") {
                self.check_predecessor(now, old, &node, &disks)?;
                let presence = self.presence.entry(id).or_insert_with(|| Presence::granted(now));
                presence.successor = Some(Incarnation(node.incarnation));
                let touched = self.chains_on(id);
                self.evaluate(now, &mut changes, touched);
                let members = self.memberships(&changes, id);
                if !members.is_empty() {
                    return Ok((changes, Registration::Held { chains: members.into_iter().collect() }));
                }
            }
        }
        self.let_in(now, id, node, again, &mut changes);
        Ok((changes, Registration::Done))
    }

    /// Called when the changes of a finished registration were written: from here on its lease counts.
    pub fn registered(&mut self, now: Monotonic, node: NodeId, incarnation: Incarnation) {
        let until = now + self.term;
        let record = self.info.nodes.get(&node);
        let presence = self.presence.entry(node).or_insert_with(|| Presence::granted(until));
        if presence.successor == Some(incarnation) || presence.heard.is_none() {
            *presence = Presence::granted(until);
        }
        presence.until = presence.until.max(until);
        presence.heard = Some(now);
        presence.disks = record.map(|record| record.disks.clone()).unwrap_or_default();
    }

    /// A disk belongs to one node for ever: its superblock says so too.
    fn check_disks(&self, now: Monotonic, id: NodeId, disks: &BTreeSet<DiskId>) -> Result<(), Failure> {
        for disk in disks {
            let Some(record) = self.disks.get(disk).filter(|record| record.node != id.0) else { continue };
            let other = NodeId(record.node);
            let holder = self.info.nodes.get(&other);
            let alive = holder.is_some_and(|holder| holder.state() == NodeState::Up)
                && self.presence.get(&other).is_some_and(|presence| presence.until > now);
            let state = if alive { "which is up" } else { "which is down" };
            let message = format!(
                "disk {disk} belongs to node {other} ({}), {state}: it was seen there at {}; use it with that node, or format it for node {id}",
                holder.map_or("unknown", |holder| address(holder)),
                record.path
            );
            return Err(Failure::new(Status::Exists, message));
        }
        Ok(())
    }

    /// Whether the earlier start of this node is certainly over: its lease ran out, or the new one has its disks, each of which one
    /// process at a time can hold. The same address alone is a good reason to believe it, but not to replace what is on disks that the
    /// new start does not have; for those, and for anyone at another address, the lease has to run out.
    fn check_predecessor(
        &self,
        now: Monotonic,
        old: &pb::Node,
        new: &pb::Node,
        disks: &BTreeSet<DiskId>,
    ) -> Result<(), Failure> {
        let id = NodeId(old.id);
        let Some(presence) = self.presence.get(&id) else { return Ok(()) };
        let left = presence.until.since(now);
        if old.state() != NodeState::Up || left.is_zero() {
            return Ok(());
        }
        let same_address = !address(new).is_empty() && address(old) == address(new);
        let shares_disk =
            old.disks.iter().any(|disk| disks.contains(&DiskId(wide_id(&disk.id).unwrap_or_default())));
        if !same_address && !shares_disk {
            let message = format!(
                "node {id} is in use by another process at {} (pid {}): give this one another number. If that process has just ended, its lease runs out in {left:.1?}",
                address(old),
                old.pid
            );
            return Err(Failure::new(Status::Exists, message));
        }
        let elsewhere = self.info.targets.values().find(|target| {
            target.node == id
                && matches!(target.state, PublicState::Serving | PublicState::Syncing)
                && !disks.contains(&target.disk)
        });
        if let Some(target) = elsewhere {
            let message = format!(
                "node {id} comes back without disk {}, where target {} serves: waiting {left:.1?} for the lease of its last start to run out",
                target.disk, target.id
            );
            return Err(Failure::new(Status::Busy, message));
        }
        Ok(())
    }

    /// Chains in whose path a target of `node` still is.
    fn memberships(&self, changes: &Changes, node: NodeId) -> BTreeSet<ChainId> {
        let member = |id: &&TargetId| {
            let target = self.target(changes, **id).expect("listed");
            target.node == node && matches!(target.state, PublicState::Serving | PublicState::Syncing)
        };
        let chain = |id: &TargetId| self.target(changes, *id).expect("listed").chain;
        self.info.targets.keys().filter(member).map(chain).collect()
    }

    fn let_in(&self, now: Monotonic, id: NodeId, mut node: pb::Node, again: bool, changes: &mut Changes) {
        node.state = NodeState::Up.into();
        let old = self.info.nodes.get(&id);
        for disk in &mut node.disks {
            let disk_id = DiskId(wide_id(&disk.id).unwrap_or_default());
            let known = self.disks.get(&disk_id);
            let record = DiskRecord {
                node: id.0,
                first_incarnation: known.map_or(node.incarnation, |known| known.first_incarnation),
                path: disk.path.clone(),
            };
            if known != Some(&record) {
                changes.disks.insert(disk_id, record);
            }
            // Figures are of the moment; see `figures`.
            disk.used = 0;
        }
        if !again {
            self.replace_disks(id, &node, changes);
        }
        if old != Some(&node) {
            changes.events.push(Event::NodeUp {
                node: id,
                kind: kind_name(node.kind()),
                address: address(&node).to_owned(),
                incarnation: Incarnation(node.incarnation),
                started: !again,
            });
            changes.nodes.insert(id, node);
            if again {
                self.evaluate(now, changes, self.chains_on(id));
            }
        }
    }

    /// A disk that is gone, and an empty one of this start in the same place: the targets move there, to be rebuilt. A target that is
    /// the last of its chain stays with its disk, for whoever finds that again.
    fn replace_disks(&self, id: NodeId, node: &pb::Node, changes: &mut Changes) {
        let has = |disk: DiskId| node.disks.iter().any(|mine| wide_id(&mine.id) == Some(disk.0));
        let homeless: Vec<_> =
            self.info.targets.values().filter(|target| target.node == id && !has(target.disk)).collect();
        for old in homeless {
            let Some(place) = self.disks.get(&old.disk).map(|record| &record.path) else { continue };
            // Formatted by this start, or by one that was cut short before it got here: what counts is that nobody has ever been on it.
            let successor = node.disks.iter().find(|disk| {
                let new = DiskId(wide_id(&disk.id).unwrap_or_default());
                let taken = || self.info.targets.values().any(|target| target.disk == new);
                &disk.path == place && (disk.fresh || disk.empty) && !disk.failed && !taken()
            });
            let Some(disk) = successor.and_then(|disk| wide_id(&disk.id)).map(DiskId) else { continue };
            let mut target = self.target(changes, old.id).unwrap_or(old).clone();
            if target.state == PublicState::Lastsrv && !catena_rt::broken("19a an empty lastsrv serves") {
                let Some(chain) = self.chain_state(changes, target.chain) else { continue };
                let Some(after) = give_up(&chain, target.id) else { continue };
                changes.events.push(Event::Chain {
                    chain: target.chain,
                    before: chain.to_string(),
                    after: after.to_string(),
                });
                self.set_chain(changes, target.chain, &after);
                target = self.target(changes, old.id).unwrap_or(old).clone();
            }
            // Never a member of the chain on this disk: there is nothing to recover from it (R29).
            (target.disk, target.joined_at) = (disk, ChainVersion(0));
            changes.events.push(Event::Moved { target: old.id, node: id, disk });
            changes.targets.insert(old.id, target);
        }
    }
}

/// `target`, whose disk is gone, leaves the lastsrv of its chain to the others; `None` if there is no other.
fn give_up(chain: &ChainState, target: TargetId) -> Option<ChainState> {
    let others = chain.members.iter().filter(|member| member.state == PublicState::Lastsrv).count();
    if others < 2 {
        return None;
    }
    let mut after = chain.clone();
    after.version.0 += 1;
    let at = after.members.iter().position(|member| member.id == target)?;
    let mut member = after.members.remove(at);
    member.state = PublicState::Offline;
    after.members.push(member);
    Some(after)
}

/// What a registration must say; gives its disks.
fn check(node: &pb::Node) -> Result<BTreeSet<DiskId>, Failure> {
    let invalid = |what: String| Failure::new(Status::Invalid, what);
    let id = NodeId(node.id);
    if node.id == 0 {
        return Err(invalid("0 is no node number; number the nodes from 1".into()));
    }
    if node.incarnation == 0 {
        return Err(invalid(format!("node {id} registers without an incarnation")));
    }
    match node.kind() {
        NodeKind::Storage if node.data_address.is_empty() => {
            return Err(invalid(format!("storage node {id} registers without a data-plane address")));
        }
        NodeKind::Meta if node.control_address.is_empty() => {
            return Err(invalid(format!("meta node {id} registers without an address")));
        }
        NodeKind::Storage | NodeKind::Meta => {}
        kind => return Err(invalid(format!("node {id} registers as {}", kind_name(kind)))),
    }
    let mut disks = BTreeSet::new();
    for disk in &node.disks {
        let wide = wide_id(&disk.id).filter(|&wide| wide != 0);
        let wide =
            wide.ok_or_else(|| invalid(format!("node {id}: the disk at {} has no identity", disk.path)))?;
        if !disks.insert(DiskId(wide)) {
            return Err(Failure::new(
                Status::Exists,
                format!(
                    "node {id}: disk {} is there twice, also at {}: is one a copy of the other?",
                    DiskId(wide),
                    disk.path
                ),
            ));
        }
    }
    Ok(disks)
}
