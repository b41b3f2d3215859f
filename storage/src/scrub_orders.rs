//! What an operator orders of this node's scrubbers, and asks of them.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use catena_proto::frame::{self, MAX_ITEMS, ScrubDamage, ScrubDisk, ScrubHead, ScrubOrder, ScrubRequest};
use catena_proto::ids::*;
use catena_proto::status::Status;
use zerocopy::IntoBytes;

use crate::disk::Disk;
use crate::node::Node;
use crate::scrub::Order;
use crate::service::{Answer, only};

/// Carries an order out and says how everything stands.
pub(crate) fn answer(node: &Arc<Node>, mut body: &[u8]) -> Answer {
    let Ok(request) = frame::take_one::<ScrubRequest>(&mut body) else { return only(Status::Malformed) };
    let target = Some(TargetId(request.target.get())).filter(|target| target.0 != 0);
    let rate = Some(request.rate.get()).filter(|&rate| rate != 0);
    match ScrubOrder::from_code(request.order) {
        None => return only(Status::Unsupported),
        Some(ScrubOrder::Status) => {}
        Some(ScrubOrder::Stop) => node.disks().iter().for_each(|disk| disk.scrub.stop()),
        Some(ScrubOrder::Start) => {
            let has = |disk: &Disk| target.is_none_or(|target| disk.engine().targets().contains(&target));
            let disks: Vec<_> = node.disks().iter().filter(|disk| has(disk)).collect();
            if disks.is_empty() {
                return only(Status::NotFound);
            }
            disks.iter().for_each(|disk| disk.scrub.order(Order { target, rate }));
            // Whoever orders a scrub has perhaps brought a replica back.
            node.repairs.hurry();
        }
    }
    (Status::Ok, standing(node).freeze(), Vec::new())
}

fn standing(node: &Arc<Node>) -> BytesMut {
    let damages = node.repairs.all();
    let shown = damages.len().min(MAX_ITEMS);
    let mut out = BytesMut::with_capacity(8 + 104 * node.disks().len() + 32 * shown);
    let head = ScrubHead { disks: (node.disks().len() as u32).into(), damages: (shown as u32).into() };
    out.put_slice(head.as_bytes());
    for disk in node.disks() {
        let targets = disk.engine().targets();
        let (mut waiting, mut unrepaired) = (0u64, 0u64);
        for (_, _, damage) in damages.iter().filter(|(target, _, _)| targets.contains(target)) {
            match damage.hopeless {
                Some(_) => unrepaired += 1,
                None => waiting += 1,
            }
        }
        let now = disk.scrub.standing();
        let shown = ScrubDisk {
            disk: disk.id().0.to_be_bytes(),
            rate: now.rate.into(),
            total: now.total.into(),
            verified: now.verified.into(),
            found: disk.metrics.scrub_found.get().into(),
            repaired: disk.metrics.scrub_repaired.get().into(),
            waiting: waiting.into(),
            unrepaired: unrepaired.into(),
            passes: now.passes.into(),
            started: now.started.into(),
            finished: now.finished.into(),
            state: if disk.has_failed() { 2 } else { u8::from(now.running) },
            reserved: [0; 7],
        };
        out.put_slice(shown.as_bytes());
    }
    for (target, chunk, damage) in damages.iter().take(shown) {
        let shown = ScrubDamage {
            target: target.0.into(),
            inode: chunk.inode.0.into(),
            index: chunk.index.into(),
            block: damage.block.into(),
            hopeless: damage.hopeless.is_some().into(),
            reserved: [0; 7],
        };
        out.put_slice(shown.as_bytes());
    }
    out
}
