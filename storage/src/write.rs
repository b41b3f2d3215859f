//! A client's write: checked, admitted, handed to the protocol, answered when it is committed on every replica of the path.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf};
use catena_engine::Op;
use catena_net::Incoming;
use catena_proto::checksum::BLOCK;
use catena_proto::frame::{WriteKind, WriteReply};
use catena_proto::status::Status;
use catena_rt::time::timeout;
use zerocopy::IntoBytes;

use crate::node::Node;
use crate::payload::Payload;
use crate::request::{self, ClientWrite};
use crate::service::{Answer, only};
use crate::target::{Target, WriteOutcome};

/// Answers a client's write.
pub(crate) async fn write(node: &Arc<Node>, mut request: Incoming) -> (Answer, u64) {
    let data = request.take_data();
    let bytes = data.iter().map(|data| data.len() as u64).sum();
    match carry_out(node, &request.body, request.deadline, data).await {
        Ok((id, length)) => {
            let reply = WriteReply {
                version: id.version.0.into(),
                assigned: id.assigned.0.into(),
                length: length.into(),
                reserved: 0.into(),
            };
            ((Status::Ok, Bytes::copy_from_slice(reply.as_bytes()), Vec::new()), bytes)
        }
        Err(status) => (only(status), 0),
    }
}

/// A write's data as it lies in its buffer: behind the bytes that align it to its block.
pub(crate) fn placed(buf: IoBuf, offset: u32) -> Result<Buf, Status> {
    let start = offset as usize % BLOCK;
    if buf.len() < start {
        return Err(Status::Malformed);
    }
    let end = buf.len();
    Ok(buf.freeze().slice(start..end))
}

async fn carry_out(node: &Arc<Node>, body: &[u8], deadline: Duration, data: Vec<IoBuf>) -> WriteOutcome {
    let write = decode(body, &data)?;
    let target = node.target_of(write.chain).ok_or(Status::NotServing)?;
    node.await_version(&target, write.chain_version).await;
    let payload = admit(node, &target, &write, data)?;
    // R13: refused behind the fence. Not what keeps data safe, but whoever may have been replaced should say so at once.
    if !target.lease_holds(node) {
        return Err(Status::NoLease);
    }
    let (waiting, outcome) = target.write(node, write.chain_version, write.chunk, write.tag, payload)?;
    match timeout(deadline, outcome).await {
        Ok(Ok(outcome)) => {
            waiting.answered();
            outcome
        }
        Ok(Err(_)) => Err(Status::NotServing),
        Err(_) => Err(Status::TimedOut),
    }
}

fn decode(body: &[u8], data: &[IoBuf]) -> Result<ClientWrite, Status> {
    // A buffer's length counts the bytes before the data, which the message does not know of.
    let head_offset = request::write_offset(body).ok_or(Status::Malformed)?;
    let lengths: Vec<usize> =
        data.iter().map(|buf| buf.len().saturating_sub(head_offset as usize % BLOCK)).collect();
    request::decode_write(body, &lengths)
}

/// Verifies the data and sets space aside, before anything of the write leaves this node (R8).
fn admit(
    node: &Arc<Node>,
    target: &Target,
    write: &ClientWrite,
    data: Vec<IoBuf>,
) -> Result<Payload, Status> {
    let op = match write.kind {
        WriteKind::Write => {
            let buf = data.into_iter().next().ok_or(Status::Malformed)?;
            let data = placed(buf, write.offset)?;
            if !request::verify(write.offset, &data, &write.crcs) {
                return Err(Status::Damaged);
            }
            Op::Write { offset: write.offset, data, crcs: write.crcs.clone(), chunk_size: write.chunk_size }
        }
        WriteKind::Truncate => Op::Truncate { length: write.offset },
        WriteKind::Extend => Op::Extend { length: write.offset },
        WriteKind::Remove => Op::Remove,
    };
    // A version that needs a damaged block cannot be staged, and would take the target offline (R8): not forwarded while a repair is
    // on its way, refused if nobody can help.
    if let Some(damage) = node.repairs.damage(target.id, write.chunk)
        && damage.stands_in_the_way(&op, target.disk.committed_length(target.id, write.chunk))
        && !target.knows(write.tag)
    {
        return Err(if damage.hopeless.is_some() { Status::Corrupt } else { Status::Busy });
    }
    // Space is refused only to what needs some: removes and the like go on, and free it.
    let needs_space = matches!(write.kind, WriteKind::Write);
    if needs_space && target.successor_short() && !target.knows(write.tag) {
        return Err(Status::NoSpace);
    }
    let reservation = match target.disk.admit(target.id, write.chunk, &op) {
        Ok(reservation) => Some(reservation),
        // A retry of what was committed is answered from the table; its stage never comes.
        Err(Status::NoSpace) if target.knows(write.tag) => None,
        // Another replica will be the head soon.
        Err(Status::DiskFailed) => {
            node.disk_failed(&target.disk);
            return Err(Status::NotServing);
        }
        Err(status) => return Err(status),
    };
    Ok(Payload::new(op, write.chunk_size, reservation))
}
