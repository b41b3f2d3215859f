//! Orders to a node's scrubbers, and how they stand: for operators.

use std::fmt;
use std::time::Duration;

use catena_net::Call;
use catena_proto::frame::{
    self, Malformed, ScrubDamage, ScrubDisk, ScrubHead, ScrubOrder, ScrubRequest, method,
};
use catena_proto::ids::{NodeId, TargetId};
use catena_proto::status::Status;
use catena_rt::time::Instant;
use zerocopy::IntoBytes;

use crate::client::StorageClient;

/// What is wanted of a node's scrubbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scrub {
    /// Only to know how they stand.
    Status,
    /// A pass now. One of the same scope that is under way goes on, at the new rate.
    Start {
        /// Only this target.
        target: Option<TargetId>,
        /// Bytes a second from each disk; as configured if absent.
        rate: Option<u64>,
    },
    /// An end of the pass under way.
    Stop,
}

/// How a node's scrubbers stand.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// One a disk.
    pub disks: Vec<ScrubDisk>,
    /// Damaged chunks that are not repaired yet; the first [`frame::MAX_ITEMS`].
    pub damages: Vec<ScrubDamage>,
}

/// A node that did not do what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeError {
    /// What programs act on.
    pub status: Status,
    /// The node.
    pub node: NodeId,
    /// Words for people beyond what the status says; may be empty.
    pub detail: Box<str>,
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}: {}", self.node, self.status)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for NodeError {}

impl StorageClient {
    /// Gives a storage node's scrubbers an order, and returns how they stand after it. Not repeated: the answer is about this moment.
    ///
    /// # Errors
    /// [`Status::NotFound`] if the node is not known, or has not the target; [`Status::TimedOut`], [`Status::Disconnected`].
    pub async fn scrub(
        &self,
        node: NodeId,
        order: Scrub,
        deadline: Instant,
    ) -> Result<ScrubReport, NodeError> {
        let error = |status, detail: &str| NodeError { status, node, detail: detail.into() };
        let routing = self.shared.routing.current();
        let known = routing.nodes.get(&node).filter(|known| !known.data_address.is_empty());
        let Some(known) = known else {
            return Err(error(Status::NotFound, "no storage node of this number is known"));
        };
        let (code, target, rate) = match order {
            Scrub::Status => (ScrubOrder::Status, None, None),
            Scrub::Start { target, rate } => (ScrubOrder::Start, target, rate),
            Scrub::Stop => (ScrubOrder::Stop, None, None),
        };
        let request = ScrubRequest {
            target: target.map_or(0, |target| target.0).into(),
            rate: rate.unwrap_or(0).into(),
            order: code as u8,
            reserved: [0; 7],
        };
        let body = bytes::Bytes::copy_from_slice(request.as_bytes());
        let call = Call::new(method::SCRUB, body, Duration::ZERO);
        let (nodes, metrics) = (&self.shared.nodes, &self.shared.metrics);
        let reply = nodes.call(&nodes.get(node), &known.data_address, call, deadline, metrics).await;
        let reply = reply.map_err(|none| error(none.status, &none.detail))?;
        if reply.status != Status::Ok {
            return Err(error(reply.status, ""));
        }
        decode(&reply.body).map_err(|malformed| error(Status::Malformed, malformed.0))
    }
}

fn decode(mut body: &[u8]) -> Result<ScrubReport, Malformed> {
    let head = *frame::take_one::<ScrubHead>(&mut body)?;
    let disks = frame::take::<ScrubDisk>(&mut body, head.disks.get() as usize)?.to_vec();
    let damages = frame::take::<ScrubDamage>(&mut body, head.damages.get() as usize)?.to_vec();
    Ok(ScrubReport { disks, damages })
}
