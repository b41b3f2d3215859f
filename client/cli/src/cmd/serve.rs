//! `catena serve`: one service in this process, from its configuration file to its clean stop.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use catena_buf::{BufPool, PoolConfig};
use catena_kv::local::Store;
use catena_kv::{Database, MemDatabase, StoreConfig};
use catena_kv_embedded::{EmbeddedDatabase, Options};
use catena_net::{Identity, PeerId, Transport, TransportConfig};
use catena_proto::ids::{ClusterId, Incarnation, NodeId};
use catena_proto::token::Token;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::args::{ServeArgs, ServeCommand};
use crate::clock::SystemClock;
use crate::cmd::config::{load_kv, load_meta, load_mgmtd, load_storage};
use crate::exit::{Failure, Result};
use crate::signals::Stop;
use crate::{logging, metrics};

/// The pool of a metadata service, which moves no bulk data but needs a transport.
const META_POOL: usize = 64 << 20;

/// A stop that takes longer than this hangs.
const ORPHAN_LIMIT: Duration = Duration::from_secs(20);

/// Runs `catena serve`.
pub async fn run(command: ServeCommand) -> Result<()> {
    match command {
        ServeCommand::Mgmtd(args) => mgmtd(&args).await,
        ServeCommand::Meta(args) => meta(&args).await,
        ServeCommand::Storage(args) => storage(&args).await,
        ServeCommand::Kv(args) => kv(&args).await,
    }
}

async fn mgmtd(args: &ServeArgs) -> Result<()> {
    let loaded = load_mgmtd(&args.config)?;
    logging::for_service(&loaded.log)?;
    let config = loaded.config;
    let endpoint = bind_metrics(config.metrics.as_deref()).await?;
    let db = open_store(&config.store, config.cluster, &config.token)?;
    let env = catena_mgmtd::Env { clock: Arc::new(SystemClock::new()), seed: rand::random() };
    let mut end = End::new(args)?;
    let Some(running) = end.unless(catena_mgmtd::start(config, env, db)).await? else { return Ok(()) };
    let mut registry = registry();
    running.register_metrics(&mut registry);
    serve_metrics(endpoint, registry);
    let outcome = end.or_failure(running.failed()).await;
    running.stop().await;
    outcome
}

async fn meta(args: &ServeArgs) -> Result<()> {
    let loaded = load_meta(&args.config)?;
    logging::for_service(&loaded.log)?;
    let config = loaded.config;
    let endpoint = bind_metrics(config.metrics.as_deref()).await?;
    let db = open_store(&config.store, config.cluster, &config.token)?;
    let env = catena_meta::Env { clock: Arc::new(SystemClock::new()), seed: rand::random() };
    let identity = Identity {
        cluster: config.cluster,
        token: config.token,
        peer: PeerId::Node(NodeId(config.node)),
        incarnation: Incarnation(env.seed),
    };
    let pool =
        BufPool::new(PoolConfig::client(META_POOL)).map_err(|error| Failure::failed(error.to_string()))?;
    let transport = open_transport(&config.transport, identity, pool)?;
    let mut end = End::new(args)?;
    let Some(running) = end.unless(catena_meta::start(config, env, db, transport)).await? else {
        return Ok(());
    };
    let mut registry = registry();
    running.register_metrics(&mut registry);
    serve_metrics(endpoint, registry);
    let outcome = end.or_failure(running.failed()).await;
    running.stop().await;
    outcome
}

async fn storage(args: &ServeArgs) -> Result<()> {
    let loaded = load_storage(&args.config)?;
    logging::for_service(&loaded.log)?;
    let config = loaded.config;
    let endpoint = bind_metrics(config.metrics.as_deref()).await?;
    let incarnation = Incarnation(rand::random());
    let env = catena_storage::Env::new(Arc::new(SystemClock::new()), rand::random(), incarnation);
    let identity = Identity {
        cluster: config.cluster,
        token: config.token,
        peer: PeerId::Node(config.node_id()),
        incarnation,
    };
    let bytes = usize::try_from(config.pool).unwrap_or(usize::MAX);
    let pool =
        BufPool::new(PoolConfig::service(bytes)).map_err(|error| Failure::failed(error.to_string()))?;
    let transport = open_transport(&config.transport, identity, pool)?;
    let mut end = End::new(args)?;
    let Some(running) = end.unless(catena_storage::start(config, env, transport)).await? else {
        return Ok(());
    };
    let mut registry = registry();
    running.register_metrics(&mut registry);
    serve_metrics(endpoint, registry);
    let outcome = end.or_failure(running.failed()).await;
    running.stop().await;
    outcome
}

