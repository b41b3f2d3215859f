//! A whole cluster in one process: one mgmtd, one meta, some storage nodes, over TCP on loopback, each disk a temporary directory.
//!
//! Services keep their own runtimes' tasks apart only as far as tokio does; what a crash of a process does is for the tests with real
//! processes. Here nodes are started and stopped cleanly or dropped, which ends their tasks where they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catena_buf::{BufPool, PoolConfig};
use catena_client::{Catena, ClusterFile, ConnectOptions, Credentials};
use catena_kv::{Database, MemDatabase};
use catena_mgmtd_client::{CallOptions, MgmtdClient, RoutingWatch, WatchOptions};
use catena_net::tcp::TcpTransport;
use catena_net::{Identity, PeerId, Transport};
use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_proto::ids::{ClusterId, Incarnation, NodeId};
use catena_proto::pb::CreateTableRequest;
use catena_proto::routing::PublicState;
use catena_proto::rpc::ClientAuth;
use catena_proto::token::Token;
use catena_rt::time::Instant;
use tempfile::TempDir;

const CLUSTER: ClusterId = ClusterId(0xca7e4a);
const TOKEN: Token = Token([0x5a; 32]);
const MGMTD: u32 = 1;
const META: u32 = 2;
/// Storage nodes are numbered from here.
const STORAGE: u32 = 10;

/// How a cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Storage nodes, each with one disk.
    pub nodes: u32,
    /// Targets of a chain.
    pub replicas: u32,
    /// Targets on each disk.
    pub targets: u32,
    /// The services' lease.
    pub lease: Duration,
    /// The lease of clients' sessions.
    pub client_lease: Duration,
    /// Bytes that each disk may hold; 0: what there is.
    pub capacity: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            nodes: 3,
            replicas: 3,
            targets: 4,
            lease: Duration::from_secs(2),
            client_lease: Duration::from_secs(60),
            capacity: 0,
        }
    }
}

/// A running cluster.
pub struct Cluster {
    shape: Shape,
    directory: TempDir,
    mgmtd: Option<catena_mgmtd::Running>,
    meta: Option<catena_meta::Running>,
    meta_db: Arc<dyn Database>,
    storage: BTreeMap<u32, catena_storage::Running>,
    file: ClusterFile,
    starts: u64,
}

/// Real time, as tokio tells it.
struct TestClock(Instant);

impl Clock for TestClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.0.elapsed())
    }
    fn wall(&self) -> Timestamp {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(TestClock(Instant::now()))
}

fn config<T: serde::de::DeserializeOwned>(text: &str) -> T {
    let head = format!("cluster = '{CLUSTER}'\ntoken = '{}'\nlisten = '127.0.0.1:0'\n", TOKEN.to_hex());
    toml::from_str(&(head + text)).expect("a configuration that the test wrote")
}

fn transport(node: u32, incarnation: Incarnation, pool: PoolConfig) -> Arc<dyn Transport> {
    let peer = PeerId::Node(NodeId(node));
    let identity = Identity { cluster: CLUSTER, token: TOKEN, peer, incarnation };
    Arc::new(TcpTransport::new(identity, BufPool::new(pool).expect("memory for a pool")))
}

impl Cluster {
    /// Starts everything and waits until every chain has all its replicas.
    pub async fn start(shape: Shape) -> Cluster {
        let directory = TempDir::new().expect("a temporary directory");
        let (lease, client_lease) = (shape.lease.as_millis(), shape.client_lease.as_millis());
        let mgmtd: catena_mgmtd::Config = config(&format!(
            "node = {MGMTD}\nlease = '{lease}ms'\nclient_lease = '{client_lease}ms'\n[store]\nkind = 'mem'\n"
        ));
        let env = catena_mgmtd::Env { clock: clock(), seed: 1 };
        let db: Arc<dyn Database> = Arc::new(MemDatabase::new());
        let mgmtd = catena_mgmtd::start(mgmtd, env, db).await.expect("mgmtd starts");
        let file = ClusterFile {
            cluster: CLUSTER,
            token: TOKEN,
            mgmtd: vec![mgmtd.control_address().to_string()],
            transport: Default::default(),
        };
        let mut cluster = Cluster {
            shape,
            directory,
            mgmtd: Some(mgmtd),
            meta: None,
            meta_db: Arc::new(MemDatabase::new()),
            storage: BTreeMap::new(),
            file,
            starts: 1,
        };
        for index in 0..shape.nodes {
            cluster.start_node(index).await;
        }
        cluster.start_meta().await;
        let table = CreateTableRequest {
            table: 1,
            replicas: shape.replicas,
            targets_per_disk: shape.targets,
            min_nodes: shape.nodes,
            seed: 7,
            ..Default::default()
        };
        cluster.mgmtd_client().create_table(table).await.expect("a chain table");
        cluster.settle().await;
        cluster
    }

