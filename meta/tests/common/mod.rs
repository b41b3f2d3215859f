//! A metadata service in a box: in-memory store and chunks, four chains, a clock that ticks with every look.
#![allow(dead_code)] // every test file uses its own part of this

pub mod model;
pub mod script;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use catena_kv::Database;
use catena_kv_testing::database;
use catena_meta::{Chunks, MemChunks, Parts, Service, Settings};
use catena_mgmtd_client::{RoutingSetter, RoutingWatch};
use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_proto::ids::*;
use catena_proto::layout::Layout;
use catena_proto::pb;
use catena_proto::routing::{Chain, RoutingInfo, Table};
use catena_rt::time::Instant;

/// Wall-clock time grows by one with every look; monotonic time is tokio's.
pub struct Ticks {
    wall: AtomicI64,
    start: Instant,
}

impl Ticks {
    pub fn new() -> Ticks {
        Ticks { wall: AtomicI64::new(1_000_000), start: Instant::now() }
    }
}

impl Clock for Ticks {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.start.elapsed())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(self.wall.fetch_add(1, Ordering::Relaxed))
    }
}

/// Two tables: 1 with versions 1 (three chains) and 2 (four), 2 with one chain.
pub fn routing() -> RoutingInfo {
    let chain = |id| (ChainId(id), Chain { id: ChainId(id), version: ChainVersion(1), targets: vec![] });
    let table = |id, version, chains: &[u32]| {
        let chains = chains.iter().copied().map(ChainId).collect();
        ((TableId(id), version), Table { id: TableId(id), version, replicas: 3, chains })
    };
    let disk = pb::Disk { capacity: 3000, used: 300, ..Default::default() };
    let node =
        pb::Node { id: 9, kind: pb::NodeKind::Storage as i32, disks: vec![disk], ..Default::default() };
    RoutingInfo {
        version: RoutingVersion(1),
        cluster: ClusterId(7),
        nodes: BTreeMap::from([(NodeId(9), node)]),
        targets: BTreeMap::new(),
        chains: (1..=4).map(chain).collect(),
        tables: [table(1, 1, &[1, 2, 3]), table(1, 2, &[1, 2, 3, 4]), table(2, 1, &[4])].into(),
    }
}

pub struct World {
    pub service: Arc<Service>,
    pub db: Arc<dyn Database>,
    pub chunks: Arc<MemChunks>,
    pub routing: RoutingWatch,
    pub clock: Arc<Ticks>,
    setter: Arc<RoutingSetter>,
    requests: Arc<AtomicU64>,
}

pub fn settings() -> Settings {
    Settings {
        cluster: ClusterId(7),
        root: Default::default(),
        layout: Default::default(),
        reclaim: Default::default(),
        requests: Default::default(),
        reads: Default::default(),
        slow: Duration::from_secs(3600),
    }
}

impl World {
    /// A new file system.
    pub async fn new() -> World {
        World::on(database()).await
    }

    /// A file system on a given store.
    pub async fn on(db: Arc<dyn Database>) -> World {
        let (setter, watch) = RoutingWatch::manual(routing());
        let clock = Arc::new(Ticks::new());
        let chunks = Arc::new(MemChunks::new());
        let service = make(&db, &chunks, &watch, &clock, 1);
        service.initialise().await.expect("a new store");
        World {
            service,
            db,
            chunks,
            routing: watch,
            clock,
            setter: Arc::new(setter),
            requests: Arc::new(AtomicU64::new(1)),
        }
    }

    /// Another service on the same store, as after a restart or beside the first.
    pub fn another(&self, seed: u64) -> World {
        World {
            service: make(&self.db, &self.chunks, &self.routing, &self.clock, seed),
            db: self.db.clone(),
            chunks: self.chunks.clone(),
            routing: self.routing.clone(),
            clock: self.clock.clone(),
            setter: self.setter.clone(),
            requests: self.requests.clone(),
        }
    }

