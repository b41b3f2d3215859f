//! A mgmtd without its network: the calls, as plain async functions that gRPC or the simulator brings here, answered by the
//! `Reign` if this one is primary and with the primary's address if not.

use std::sync::Arc;
use std::time::Duration;

use catena_kv::Database;
use catena_proto::clock::Clock;
use catena_proto::ids::*;
use catena_proto::pb::*;
use catena_proto::routing::wide_bytes;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::timeout;
use tokio::sync::{Mutex, watch};
use tracing::{error, info, warn};

use crate::campaign::Campaign;
use crate::election::Candidate;
use crate::metrics::Metrics;
use crate::record::{LeaseRecord, MemberRecord};
use crate::reign::{Over, Reign};
use crate::store::{Store, StoreError};

/// How long a stop may take to give up the lease; without that it runs out.
const RELEASE: Duration = Duration::from_secs(1);

/// What a [`Service`] is made of.
pub struct Parts {
    /// The cluster.
    pub cluster: ClusterId,
    /// This mgmtd's number.
    pub node: NodeId,
    /// This start of it; no two starts of any mgmtd have the same.
    pub incarnation: Incarnation,
    /// Where others reach it, `host:port`.
    pub address: String,
    /// Where its metrics are, for people.
    pub metrics: String,
    /// Its process, for people.
    pub pid: u32,
    /// Lease time T of services, and of the primary.
    pub lease: Duration,
    /// Lease of clients' sessions.
    pub client_lease: Duration,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// For pauses between retries.
    pub seed: u64,
    /// The store.
    pub db: Arc<dyn Database>,
    /// No other process can be using the store (its directory is locked): whoever was primary there has ended, and is not waited for.
    pub exclusive: bool,
}

/// A mgmtd without its network. Share it in an `Arc`.
pub struct Service {
    cluster: ClusterId,
    pub(crate) own: Candidate,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    role: watch::Sender<Role>,
    campaign: Mutex<Campaign>,
}

/// What this mgmtd is at the moment.
#[derive(Clone)]
enum Role {
    /// Somebody else is primary, or nobody.
    StandBy { primary: Option<LeaseRecord> },
    /// This one.
    Primary(Arc<Reign>),
    /// It stops, or may not go on.
    Ended(End),
}

/// Why nothing is answered any more.
#[derive(Clone, Debug)]
enum End {
    /// It may not go on.
    Failed(String),
    /// It was told to stop.
    Stopped,
}

impl Service {
    /// Opens the store. Returns as primary if nobody else may be, for example because the store is empty; otherwise as a stand-by.
    /// Nothing happens by itself before [`Service::run`] is polled, not even the renewal of the lease.
    pub async fn open(parts: Parts) -> Result<Arc<Service>, StoreError> {
        let Parts { cluster, node, incarnation, address, metrics, pid, clock, seed, db, exclusive, .. } =
            parts;
        let own = Candidate {
            node: node.0,
            incarnation: incarnation.0,
            address: address.clone(),
            lease: parts.lease,
            client_lease: parts.client_lease,
            exclusive,
        };
        let member =
            MemberRecord { node: node.0, incarnation: incarnation.0, beat: 0, address, metrics, pid };
        let service = Arc::new(Service {
            cluster,
            campaign: Mutex::new(Campaign::new(own.clone(), member)),
            own,
            clock,
            store: Store::new(db, cluster, seed),
            metrics: Arc::default(),
            role: watch::Sender::new(Role::StandBy { primary: None }),
        });
        service.metrics.role(false);
        service.campaign.lock().await.open(&service).await?;
        Ok(service)
    }

    /// Takes part in the election and watches over leases, until the service fails or is stopped.
    pub async fn run(self: Arc<Self>) {
        let mut role = self.role.subscribe();
        let mut campaign = self.campaign.lock().await;
        tokio::select! {
            biased;
            _ = role.wait_for(|role| matches!(role, Role::Ended(_))) => {}
            () = campaign.run(&self) => {}
        }
    }

    /// A service starts.
    pub async fn register(&self, request: RegisterRequest) -> Result<RegisterReply, Failure> {
        let cluster = request.cluster.clone();
        self.call("register", &cluster, true, async |reign| reign.register(request).await).await
    }

