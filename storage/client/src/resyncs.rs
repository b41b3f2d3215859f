//! How far nodes are in bringing targets up to date, asked of the senders.

use std::time::Duration;

use catena_net::Call;
use catena_proto::frame::{self, MAX_ITEMS, ResyncEntry, ResyncsRequest, method};
use catena_proto::ids::NodeId;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::Instant;
use zerocopy::IntoBytes;

use crate::client::StorageClient;

impl StorageClient {
    /// The resync sessions that `node` drives, and of every target that it has brought up to date since it started the last one.
    ///
    /// # Errors
    /// One attempt is made: [`Status::Disconnected`] or [`Status::TimedOut`] if the node does not answer it.
    pub async fn resyncs(&self, node: NodeId, deadline: Instant) -> Result<Vec<ResyncEntry>, Failure> {
        let shared = &self.shared;
        let fail = |status, what: &str| Failure::new(status, format!("storage node {node}: {what}"));
        let mut all: Vec<ResyncEntry> = Vec::new();
        loop {
            let routing = shared.routing.current();
            let address = routing.nodes.get(&node).map(|node| node.data_address.clone()).unwrap_or_default();
            if address.is_empty() {
                return Err(fail(Status::Disconnected, "no address is known"));
            }
            let from = all.last().map_or(0, |last| last.to.get().saturating_add(1));
            let request = ResyncsRequest { from: from.into() };
            let body = bytes::Bytes::copy_from_slice(request.as_bytes());
            let call = Call::new(method::RESYNCS, body, Duration::ZERO);
            let known = shared.nodes.get(node);
            let reply = shared.nodes.call(&known, &address, call, deadline, &shared.metrics).await;
            let reply = reply.map_err(|none| fail(none.status, &none.detail))?;
            if reply.status != Status::Ok {
                return Err(fail(reply.status, reply.status.text()));
            }
            let page = frame::take_all::<ResyncEntry>(&reply.body)
                .map_err(|malformed| fail(Status::Malformed, malformed.0))?;
            all.extend(page);
            if page.len() < MAX_ITEMS {
                return Ok(all);
            }
        }
    }
}