    fn incarnation(&mut self) -> Incarnation {
        self.starts += 1;
        Incarnation(self.starts)
    }

    /// Starts the `index`-th storage node, on the directory that it had before if it had one.
    pub async fn start_node(&mut self, index: u32) {
        let node = STORAGE + index;
        let disk = self.directory.path().join(format!("disk{index}"));
        std::fs::create_dir_all(&disk).expect("a disk directory");
        let text = format!(
            "node = {node}\nmgmtd = {:?}\ndisks = [{disk:?}]\ncapacity = {}\n",
            self.file.mgmtd, self.shape.capacity
        );
        let incarnation = self.incarnation();
        let env = catena_storage::Env::new(clock(), incarnation.0, incarnation);
        let transport = transport(node, incarnation, PoolConfig::service(160 << 20));
        let running =
            catena_storage::start(config(&text), env, transport).await.expect("a storage service starts");
        self.storage.insert(index, running);
    }

    async fn start_meta(&mut self) {
        let text = format!(
            "node = {META}\nmgmtd = {:?}\n[store]\nkind = 'mem'\n[layout]\nstripe = {}\n[reclaim]\ninterval = '50ms'\nsessions = '1s'\n",
            self.file.mgmtd,
            (self.shape.targets * self.shape.nodes / self.shape.replicas).max(1)
        );
        let incarnation = self.incarnation();
        let transport = transport(META, incarnation, PoolConfig::client(32 << 20));
        let env = catena_meta::Env { clock: clock(), seed: incarnation.0 };
        let running = catena_meta::start(config(&text), env, self.meta_db.clone(), transport).await;
        self.meta = Some(running.expect("the metadata service starts"));
    }

    /// Stops a storage node cleanly.
    pub async fn stop_node(&mut self, index: u32) {
        self.storage.remove(&index).expect("the node is running").stop().await;
    }

    /// Ends a storage node where it is.
    pub fn drop_node(&mut self, index: u32) {
        drop(self.storage.remove(&index).expect("the node is running"));
    }

    /// A storage node's service.
    pub fn node(&self, index: u32) -> &catena_storage::Running {
        &self.storage[&index]
    }

    /// The metadata's store, for tests that damage it.
    pub fn meta_db(&self) -> &Arc<dyn Database> {
        &self.meta_db
    }

    /// What clients need.
    pub fn file(&self) -> &ClusterFile {
        &self.file
    }

    /// A client with the superuser's rights.
    pub async fn client(&self) -> Catena {
        self.client_with(ConnectOptions {
            credentials: Some(Credentials::root()),
            pool_bytes: 64 << 20,
            ..ConnectOptions::default()
        })
        .await
    }

    /// A client with options.
    pub async fn client_with(&self, options: ConnectOptions) -> Catena {
        Catena::connect(&self.file, options).await.expect("a client connects")
    }

    /// The manager.
    pub fn mgmtd_client(&self) -> MgmtdClient {
        let auth = ClientAuth::new(CLUSTER, &TOKEN);
        MgmtdClient::connect(CLUSTER, &self.file.mgmtd, auth, CallOptions::default()).expect("an address")
    }

    /// Waits until every chain has all its replicas serving.
    ///
    /// # Panics
    /// After a minute.
    pub async fn settle(&self) {
        let watch = RoutingWatch::spawn(self.mgmtd_client(), WatchOptions::default());
        let settled = async {
            let mut routing = watch.current();
            loop {
                let whole = |target: &catena_proto::routing::Target| target.state == PublicState::Serving;
                if !routing.tables.is_empty() && routing.targets.values().all(whole) {
                    return;
                }
                routing = watch.changed(routing.version).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), settled).await.is_err() {
            let states: Vec<_> = watch
                .current()
                .targets
                .values()
                .map(|target| (target.id, target.state, target.local))
                .collect();
            panic!("the chains do not come together: {states:?}");
        }
    }

    /// Stops everything cleanly.
    pub async fn stop(mut self) {
        if let Some(meta) = self.meta.take() {
            meta.stop().await;
        }
        for (_, node) in std::mem::take(&mut self.storage) {
            node.stop().await;
        }
        if let Some(mgmtd) = self.mgmtd.take() {
            mgmtd.stop().await;
        }
    }
}

/// Runs a test on a runtime with two threads, as a small machine has.
pub fn block_on<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test)
}
