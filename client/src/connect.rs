//! A connection to a cluster: everything that files and calls share.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use catena_buf::{BufPool, IoBuf, PoolClass, PoolConfig};
use catena_meta_client::{Connector, Credentials, GrpcConnector, MetaClient, Servers};
use catena_mgmtd_client::{CallOptions, ClientSession, MgmtdClient, RoutingWatch, WatchOptions};
use catena_net::{Identity, PeerId, Transport};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, InodeId, RoutingVersion};
use catena_proto::layout::MAX_IO;
use catena_proto::rpc::ClientAuth;
use catena_proto::status::Status;
use catena_rt::time::{Instant, timeout};
use catena_storage_client::StorageClient;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cluster_file::ClusterFile;
use crate::error::{Error, Result};
use crate::length::Length;
use crate::metrics::{Metrics, MetricsSnapshot};

/// How a [`Catena`] behaves. The defaults fit a machine with some memory to spare.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// On whose behalf calls are made. Default: the process's effective user and its groups.
    pub credentials: Option<Credentials>,
    /// Permission bits that new files and directories do not get. Default 0o022.
    pub umask: u32,
    /// Bytes of the buffer pool, mapped at once and touched as used. Default 256 MiB, at least 16 MiB.
    pub pool_bytes: usize,
    /// Bulk bytes under way at once. Default 64 MiB; at most half the pool.
    pub in_flight_bytes: usize,
    /// Time that one chunk read or write, or one metadata call, may take in all. Default 30 s.
    pub deadline: Duration,
    /// Time that connecting may take. Default 10 s.
    pub connect_deadline: Duration,
    /// Time that it may take while mgmtd answers that a primary is being elected: more than two leases of the cluster. Default 25 s.
    pub election_deadline: Duration,
    /// Data connections to each storage node. Default 2.
    pub connections: usize,
    /// What `catena admin` shows of this client. Default: program and process id.
    pub description: Option<String>,
    /// Where all randomness comes from; none takes it from the operating system. Two clients with one seed disturb each other.
    pub seed: Option<u64>,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            credentials: None,
            umask: 0o022,
            pool_bytes: 256 << 20,
            in_flight_bytes: 64 << 20,
            deadline: Duration::from_secs(30),
            connect_deadline: Duration::from_secs(10),
            election_deadline: Duration::from_secs(25),
            connections: 2,
            description: None,
            seed: None,
        }
    }
}

/// What a client speaks over: TCP and gRPC in production, the simulator's network in tests. With all of them, and a seed, credentials and a
/// description in the options, nothing in a client comes from the operating system.
pub struct Links {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The client's identity: random, never 0, and the one that `transport` introduces itself with.
    pub client: ClientId,
    /// The managers.
    pub mgmtd: MgmtdClient,
    /// Makes connections to meta services.
    pub meta: Arc<dyn Connector>,
    /// Reaches storage services.
    pub transport: Arc<dyn Transport>,
}

impl ConnectOptions {
    fn random(&self) -> StdRng {
        match self.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        }
    }
}

/// The pieces of a connection, for programs that bring their own.
pub struct Parts {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Chunks.
    pub storage: StorageClient,
    /// The namespace.
    pub meta: MetaClient,
    /// The managers, if there are any.
    pub mgmtd: Option<MgmtdClient>,
    /// The client's session, if it has one.
    pub session: Option<ClientSession>,
}

/// A connected file system. Cheap to clone; clones share everything.
///
/// ```no_run
/// use catena_client::{Catena, ClusterFile, ConnectOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let catena = Catena::connect(&ClusterFile::from_env()?, ConnectOptions::default()).await?;
/// catena.mkdir_all("/data", 0o755).await?;
/// let file = catena.create("/data/greeting").await?;
/// file.write_at(0, b"hello").await?;
/// file.close().await?;
/// assert_eq!(catena.read("/data/greeting").await?, b"hello");
/// catena.close().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Catena {
    pub(crate) shared: Arc<Shared>,
    pub(crate) who: Credentials,
}

