//! Calls that find the primary: a small list of mgmtd, one of which answered last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use catena_proto::ids::ClusterId;
use catena_proto::pb::*;
use catena_proto::routing::wide_bytes;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep_until, timeout_at};
use futures_util::future::BoxFuture;
use parking_lot::RwLock;

use crate::api::MgmtdApi;
use crate::grpc::GrpcMgmtd;

/// How patient calls are.
#[derive(Clone, Copy, Debug)]
pub struct CallOptions {
    /// A call gives up after this (long polls: this much beyond the time they may wait).
    pub deadline: Duration,
    /// How long it goes on, if that is longer, once a mgmtd has answered that it is not the primary: the cluster is there, and elects
    /// one. More than two leases ride over the loss of the primary.
    pub election: Duration,
    /// One mgmtd that does not answer for this long is left for the next.
    pub attempt: Duration,
}

impl Default for CallOptions {
    fn default() -> CallOptions {
        CallOptions::within(Duration::from_secs(30), Duration::from_secs(2))
    }
}

impl CallOptions {
    /// Calls that end after `deadline`, whatever is answered.
    pub fn within(deadline: Duration, attempt: Duration) -> CallOptions {
        CallOptions { deadline, election: deadline, attempt }
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
    /// Those that were configured, and behind them those that were learned of. None ever leaves.
    peers: RwLock<Vec<Peer>>,
    /// Index of the peer that answered last, or that is the likeliest to; all clones profit from what one learned.
    preferred: AtomicUsize,
    /// How peers are reached that were learned of; absent where every peer is known from the start.
    connect: Option<Connect>,
}

type Peer = (String, Arc<dyn MgmtdApi>);
type Connect = Box<dyn Fn(&str) -> Result<Arc<dyn MgmtdApi>, Failure> + Send + Sync>;

/// No cluster has as many mgmtd; a bound all the same, against a peer gone mad.
const MAX_PEERS: usize = 16;

impl MgmtdClient {
    /// Over gRPC. `addresses` are `host:port`; nothing is connected before the first call. Must be called inside a tokio runtime.
    pub fn connect(
        cluster: ClusterId,
        addresses: &[String],
        auth: ClientAuth,
        options: CallOptions,
    ) -> Result<MgmtdClient, Failure> {
        let connect = move |address: &str| {
            let peer = GrpcMgmtd::new(address, auth.clone(), options.attempt)?;
            Ok(Arc::new(peer) as Arc<dyn MgmtdApi>)
        };
        let peers = addresses
            .iter()
            .map(|address| Ok((address.clone(), connect(address)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        if peers.is_empty() {
            return Err(Failure::new(
                Status::Invalid,
                "no mgmtd address is configured: set `mgmtd = [\"host:port\"]`",
            ));
        }
        Ok(MgmtdClient::with(cluster, peers, Some(Box::new(connect)), options))
    }

    /// Over any implementation of the calls. Names are for messages, and are what a stand-by calls the primary. At least one peer is
    /// needed.
    pub fn new(
        cluster: ClusterId,
        peers: Vec<(String, Arc<dyn MgmtdApi>)>,
        options: CallOptions,
    ) -> MgmtdClient {
        MgmtdClient::with(cluster, peers, None, options)
    }

    fn with(
        cluster: ClusterId,
        peers: Vec<Peer>,
        connect: Option<Connect>,
        options: CallOptions,
    ) -> MgmtdClient {
        assert!(!peers.is_empty(), "a mgmtd client without any mgmtd");
        let (peers, preferred) = (RwLock::new(peers), AtomicUsize::new(0));
        MgmtdClient { shared: Arc::new(Shared { cluster, peers, preferred, connect }), options }
    }

    /// Other mgmtd of the cluster, `host:port`: asked when those that were configured do not answer.
    pub fn learn<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) {
        for address in addresses {
            self.shared.index_of(address);
        }
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

    /// Serves a chain that is down from a target that an operator names (R29); `request.cluster` is filled in.
    pub async fn recover_chain(
        &self,
        mut request: RecoverChainRequest,
    ) -> Result<RecoverChainReply, Failure> {
        request.cluster = self.cluster_bytes();
        self.call(Duration::ZERO, true, move |peer| {
            let request = request.clone();
            Box::pin(async move { peer.recover_chain(request).await })
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

    /// Asks one peer after the other, beginning with the one that answered last and going where stand-bys point, until one answers as
    /// primary or time is over. `extra` is time that the call may take by its nature; `again` says whether a call that may have been
    /// carried out is repeated.
    async fn call<T>(
        &self,
        extra: Duration,
        again: bool,
        call: impl Fn(Arc<dyn MgmtdApi>) -> BoxFuture<'static, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let shared = &*self.shared;
        let begun = Instant::now();
        let mut deadline = begun + self.options.deadline + extra;
        let mut pause = Duration::from_millis(10);
        loop {
            let mut last = Failure::from(Status::NoPrimary);
            let mut tried = Vec::new();
            let mut next = Some(shared.preferred.load(Relaxed));
            while let Some(index) = next {
                tried.push(index);
                let (name, peer) = shared.peers.read()[index].clone();
                let until = deadline.min(Instant::now() + self.options.attempt + extra);
                let outcome = timeout_at(until, call(peer)).await.unwrap_or_else(|_| {
                    Err(Failure::new(Status::Disconnected, "no answer in time; is it running and reachable?"))
                });
                let failure = match outcome {
                    Ok(reply) => {
                        shared.preferred.store(index, Relaxed);
                        return Ok(reply);
                    }
                    Err(failure) if elsewhere(failure.status) => failure,
                    Err(failure) => return Err(failure),
                };
                if failure.status == Status::NoPrimary {
                    deadline = deadline.max(begun + self.options.election + extra);
                }
                next = shared.after(index, &tried, failure.primary.as_deref());
                // Also for the next call: with a short deadline, one who does not answer must not be all that is ever asked.
                let likelier = next.unwrap_or_else(|| shared.beside(index));
                let _ = shared.preferred.compare_exchange(index, likelier, Relaxed, Relaxed);
                last = Failure { message: format!("mgmtd {name}: {}", failure.message), ..failure };
                if last.status == Status::Disconnected && !again {
                    return Err(last);
                }
                if Instant::now() >= deadline {
                    return Err(last);
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

impl Shared {
    /// The peer with this name, which is made if it can be.
    fn index_of(&self, address: &str) -> Option<usize> {
        let find = |peers: &[Peer]| peers.iter().position(|(name, _)| name == address);
        if let Some(known) = find(&self.peers.read()) {
            return Some(known);
        }
        let peer = self.connect.as_ref().and_then(|connect| connect(address).ok())?;
        let mut peers = self.peers.write();
        if let Some(known) = find(&peers) {
            return Some(known);
        }
        if peers.len() >= MAX_PEERS {
            return None;
        }
        peers.push((address.to_owned(), peer));
        Some(peers.len() - 1)
    }

    /// Whom to ask after `index`: the one it points to, else the next in turn.
    fn after(&self, index: usize, tried: &[usize], hint: Option<&str>) -> Option<usize> {
        let hinted = hint.and_then(|address| self.index_of(address));
        let count = self.peers.read().len();
        let turn = (1..count).map(|step| (index + step) % count);
        hinted.into_iter().chain(turn).find(|candidate| !tried.contains(candidate))
    }

    fn beside(&self, index: usize) -> usize {
        (index + 1) % self.peers.read().len()
    }
}

/// Statuses that say nothing about the request, only that this peer is not the one to ask.
fn elsewhere(status: Status) -> bool {
    matches!(status, Status::NoPrimary | Status::Disconnected | Status::ShuttingDown | Status::TimedOut)
}
