//! A running service: the socket around a [`Member`], and the way to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::Database;
use catena_mgmtd_client::{CallOptions, MgmtdClient, RoutingWatch};
use catena_net::Transport;
use catena_proto::clock::Clock;
use catena_proto::pb::meta_server::MetaServer;
use catena_proto::rpc::{ClientAuth, Failure, ServerAuth};
use catena_rt::JoinHandle;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::chunks::Chunks;
use crate::config::{Config, ConfigError};
use crate::member::Member;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::skin::Skin;

/// How long a stop waits for calls under way.
const STOP: Duration = Duration::from_secs(5);
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
    member: Member,
    address: SocketAddr,
    advertised: String,
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
    let member = Member::new(&config, env, db, transport, mgmtd).await?;
    serve(config, member).await
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
    let member = Member::on(&config, env, db, chunks, routing, mgmtd).await?;
    serve(config, member).await
}

async fn serve(config: Config, mut member: Member) -> Result<Running, StartError> {
    let listen_error = |source| StartError::Listen { address: config.listen.clone(), source };
    let listener = TcpListener::bind(&config.listen).await.map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());

    let auth = ServerAuth::new(config.cluster, config.token);
    let skin = MetaServer::new(Skin(member.service().clone())).max_decoding_message_size(MAX_REQUEST);
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
    member.join(&advertised, std::process::id()).await?;
    Ok(Running { member, address, advertised, stop: Some(stop), server })
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
        self.member.service()
    }

    /// Makes the service's counters known to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let metrics: &Metrics = self.service().metrics();
        metrics.register(registry);
    }

    /// Resolves when the service cannot go on, with the reason.
    pub async fn failed(&self) -> Failure {
        self.member.failed().await
    }

    /// Stops cleanly: mgmtd is told, so that clients go elsewhere, calls under way are finished, and the background work ends.
    pub async fn stop(mut self) {
        self.member.leave().await;
        drop(self.stop.take());
        let abort = self.server.abort_handle();
        match catena_rt::time::timeout(STOP, &mut self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(outcome) => tracing::warn!(?outcome, "the metadata service's socket did not close cleanly"),
            Err(_) => abort.abort(),
        }
        self.member.close().await;
        tracing::info!(address = %self.advertised, "metadata service has stopped");
    }
}
