//! A small world for the storage service: real services and real engines on directories, a network in memory, and a hand that plays
//! mgmtd. One chain; target `i` is on node `i`.
#![allow(dead_code, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use catena_buf::{Buf, BufPool, PoolClass, PoolConfig};
use catena_engine::disk::{Batch, Completion, Disk, Done, File, Io, completion};
use catena_mgmtd_client::{Lease, RoutingSetter, RoutingWatch};
use catena_net::mem::MemNetwork;
use catena_net::{Call, Connection, Identity, PeerId, Segment, Transport};
use catena_proto::checksum;
use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_proto::frame::{
    self, ChunkEntry, ChunksRequest, ReadItem, ReadResult, ScrubDamage, ScrubDisk, ScrubHead, ScrubOrder,
    ScrubRequest, WriteKind, WriteReply, WriteRequest, method,
};
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{self, Chain, LocalState, PublicState, RoutingInfo, Target};
use catena_proto::status::Status;
use catena_proto::token::Token;
use catena_rt::time::{Instant, sleep, timeout};
use catena_storage::{Config, Directories, DiskSource, Env, IoBackend, Membership, Running, start};
use parking_lot::Mutex;
use zerocopy::{FromBytes, IntoBytes};

pub const CHAIN: ChainId = ChainId(1);
pub const CHUNK_SIZE: u32 = 1 << 20;
const CLUSTER: ClusterId = ClusterId(0xca7e);
const TOKEN: Token = Token([7; 32]);

/// Directories whose disks can be told to fail.
#[derive(Default)]
pub struct Breakable {
    broken: Arc<AtomicBool>,
    bad_sectors: BadSectors,
}

/// Places of the data file whose reads fail.
pub type BadSectors = Arc<Mutex<Vec<std::ops::Range<u64>>>>;

struct BreakableDisk {
    disk: Arc<dyn Disk>,
    broken: Arc<AtomicBool>,
    bad_sectors: BadSectors,
}

impl DiskSource for Breakable {
    fn open(
        &self,
        path: &std::path::Path,
        io: IoBackend,
        pool: &BufPool,
    ) -> Result<Arc<dyn Disk>, catena_engine::DiskError> {
        let disk = Directories.open(path, io, pool)?;
        let (broken, bad_sectors) = (self.broken.clone(), self.bad_sectors.clone());
        Ok(Arc::new(BreakableDisk { disk, broken, bad_sectors }))
    }
}

impl Disk for BreakableDisk {
    fn name(&self) -> &str {
        self.disk.name()
    }
    fn submit(&self, batch: Batch) -> Completion {
        let bad_sectors = self.bad_sectors.lock();
        let unreadable = batch.ios.iter().any(|io| {
            matches!(io, Io::Read { file: File::Store, offset, len, .. }
                if bad_sectors.iter().any(|bad| *offset < bad.end && bad.start < offset + *len as u64))
        });
        drop(bad_sectors);
        if unreadable || self.broken.load(Ordering::SeqCst) {
            let (completer, completion) = completion();
            let result = Err(std::io::Error::other("the test broke it"));
            completer.complete(Done { bufs: batch.bufs, result });
            return completion;
        }
        self.disk.submit(batch)
    }
    fn len(&self, file: File) -> Result<u64, catena_engine::DiskError> {
        self.disk.len(file)
    }
    fn available(&self) -> Result<u64, catena_engine::DiskError> {
        self.disk.available()
    }
    fn granularity(&self) -> u32 {
        self.disk.granularity()
    }
}

/// tokio's time, so that tests may pause it.
pub struct TestClock(Instant);

impl Clock for TestClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.0.elapsed())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
}

pub struct Node {
    pub running: Option<Running>,
    /// Its disk fails.
    pub broken: Arc<AtomicBool>,
    /// Parts of its disk cannot be read.
    pub bad_sectors: BadSectors,
    pub lease: Lease,
    setter: RoutingSetter,
    watch: RoutingWatch,
    disk: DiskId,
    starts: u64,
}

pub struct World {
    pub net: MemNetwork,
    pub nodes: BTreeMap<u32, Node>,
    pub info: RoutingInfo,
    /// Nodes that do not hear of new routing information.
    pub deaf: BTreeSet<u32>,
    /// Bytes on each node's disk.
    pub capacity: BTreeMap<u32, u64>,
    disk_suffix: BTreeMap<u32, &'static str>,
    clients: (RoutingSetter, RoutingWatch),
    clock: Arc<TestClock>,
    dir: tempfile::TempDir,
}