pub(crate) struct Shared {
    pub cluster: ClusterId,
    pub storage: StorageClient,
    pub meta: MetaClient,
    pub mgmtd: Option<MgmtdClient>,
    pub session: Mutex<Option<ClientSession>>,
    pub umask: u32,
    pub deadline: Duration,
    in_flight: Arc<Semaphore>,
    in_flight_pages: u32,
    pub lengths: Mutex<BTreeMap<InodeId, Weak<Length>>>,
    pub metrics: Metrics,
}

const PAGE: usize = 4096;
/// Time that a connection may take to come up before the next meta service is tried.
const META_CONNECT: Duration = Duration::from_secs(2);

impl Catena {
    /// Connects to the cluster that a cluster file describes. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// No manager answers in time, the token is wrong, or the cluster is another one; the error says which.
    pub async fn connect(cluster: &ClusterFile, options: ConnectOptions) -> Result<Catena> {
        let mut rng = options.random();
        let client = ClientId(rng.random_range(1..=u64::MAX));
        let auth = ClientAuth::new(cluster.cluster, &cluster.token);
        let managers = cluster.mgmtd.join(", ");
        let patience = CallOptions {
            deadline: options.connect_deadline,
            election: options.election_deadline,
            ..CallOptions::default()
        };
        let mgmtd = MgmtdClient::connect(cluster.cluster, &cluster.mgmtd, auth.clone(), patience)
            .map_err(|failure| Error::from_failure("connect", &managers, failure))?;
        let pool = BufPool::new(PoolConfig::client(options.pool_bytes.max(16 << 20)))
            .map_err(|error| Error::new("connect", &*managers, Status::Busy, error.to_string()))?;
        let identity = Identity {
            cluster: cluster.cluster,
            token: cluster.token,
            peer: PeerId::Client(client),
            incarnation: Incarnation(rng.random()),
        };
        let channels = catena_meta_client::Options::default().channels;
        let links = Links {
            cluster: cluster.cluster,
            client,
            mgmtd,
            meta: Arc::new(GrpcConnector::new(auth, channels, META_CONNECT)),
            transport: cluster
                .transport
                .open(identity, pool)
                .map_err(|error| Error::new("connect", &*managers, Status::NoRdma, error.to_string()))?,
        };
        let options = ConnectOptions { seed: Some(rng.random()), ..options };
        Catena::connect_over(links, &managers, options).await
    }

    /// Connects over given links; `managers` names them in errors. All randomness derives from the options' seed.
    pub async fn connect_over(links: Links, managers: &str, options: ConnectOptions) -> Result<Catena> {
        let mut rng = options.random();
        let Links { cluster, client, mgmtd, meta, transport } = links;
        let failed = |failure| Error::from_failure("connect", managers, failure);
        let description = options.description.clone().unwrap_or_else(describe);
        let session = ClientSession::start(mgmtd.clone(), client, description).await.map_err(failed)?;
        let seed = rng.random();
        let routing = RoutingWatch::spawn(mgmtd.clone(), WatchOptions { seed, ..WatchOptions::default() });
        if timeout(
            options.connect_deadline.max(options.election_deadline),
            routing.changed(RoutingVersion(0)),
        )
        .await
        .is_err()
        {
            let what = "mgmtd sends no routing information: is the cluster initialised?";
            return Err(Error::new("connect", managers, Status::TimedOut, what));
        }
        let tuning = catena_storage_client::Options {
            deadline: options.deadline,
            connections: options.connections,
            seed: rng.random(),
            ..catena_storage_client::Options::default()
        };
        let storage = StorageClient::new(transport, routing.clone(), client, tuning);
        let calls = catena_meta_client::Options {
            deadline: options.deadline,
            seed: Some(rng.random()),
            ..catena_meta_client::Options::default()
        };
        let meta = MetaClient::with_connector(Servers::Routing(routing), meta, client, calls);
        let parts = Parts { cluster, storage, meta, mgmtd: Some(mgmtd), session: Some(session) };
        Ok(Catena::from_parts(parts, &options))
    }

