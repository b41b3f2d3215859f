//! From a configuration to a running service, and back to a clean stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use catena_engine::{Engine, EngineError, Expect, Options, Superblock};
use catena_mgmtd_client::{
    CallOptions, HeartbeatOptions, Heartbeats, Lease, MgmtdClient, Report, RoutingWatch, WatchOptions,
};
use catena_net::{Listener, NetError, Transport};
use catena_proto::clock::Clock;
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_rt::AbortHandle;
use catena_rt::time::{Instant, sleep, timeout_at};
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tracing::{error, info, warn};

use crate::config::{Config, ConfigError};
use crate::disk::{Directories, Disk, DiskSource, reserve};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::peers::Peers;
use crate::scrub::Scrub;
use crate::service::FrontDoor;
use crate::ship::Shipping;
use crate::throttle::Throttle;
use crate::{repair, scrubber, sweep};

/// How long a clean stop waits for requests that are under way.
const GRACE: Duration = Duration::from_secs(3);

/// What the service takes from outside.
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// All randomness derives from it; another one with every start.
    pub seed: u64,
    /// This start: new every time (R28), and the one that the transport's identity names.
    pub incarnation: Incarnation,
    /// Where disks come from.
    pub disks: Arc<dyn DiskSource>,
    /// Who says which targets there are.
    pub membership: Membership,
}

impl Env {
    /// A real process: directories as disks, mgmtd over gRPC.
    pub fn new(clock: Arc<dyn Clock>, seed: u64, incarnation: Incarnation) -> Env {
        Env { clock, seed, incarnation, disks: Arc::new(Directories), membership: Membership::Configured }
    }
}

/// Who says which targets there are, and keeps the lease.
pub enum Membership {
    /// mgmtd at the configured addresses, over gRPC.
    Configured,
    /// This mgmtd, however it is reached.
    Mgmtd(MgmtdClient),
    /// Nobody: routing information and lease are fed by hand, and [`Running::report`] is read by hand. For tests.
    Manual {
        /// Fed through its setter.
        routing: RoutingWatch,
        /// Renewed by whoever made it.
        lease: Lease,
    },
}

/// Why a service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A disk cannot be opened.
    #[error("disk {}: {error}", path.display())]
    Disk {
        /// The configured directory.
        path: PathBuf,
        /// What is wrong and what to do.
        error: EngineError,
    },
    /// Two directories hold one disk.
    #[error("disks {} and {} have the same identity: one is a copy of the other; remove one from `disks`", .0.display(), .1.display())]
    SameDisk(PathBuf, PathBuf),
    /// None of several disks can be used.
    #[error("none of the configured disks can be used; the log says why for each")]
    NoDisk,
    /// The data-plane address.
    #[error(transparent)]
    Listen(#[from] NetError),
    /// mgmtd.
    #[error("mgmtd: {0}")]
    Mgmtd(Failure),
}

/// A running storage service.
pub struct Running {
    node: Arc<Node>,
    address: String,
    listener: Option<Box<dyn Listener>>,
    heartbeats: Option<Heartbeats>,
    tasks: Vec<AbortHandle>,
}