/// A chunk.
pub fn chunk(index: u32) -> ChunkId {
    ChunkId { inode: InodeId(42), index }
}

/// Bytes that differ from one seed and place to the next.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// Waits until something holds; fails loudly if it never does.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    if timeout(Duration::from_secs(20), waiting).await.is_err() {
        panic!("never came true: {what}");
    }
}

impl World {
    /// `count` nodes, and a chain over all of them.
    pub async fn new(count: u32) -> World {
        World::with_capacity(count, &[]).await
    }

    pub async fn with_capacity(count: u32, capacity: &[(u32, u64)]) -> World {
        if std::env::var("CATENA_LOG").is_ok() {
            let _ =
                tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer().try_init();
        }
        let mut world = World {
            net: MemNetwork::new(1),
            nodes: BTreeMap::new(),
            info: RoutingInfo { cluster: CLUSTER, ..RoutingInfo::default() },
            deaf: BTreeSet::new(),
            capacity: capacity.iter().copied().collect(),
            disk_suffix: BTreeMap::new(),
            clients: RoutingWatch::manual(RoutingInfo { cluster: CLUSTER, ..RoutingInfo::default() }),
            clock: Arc::new(TestClock(Instant::now())),
            dir: tempfile::tempdir().unwrap(),
        };
        for id in 1..=count {
            let (setter, watch) = RoutingWatch::manual(world.info.clone());
            let broken = Arc::default();
            let node = Node {
                running: None,
                broken,
                bad_sectors: Default::default(),
                lease: Lease::new(),
                setter,
                watch,
                disk: DiskId(0),
                starts: 0,
            };
            world.nodes.insert(id, node);
            world.start(id).await;
            let target = Target {
                id: TargetId(id.into()),
                chain: CHAIN,
                node: NodeId(id),
                disk: world.nodes[&id].disk,
                state: PublicState::Serving,
                local: LocalState::UpToDate,
                joined_at: ChainVersion(1),
                used: 0,
                chunks: 0,
            };
            world.info.targets.insert(target.id, target);
        }
        let targets = world.info.targets.keys().copied().collect();
        world.info.chains.insert(CHAIN, Chain { id: CHAIN, version: ChainVersion(1), targets });
        world.publish();
        world.adopted().await;
        world
    }

    fn config(&self, id: u32) -> Config {
        let dir = self.path(id);
        toml::from_str(&format!(
            "cluster = \"{CLUSTER}\"\ntoken = \"{}\"\nnode = {id}\nlisten = \"mem://node{id}:1\"\nmgmtd = [\"nobody:1\"]\n\
             disks = [\"{}\"]\nio = \"threads\"\npool = \"64 MiB\"\ncapacity = {}\n",
            TOKEN.to_hex(),
            dir.display(),
            self.capacity.get(&id).copied().unwrap_or_default(),
        ))
        .unwrap()
    }

    pub fn path(&self, id: u32) -> std::path::PathBuf {
        let suffix = self.disk_suffix.get(&id).copied().unwrap_or_default();
        self.dir.path().join(format!("{id}{suffix}"))
    }

    /// Starts a node, again or for the first time, with a fresh incarnation, routing and lease.
    pub async fn start(&mut self, id: u32) {
        self.start_without_lease(id).await;
        self.renew(id);
    }

    /// The lease is renewed for as long as the test may last.
    pub fn renew(&self, id: u32) {
        let term = Duration::from_secs(1_000_000);
        self.nodes[&id].lease.renew(Monotonic::default(), term, (1..10).map(TargetId));
    }

    pub async fn start_without_lease(&mut self, id: u32) {
        if let Err(error) = self.try_start(id).await {
            panic!("node {id} does not start: {error}");
        }
    }

