//! Starting and stopping a mgmtd: the service, its ticker, and gRPC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::Database;
use catena_proto::clock::Clock;
use catena_proto::ids::{Incarnation, NodeId};
use catena_proto::pb::mgmtd_server::MgmtdServer;
use catena_proto::rpc::ServerAuth;
use catena_rt::JoinHandle;
use catena_rt::time::timeout;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tracing::info;

use crate::config::{Config, ConfigError};
use crate::service::{Parts, Service};
use crate::skin::Skin;
use crate::store::StoreError;

/// How long calls under way may take to end at a stop.
const DRAIN: Duration = Duration::from_millis(500);

/// What a mgmtd takes from outside.
#[derive(Clone)]
pub struct Env {
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// All randomness derives from it; it must be another one with every start.
    pub seed: u64,
}

/// Why a mgmtd did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address.
    #[error("cannot listen on {address}: {error}; is another process using it? Choose another `listen`")]
    Listen {
        /// As configured.
        address: String,
        /// The system's word.
        error: std::io::Error,
    },
}

/// A running mgmtd.
pub struct Running {
    service: Arc<Service>,
    address: SocketAddr,
    ticker: JoinHandle<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    stop: oneshot::Sender<()>,
}

/// Starts a mgmtd on `db`, which other mgmtd may share: one is primary, the others stand by.
pub async fn start(config: Config, env: Env, db: Arc<dyn Database>) -> Result<Running, StartError> {
    config.validate()?;
    // The port first: a second process on the same configuration stops here, before it touches anything.
    let listen = |error| StartError::Listen { address: config.listen.clone(), error };
    let listener = TcpListener::bind(&config.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let advertise = config.advertise.clone().unwrap_or_else(|| address.to_string());
    let service = Service::open(Parts {
        cluster: config.cluster,
        node: NodeId(config.node),
        incarnation: Incarnation(env.seed.max(1)),
        address: advertise,
        metrics: config.metrics.clone().unwrap_or_default(),
        pid: std::process::id(),
        lease: config.lease,
        client_lease: config.client_lease,
        clock: env.clock,
        seed: env.seed,
        db,
        exclusive: config.store.is_exclusive(),
    })
    .await?;
    let ticker = catena_rt::spawn(service.clone().run());
    let (stop, stopped) = oneshot::channel();
    let auth = ServerAuth::new(config.cluster, config.token);
    let server = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(config.lease))
        .add_service(MgmtdServer::with_interceptor(Skin(service.clone()), auth))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let _ = stopped.await;
        });
    let server = catena_rt::spawn(server);
    info!(
        %address,
        node = config.node,
        cluster = %config.cluster,
        lease = ?config.lease,
        primary = service.is_primary(),
        "mgmtd is up"
    );
    Ok(Running { service, address, ticker, server, stop })
}

impl Running {
    /// The bound gRPC address.
    pub fn control_address(&self) -> SocketAddr {
        self.address
    }

    /// The service without its network, for tools in the same process.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Adds the metrics, under `mgmtd_`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.service.metrics().register(registry);
    }

    /// Resolves with the reason when the service cannot go on.
    pub async fn failed(&self) -> String {
        self.service.failed().await
    }

    /// Ends here and now, as a crash would: nothing is given up and nobody is told.
    pub fn abort(self) {
        self.ticker.abort();
        self.server.abort();
    }

    /// Stops. Everything is in the store already.
    pub async fn stop(mut self) {
        self.service.stop().await;
        self.ticker.abort();
        let _ = self.stop.send(());
        if timeout(DRAIN, &mut self.server).await.is_err() {
            self.server.abort();
            let _ = self.server.await;
        }
        info!("mgmtd stopped");
    }
}
