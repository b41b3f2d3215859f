//! From what is known of services to what becomes of chains.

use std::collections::BTreeSet;

use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{Chain, LocalState, NodeState, PublicState, Target, wide_id};

use super::Cluster;
use crate::chain::{ChainState, Contact, Member, News, held, settle};
use crate::changes::{Changes, Event};

impl Cluster {
    /// Brings the chains in `touched`, and all that are unsettled, to what follows from the present knowledge.
    pub(super) fn evaluate(&self, now: Monotonic, changes: &mut Changes, mut touched: BTreeSet<ChainId>) {
        touched.extend(&self.unsettled);
        for id in touched {
            let Some(before) = self.chain_state(changes, id) else { continue };
            let news = |target| self.news(changes, target);
            let wait = held(&before, news, |target| self.contact(now, changes, target));
            let next = if wait { None } else { settle(&before, news) };
            if wait && !self.unsettled.contains(&id) {
                changes.events.push(Event::Held { chain: id, state: before.to_string() });
            }
            changes.evaluated.insert(id, wait);
            if let Some(after) = next {
                changes.events.push(Event::Chain {
                    chain: id,
                    before: before.to_string(),
                    after: after.to_string(),
                });
                self.set_chain(changes, id, &after);
            }
        }
    }

    /// A chain as a value, with `changes` applied.
    pub(super) fn chain_state(&self, changes: &Changes, id: ChainId) -> Option<ChainState> {
        let chain = changes.chains.get(&id).or_else(|| self.info.chains.get(&id))?;
        let member = |&id: &TargetId| {
            let target = self.target(changes, id)?;
            Some(Member { id, state: target.state, joined_at: target.joined_at })
        };
        let members = chain.targets.iter().filter_map(member).collect();
        Some(ChainState { version: chain.version, members })
    }

    /// Writes a chain's next state into `changes`.
    pub(super) fn set_chain(&self, changes: &mut Changes, id: ChainId, after: &ChainState) {
        for member in &after.members {
            let Some(old) = self.target(changes, member.id) else { continue };
            let local = self.news(changes, member.id).local;
            let mut target = Target { state: member.state, joined_at: member.joined_at, ..old.clone() };
            if local != LocalState::Unspecified {
                target.local = local;
            }
            if target != *old {
                changes.targets.insert(member.id, target);
            }
        }
        let targets = after.members.iter().map(|member| member.id).collect();
        changes.chains.insert(id, Chain { id, version: after.version, targets });
    }

    pub(super) fn target<'a>(&'a self, changes: &'a Changes, id: TargetId) -> Option<&'a Target> {
        changes.targets.get(&id).or_else(|| self.info.targets.get(&id))
    }

    pub(super) fn node<'a>(&'a self, changes: &'a Changes, id: NodeId) -> Option<&'a pb::Node> {
        changes.nodes.get(&id).or_else(|| self.info.nodes.get(&id))
    }

    /// What is known of a target. `Offline` only if it is certain that it answers nothing any more (R23): its service's lease ran out
    /// or its stop was confirmed (both: the node is down), a successor has the service's disks (R28), or the service says so itself.
    fn news(&self, changes: &Changes, id: TargetId) -> News {
        let Some(target) = self.target(changes, id) else { return News::LOST };
        let Some(node) = self.node(changes, target.node) else { return News::LOST };
        let disk = node.disks.iter().find(|disk| wide_id(&disk.id) == Some(target.disk.0));
        let original_disk = self.is_original(changes, id);
        let presence = self.presence.get(&target.node);
        let gone = node.state() != NodeState::Up
            || presence.is_some_and(|presence| presence.successor.is_some())
            || disk.is_none_or(|disk| disk.failed);
        let report = presence.and_then(|presence| presence.reports.get(&id));
        match report {
            _ if gone => News { original_disk, ..News::LOST },
            // Said before it knew that it is lastsrv. As such it looks more closely: a mixture must not be the last word.
            Some(report) if target.state == PublicState::Lastsrv && report.known < target.joined_at => {
                News { local: LocalState::Unspecified, joined_at: ChainVersion(0), original_disk }
            }
            Some(report) => News { local: report.local, joined_at: report.joined_at, original_disk },
            None => News { local: LocalState::Unspecified, joined_at: ChainVersion(0), original_disk },
        }
    }

    /// Whether a target is on the disk that it was made on, and that disk was not formatted again (R25).
    pub(super) fn is_original(&self, changes: &Changes, id: TargetId) -> bool {
        let Some(target) = self.target(changes, id) else { return false };
        let Some(node) = self.node(changes, target.node) else { return false };
        let disk = node.disks.iter().find(|disk| wide_id(&disk.id) == Some(target.disk.0));
        let first = changes.disks.get(&target.disk).or_else(|| self.disks.get(&target.disk));
        disk.is_some_and(|disk| {
            !disk.fresh
                || catena_rt::broken("19a an empty lastsrv serves")
                || first.is_some_and(|first| first.first_incarnation == node.incarnation)
        })
    }

    fn contact(&self, now: Monotonic, changes: &Changes, id: TargetId) -> Contact {
        let node = self.target(changes, id).map(|target| target.node);
        let heard = node.and_then(|node| self.presence.get(&node)).and_then(|presence| presence.heard);
        match heard {
            Some(heard) if now.since(heard) <= self.term / 2 => Contact::Heard,
            _ => Contact::Silent,
        }
    }

    /// Whether `target` has been a member of its chain's path without a break since its service learned of chain version `known`
    /// (R24): then, and only then, its lease may be renewed.
    pub(super) fn unbroken(&self, target: &Target, known: ChainVersion) -> bool {
        matches!(target.state, PublicState::Serving | PublicState::Syncing)
            && known >= target.joined_at
            && self.info.chains.get(&target.chain).is_some_and(|chain| known <= chain.version)
            && self.news(&Changes::default(), target.id).local != LocalState::Offline
    }
}