    pub async fn try_start(&mut self, id: u32) -> Result<(), String> {
        let config = self.config(id);
        let known = self.info.clone();
        let node = self.nodes.get_mut(&id).unwrap();
        node.starts += 1;
        let incarnation = Incarnation(u64::from(id) << 32 | node.starts);
        let identity =
            Identity { cluster: CLUSTER, token: TOKEN, peer: PeerId::Node(NodeId(id)), incarnation };
        let pool = BufPool::new(PoolConfig::service(64 << 20)).unwrap();
        let transport = Arc::new(self.net.transport(identity, pool));
        node.lease = Lease::new();
        (node.setter, node.watch) = RoutingWatch::manual(known);
        node.broken = Arc::default();
        node.bad_sectors = Default::default();
        let mut started = Err("never tried".to_owned());
        // The last one's engine may still be finishing what it had begun.
        for _ in 0..1000 {
            let mut env = Env::new(self.clock.clone(), incarnation.0, incarnation);
            env.membership = Membership::Manual { routing: node.watch.clone(), lease: node.lease.clone() };
            let (broken, bad_sectors) = (node.broken.clone(), node.bad_sectors.clone());
            env.disks = Arc::new(Breakable { broken, bad_sectors });
            started = start(config.clone(), env, transport.clone()).await.map_err(|error| error.to_string());
            if !started.as_ref().is_err_and(|error| error.contains("in use")) {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        let running = started?;
        let disk = &running.report().disks[0];
        node.disk = DiskId(routing::wide_id(&disk.id).unwrap());
        let data_address = running.data_address().to_owned();
        let entry = pb::Node { id, data_address, incarnation: incarnation.0, ..Default::default() };
        self.info.nodes.insert(NodeId(id), entry);
        node.running = Some(running);
        Ok(())
    }

    /// Ends a node as a crash does.
    pub fn crash(&mut self, id: u32) {
        drop(self.nodes.get_mut(&id).unwrap().running.take());
    }

    pub async fn stop(&mut self, id: u32) {
        self.nodes.get_mut(&id).unwrap().running.take().unwrap().stop().await;
    }

    pub fn running(&self, id: u32) -> &Running {
        self.nodes[&id].running.as_ref().unwrap()
    }

    /// A counter of a node: the line that begins with this.
    pub fn counted(&self, id: u32, name: &str) -> u64 {
        let mut registry = prometheus_client::registry::Registry::default();
        self.running(id).register_metrics(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    // --- the hand that plays mgmtd ---

    /// Shows the routing information to everybody who listens.
    pub fn publish(&mut self) {
        self.info.version.0 += 1;
        self.clients.0.set(self.info.clone());
        for (id, node) in &self.nodes {
            if !self.deaf.contains(id) {
                node.setter.set(self.info.clone());
            }
        }
    }

    /// What clients know.
    pub fn watch(&self) -> RoutingWatch {
        self.clients.1.clone()
    }

    /// Nodes whose target is in this state, in chain order.
    pub fn in_state(&self, state: PublicState) -> Vec<u32> {
        self.info.targets_in(CHAIN, state).map(|target| target.node.0).collect()
    }

    pub fn version(&self) -> ChainVersion {
        self.info.chains[&CHAIN].version
    }

    /// Changes target states; one new chain version, R26's order.
    pub fn change(&mut self, changes: &[(u32, PublicState)]) {
        let chain = self.info.chains.get_mut(&CHAIN).unwrap();
        chain.version.0 += 1;
        let version = chain.version;
        for &(id, state) in changes {
            let id = TargetId(id.into());
            let target = self.info.targets.get_mut(&id).unwrap();
            if state == PublicState::Syncing {
                target.joined_at = version;
            }
            target.state = state;
            // It goes behind the others of its state.
            chain.targets.retain(|&other| other != id);
            chain.targets.push(id);
        }
        let rank = |id: &TargetId| match self.info.targets[id].state {
            PublicState::Serving => 0,
            PublicState::Lastsrv => 1,
            PublicState::Syncing => 2,
            PublicState::Waiting => 3,
            _ => 4,
        };
        chain.targets.sort_by_key(rank);
        self.publish();
    }

    pub fn report(&self, id: u32) -> Option<pb::TargetReport> {
        let report = self.nodes[&id].running.as_ref()?.report();
        report.targets.into_iter().find(|target| target.target == u64::from(id))
    }

    /// Every node that listens and runs has adopted the chain version.
    pub async fn adopted(&self) {
        let version = self.version().0;
        until("the chain version is adopted", || async {
            self.nodes.iter().all(|(&id, node)| {
                node.running.is_none()
                    || self.deaf.contains(&id)
                    || self.report(id).is_some_and(|report| report.known_version == version)
            })
        })
        .await;
    }

    /// Out of the chain, and known to be.
    pub async fn take_out(&mut self, id: u32) {
        self.change(&[(id, PublicState::Offline)]);
        self.adopted().await;
    }

    /// Through waiting into a resync session.
    pub async fn begin_sync(&mut self, id: u32) {
        until("the target is online", || async {
            self.report(id).is_some_and(|report| report.local() == LocalState::Online)
        })
        .await;
        self.change(&[(id, PublicState::Syncing)]);
    }

    /// The resync ends and the target serves.
    pub async fn finish_sync(&mut self, id: u32) {
        let joined_at = self.info.targets[&TargetId(id.into())].joined_at.0;
        until("the target is up to date", || async {
            self.report(id)
                .is_some_and(|report| report.local() == LocalState::UpToDate && report.joined_at == joined_at)
        })
        .await;
        self.change(&[(id, PublicState::Serving)]);
        self.adopted().await;
    }

    /// The only one left was lost and is back.
    pub async fn take_lastsrv_back(&mut self, id: u32) {
        self.change(&[(id, PublicState::Lastsrv)]);
        self.adopted().await;
        until("the target is online", || async {
            self.report(id).is_some_and(|report| report.local() == LocalState::Online)
        })
        .await;
        self.change(&[(id, PublicState::Serving)]);
        self.adopted().await;
    }

    /// Another, empty disk in the place of a node's; the node is down.
    pub fn exchange_disk(&mut self, id: u32) {
        self.nodes.get_mut(&id).unwrap().starts += 1000;
        let path = self.path(id);
        let _ = std::fs::rename(&path, path.with_extension("old"));
        self.disk_suffix.insert(id, "new");
    }

    /// mgmtd's word that a target lives on the disk that its node has now.
    pub fn assign_disk(&mut self, id: u32) {
        let disk = self.nodes[&id].disk;
        self.info.targets.get_mut(&TargetId(id.into())).unwrap().disk = disk;
    }

    /// Messages between two nodes are lost, one way.
    pub fn cut(&self, from: u32, to: u32) {
        self.net.cut(PeerId::Node(NodeId(from)), PeerId::Node(NodeId(to)));
    }

    /// Where contents lie in a node's data file.
    pub fn places(&self, id: u32, contents: &[u8]) -> Vec<u64> {
        let store = std::fs::read(self.path(id).join("store")).unwrap();
        let needle = &contents[..64];
        let places = (0..store.len() - 64).step_by(512).filter(|&at| &store[at..at + 64] == needle);
        let places: Vec<u64> = places.map(|at| at as u64).collect();
        assert!(!places.is_empty(), "the contents were not found on the disk");
        places
    }

    /// Flips a byte of the contents wherever they lie in a node's files.
    pub fn damage(&self, id: u32, contents: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(self.path(id).join("store")).unwrap();
        for at in self.places(id, contents) {
            file.write_all_at(&[!contents[10]], at + 10).unwrap();
        }
        file.sync_all().unwrap();
    }

    pub async fn bring_back(&mut self, id: u32) {
        self.begin_sync(id).await;
        self.finish_sync(id).await;
    }

    // --- a client ---

    pub async fn client(&self) -> Client {
        let id = ClientId(1000);
        let identity = Identity {
            cluster: CLUSTER,
            token: TOKEN,
            peer: PeerId::Client(id),
            incarnation: Incarnation(1),
        };
        let pool = BufPool::new(PoolConfig::client(32 << 20)).unwrap();
        let transport = Arc::new(self.net.transport(identity, pool.clone()));
        Client { transport, pool, id, version: self.version(), deadline: Duration::from_secs(10) }
    }

    /// What a replica has, with checksums, whatever its state.
    pub async fn contents(&self, id: u32) -> Vec<ChunkEntry> {
        let client = Client { version: ChainVersion(0), ..self.client().await };
        client.list(id, 0, 1000, true).await.unwrap()
    }

    /// All these replicas hold the same, with nothing pending.
    pub async fn identical(&self, ids: &[u32]) {
        until("the replicas are at rest and identical", || async {
            let first = self.contents(ids[0]).await;
            for &id in ids {
                let contents = self.contents(id).await;
                if contents != first || contents.iter().any(|entry| entry.pending.get() > 0) {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

/// A client that says exactly what it is told to.
#[derive(Clone)]
pub struct Client {
    pub transport: Arc<catena_net::mem::MemTransport>,
    pub pool: BufPool,
    pub id: ClientId,
    pub version: ChainVersion,
    pub deadline: Duration,
}

/// What a write became.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    pub version: u64,
    pub assigned: u64,
    pub length: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadOut {
    pub version: u64,
    pub chunk_length: u32,
    pub data: Vec<u8>,
}

impl Client {
    async fn connect(&self, node: u32) -> Result<Arc<dyn Connection>, Status> {
        let connected = self.transport.connect(&format!("mem://node{node}:1"), Duration::from_secs(5)).await;
        connected.map_err(|error| error.status())
    }

    pub fn head(
        &self,
        chunk: ChunkId,
        kind: WriteKind,
        offset: u32,
        data: &[u8],
        sequence: u64,
    ) -> WriteRequest {
        let mut head = WriteRequest::read_from_bytes(&[0; 64]).unwrap();
        head.chain_version = self.version.0.into();
        head.chain = CHAIN.0.into();
        head.inode = chunk.inode.0.into();
        head.index = chunk.index.into();
        head.client = if sequence == 0 { 0.into() } else { self.id.0.into() };
        // A channel a chunk: writes to one chunk from one channel would have to wait for each other.
        head.channel = (chunk.index + 1).into();
        head.sequence = sequence.into();
        head.offset = offset.into();
        head.length = (data.len() as u32).into();
        head.chunk_size = CHUNK_SIZE.into();
        head.kind = kind as u8;
        head.crc_count = (checksum::piece_count(offset, data.len()) as u32).into();
        head
    }

    /// Sends a write as it is, checksums included.
    pub async fn send(
        &self,
        node: u32,
        head: WriteRequest,
        data: &[u8],
        crcs: &[u32],
    ) -> Result<Written, Status> {
        let connection = self.connect(node).await?;
        let align = (head.offset.get() % 4096) as u16;
        let mut call = Call::new(method::WRITE, frame::body(&head, crcs), self.deadline);
        if !data.is_empty() {
            let mut buf = self.pool.alloc(data.len(), PoolClass::Client).await.unwrap();
            buf.copy_from_slice(data);
            call.data = vec![Segment { data: buf.freeze(), align }];
        }
        let reply = connection.call(call).await.map_err(|error| error.status())?;
        if reply.status != Status::Ok {
            return Err(reply.status);
        }
        let reply = WriteReply::read_from_bytes(&reply.body).unwrap();
        Ok(Written {
            version: reply.version.get(),
            assigned: reply.assigned.get(),
            length: reply.length.get(),
        })
    }

    /// Writes bytes; `sequence` 0 is untagged.
    pub async fn write(
        &self,
        node: u32,
        chunk: ChunkId,
        offset: u32,
        data: &[u8],
        sequence: u64,
    ) -> Result<Written, Status> {
        let head = self.head(chunk, WriteKind::Write, offset, data, sequence);
        self.send(node, head, data, &checksum::piece_checksums(offset, data)).await
    }

    /// Truncates, extends or removes.
    pub async fn mutate(
        &self,
        node: u32,
        chunk: ChunkId,
        kind: WriteKind,
        length: u32,
        sequence: u64,
    ) -> Result<Written, Status> {
        let mut head = self.head(chunk, kind, length, &[], sequence);
        head.crc_count = 0.into();
        self.send(node, head, &[], &[]).await
    }

    pub fn item(&self, chunk: ChunkId, offset: u32, length: u32) -> ReadItem {
        ReadItem {
            chain_version: self.version.0.into(),
            inode: chunk.inode.0.into(),
            chain: CHAIN.0.into(),
            index: chunk.index.into(),
            offset: offset.into(),
            length: length.into(),
        }
    }

    /// Reads a batch; checks every piece.
    pub async fn read_items(
        &self,
        node: u32,
        items: &[ReadItem],
    ) -> Result<Vec<Result<ReadOut, Status>>, Status> {
        let connection = self.connect(node).await?;
        let mut call =
            Call::new(method::READ, bytes::Bytes::copy_from_slice(items.as_bytes()), self.deadline);
        for item in items {
            let length = (item.length.get() as usize).clamp(1, 4 << 20);
            call.into.push(self.pool.alloc(length, PoolClass::Client).await.unwrap());
        }
        let reply = connection.call(call).await.map_err(|error| error.status())?;
        if reply.status != Status::Ok {
            return Err(reply.status);
        }
        let mut body = &reply.body[..];
        let results = frame::take::<ReadResult>(&mut body, items.len()).unwrap().to_vec();
        let mut out = Vec::new();
        for ((item, result), data) in items.iter().zip(results).zip(reply.data) {
            let crcs = frame::take_checksums(&mut body, result.crc_count.get() as usize).unwrap();
            if result.status() != Status::Ok {
                out.push(Err(result.status()));
                continue;
            }
            assert_eq!(data.len(), result.length.get() as usize);
            assert_eq!(
                checksum::piece_checksums(item.offset.get(), &data),
                crcs,
                "the checksums that came along"
            );
            let (version, chunk_length) = (result.version.get(), result.chunk_length.get());
            out.push(Ok(ReadOut { version, chunk_length, data: data.to_vec() }));
        }
        Ok(out)
    }

    pub async fn read(&self, node: u32, chunk: ChunkId, offset: u32, length: u32) -> Result<ReadOut, Status> {
        self.read_items(node, &[self.item(chunk, offset, length)]).await?.pop().unwrap()
    }

    /// Gives a node's scrubbers an order; returns how they stand.
    pub async fn scrub(
        &self,
        node: u32,
        order: ScrubOrder,
        target: u64,
        rate: u64,
    ) -> Result<(ScrubDisk, Vec<ScrubDamage>), Status> {
        let request =
            ScrubRequest { target: target.into(), rate: rate.into(), order: order as u8, reserved: [0; 7] };
        let connection = self.connect(node).await?;
        let body = bytes::Bytes::copy_from_slice(request.as_bytes());
        let call = Call::new(method::SCRUB, body, self.deadline);
        let reply = connection.call(call).await.map_err(|error| error.status())?;
        if reply.status != Status::Ok {
            return Err(reply.status);
        }
        let mut body = &reply.body[..];
        let head = *frame::take_one::<ScrubHead>(&mut body).unwrap();
        let disks = frame::take::<ScrubDisk>(&mut body, head.disks.get() as usize).unwrap();
        let damages = frame::take::<ScrubDamage>(&mut body, head.damages.get() as usize).unwrap();
        assert!(body.is_empty() && disks.len() == 1);
        Ok((disks[0], damages.to_vec()))
    }

    fn range(&self, from: u64, limit: u32, checksums: bool) -> ChunksRequest {
        ChunksRequest {
            chain_version: self.version.0.into(),
            from_inode: from.into(),
            to_inode: u64::MAX.into(),
            chain: CHAIN.0.into(),
            from_index: 0.into(),
            limit: limit.into(),
            checksums: u32::from(checksums).into(),
        }
    }

    pub async fn list(
        &self,
        node: u32,
        from: u64,
        limit: u32,
        checksums: bool,
    ) -> Result<Vec<ChunkEntry>, Status> {
        self.chunks(node, method::LIST_CHUNKS, self.range(from, limit, checksums)).await
    }

    pub async fn last(&self, node: u32, inode: u64) -> Result<Option<ChunkEntry>, Status> {
        Ok(self.chunks(node, method::LAST_CHUNK, self.range(inode, 1, false)).await?.pop())
    }

    async fn chunks(&self, node: u32, method: u16, range: ChunksRequest) -> Result<Vec<ChunkEntry>, Status> {
        let connection = self.connect(node).await?;
        let body = bytes::Bytes::copy_from_slice(range.as_bytes());
        let reply =
            connection.call(Call::new(method, body, self.deadline)).await.map_err(|error| error.status())?;
        if reply.status != Status::Ok {
            return Err(reply.status);
        }
        Ok(frame::take_all::<ChunkEntry>(&reply.body).unwrap().to_vec())
    }
}

/// A buffer for a test.
pub fn buf(data: &[u8]) -> Buf {
    Buf::from_vec(data.to_vec())
}
