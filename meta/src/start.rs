//! A running service: sockets, registration with mgmtd, background work, and the way to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::Database;
use catena_mgmtd_client::{
    CallOptions, ClientSession, HeartbeatOptions, Heartbeats, MgmtdClient, Report, RoutingWatch, WatchOptions,
};
use catena_net::Transport;
use catena_proto::clock::Clock;
use catena_proto::ids::ClientId;
use catena_proto::pb;
use catena_proto::pb::meta_server::MetaServer;
use catena_proto::rpc::{ClientAuth, Failure, ServerAuth};
use catena_rt::JoinHandle;
use catena_storage_client::{Options as StorageOptions, StorageClient};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::chunks::Chunks;
use crate::config::{Config, ConfigError};
use crate::metrics::Metrics;
use crate::service::{Background, Parts, Service, Settings};
use crate::sessions::Clients;
use crate::skin::Skin;

/// How long a stop waits for calls under way and for mgmtd.
const STOP: Duration = Duration::from_secs(5);
/// How long a start waits for mgmtd.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest request taken: 1024 long paths and 65536 groups fit.
const MAX_REQUEST: usize = 8 << 20;

/// What a service is given from outside.
#[derive(Clone)]
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// All randomness derives from it; different at every start.
    pub seed: u64,
}

/// Why a service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A key of the configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another service running there?")]
    Listen {
        /// `listen` of the configuration.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The store is not usable, or not this cluster's.
    #[error("the metadata store: {0}")]
    Store(Failure),
    /// mgmtd refused the service or did not answer.
    #[error("cannot register with mgmtd: {0}")]
    Register(Failure),
}

/// A running metadata service.
pub struct Running {
    service: Arc<Service>,
    address: SocketAddr,
    advertised: String,
    background: Background,
    heartbeats: Option<Heartbeats>,
    session: Option<ClientSession>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// Starts a service: registers with mgmtd, follows routing information, speaks with storage services over `transport`.
pub async fn start(
    config: Config,
    env: Env,
    db: Arc<dyn Database>,
    transport: Arc<dyn Transport>,
) -> Result<Running, StartError> {
    config.validate()?;
    let auth = ClientAuth::new(config.cluster, &config.token);
    let mgmtd = MgmtdClient::connect(config.cluster, &config.mgmtd, auth, CallOptions::default())
        .map_err(StartError::Register)?;
    let routing =
        RoutingWatch::spawn(mgmtd.clone(), WatchOptions { seed: env.seed, ..WatchOptions::default() });
    // The chunk store tags this service's mutations with a client's identity, and forgets those of dead clients.
    let client = ClientId(env.seed.rotate_left(32) | 1);
    let description = format!("metadata service, node {}", config.node);
    let session =
        ClientSession::start(mgmtd.clone(), client, description).await.map_err(StartError::Register)?;
    let options = StorageOptions { seed: env.seed, ..StorageOptions::default() };
    let storage = StorageClient::new(transport, routing.clone(), client, options);
    let mut running = start_with(config, env, db, Arc::new(storage), routing, Some(mgmtd)).await?;
    running.session = Some(session);
    Ok(running)
}

/// Starts a service on given chunks and routing information. Without mgmtd it is not registered, so clients must know its address.
pub async fn start_with(
    config: Config,
    env: Env,
    db: Arc<dyn Database>,
    chunks: Arc<dyn Chunks>,
    routing: RoutingWatch,
    mgmtd: Option<MgmtdClient>,
) -> Result<Running, StartError> {
    config.validate()?;
    let listen_error = |source| StartError::Listen { address: config.listen.clone(), source };
    let listener = TcpListener::bind(&config.listen).await.map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());

    let parts = Parts { db, chunks, routing: routing.clone(), clock: env.clock.clone(), seed: env.seed };
    let service = Service::new(Settings::from(&config), parts);
    service.initialise().await.map_err(StartError::Store)?;

    let auth = ServerAuth::new(config.cluster, config.token);
    let skin = MetaServer::new(Skin(service.clone())).max_decoding_message_size(MAX_REQUEST);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_concurrent_streams(1024)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(InterceptedService::new(skin, auth))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            // A dropped sender is a stop too.
            let _ = stopped.await;
        });
    let server = catena_rt::spawn(server);

    let clients = mgmtd.clone().map(|mgmtd| Arc::new(mgmtd) as Arc<dyn Clients>);
    // The socket answers before mgmtd tells anyone about it.
    let heartbeats = match mgmtd {
        None => None,
        Some(mgmtd) => {
            let node = pb::Node {
                id: config.node,
                kind: pb::NodeKind::Meta as i32,
                control_address: advertised.clone(),
                metrics_address: config.metrics.clone().unwrap_or_default(),
                incarnation: env.seed,
                pid: std::process::id(),
                ..Default::default()
            };
            let report = move || Report { routing_version: routing.version(), ..Report::default() };
            let options = HeartbeatOptions { patience: PATIENCE };
            let started = Heartbeats::start(mgmtd, node, env.clock.clone(), report, options).await;
            Some(started.map_err(StartError::Register)?)
        }
    };
    tracing::info!(node = config.node, address = %advertised, "metadata service is up");
    let background = service.background(clients);
    Ok(Running {
        service,
        address,
        advertised,
        background,
        heartbeats,
        session: None,
        stop: Some(stop),
        server,
    })
}

impl Running {
    /// The address that is listened on, with the real port.
    pub fn control_address(&self) -> SocketAddr {
        self.address
    }

    /// The address that others are told.
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// The calls, without gRPC.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Makes the service's counters known to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let metrics: &Metrics = self.service.metrics();
        metrics.register(registry);
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
                Failure::new(catena_proto::status::Status::ShuttingDown, format!("the metadata store failed: {error}"))
            }
        }
    }

    /// Stops cleanly: mgmtd is told, so that clients go elsewhere, calls under way are finished, and the background work ends.
    pub async fn stop(mut self) {
        if let Some(heartbeats) = self.heartbeats.take() {
            heartbeats.stop(STOP).await;
        }
        drop(self.background);
        drop(self.stop.take());
        let abort = self.server.abort_handle();
        match catena_rt::time::timeout(STOP, &mut self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(outcome) => tracing::warn!(?outcome, "the metadata service's socket did not close cleanly"),
            Err(_) => abort.abort(),
        }
        if let Some(session) = self.session.take() {
            session.close(STOP).await;
        }
        tracing::info!(address = %self.advertised, "metadata service has stopped");
    }
}