fn open_transport(config: &TransportConfig, identity: Identity, pool: BufPool) -> Result<Arc<dyn Transport>> {
    config.open(identity, pool).map_err(|error| Failure::failed(error.to_string()))
}

async fn kv(args: &ServeArgs) -> Result<()> {
    let loaded = load_kv(&args.config)?;
    logging::for_service(&loaded.log)?;
    match loaded.config.store.clone() {
        catena_kv_remote::config::Store::Embedded { path } => {
            serve_store(args, loaded.config, || open(&path)).await
        }
        catena_kv_remote::config::Store::Mem => {
            serve_store(args, loaded.config, || Ok(MemDatabase::new())).await
        }
    }
}

async fn serve_store<S: Store>(
    args: &ServeArgs,
    config: catena_kv_remote::Config,
    open: impl FnOnce() -> Result<S>,
) -> Result<()> {
    let endpoint = bind_metrics(config.metrics.as_deref()).await?;
    let did_not_start = |error| Failure::failed(format!("did not start: {error}"));
    // The port first: a second process on the same configuration stops here, before it touches anything.
    let listener = catena_kv_remote::bind(&config.listen).await.map_err(did_not_start)?;
    let mut end = End::new(args)?;
    let store = Arc::new(open()?);
    let members = (config.cluster, config.token);
    let running = catena_kv_remote::start(listener, members, store, rand::random()).map_err(did_not_start)?;
    let mut registry = registry();
    running.service().metrics().register(&mut registry);
    serve_metrics(endpoint, registry);
    let outcome = end.or_failure(running.failed()).await;
    running.stop().await;
    outcome
}

fn open(path: &std::path::Path) -> Result<EmbeddedDatabase> {
    EmbeddedDatabase::open(path, Options::default()).map_err(|error| Failure::failed(error.to_string()))
}

/// The store of mgmtd or meta.
fn open_store(store: &StoreConfig, cluster: ClusterId, token: &Token) -> Result<Arc<dyn Database>> {
    catena_kv_open::open(store, cluster, token).map_err(|error| Failure::failed(error.to_string()))
}

fn registry() -> Registry {
    Registry::with_prefix("catena")
}

async fn bind_metrics(address: Option<&str>) -> Result<Option<TcpListener>> {
    match address {
        Some(address) => Ok(Some(metrics::bind(address).await?)),
        None => Ok(None),
    }
}

fn serve_metrics(endpoint: Option<TcpListener>, registry: Registry) {
    if let Some(listener) = endpoint {
        tokio::spawn(metrics::serve(listener, Arc::new(registry)));
    }
}

/// What ends a service from outside: a signal, or its supervisor's end.
struct End {
    stop: Stop,
    orphaned: Option<oneshot::Receiver<()>>,
}

impl End {
    fn new(args: &ServeArgs) -> Result<End> {
        Ok(End { stop: Stop::new()?, orphaned: args.supervised.then(watch_stdin) })
    }

    async fn wait(&mut self) {
        let orphaned = async {
            match &mut self.orphaned {
                Some(orphaned) => orphaned.await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stop.wait() => tracing::info!("told to stop"),
            _ = orphaned => tracing::warn!("the supervisor is gone; stopping"),
        }
    }

    /// The service, or nothing if the end came while it was starting.
    async fn unless<T, E: Display>(
        &mut self,
        start: impl Future<Output = Result<T, E>>,
    ) -> Result<Option<T>> {
        tokio::select! {
            started = start => started.map(Some).map_err(|error| Failure::failed(format!("did not start: {error}"))),
            () = self.wait() => Ok(None),
        }
    }

    /// Waits for the end; only the service's own failure is an error.
    async fn or_failure(&mut self, failed: impl Future<Output = impl Display>) -> Result<()> {
        tokio::select! {
            () = self.wait() => Ok(()),
            reason = failed => {
                tracing::error!(%reason, "the service cannot go on");
                Err(Failure::failed(format!("cannot go on: {reason}")))
            }
        }
    }
}

/// Resolves when stdin ends: the supervisor holds its other end and has died. The thread that waits cannot be interrupted, so it is
/// not one of the runtime's, which would wait for it.
fn watch_stdin() -> oneshot::Receiver<()> {
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = end.send(());
        // A service that hangs in its stop must not outlive its supervisor for ever.
        std::thread::sleep(ORPHAN_LIMIT);
        eprintln!(
            "catena: did not stop within {} s of its supervisor's end; giving up",
            ORPHAN_LIMIT.as_secs()
        );
        std::process::exit(1);
    });
    ended
}
