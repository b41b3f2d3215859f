//! A forward from the predecessor: verified on arrival, admitted, handed to the protocol. The answer says only that it counts.

use std::sync::Arc;

use bytes::Bytes;
use catena_craq::{Forward, Msg};
use catena_engine::Op;
use catena_net::Incoming;
use catena_proto::frame::{self, WriteKind};
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::time::timeout;
use zerocopy::IntoBytes;

use crate::node::Node;
use crate::payload::Payload;
use crate::request;
use crate::service::{ADOPTION_WAIT, Answer, only};
use crate::target::Target;
use crate::wire::{FLAG_FIRST, FLAG_FULL, ForwardHead, KIND_REPLACE, Verdict};
use crate::write::placed;
use catena_buf::{Buf, IoBuf};

/// Answers a forward.
pub(crate) async fn receive(node: &Arc<Node>, mut request: Incoming) -> (Answer, u64) {
    let data = request.take_data();
    let mut body = &request.body[..];
    let Ok(head) = frame::take_one::<ForwardHead>(&mut body).copied() else {
        return (only(Status::Malformed), 0);
    };
    let Some(target) = node.target(TargetId(head.to.get())) else {
        return (verdict(Status::NotYet, false), 0);
    };
    let chain_version = ChainVersion(head.chain_version.get());
    if chain_version < target.adopted() {
        return (verdict(Status::StaleRouting, false), 0);
    }
    node.await_version(&target, chain_version).await;
    let payload = match payload(node, &target, &head, body, data) {
        Ok(payload) => payload,
        Err(status) => {
            if status == Status::DiskFailed {
                node.disk_failed(&target.disk);
            }
            return (verdict(status, target.short_of_space()), 0);
        }
    };
    let forward = Forward {
        chunk: head.chunk(),
        id: head.id(),
        tag: head.tag(),
        payload,
        full: head.flags & FLAG_FULL != 0,
        first: head.flags & FLAG_FIRST != 0,
        durable: ChunkVersion(head.durable.get()),
    };
    let from = TargetId(head.from.get());
    let transfer = head.transfer.get();
    let mut received = target.receive(node, from, chain_version, Msg::Forward(forward.clone()));
    // A client waits for this, and the base that is in its way is in within moments: refused, it would come again much later.
    if received == Err(Status::NotYet)
        && matches!(timeout(ADOPTION_WAIT, target.base_is_in(head.chunk())).await, Ok(true))
    {
        received = target.receive(node, from, chain_version, Msg::Forward(forward));
    }
    if transfer != 0 && received.is_ok() {
        node.shipping.finished(from, transfer);
    }
    (verdict(received.err().unwrap_or(Status::Ok), target.short_of_space()), u64::from(head.length.get()))
}

fn verdict(status: Status, short_of_space: bool) -> Answer {
    let verdict = Verdict::new(status, short_of_space);
    (Status::Ok, Bytes::copy_from_slice(verdict.as_bytes()), Vec::new())
}

/// The change as this replica is to make it: checked, verified, with its space set aside.
fn payload(
    node: &Node,
    target: &Target,
    head: &ForwardHead,
    mut body: &[u8],
    data: Vec<IoBuf>,
) -> Result<Payload, Status> {
    let (offset, length, chunk_size) = (head.offset.get(), head.length.get(), head.chunk_size.get());
    let crcs =
        frame::take_checksums(&mut body, head.crc_count.get() as usize).map_err(|_| Status::Malformed)?;
    let mut data = data.into_iter();
    let op = if head.kind == KIND_REPLACE {
        contents(node, target, TargetId(head.from.get()), head.transfer.get(), offset, data.next(), crcs)?
    } else {
        let kind = WriteKind::from_code(head.kind).ok_or(Status::Malformed)?;
        if kind != WriteKind::Remove {
            request::check_chunk_size(chunk_size)?;
        }
        request::check_extent(kind, offset, length, chunk_size)?;
        match kind {
            WriteKind::Write => {
                let data = placed(data.next().ok_or(Status::Malformed)?, offset)?;
                if data.len() != length as usize {
                    return Err(Status::Malformed);
                }
                if !request::verify(offset, &data, &crcs) {
                    return Err(Status::Damaged);
                }
                Op::Write { offset, data, crcs, chunk_size }
            }
            WriteKind::Truncate => Op::Truncate { length: offset },
            WriteKind::Extend => Op::Extend { length: offset },
            WriteKind::Remove => Op::Remove,
        }
    };
    // It can wait for the repair. If nobody can help it is staged all the same: it takes this target offline, the chain goes on without
    // it, and the resync that follows heals it.
    if let Some(damage) = node.repairs.damage(target.id, head.chunk())
        && damage.hopeless.is_none()
        && damage.stands_in_the_way(&op, target.disk.committed_length(target.id, head.chunk()))
    {
        return Err(Status::Busy);
    }
    let reservation = target.disk.admit_forward(target.id, head.chunk(), &op)?;
    Ok(Payload::new(op, chunk_size, reservation))
}

/// A chunk's whole contents: verified data that came with the message, or what was sent ahead.
pub(crate) fn contents(
    node: &Node,
    target: &Target,
    from: TargetId,
    transfer: u64,
    length: u32,
    data: Option<IoBuf>,
    crcs: Vec<u32>,
) -> Result<Op, Status> {
    if transfer != 0 {
        return node.shipping.arrived(from, target.id, transfer, length);
    }
    let data: Vec<Buf> = data.into_iter().map(IoBuf::freeze).collect();
    if data.iter().map(|data| data.len()).sum::<usize>() != length as usize {
        return Err(Status::Malformed);
    }
    match data.first() {
        Some(data) if !request::verify(0, data, &crcs) => Err(Status::Damaged),
        None if !crcs.is_empty() => Err(Status::Malformed),
        _ => Ok(Op::Replace { length, data, crcs }),
    }
}
