//! A metadata service without its socket: what [`start`](crate::start) puts gRPC around, and what the simulator runs as it is.
//!
//! In this order: the store is looked at, then whoever owns the network makes [`Member::service`] reachable, and then [`Member::join`]
//! tells mgmtd where. So nobody is sent to a service that does not answer yet. Nothing here takes time, randomness or a network from
//! anywhere but its arguments.

use std::sync::Arc;
use std::time::Duration;

use catena_kv::Database;
use catena_mgmtd_client::{
    ClientSession, HeartbeatOptions, Heartbeats, MgmtdClient, Report, RoutingWatch, WatchOptions,
};
use catena_net::Transport;
use catena_proto::clock::Clock;
use catena_proto::ids::ClientId;
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_storage_client::{Options as StorageOptions, StorageClient};

use crate::chunks::Chunks;
use crate::config::Config;
use crate::service::{Background, Parts, Service, Settings};
use crate::sessions::Clients;
use crate::start::{Env, StartError};

/// How long a stop waits for mgmtd.
const STOP: Duration = Duration::from_secs(5);
/// How long a start waits for mgmtd.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service on its store. It answers as soon as it is made; it works in the background and is known to others after [`Member::join`].
pub struct Member {
    service: Arc<Service>,
    clock: Arc<dyn Clock>,
    incarnation: u64,
    node: u32,
    metrics: String,
    routing: RoutingWatch,
    mgmtd: Option<MgmtdClient>,
    session: Option<ClientSession>,
    heartbeats: Option<Heartbeats>,
    background: Option<Background>,
}

impl Member {
    /// On the storage services that `transport` reaches and the chains that `mgmtd` knows.
    pub async fn new(
        config: &Config,
        env: Env,
        db: Arc<dyn Database>,
        transport: Arc<dyn Transport>,
        mgmtd: MgmtdClient,
    ) -> Result<Member, StartError> {
        config.validate()?;
        let options = WatchOptions { seed: env.seed, ..WatchOptions::default() };
        let routing = RoutingWatch::spawn(mgmtd.clone(), options);
        // The chunk store tags this service's mutations with a client's identity, and forgets those of dead clients.
        let client = ClientId(env.seed.rotate_left(32) | 1);
        let description = format!("metadata service, node {}", config.node);
        let session =
            ClientSession::start(mgmtd.clone(), client, description).await.map_err(StartError::Register)?;
        let options = StorageOptions { seed: env.seed, ..StorageOptions::default() };
        let chunks = Arc::new(StorageClient::new(transport, routing.clone(), client, options));
        let mut member = Member::on(config, env, db, chunks, routing, Some(mgmtd)).await?;
        member.session = Some(session);
        Ok(member)
    }

    /// On given chunks and routing information. Without mgmtd it registers nowhere and ends no dead clients' sessions.
    pub async fn on(
        config: &Config,
        env: Env,
        db: Arc<dyn Database>,
        chunks: Arc<dyn Chunks>,
        routing: RoutingWatch,
        mgmtd: Option<MgmtdClient>,
    ) -> Result<Member, StartError> {
        config.validate()?;
        let Env { clock, seed } = env;
        let parts = Parts { db, chunks, routing: routing.clone(), clock: clock.clone(), seed };
        let service = Service::new(Settings::from(config), parts);
        while let Err(failure) = service.initialise().await {
            // It tried for a while. A store that is away comes back; whoever waits for this service need not start it again.
            if failure.status != Status::Busy {
                return Err(StartError::Store(failure));
            }
            tracing::warn!(%failure, "the metadata store does not answer; waiting for it");
        }
        Ok(Member {
            service,
            clock,
            incarnation: seed,
            node: config.node,
            metrics: config.metrics.clone().unwrap_or_default(),
            routing,
            mgmtd,
            session: None,
            heartbeats: None,
            background: None,
        })
    }

    /// Registers with mgmtd, which tells everyone that the service answers at `address`, and begins the background work. `process` is
    /// for people.
    pub async fn join(&mut self, address: &str, process: u32) -> Result<(), StartError> {
        if let Some(mgmtd) = &self.mgmtd {
            let node = pb::Node {
                id: self.node,
                kind: pb::NodeKind::Meta as i32,
                control_address: address.to_owned(),
                metrics_address: self.metrics.clone(),
                incarnation: self.incarnation,
                pid: process,
                ..Default::default()
            };
            let routing = self.routing.clone();
            let report = move || Report { routing_version: routing.version(), ..Report::default() };
            let options = HeartbeatOptions { patience: PATIENCE };
            let started = Heartbeats::start(mgmtd.clone(), node, self.clock.clone(), report, options).await;
            let heartbeats = started.map_err(StartError::Register)?;
            self.service.follow_lease(heartbeats.term());
            self.heartbeats = Some(heartbeats);
        }
        tracing::info!(node = self.node, address, "metadata service is up");
        let clients = self.mgmtd.clone().map(|mgmtd| Arc::new(mgmtd) as Arc<dyn Clients>);
        self.background = Some(self.service.background(clients));
        Ok(())
    }

    /// The calls.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Resolves when the service cannot go on, with the reason.
    pub async fn failed(&self) -> Failure {
        let unregistered = async {
            match &self.heartbeats {
                Some(heartbeats) => heartbeats.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            failure = unregistered => failure,
            error = self.service.store_failed() => {
                Failure::new(Status::ShuttingDown, format!("the metadata store failed: {error}"))
            }
        }
    }

    /// Tells mgmtd that this service stops, so that clients go elsewhere, and ends the background work. Calls are still answered.
    pub async fn leave(&mut self) {
        if let Some(heartbeats) = self.heartbeats.take() {
            heartbeats.stop(STOP).await;
        }
        self.background = None;
    }

    /// The end of a service that has left and answers no more.
    pub async fn close(mut self) {
        if let Some(session) = self.session.take() {
            session.close(STOP).await;
        }
    }
}
