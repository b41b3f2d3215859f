//! Requests as they come in, and who answers them. One request crosses this file once; up to its first wait it runs on the
//! connection's own task, so that forwards of one chunk begin in the order in which the predecessor sent them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use catena_buf::PoolClass;
use catena_net::{Incoming, PeerId, Responder, Service};
use catena_proto::frame::{self, ResyncsRequest, method};
use catena_proto::ids::*;
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use zerocopy::IntoBytes;

use crate::metrics::OpKind;
use crate::node::Node;
use crate::wire::{self, Control, Controlled, Verdict};
use crate::{chunks, forward, read, scrub_orders, session, write};

/// The data plane's front door. Connections keep it; the node lives only as long as its service runs.
pub(crate) struct FrontDoor(pub Weak<Node>);

/// What goes back: a status, a body, data.
pub(crate) type Answer = (Status, Bytes, Vec<catena_buf::Buf>);

/// An answer that is only a status.
pub(crate) fn only(status: Status) -> Answer {
    (status, Bytes::new(), Vec::new())
}

impl Service for FrontDoor {
    fn class(&self, method: u16, _body: &[u8]) -> PoolClass {
        match method {
            wire::FORWARD_HOP1 => PoolClass::Hop1,
            wire::FORWARD_HOP2 => PoolClass::Hop2,
            wire::FORWARD_HOP3 | wire::BASE | wire::SPOOL => PoolClass::Hop3,
            _ => PoolClass::Client,
        }
    }

    fn call(self: Arc<Self>, request: Incoming) -> BoxFuture<'static, ()> {
        let node = self.0.upgrade();
        Box::pin(async move {
            let Some(node) = node else { return request.responder().status(Status::ShuttingDown) };
            let begun = node.clock.monotonic();
            // Only reads make room for data; the rest have an empty list.
            let room = request.room().to_vec();
            let (request, responder) = request.split();
            let kind = match request.method {
                method::WRITE => OpKind::Write,
                method::READ => OpKind::Read,
                method::LAST_CHUNK | method::LIST_CHUNKS => OpKind::Chunks,
                method::SCRUB | method::RESYNCS => OpKind::Admin,
                wire::CONTROL => OpKind::Control,
                wire::FORWARD_HOP1..=wire::FORWARD_HOP3 => OpKind::Forward,
                wire::DUMP..=wire::SPOOL => OpKind::Resync,
                _ => return responder.status(Status::UnknownMethod),
            };
            let _in_flight = node.metrics.begin(kind);
            let foreground = matches!(kind, OpKind::Write | OpKind::Read | OpKind::Forward);
            let foreground = foreground.then(|| node.throttle.foreground());
            let (status, bytes) = answer(&node, kind, request, room, responder).await;
            if let Some(foreground) = foreground {
                foreground.moved(bytes);
            }
            node.metrics.done(kind, status, bytes, node.clock.monotonic().since(begun));
        })
    }
}

/// Carries a request out and answers it; returns how it went and the bytes of data it carried.
async fn answer(
    node: &Arc<Node>,
    kind: OpKind,
    request: Incoming,
    room: Vec<u32>,
    responder: Responder,
) -> (Status, u64) {
    let from_client = matches!(kind, OpKind::Write | OpKind::Read | OpKind::Chunks);
    if from_client && node.is_stopping() {
        responder.status(Status::ShuttingDown);
        return (Status::ShuttingDown, 0);
    }
    let from_node = matches!(request.peer, PeerId::Node(_));
    let (answer, bytes) = match kind {
        // A write's answer is all it takes; its data is counted as it came.
        OpKind::Write => write::write(node, request).await,
        OpKind::Read => read::batch(node, request.body, &room, request.deadline).await,
        OpKind::Chunks => (chunks::answer(node, request.method, request.body).await, 0),
        OpKind::Admin if request.method == method::RESYNCS => (resyncs(node, &request.body), 0),
        OpKind::Admin => (scrub_orders::answer(node, &request.body), 0),
        // Messages between replicas are believed: only nodes may send them.
        _ if !from_node => (only(Status::NotPermitted), 0),
        OpKind::Control => (control(node, &request.body), 0),
        OpKind::Forward => forward::receive(node, request).await,
        OpKind::Resync => session::serve(node, request).await,
    };
    let (status, body, data) = answer;
    responder.send(status, body, data);
    (status, bytes)
}

/// How far this node is in bringing others up to date.
fn resyncs(node: &Node, body: &[u8]) -> Answer {
    match frame::take_one::<ResyncsRequest>(&mut &body[..]) {
        Ok(request) => (Status::Ok, node.sessions.encode(TargetId(request.from.get())), Vec::new()),
        Err(_) => only(Status::Malformed),
    }
}

/// Messages without data: one verdict each.
fn control(node: &Arc<Node>, body: &[u8]) -> Answer {
    let Ok(items) = frame::take_all::<Control>(body) else { return only(Status::Malformed) };
    if items.len() > frame::MAX_ITEMS {
        return only(Status::Malformed);
    }
    let mut out = BytesMut::with_capacity(std::mem::size_of_val(items) / 16);
    for item in items {
        let target = node.target(TargetId(item.to.get()));
        let verdict = match target {
            None => Verdict::new(Status::NotYet, false),
            Some(target) => {
                let (from, cv) = (TargetId(item.from.get()), ChainVersion(item.chain_version.get()));
                let status = match item.decode() {
                    Err(_) => Status::Malformed,
                    Ok(Controlled::Space) => Status::Ok,
                    Ok(Controlled::Msg(msg)) => {
                        target.receive(node, from, cv, msg).err().unwrap_or(Status::Ok)
                    }
                };
                Verdict::new(status, target.short_of_space())
            }
        };
        out.put_slice(verdict.as_bytes());
    }
    (Status::Ok, out.freeze(), Vec::new())
}

/// Waits for a newer chain version than the target has, for a while: the routing information is on its way.
pub(crate) const ADOPTION_WAIT: Duration = Duration::from_secs(1);