    /// A service lives.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatReply, Failure> {
        let cluster = request.cluster.clone();
        self.call("heartbeat", &cluster, true, async |reign| reign.heartbeat(request).await).await
    }

    /// Routing information newer than what the caller has; see `Reign::get_routing`.
    pub async fn get_routing(&self, request: GetRoutingRequest) -> Result<GetRoutingReply, Failure> {
        let cluster = request.cluster.clone();
        self.call("get_routing", &cluster, true, async |reign| reign.get_routing(request).await).await
    }

    /// Makes a chain table.
    pub async fn create_table(&self, request: CreateTableRequest) -> Result<CreateTableReply, Failure> {
        let (cluster, again) = (request.cluster.clone(), !request.request.is_empty());
        self.call("create_table", &cluster, again, async |reign| reign.create_table(request).await).await
    }

    /// Serves a chain that is down from a target that an operator names (R29).
    pub async fn recover_chain(&self, request: RecoverChainRequest) -> Result<RecoverChainReply, Failure> {
        let cluster = request.cluster.clone();
        self.call("recover_chain", &cluster, true, async |reign| reign.recover_chain(request).await).await
    }

    /// Opens, extends or closes a client's session.
    pub async fn extend_client_session(
        &self,
        request: ClientSessionRequest,
    ) -> Result<ClientSessionReply, Failure> {
        let cluster = request.cluster.clone();
        let work = async |reign: Arc<Reign>| reign.extend_client_session(request).await;
        self.call("extend_client_session", &cluster, true, work).await
    }

    /// The clients with a live session.
    pub async fn list_clients(&self, request: ListClientsRequest) -> Result<ListClientsReply, Failure> {
        self.call("list_clients", &request.cluster, true, async |reign| reign.list_clients().await).await
    }

    /// A call that only a primary answers: before it, it has to be one, and after the work again, because the process may have been
    /// paused meanwhile (R24; the order is R11's). `again`: a call that was carried out may be repeated.
    async fn call<T>(
        &self,
        name: &'static str,
        cluster: &[u8],
        again: bool,
        work: impl AsyncFnOnce(Arc<Reign>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let outcome = match self.admit(cluster) {
            Ok(reign) => {
                let outcome = work(reign.clone()).await;
                if let Some(Over::Failed(reason)) = reign.ended() {
                    self.fail(reason);
                    outcome.and_then(|_| Err(self.refusal()))
                } else if reign.answers() {
                    outcome
                } else if again {
                    Err(self.refusal())
                } else {
                    // Not "no primary", which would mean that nothing was done.
                    Err(outcome.map_or_else(|failure| failure, |_| Failure {
                        status: Status::Disconnected,
                        message: "this mgmtd lost the role of the primary while it answered; whether the request was carried out is not known".into(),
                        ..self.refusal()
                    }))
                }
            }
            Err(failure) => Err(failure),
        };
        self.metrics.called(name, outcome.as_ref().err().map(|failure| failure.status));
        outcome
    }

    fn admit(&self, cluster: &[u8]) -> Result<Arc<Reign>, Failure> {
        if cluster != &wide_bytes(self.cluster.0)[..] {
            let message = format!("this is cluster {}; the request is for another one", self.cluster);
            return Err(Failure::new(Status::WrongCluster, message));
        }
        match &*self.role.borrow() {
            Role::Primary(reign) if reign.answers() => return Ok(reign.clone()),
            _ => {}
        }
        Err(self.refusal())
    }

    /// What those are told who ask while this one is not primary.
    fn refusal(&self) -> Failure {
        match &*self.role.borrow() {
            Role::Ended(End::Failed(reason)) => Failure::new(Status::NoPrimary, reason.clone()),
            Role::Ended(End::Stopped) => Failure::new(Status::ShuttingDown, "this mgmtd is stopping"),
            Role::StandBy { primary: Some(lease) } => {
                let message = format!(
                    "n{} stands by; the primary mgmtd is n{} at {}",
                    self.own.node, lease.holder, lease.address
                );
                Failure::new(Status::NoPrimary, message).redirected(&lease.address)
            }
            Role::StandBy { primary: None } => {
                let message = format!("n{} stands by, and no mgmtd is primary now", self.own.node);
                Failure::new(Status::NoPrimary, message)
            }
            Role::Primary(_) => {
                let message = format!("n{} may be primary no longer; it finds out", self.own.node);
                Failure::new(Status::NoPrimary, message)
            }
        }
    }

    /// The reason why this process cannot go on, once there is one.
    pub async fn failed(&self) -> String {
        let mut role = self.role.subscribe();
        let failed = role.wait_for(|role| matches!(role, Role::Ended(End::Failed(_)))).await;
        let reason = failed.ok().and_then(|role| match &*role {
            Role::Ended(End::Failed(reason)) => Some(reason.clone()),
            _ => None,
        });
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// The present term, if this one is primary.
    pub(crate) fn reign(&self) -> Option<Arc<Reign>> {
        match &*self.role.borrow() {
            Role::Primary(reign) => Some(reign.clone()),
            _ => None,
        }
    }

    /// Whether it is primary and may answer.
    pub fn is_primary(&self) -> bool {
        matches!(&*self.role.borrow(), Role::Primary(reign) if reign.answers())
    }

    /// Resolves when it is primary and may answer.
    pub async fn elected(&self) {
        let mut role = self.role.subscribe();
        let answers = |role: &Role| matches!(role, Role::Primary(reign) if reign.answers());
        let elected = role.wait_for(answers).await.is_ok();
        if !elected {
            std::future::pending().await
        }
    }

    /// Answers nothing from now on, ends long polls, and gives up the lease, so that a stand-by need not wait for its end.
    pub async fn stop(&self) {
        self.end(End::Stopped);
        // Whatever `run` had under way ends first: a lease that is being taken is given up too.
        let release = async {
            let _campaign = self.campaign.lock().await;
            self.store.release(NodeId(self.own.node), self.own.incarnation, RELEASE).await
        };
        match timeout(RELEASE, release).await {
            Ok(Ok(true)) => info!("the role of the primary is given up"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => warn!(%error, "the lease could not be given up; it runs out"),
            Err(_) => warn!("the store does not answer; the lease runs out by itself"),
        }
    }

    /// The counters, for `/metrics`.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A term begins.
    pub(crate) fn crown(&self, reign: Arc<Reign>) {
        self.become_role(Role::Primary(reign));
        self.metrics.role(true);
        self.metrics.takeovers.inc();
    }

    /// It is a stand-by, and `primary` may be primary.
    pub(crate) fn stand_by(&self, primary: Option<LeaseRecord>) {
        let primary = primary.filter(|lease| !lease.released && lease.incarnation != self.own.incarnation);
        let led = matches!(&*self.role.borrow(), Role::Primary(_));
        let known = match &*self.role.borrow() {
            Role::StandBy { primary } => primary.as_ref().map(|lease| lease.term),
            _ => None,
        };
        if let Some(lease) = primary.as_ref().filter(|lease| known != Some(lease.term)) {
            info!(
                primary = lease.holder,
                address = lease.address,
                term = lease.term,
                "standing by: another mgmtd is primary"
            );
        }
        if self.become_role(Role::StandBy { primary }) && led {
            self.metrics.forget();
        }
        self.metrics.role(false);
    }

    pub(crate) fn fail(&self, reason: String) {
        if self.end(End::Failed(reason.clone())) {
            error!(reason, "mgmtd cannot go on");
        }
    }

    fn end(&self, why: End) -> bool {
        let ended = self.become_role(Role::Ended(why));
        self.metrics.role(false);
        ended
    }

    /// An ended service stays so. The term that this ends answers nothing any more.
    fn become_role(&self, next: Role) -> bool {
        self.role.send_if_modified(|role| match role {
            Role::Ended(_) => {
                if let Role::Primary(reign) = &next {
                    reign.end(Over::Ended);
                }
                false
            }
            _ => {
                if let Role::Primary(reign) = role {
                    reign.end(Over::Ended);
                }
                *role = next;
                true
            }
        })
    }
}
