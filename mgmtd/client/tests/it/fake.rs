//! A mgmtd that does as it is told and remembers what it was asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_mgmtd_client::{CallOptions, MgmtdApi, MgmtdClient};
use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_proto::ids::{ClusterId, NodeId, RoutingVersion};
use catena_proto::pb::{self, *};
use catena_proto::routing::RoutingInfo;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::Instant;
use parking_lot::Mutex;
use tokio::sync::watch;

pub const CLUSTER: ClusterId = ClusterId(7);
pub const LEASE: Duration = Duration::from_secs(8);

/// The clock that paused time drives.
pub struct TokioClock(Instant);

impl TokioClock {
    pub fn shared() -> Arc<TokioClock> {
        Arc::new(TokioClock(Instant::now()))
    }
}

impl Clock for TokioClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.0.elapsed())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
}

/// What the fake does with the next calls.
#[derive(Clone, Debug)]
pub enum Mood {
    Answer,
    Refuse(Status),
    /// Stands by, and says who is primary.
    Redirect(&'static str),
    /// Never answers.
    Silent,
    /// Takes its time over every call.
    Late(Duration),
}

pub struct Fake {
    pub mood: Mutex<Mood>,
    /// Moods of the next calls, before `mood` holds again.
    pub script: Mutex<VecDeque<Mood>>,
    pub routing: watch::Sender<RoutingInfo>,
    pub heartbeats: Mutex<Vec<(Instant, HeartbeatRequest)>>,
    pub registrations: Mutex<Vec<pb::Node>>,
    /// It takes heartbeats for overtaken ones, which renew nothing.
    pub renews_nothing: Mutex<bool>,
    pub sessions: Mutex<Vec<ClientSessionRequest>>,
    pub renewed: Mutex<Vec<u64>>,
    pub calls: Mutex<u64>,
}

impl Fake {
    pub fn new() -> Arc<Fake> {
        Arc::new(Fake {
            mood: Mutex::new(Mood::Answer),
            script: Mutex::default(),
            routing: watch::Sender::new(RoutingInfo::default()),
            heartbeats: Mutex::default(),
            registrations: Mutex::default(),
            renews_nothing: Mutex::default(),
            sessions: Mutex::default(),
            renewed: Mutex::default(),
            calls: Mutex::new(0),
        })
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    pub fn script(&self, moods: impl IntoIterator<Item = Mood>) {
        self.script.lock().extend(moods);
    }

    pub fn calls(&self) -> u64 {
        *self.calls.lock()
    }

    pub fn publish(&self, version: u64) {
        self.routing.send_replace(routing(version));
    }

    async fn enter(&self) -> Result<(), Failure> {
        *self.calls.lock() += 1;
        let scripted = self.script.lock().pop_front();
        let mood = scripted.unwrap_or_else(|| self.mood.lock().clone());
        match mood {
            Mood::Answer => Ok(()),
            Mood::Refuse(status) => Err(status.into()),
            Mood::Redirect(to) => Err(Failure::from(Status::NoPrimary).redirected(to)),
            Mood::Silent => std::future::pending().await,
            Mood::Late(by) => {
                catena_rt::time::sleep(by).await;
                Ok(())
            }
        }
    }
}

pub fn routing(version: u64) -> RoutingInfo {
    let node = pb::Node { id: 1, ..Default::default() };
    RoutingInfo {
        version: RoutingVersion(version),
        cluster: CLUSTER,
        nodes: [(NodeId(1), node)].into(),
        ..Default::default()
    }
}

pub fn client(peers: &[&Arc<Fake>]) -> MgmtdClient {
    let peers = peers
        .iter()
        .enumerate()
        .map(|(i, peer)| (format!("m{i}"), Arc::clone(peer) as Arc<dyn MgmtdApi>))
        .collect();
    MgmtdClient::new(CLUSTER, peers, CallOptions::default())
}

/// Lets spawned tasks run until nothing is left to do at this moment.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl MgmtdApi for Fake {
    async fn register(&self, request: RegisterRequest) -> Result<RegisterReply, Failure> {
        self.enter().await?;
        self.registrations.lock().push(request.node.unwrap_or_default());
        Ok(RegisterReply { lease_ms: LEASE.as_millis() as u64, routing_version: 5 })
    }
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatReply, Failure> {
        self.heartbeats.lock().push((Instant::now(), request));
        self.enter().await?;
        let renewed = self.renewed.lock().clone();
        let lease_ms = LEASE.as_millis() as u64;
        let service_renewed = !*self.renews_nothing.lock();
        Ok(HeartbeatReply { routing_version: 5, renewed, lease_ms, service_renewed })
    }
    async fn get_routing(&self, request: GetRoutingRequest) -> Result<GetRoutingReply, Failure> {
        self.enter().await?;
        let mut routing = self.routing.subscribe();
        let newer = routing.wait_for(|info| info.version.0 > request.known_version);
        let wait = Duration::from_millis(request.wait_ms);
        let routing = match tokio::time::timeout(wait, newer).await {
            Ok(Ok(info)) => Some((&*info).into()),
            _ => None,
        };
        Ok(GetRoutingReply { routing, ..Default::default() })
    }
    async fn create_table(&self, _: CreateTableRequest) -> Result<CreateTableReply, Failure> {
        self.enter().await?;
        Ok(CreateTableReply { routing_version: 6, ..Default::default() })
    }
    async fn recover_chain(&self, _: RecoverChainRequest) -> Result<RecoverChainReply, Failure> {
        self.enter().await?;
        Ok(RecoverChainReply::default())
    }
    async fn extend_client_session(
        &self,
        request: ClientSessionRequest,
    ) -> Result<ClientSessionReply, Failure> {
        self.enter().await?;
        self.sessions.lock().push(request);
        Ok(ClientSessionReply { lease_ms: LEASE.as_millis() as u64 })
    }
    async fn list_clients(&self, _: ListClientsRequest) -> Result<ListClientsReply, Failure> {
        self.enter().await?;
        Ok(ListClientsReply::default())
    }
}
