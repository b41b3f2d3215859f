//! A cluster of shipped services on a simulated network, disks and clocks.

pub mod clock;
pub mod control;
pub mod kv;
mod services;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catena_buf::{BufPool, PoolConfig};
use catena_engine::sim::{Crash, SimConfig, SimDisk};
use catena_meta::Service as Meta;
use catena_mgmtd::Service as Mgmtd;
use catena_mgmtd_client::{MgmtdClient, RoutingWatch, WatchOptions};
use catena_net::mem::{MemNetwork, MemTransport};
use catena_net::{Identity, PeerId};
use catena_proto::clock::Clock;
use catena_proto::ids::*;
use catena_proto::pb::CreateTableRequest;
use catena_proto::routing::PublicState;
use catena_proto::token::Token;
use catena_rt::sim::{Sim, SimProcess};
use catena_rt::time::{sleep, timeout};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use control::Directory;
use kv::SharedStore;

use crate::witness::Witness;

/// The simulated cluster's identity.
pub const CLUSTER: ClusterId = ClusterId(0xca7e_4a51);
pub(crate) const TOKEN: Token = Token([0x51; 32]);
/// Managers are numbered from here,
pub const MGMTD: u32 = 1;
/// metadata services from here,
pub const META: u32 = 50;
/// storage nodes from here.
pub const STORAGE: u32 = 100;

pub(crate) const MGMTD_PREFIX: usize = 0;
pub(crate) const META_PREFIX: usize = 1;

/// How a cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Managers.
    pub mgmtd: u32,
    /// Metadata services.
    pub meta: u32,
    /// Storage nodes, each with one disk.
    pub storage: u32,
    /// Targets of a chain.
    pub replicas: u32,
    /// Targets on each disk.
    pub targets: u32,
    /// The services' lease T.
    pub lease: Duration,
    /// Clocks go at rates within this factor of each other, less than 2.
    pub drift: f64,
    /// Disks take between these for a batch.
    pub disk: (Duration, Duration),
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            mgmtd: 3,
            meta: 0,
            storage: 3,
            replicas: 3,
            targets: 1,
            lease: Duration::from_secs(2),
            drift: 1.3,
            disk: (Duration::from_micros(50), Duration::from_millis(2)),
        }
    }
}

/// What is known of one service's place, whether or not it runs.
pub struct Slot {
    /// Node number.
    pub node: u32,
    /// The process, if it runs.
    pub process: Option<SimProcess>,
    /// Which start of all that is: a storage service's incarnation.
    pub start: u64,
    /// It is stopped (`SIGSTOP`).
    pub paused: bool,
    disk: Option<SimDisk>,
}

/// Everything that outlives processes.
pub struct World {
    /// The run.
    pub sim: Sim,
    /// The data network, whose weather and cuts hold for control calls too.
    pub net: MemNetwork,
    /// The shared store.
    pub store: SharedStore,
    /// Of this run.
    pub shape: Shape,
    mgmtd: Arc<Directory<Mgmtd>>,
    meta: Arc<Directory<Meta>>,
    slots: Mutex<BTreeMap<u32, Slot>>,
    rng: Mutex<StdRng>,
    exits: tokio::sync::mpsc::UnboundedSender<(u32, u64, String)>,
    starts: Mutex<u64>,
    watch: Mutex<Option<RoutingWatch>>,
    /// Sees what no process can.
    pub witness: Arc<Witness>,
}

impl World {
    /// A cluster with nothing running yet.
    pub fn new(sim: &Sim, seed: u64, shape: Shape) -> Arc<World> {
        let mut rng = StdRng::seed_from_u64(seed);
        let net = MemNetwork::new(rng.random());
        net.allow_twice(catena_storage::wire::TWICE);
        let (exits, mut exited) = tokio::sync::mpsc::unbounded_channel();
        let store = SharedStore::new(rng.random());
        let world = Arc::new(World {
            witness: Witness::watch(sim, &store),
            sim: sim.clone(),
            mgmtd: Directory::new(net.clone()),
            meta: Directory::new(net.clone()),
            net,
            store,
            shape,
            slots: Mutex::default(),
            rng: Mutex::new(rng),
            exits,
            starts: Mutex::new(0),
            watch: Mutex::new(None),
        });
        // What ends by itself is started again, as a supervisor would.
        let weak = Arc::downgrade(&world);
        catena_rt::spawn(async move {
            while let Some((node, start, reason)) = exited.recv().await {
                let Some(world) = weak.upgrade() else { return };
                tracing::warn!(node, reason, "the service ended; it is started again");
                if world.ended(node, start) {
                    sleep(Duration::from_millis(50)).await;
                    world.start(node);
                }
            }
        });
        world
    }

    fn random(&self) -> u64 {
        self.rng.lock().random()
    }