/// Starts a storage service. `transport` carries this node's identity, and its pool is the one that disks read into.
pub async fn start(config: Config, env: Env, transport: Arc<dyn Transport>) -> Result<Running, StartError> {
    config.validate()?;
    let metrics = Metrics::default();
    let mut rng = StdRng::seed_from_u64(env.seed);
    let mut disks: Vec<Arc<Disk>> = Vec::new();
    for path in &config.disks {
        let opened = open_disk(&config, &env, &*transport, path, &mut rng, &metrics).await;
        let disk = match opened {
            Ok(disk) => disk,
            // One broken disk of several takes only its own targets out of service.
            Err(
                error @ (EngineError::DiskFailed { .. }
                | EngineError::ReadFailed { .. }
                | EngineError::BadFormat { .. }),
            ) if config.disks.len() > 1 => {
                error!(node = config.node, disk = %path.display(), %error, "the disk cannot be used; going on without it");
                metrics.disk(&path.display().to_string()).failed.set(1);
                continue;
            }
            Err(error) => return Err(StartError::Disk { path: path.clone(), error }),
        };
        if let Some(other) = disks.iter().find(|other| other.id() == disk.id()) {
            return Err(StartError::SameDisk(other.path().into(), path.clone()));
        }
        disks.push(Arc::new(disk));
    }
    if disks.is_empty() {
        return Err(StartError::NoDisk);
    }
    let (routing, by) = membership(&config, env.membership, &mut rng)?;
    let peers = Arc::new(Peers::new(transport.clone(), routing.clone(), metrics.dropped.clone()));
    let shipping = Shipping::new(&transport.pool().stats());
    let throttle = Throttle::new(config.resync_rate);
    let (id, clock) = (config.node_id(), env.clock.clone());
    let node = Arc::new(Node::new(id, clock, metrics, peers, shipping, throttle, routing, disks));
    let listener = transport.listen(&config.listen, Arc::new(FrontDoor(Arc::downgrade(&node)))).await?;
    let bound = listener.address();
    let address =
        config.advertise.as_deref().map_or_else(|| bound.clone(), |address| with_scheme_of(&bound, address));
    info!(node = %id, address, disks = node.disks().len(), "storage service listens");

    let mut running =
        Running { node, address, listener: Some(listener), heartbeats: None, tasks: Vec::new() };
    let node = &running.node;
    for disk in node.disks() {
        running.tasks.push(catena_rt::spawn(node.clone().maintain(disk.clone())).abort_handle());
        let scrubbing = scrubber::scrub(node.clone(), disk.clone(), StdRng::seed_from_u64(rng.random()));
        running.tasks.push(catena_rt::spawn(scrubbing).abort_handle());
    }
    let from = match by {
        By::Hand(lease) => {
            node.set_lease(lease);
            RoutingVersion(1)
        }
        By::Mgmtd(client) => {
            running.tasks.push(catena_rt::spawn(sweep::tags(node.clone(), client.clone())).abort_handle());
            let announced = announce(&config, node, &running.address, env.incarnation);
            let reporter = Arc::downgrade(node);
            let report = move || reporter.upgrade().map_or_else(Report::default, |node| node.report());
            let options = HeartbeatOptions::default();
            let heartbeats = Heartbeats::start(client, announced, env.clock, report, options).await;
            let heartbeats = heartbeats.map_err(StartError::Mgmtd)?;
            node.set_lease(heartbeats.lease().clone());
            node.set_kick(heartbeats.kicker());
            let from = heartbeats.registered_at();
            running.heartbeats = Some(heartbeats);
            from
        }
    };
    running.tasks.push(catena_rt::spawn(running.node.clone().follow(from)).abort_handle());
    running.tasks.push(catena_rt::spawn(running.node.clone().tick()).abort_handle());
    running.tasks.push(catena_rt::spawn(running.node.clone().count_usage()).abort_handle());
    running.tasks.push(catena_rt::spawn(repair::repair_all(running.node.clone())).abort_handle());
    Ok(running)
}

/// Opens one disk; an empty one is formatted for this node first.
async fn open_disk(
    config: &Config,
    env: &Env,
    transport: &dyn Transport,
    path: &std::path::Path,
    rng: &mut StdRng,
    metrics: &Metrics,
) -> Result<Disk, EngineError> {
    let disk = env.disks.open(path, config.io, transport.pool())?;
    let expect = Expect { cluster: config.cluster, node: config.node_id() };
    let fresh = match Engine::identify(&disk).await {
        Ok(_) => false,
        Err(EngineError::NotFormatted { .. }) => {
            let superblock = Superblock {
                cluster: expect.cluster,
                node: expect.node,
                disk: DiskId(rng.random()),
                created: env.clock.wall().0,
            };
            Engine::format(disk.clone(), superblock).await?;
            info!(node = %expect.node, disk = %path.display(), id = %superblock.disk, "disk formatted");
            true
        }
        Err(error) => return Err(error),
    };
    let options = Options {
        capacity: config.capacity,
        reserve: reserve(config.capacity),
        sums_cache: usize::try_from(config.sums_cache).unwrap_or(usize::MAX),
        ..Options::default()
    };
    let begun = Instant::now();
    let engine = Engine::open(disk, expect, transport.pool().clone(), options).await?;
    let stats = engine.stats();
    info!(
        node = %expect.node, disk = engine.name(), id = %engine.disk_id(), chunks = stats.chunks, used = stats.used,
        capacity = stats.capacity, took = ?begun.elapsed(), "disk opened"
    );
    let gauges = metrics.disk(engine.name());
    let scrub = Scrub::new(config.scrub_rate, config.scrub_interval);
    let disk = Disk::new(engine, options.reserve, fresh, gauges, scrub);
    disk.sample();
    Ok(disk)
}

