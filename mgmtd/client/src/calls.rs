//! Calls that find the primary: a small list of mgmtd, one of which answered last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use catena_proto::ids::ClusterId;
use catena_proto::pb::*;
use catena_proto::routing::wide_bytes;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep_until, timeout_at};
use futures_util::future::BoxFuture;

use crate::api::MgmtdApi;
use crate::grpc::GrpcMgmtd;

/// How patient calls are.
#[derive(Clone, Copy, Debug)]
pub struct CallOptions {
    /// A call gives up after this (long polls: this much beyond the time they may wait).
    pub deadline: Duration,
    /// One mgmtd that does not answer for this long is left for the next.
    pub attempt: Duration,
}

impl Default for CallOptions {
    fn default() -> CallOptions {
        CallOptions { deadline: Duration::from_secs(10), attempt: Duration::from_secs(2) }
    }
}

/// The cluster manager, whichever process that is at the moment. Cheap to clone.
#[derive(Clone)]
pub struct MgmtdClient {
    shared: Arc<Shared>,
    options: CallOptions,
}

struct Shared {
    cluster: ClusterId,
    peers: Vec<(String, Arc<dyn MgmtdApi>)>,
    /// Index of the peer that answered last; all clones profit from what one learned.
    preferred: AtomicUsize,
}

impl MgmtdClient {
    /// Over gRPC. `addresses` are `host:port`; nothing is connected before the first call. Must be called inside a tokio runtime.
    pub fn connect(
        cluster: ClusterId,
        addresses: &[String],
        auth: ClientAuth,
        options: CallOptions,
    ) -> Result<MgmtdClient, Failure> {
        let peers = addresses
            .iter()
            .map(|address| {
                let peer = GrpcMgmtd::new(address, auth.clone(), options.attempt)?;
                Ok((address.clone(), Arc::new(peer) as Arc<dyn MgmtdApi>))
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        if peers.is_empty() {
            return Err(Failure::new(
                Status::Invalid,
                "no mgmtd address is configured: set `mgmtd = [\"host:port\"]`",
            ));
        }
        Ok(MgmtdClient::new(cluster, peers, options))
    }

    /// Over any implementation of the calls; names are for messages. At least one peer is needed.
    pub fn new(
        cluster: ClusterId,
        peers: Vec<(String, Arc<dyn MgmtdApi>)>,
        options: CallOptions,
    ) -> MgmtdClient {
        assert!(!peers.is_empty(), "a mgmtd client without any mgmtd");
        MgmtdClient { shared: Arc::new(Shared { cluster, peers, preferred: AtomicUsize::new(0) }), options }
    }

    /// The same client with other patience.
    pub fn with_options(&self, options: CallOptions) -> MgmtdClient {
        MgmtdClient { shared: self.shared.clone(), options }
    }

    /// The cluster that it speaks for.
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster
    }

    /// Announces a start of a service. A refusal because the node id or a disk is taken comes back as [`Status::Exists`]; see
    /// [`crate::Heartbeats::start`], which waits while that may be the own predecessor's lease.
    pub async fn register(&self, node: Node) -> Result<RegisterReply, Failure> {
        let request = RegisterRequest { cluster: self.cluster_bytes(), node: Some(node) };
        self.call(Duration::ZERO, true, move |peer| {
            let request = request.clone();
            Box::pin(async move { peer.register(request).await })
        })
        .await
    }

    /// One heartbeat; `request.cluster` is filled in.
    pub async fn heartbeat(&self, mut request: HeartbeatRequest) -> Result<HeartbeatReply, Failure> {
        request.cluster = self.cluster_bytes();
        self.call(Duration::ZERO, true, move |peer| {
            let request = request.clone();
            Box::pin(async move { peer.heartbeat(request).await })
        })
        .await
    }

    /// Routing information newer than `known`, waiting up to `wait` for it to appear; `routing` is absent if none did.
    pub async fn get_routing(&self, known: u64, wait: Duration) -> Result<GetRoutingReply, Failure> {
        let request = GetRoutingRequest {
            cluster: self.cluster_bytes(),
            known_version: known,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        self.call(wait, true, move |peer| {
            let request = request.clone();
            Box::pin(async move { peer.get_routing(request).await })
        })
        .await
    }

    /// Makes a chain table; `request.cluster` is filled in. Without `request.request` a broken connection is not retried, because the
    /// table may have been made.
    pub async fn create_table(&self, mut request: CreateTableRequest) -> Result<CreateTableReply, Failure> {
        request.cluster = self.cluster_bytes();
        let again = !request.request.is_empty();
        self.call(Duration::ZERO, again, move |peer| {
            let request = request.clone();
            Box::pin(async move { peer.create_table(request).await })
        })
        .await
    }

    /// Opens, extends or closes a client's session; see [`crate::ClientSession`].
    pub async fn extend_client_session(
        &self,
        mut request: ClientSessionRequest,
    ) -> Result<ClientSessionReply, Failure> {
        request.cluster = self.cluster_bytes();
        self.call(Duration::ZERO, true, move |peer| {
            let request = request.clone();
            Box::pin(async move { peer.extend_client_session(request).await })
        })
        .await
    }

    /// The clients with a live session.
    pub async fn list_clients(&self) -> Result<ListClientsReply, Failure> {
        let request = ListClientsRequest { cluster: self.cluster_bytes() };
        self.call(Duration::ZERO, true, move |peer| {
            let request = request.clone();
            Box::pin(async move { peer.list_clients(request).await })
        })
        .await
    }

    fn cluster_bytes(&self) -> bytes::Bytes {
        wide_bytes(self.shared.cluster.0)
    }

    /// Asks one peer after the other, beginning with the one that answered last, until one answers as primary or time is over.
    /// `extra` is time that the call may take by its nature; `again` says whether a call that may have been carried out is repeated.
    async fn call<T>(
        &self,
        extra: Duration,
        again: bool,
        call: impl Fn(Arc<dyn MgmtdApi>) -> BoxFuture<'static, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let peers = &self.shared.peers;
        let deadline = Instant::now() + self.options.deadline + extra;
        let mut pause = Duration::from_millis(10);
        loop {
            let first = self.shared.preferred.load(Ordering::Relaxed);
            let mut last = Failure::from(Status::NoPrimary);
            for index in (0..peers.len()).map(|step| (first + step) % peers.len()) {
                let (name, peer) = &peers[index];
                let until = deadline.min(Instant::now() + self.options.attempt + extra);
                let outcome = timeout_at(until, call(peer.clone())).await.unwrap_or_else(|_| {
                    Err(Failure::new(Status::Disconnected, "no answer in time; is it running and reachable?"))
                });
                match outcome {
                    Ok(reply) => {
                        self.shared.preferred.store(index, Ordering::Relaxed);
                        return Ok(reply);
                    }
                    Err(failure) if elsewhere(failure.status) => {
                        last = Failure::new(failure.status, format!("mgmtd {name}: {}", failure.message));
                        if failure.status == Status::Disconnected && !again {
                            return Err(last);
                        }
                    }
                    Err(failure) => return Err(failure),
                }
            }
            let wake = Instant::now() + pause;
            if wake >= deadline {
                return Err(last);
            }
            sleep_until(wake).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

/// Statuses that say nothing about the request, only that this peer is not the one to ask.
fn elsewhere(status: Status) -> bool {
    matches!(status, Status::NoPrimary | Status::Disconnected | Status::ShuttingDown | Status::TimedOut)
}