    /// A clock for a process that starts.
    fn clock(&self) -> Arc<dyn Clock> {
        let spread = self.shape.drift.sqrt();
        let (rate, wall) = {
            let mut rng = self.rng.lock();
            (rng.random_range(1.0 / spread..=spread), rng.random_range(0..i64::MAX / 4))
        };
        Arc::new(clock::SimClock::new(&self.sim, rate, wall))
    }

    /// Addresses of the managers.
    pub fn managers(&self) -> Vec<String> {
        (0..self.shape.mgmtd).map(|index| format!("node{}", MGMTD + index)).collect()
    }

    /// A client of the managers for `me`.
    pub fn mgmtd_client(&self, me: PeerId) -> MgmtdClient {
        self.mgmtd_client_pinned(me, None)
    }

    /// The same, for a client that is to reach one storage node only.
    pub fn mgmtd_client_pinned(&self, me: PeerId, pinned: Option<u32>) -> MgmtdClient {
        control::managers(&self.mgmtd, me, CLUSTER, &self.managers(), pinned)
    }

    pub(crate) fn transport(&self, peer: PeerId, incarnation: Incarnation, pool: PoolConfig) -> MemTransport {
        let identity = Identity { cluster: CLUSTER, token: TOKEN, peer, incarnation };
        self.net.transport(identity, BufPool::new(pool).expect("memory for a pool"))
    }

    /// Makes connections of `me` to metadata services.
    pub fn meta_connector(&self, me: PeerId) -> Arc<dyn catena_meta_client::Connector> {
        control::connector(&self.meta, me)
    }

    /// Numbers of the metadata services.
    pub fn meta_nodes(&self) -> Vec<u32> {
        (0..self.shape.meta).map(|index| META + index).collect()
    }

    /// All services' numbers.
    pub fn nodes(&self) -> Vec<u32> {
        [self.mgmtd_nodes(), self.meta_nodes(), self.storage_nodes()].concat()
    }

    /// Where a control-plane service answers.
    fn address(node: u32) -> String {
        format!("node{node}")
    }

    /// Numbers of the storage nodes.
    pub fn storage_nodes(&self) -> Vec<u32> {
        (0..self.shape.storage).map(|index| STORAGE + index).collect()
    }

    /// Numbers of the managers.
    pub fn mgmtd_nodes(&self) -> Vec<u32> {
        (0..self.shape.mgmtd).map(|index| MGMTD + index).collect()
    }

    // --- processes ---

    /// Starts a service that does not run.
    pub fn start(self: &Arc<Self>, node: u32) {
        if self.slots.lock().get(&node).is_some_and(|slot| slot.process.is_some()) {
            return;
        }
        let start = {
            let mut starts = self.starts.lock();
            *starts += 1;
            *starts
        };
        let process = self.sim.process(&format!("node{node}.{start}"));
        let disk = {
            let mut slots = self.slots.lock();
            let slot = slots.entry(node).or_insert_with(|| Slot {
                node,
                process: None,
                start,
                paused: false,
                disk: None,
            });
            slot.process = Some(process.clone());
            slot.start = start;
            slot.paused = false;
            if node >= STORAGE && slot.disk.is_none() {
                slot.disk = Some(self.empty_disk());
            }
            slot.disk.clone()
        };
        let run = services::Start { world: self.clone(), node, start };
        match disk {
            Some(disk) => drop(process.handle().spawn(run.storage(disk))),
            None if node >= META => drop(process.handle().spawn(run.meta())),
            None => drop(process.handle().spawn(run.mgmtd())),
        }
    }

    fn empty_disk(&self) -> SimDisk {
        // Some disks are slow, so that replicas of one chain are far apart in what they hold durably.
        let slow = [1, 1, 1, 10, 40][(self.random() % 5) as usize];
        let (least, most) = self.shape.disk;
        let delay = Some((least * slow, most * slow));
        SimDisk::new(SimConfig { seed: self.random(), capacity: 1 << 30, delay })
    }

    pub(crate) fn peer(node: u32) -> PeerId {
        PeerId::Node(NodeId(node))
    }

    /// Ends a service where it is, as `kill -9` does, or with the power.
    pub fn crash(&self, node: u32, how: Crash) {
        let (process, disk) = {
            let mut slots = self.slots.lock();
            let Some(slot) = slots.get_mut(&node) else { return };
            slot.paused = false;
            (slot.process.take(), slot.disk.clone())
        };
        if let Some(process) = process {
            self.mgmtd.withdraw(&Self::address(node));
            self.meta.withdraw(&Self::address(node));
            self.net.kill(Self::peer(node));
            process.kill();
        }
        if let Some(disk) = disk {
            disk.crash(how);
        }
    }

    /// True if that start is the one that runs; it does not any more.
    fn ended(&self, node: u32, start: u64) -> bool {
        let slots = self.slots.lock();
        let running = slots.get(&node).is_some_and(|slot| slot.process.is_some() && slot.start == start);
        drop(slots);
        if running {
            self.crash(node, Crash::Process);
        }
        running
    }