enum By {
    Hand(Lease),
    Mgmtd(MgmtdClient),
}

fn membership(
    config: &Config,
    given: Membership,
    rng: &mut StdRng,
) -> Result<(RoutingWatch, By), StartError> {
    let client = match given {
        Membership::Manual { routing, lease } => return Ok((routing, By::Hand(lease))),
        Membership::Mgmtd(client) => client,
        Membership::Configured => {
            let auth = ClientAuth::new(config.cluster, &config.token);
            let options = CallOptions::default();
            MgmtdClient::connect(config.cluster, &config.mgmtd, auth, options).map_err(StartError::Mgmtd)?
        }
    };
    let options = WatchOptions { seed: rng.random(), ..WatchOptions::default() };
    Ok((RoutingWatch::spawn(client.clone(), options), By::Mgmtd(client)))
}

/// What mgmtd is told of this start.
fn announce(config: &Config, node: &Node, address: &str, incarnation: Incarnation) -> pb::Node {
    pb::Node {
        id: config.node,
        kind: pb::NodeKind::Storage as i32,
        state: pb::NodeState::Up as i32,
        control_address: String::new(),
        data_address: address.to_owned(),
        metrics_address: config.metrics.clone().unwrap_or_default(),
        incarnation: incarnation.0,
        domain: config.domain.clone(),
        disks: node.disk_reports(),
        pid: std::process::id(),
        role: 0,
    }
}

/// What is advertised offers what the listener offers, unless it says otherwise.
fn with_scheme_of(bound: &str, address: &str) -> String {
    match bound.split_once("://") {
        Some((scheme, _)) if !address.contains("://") => format!("{scheme}://{address}"),
        _ => address.to_owned(),
    }
}

impl Running {
    /// The data-plane address that others are told, with the real port.
    pub fn data_address(&self) -> &str {
        &self.address
    }

    /// Shows this service's counters.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.node.metrics.register(registry);
    }

    /// What the next heartbeat would say.
    pub fn report(&self) -> Report {
        self.node.report()
    }

    /// The engine of the configuration's `disk`-th directory, for tools that look into a running service.
    pub fn engine(&self, disk: usize) -> Option<&Engine> {
        self.node.disks().get(disk).map(|disk| disk.engine())
    }

    /// Resolves when the service cannot go on: another process has taken this node's place, or mgmtd refuses it.
    pub async fn failed(&self) -> Failure {
        match &self.heartbeats {
            Some(heartbeats) => heartbeats.failed().await,
            None => std::future::pending().await,
        }
    }

    /// A clean stop: clients are sent away, what is under way is finished, mgmtd is told, disks are closed.
    pub async fn stop(mut self) {
        let node = self.node.clone();
        info!(node = %node.id, "stopping");
        node.stop_serving();
        let until = Instant::now() + GRACE;
        // Replicas are still served: what was accepted needs their notices and acknowledgements to be finished.
        let _ = timeout_at(until, drained(&node)).await;
        if let Some(listener) = self.listener.take() {
            listener.shutdown(Duration::from_millis(100)).await;
        }
        if let Some(heartbeats) = self.heartbeats.take() {
            heartbeats.stop(GRACE).await;
        }
        self.tasks.drain(..).for_each(|task| task.abort());
        node.forget_targets(GRACE).await;
        for disk in node.disks() {
            if let Err(error) = disk.engine().close().await {
                warn!(node = %node.id, disk = disk.path(), %error, "the disk was not closed cleanly; it is recovered at the next start");
            }
        }
        info!(node = %node.id, "stopped");
    }
}

async fn drained(node: &Node) {
    while node.metrics.clients_in_flight() > 0 {
        sleep(Duration::from_millis(5)).await;
    }
}

impl Drop for Running {
    /// Without a clean stop: everything ends where it is, as in a crash.
    fn drop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
        self.node.abandon_targets();
    }
}