    /// A caller with a new request id.
    pub fn caller(&self, uid: u32, gid: u32, groups: &[u32]) -> Option<pb::Caller> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        Some(pb::Caller {
            uid,
            gid,
            groups: groups.to_vec(),
            client: 42,
            request: Bytes::copy_from_slice(&u128::from(request).to_be_bytes()),
            ..Default::default()
        })
    }

    pub fn root(&self) -> Option<pb::Caller> {
        self.caller(0, 0, &[])
    }

    /// Makes a file that is open for writing.
    pub async fn create(&self, path: &str, session: [u8; 16]) -> pb::Inode {
        let request = pb::OpenRequest {
            caller: self.root(),
            at: at(path),
            write: true,
            create: true,
            mode: 0o644,
            session: Bytes::copy_from_slice(&session),
            ..Default::default()
        };
        self.service.open(request).await.expect("create").inode.expect("an inode")
    }

    /// Does to the chunks what a client's write of one chunk does.
    pub fn write(&self, inode: &pb::Inode, index: u32, length: u32) {
        let layout = Layout::try_from(inode.layout.expect("a file")).expect("a layout");
        let chains = self.routing.current().chains_of(&layout).expect("a table");
        let chain = chains[index as usize % chains.len()];
        self.chunks.write(chain, ChunkId { inode: InodeId(inode.id), index }, length);
    }

    pub async fn sync(
        &self,
        inode: u64,
        session: [u8; 16],
        change: impl FnOnce(&mut pb::SyncRequest),
    ) -> Result<pb::Inode, catena_proto::rpc::Failure> {
        let mut request = pb::SyncRequest {
            caller: self.root(),
            inode,
            session: Bytes::copy_from_slice(&session),
            ..Default::default()
        };
        change(&mut request);
        Ok(self.service.sync(request).await?.inode.expect("an inode"))
    }

    pub async fn stat(&self, path: &str) -> Result<pb::Inode, catena_proto::rpc::Failure> {
        let request = pb::StatRequest { caller: self.root(), at: at(path), follow: false };
        Ok(self.service.stat(request).await?.inode.expect("an inode"))
    }

    pub async fn stat_inode(&self, inode: u64) -> Result<pb::Inode, catena_proto::rpc::Failure> {
        let place = Some(pb::At { parent: inode, path: Bytes::new() });
        let request = pb::StatRequest { caller: self.root(), at: place, follow: false };
        Ok(self.service.stat(request).await?.inode.expect("an inode"))
    }

    pub async fn remove(&self, path: &str, recursive: bool) -> Result<(), catena_proto::rpc::Failure> {
        let request = pb::RemoveRequest { caller: self.root(), at: at(path), directory: false, recursive };
        self.service.remove(request).await.map(drop)
    }

    pub async fn statfs(&self) -> pb::StatfsReply {
        self.service.statfs(pb::StatfsRequest { caller: self.root() }).await.expect("statfs")
    }

    /// Every key and value of the store.
    pub async fn dump(&self) -> Vec<(Bytes, Bytes)> {
        let tx = self.db.begin(Default::default()).expect("begin");
        let mut all = Vec::new();
        let mut query = Some(catena_kv::RangeQuery::new(Bytes::new(), Bytes::from_static(&[0xff])));
        while let Some(range) = query {
            let page = tx.get_range(range.clone()).await.expect("a range");
            all.extend(page.items.iter().map(|item| (item.key.clone(), item.value.clone())));
            query = range.next_page(&page);
        }
        all
    }

    /// Keys with one of the schema's four letters.
    pub async fn keys(&self, letters: &str) -> usize {
        self.dump().await.iter().filter(|(key, _)| key.starts_with(letters.as_bytes())).count()
    }
}

fn make(
    db: &Arc<dyn Database>,
    chunks: &Arc<MemChunks>,
    routing: &RoutingWatch,
    clock: &Arc<Ticks>,
    seed: u64,
) -> Arc<Service> {
    let parts = Parts {
        db: db.clone(),
        chunks: chunks.clone() as Arc<dyn Chunks>,
        routing: routing.clone(),
        clock: clock.clone(),
        seed,
    };
    Service::new(settings(), parts)
}

pub fn at(path: &str) -> Option<pb::At> {
    Some(pb::At { parent: 1, path: Bytes::copy_from_slice(path.as_bytes()) })
}