    /// Its tasks stop where they are; the network holds what comes for it.
    pub fn pause(&self, node: u32) {
        if let Some(slot) = self.slots.lock().get_mut(&node)
            && let Some(process) = &slot.process
        {
            process.pause();
            slot.paused = true;
        }
    }

    /// It goes on.
    pub fn resume(&self, node: u32) {
        if let Some(slot) = self.slots.lock().get_mut(&node)
            && let Some(process) = &slot.process
        {
            process.resume();
            slot.paused = false;
        }
    }

    /// It runs, paused or not.
    pub fn is_up(&self, node: u32) -> bool {
        self.slots.lock().get(&node).is_some_and(|slot| slot.process.is_some())
    }

    /// A storage node's disk.
    pub fn disk(&self, node: u32) -> Option<SimDisk> {
        self.slots.lock().get(&node)?.disk.clone()
    }

    /// Puts an empty disk in place of a crashed node's, which is returned.
    pub fn exchange_disk(&self, node: u32) -> Option<SimDisk> {
        self.put_disk(node, Some(self.empty_disk()))
    }

    /// Puts a disk in place of a crashed node's, which is returned.
    pub fn put_disk(&self, node: u32, disk: Option<SimDisk>) -> Option<SimDisk> {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&node)?;
        assert!(slot.process.is_none(), "disks are exchanged while the service is down");
        std::mem::replace(&mut slot.disk, disk)
    }

    /// Everything runs and every way is open.
    pub fn heal(self: &Arc<Self>) {
        self.net.heal();
        self.net.set_weather(calm());
        self.clear_local_weather();
        self.store.heal();
        self.store.set_mood(kv::Mood { delay: Duration::from_millis(1), ..kv::Mood::default() });
        for node in self.nodes() {
            self.resume(node);
            self.start(node);
        }
    }

    pub(crate) fn clear_local_weather(&self) {
        let nodes = self.nodes();
        for &from in &nodes {
            for &to in &nodes {
                self.net.set_weather_between(Self::peer(from), Self::peer(to), None);
            }
        }
    }

    // --- the cluster as a whole ---

    /// Starts everything, makes the chain table, waits for full strength.
    pub async fn boot(self: &Arc<Self>) {
        self.heal();
        let request = CreateTableRequest {
            table: 1,
            replicas: self.shape.replicas,
            targets_per_disk: self.shape.targets,
            min_nodes: self.shape.storage,
            seed: 7,
            request: vec![7; 16].into(),
            ..Default::default()
        };
        let client = self.mgmtd_client(PeerId::Client(ClientId(1)));
        loop {
            match client.create_table(request.clone()).await {
                Ok(_) => break,
                Err(failure) => {
                    tracing::debug!(%failure, "no table yet");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        assert!(self.full_strength(Duration::from_secs(60)).await, "a new cluster comes up");
    }

    /// Routing information as a client with a calm network sees it.
    pub fn watch(&self) -> RoutingWatch {
        let mut watch = self.watch.lock();
        watch
            .get_or_insert_with(|| {
                let client = self.mgmtd_client(PeerId::Client(ClientId(1)));
                RoutingWatch::spawn(client, WatchOptions { seed: 1, ..WatchOptions::default() })
            })
            .clone()
    }

    /// Waits until every target serves. Only in the life that its service has now: until that has registered, routing information
    /// still calls the targets of the one before it serving.
    pub async fn full_strength(&self, patience: Duration) -> bool {
        let watch = self.watch();
        let lives = |node: &NodeId, incarnation: u64| {
            let slots = self.slots.lock();
            slots.get(&node.0).is_some_and(|slot| slot.process.is_some() && slot.start == incarnation)
        };
        let whole = async {
            loop {
                let routing = watch.current();
                let serving = routing.targets.values().all(|target| target.state == PublicState::Serving);
                let mut storage = routing.nodes.iter().filter(|(node, _)| node.0 >= STORAGE);
                if !routing.tables.is_empty()
                    && serving
                    && storage.all(|(id, node)| lives(id, node.incarnation))
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(patience, whole).await.is_ok()
    }

    /// What every target's public state is, for messages.
    pub fn states(&self) -> String {
        let routing = self.watch().current();
        let states = routing.targets.values().map(|target| format!("{}={:?}", target.id, target.state));
        states.collect::<Vec<_>>().join(" ")
    }

    /// Breaks the cycles between the world and its tasks.
    pub fn end(&self) {
        *self.watch.lock() = None;
        self.sim.set_witness(None);
    }
}

/// Ordinary days.
pub fn calm() -> catena_net::mem::Weather {
    catena_net::mem::Weather {
        delay: Duration::from_micros(50),
        jitter: Duration::from_micros(300),
        ..catena_net::mem::Weather::default()
    }
}
