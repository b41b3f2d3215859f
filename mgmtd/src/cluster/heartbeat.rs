//! Heartbeats: what a service says about itself, and which leases that renews.

use std::collections::BTreeSet;

use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::pb::{self, HeartbeatReply, HeartbeatRequest};
use catena_proto::routing::{NodeState, wide_id};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use super::presence::TargetNews;
use super::{Cluster, Presence, kind_name};
use crate::changes::{Changes, Event};

impl Cluster {
    /// Takes a heartbeat in. What follows for chains is in the changes, usually nothing; the lease is not renewed before those are
    /// written and [`Cluster::renew`] is called.
    pub fn heartbeat(&mut self, now: Monotonic, request: &HeartbeatRequest) -> Result<Changes, Failure> {
        let id = NodeId(request.node);
        let node = self.info.nodes.get(&id).ok_or_else(|| {
            Failure::new(Status::NotFound, format!("node {id} is not registered; register first"))
        })?;
        let presence = self.presence.entry(id).or_insert_with(|| Presence::granted(now));
        if node.incarnation != request.incarnation || presence.successor.is_some() {
            let message = match node.incarnation {
                0 => format!("this start of node {id} has said that it stops; start it again"),
                _ => format!("another start of node {id} has taken this one's place"),
            };
            return Err(Failure::new(Status::StaleHandle, message));
        }
        let mut changes = Changes::default();
        if request.sequence != 0 && request.sequence <= presence.sequence {
            return Ok(changes);
        }
        presence.sequence = request.sequence;
        let mut touched = BTreeSet::new();
        let mut record = node.clone();
        if request.stopping {
            record.state = NodeState::Down.into();
            // No number that a service may have: whatever is still on its way from this start is refused.
            record.incarnation = 0;
            presence.reports.clear();
            changes.events.push(Event::NodeStopped { node: id });
            touched.extend(self.chains_on(id));
        } else {
            presence.heard = Some(now);
            if record.state() != NodeState::Up {
                record.state = NodeState::Up.into();
                changes.events.push(Event::NodeUp {
                    node: id,
                    kind: kind_name(record.kind()),
                    address: address(&record).to_owned(),
                    incarnation: Incarnation(record.incarnation),
                    started: false,
                });
                // Up again, but not renewed yet: without this the next tick would declare it failed once more.
                presence.until = presence.until.max(now + self.term);
                touched.extend(self.chains_on(id));
            }
            self.take_reports(id, &request.targets, &mut touched);
            self.take_disks(id, &request.disks, &mut record, &mut changes, &mut touched);
        }
        if self.info.nodes.get(&id) != Some(&record) {
            changes.nodes.insert(id, record);
        }
        if !touched.is_empty() || !self.unsettled.is_empty() {
            self.evaluate(now, &mut changes, touched);
        }
        Ok(changes)
    }

    fn take_reports(&mut self, node: NodeId, reports: &[pb::TargetReport], touched: &mut BTreeSet<ChainId>) {
        let presence = self.presence.get_mut(&node).expect("made by the caller");
        for report in reports {
            let id = TargetId(report.target);
            let Some(target) = self.info.targets.get(&id).filter(|target| target.node == node) else {
                continue;
            };
            let news = TargetNews {
                local: report.local(),
                known: ChainVersion(report.known_version),
                joined_at: ChainVersion(report.joined_at),
                used: report.used,
                chunks: report.chunks,
            };
            let old = presence.reports.insert(id, news);
            let said = |news: TargetNews| (news.local, news.joined_at, news.known);
            if old.is_none_or(|old| said(old) != said(news)) {
                touched.insert(target.chain);
            }
        }
    }

    /// Figures are kept; what matters for chains (a disk that fails) is recorded.
    fn take_disks(
        &mut self,
        node: NodeId,
        disks: &[pb::Disk],
        record: &mut pb::Node,
        changes: &mut Changes,
        touched: &mut BTreeSet<ChainId>,
    ) {
        if disks.is_empty() {
            return;
        }
        for known in &mut record.disks {
            let Some(newest) = disks.iter().find(|disk| disk.id == known.id) else { continue };
            if newest.failed == known.failed {
                continue;
            }
            known.failed = newest.failed;
            let disk = DiskId(wide_id(&known.id).unwrap_or_default());
            changes.events.push(Event::Disk { node, disk, path: known.path.clone(), failed: newest.failed });
            let on_it = self.info.targets.values().filter(|target| target.disk == disk);
            touched.extend(on_it.map(|target| target.chain));
        }
        self.presence.get_mut(&node).expect("made by the caller").disks = disks.to_vec();
    }

    /// Renews the lease of a service whose heartbeat was taken in, and of those of its targets whose membership is unbroken (R24).
    pub fn renew(&mut self, now: Monotonic, request: &HeartbeatRequest) -> HeartbeatReply {
        let lease_ms = self.term.as_millis() as u64;
        let routing_version = self.info.version.0;
        let mut reply = HeartbeatReply { routing_version, lease_ms, ..HeartbeatReply::default() };
        let id = NodeId(request.node);
        let up = self
            .info
            .nodes
            .get(&id)
            .is_some_and(|node| node.state() == NodeState::Up && node.incarnation == request.incarnation);
        let overtaken = |presence: &Presence| request.sequence != 0 && presence.sequence != request.sequence;
        if !up || request.stopping || self.presence.get(&id).is_none_or(overtaken) {
            return reply;
        }
        let term = self.term;
        if let Some(presence) = self.presence.get_mut(&id) {
            presence.until = presence.until.max(now + term);
            reply.service_renewed = true;
        }
        let unbroken = |report: &&pb::TargetReport| {
            let target = self.info.targets.get(&TargetId(report.target));
            target.is_some_and(|target| {
                target.node == id
                    && (self.unbroken(target, ChainVersion(report.known_version))
                        || catena_rt::broken("17 lease renewed for a returned target"))
            })
        };
        reply.renewed = request.targets.iter().filter(unbroken).map(|report| report.target).collect();
        reply
    }
}

/// Where a service is reached: the data plane for storage, the control plane for others.
pub(super) fn address(node: &pb::Node) -> &str {
    if node.data_address.is_empty() { &node.control_address } else { &node.data_address }
}
