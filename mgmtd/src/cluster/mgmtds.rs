//! The mgmtd themselves, as everyone is shown them: the primary, and those who stand by. They send no heartbeats; each keeps an entry
//! in the store, which the primary reads regularly.

use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{MgmtdRole, NodeKind, NodeState};

use super::{Cluster, Presence, kind_name};
use crate::changes::{Changes, Event};
use crate::record::MemberRecord;

impl Cluster {
    /// Takes in what the store says about who runs. An entry counts as a sign of life when it has changed under this primary's eyes,
    /// or is of a start that nobody was shown yet.
    pub fn roll_call(&mut self, now: Monotonic, own: &MemberRecord, members: &[MemberRecord]) -> Changes {
        let mut changes = Changes::default();
        let others = || members.iter().filter(|member| member.node != own.node);
        for member in others() {
            let id = NodeId(member.node);
            if self.is_service(id) {
                continue;
            }
            let seen = (member.incarnation, member.beat);
            let shown = self.info.nodes.get(&id).map(|node| node.incarnation);
            let alive = match self.mgmtds.insert(id, seen) {
                Some(before) => before != seen,
                None => shown != Some(member.incarnation),
            };
            if alive {
                let until = now + self.term;
                let presence = self.presence.entry(id).or_insert_with(|| Presence::granted(until));
                presence.until = presence.until.max(until);
                presence.heard = Some(now);
                self.show(member, MgmtdRole::StandBy, &mut changes);
            }
        }
        if !self.is_service(NodeId(own.node)) {
            self.show(own, MgmtdRole::Primary, &mut changes);
        }
        for node in self.info.nodes.values() {
            let id = NodeId(node.id);
            let another = node.kind() == NodeKind::Mgmtd && id.0 != own.node;
            if !another || node.state() != NodeState::Up || changes.nodes.contains_key(&id) {
                continue;
            }
            let listed = others().any(|member| member.node == id.0);
            // Whoever was primary before and has not been heard of since does not run, as far as anyone knows.
            if !listed || node.role() == MgmtdRole::Primary {
                let down = pb::Node { state: NodeState::Down.into(), role: 0, ..node.clone() };
                changes.nodes.insert(id, down);
                if !listed {
                    changes.events.push(Event::NodeStopped { node: id });
                }
            }
        }
        changes
    }

    fn is_service(&self, id: NodeId) -> bool {
        self.info.nodes.get(&id).is_some_and(|node| node.kind() != NodeKind::Mgmtd)
    }

    fn show(&self, member: &MemberRecord, role: MgmtdRole, changes: &mut Changes) {
        let node = pb::Node {
            id: member.node,
            kind: NodeKind::Mgmtd.into(),
            state: NodeState::Up.into(),
            control_address: member.address.clone(),
            metrics_address: member.metrics.clone(),
            incarnation: member.incarnation,
            pid: member.pid,
            role: role.into(),
            ..Default::default()
        };
        let old = self.info.nodes.get(&NodeId(member.node));
        if old == Some(&node) {
            return;
        }
        let started = old.is_none_or(|old| old.incarnation != member.incarnation);
        if started || old.is_some_and(|old| old.state() != NodeState::Up) {
            changes.events.push(Event::NodeUp {
                node: NodeId(member.node),
                kind: kind_name(NodeKind::Mgmtd),
                address: member.address.clone(),
                incarnation: Incarnation(member.incarnation),
                started,
            });
        }
        changes.nodes.insert(NodeId(member.node), node);
    }
}