    /// A file system over given parts. Of the options, those count that are not the parts' own business.
    pub fn from_parts(parts: Parts, options: &ConnectOptions) -> Catena {
        let pool = parts.storage.pool().stats().classes[PoolClass::Client as usize].total;
        let most = (pool / 2).max(MAX_IO as usize);
        let bytes = options.in_flight_bytes.clamp(MAX_IO as usize, most);
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX >> 3);
        let shared = Shared {
            cluster: parts.cluster,
            storage: parts.storage,
            meta: parts.meta,
            mgmtd: parts.mgmtd,
            session: Mutex::new(parts.session),
            umask: options.umask,
            deadline: options.deadline,
            in_flight: Arc::new(Semaphore::new(pages as usize)),
            in_flight_pages: pages,
            lengths: Mutex::default(),
            metrics: Metrics::default(),
        };
        let who = options.credentials.clone().unwrap_or_else(own_credentials);
        Catena { shared: Arc::new(shared), who }
    }

    /// The same connection on behalf of someone else.
    pub fn on_behalf_of(&self, who: Credentials) -> Catena {
        Catena { shared: self.shared.clone(), who }
    }

    /// On whose behalf calls are made.
    pub fn credentials(&self) -> &Credentials {
        &self.who
    }

    /// Ends the client's session, which frees at once what the servers keep for it. Close files first. Without this call the session
    /// runs out by itself.
    pub async fn close(self) {
        let session = self.shared.session.lock().take();
        if let Some(session) = session {
            session.close(Duration::from_secs(2)).await;
        }
    }

    /// A writable buffer of `len` bytes (at most 4 MiB) from the pool, for [`crate::File::write_buf_at`]. Waits while the pool is
    /// exhausted; its contents are whatever the last user left.
    pub async fn alloc_buf(&self, len: usize) -> Result<IoBuf> {
        let waited = timeout(self.shared.deadline, self.pool().alloc(len, PoolClass::Client)).await;
        let failed = |status, what: String| Error::new("alloc_buf", "(buffer pool)", status, what);
        waited
            .map_err(|_| {
                failed(Status::Busy, "no buffer came free in time: release some, or set pool_bytes".into())
            })?
            .map_err(|error| failed(Status::Invalid, error.to_string()))
    }

    /// The buffer pool.
    pub fn pool(&self) -> &BufPool {
        self.shared.storage.pool()
    }

    /// The cluster's identity.
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster
    }

    /// The newest routing information.
    pub fn routing(&self) -> &RoutingWatch {
        self.shared.storage.routing()
    }

    /// The storage client below.
    pub fn storage(&self) -> &StorageClient {
        &self.shared.storage
    }

    /// The metadata client below.
    pub fn meta(&self) -> &MetaClient {
        &self.shared.meta
    }

    /// The managers' client below, if connected by [`Catena::connect`].
    pub fn mgmtd(&self) -> Option<&MgmtdClient> {
        self.shared.mgmtd.as_ref()
    }

    /// What this client has done so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.shared.metrics.snapshot(&self.shared.storage)
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.shared.deadline
    }

    /// Room for `bytes` under way. More than there is at all counts as all there is.
    pub(crate) async fn room(&self, bytes: usize) -> OwnedSemaphorePermit {
        // As the pool counts them: a power of two of pages.
        let pages = bytes.div_ceil(PAGE).next_power_of_two() as u32;
        let permit = self.shared.in_flight.clone().acquire_many_owned(pages.min(self.shared.in_flight_pages));
        permit.await.expect("the semaphore is never closed")
    }

    /// Bytes that may be under way at once.
    pub(crate) fn room_bytes(&self) -> usize {
        self.shared.in_flight_pages as usize * PAGE
    }
}

fn own_credentials() -> Credentials {
    use rustix::process;
    Credentials {
        uid: process::geteuid().as_raw(),
        gid: process::getegid().as_raw(),
        groups: process::getgroups().unwrap_or_default().iter().map(|group| group.as_raw()).collect(),
    }
}

fn describe() -> String {
    let program = std::env::current_exe().ok();
    let name = program.as_deref().and_then(|path| path.file_name()?.to_str()).unwrap_or("client");
    format!("{name}, process {}", std::process::id())
}
