//! A storage cluster that does as it is told: three nodes with one chain, a shared store, and a script of misbehaviour.
#![allow(dead_code)] // shared by test files that each use a part of it

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use catena_buf::{Buf, BufPool, PoolClass, PoolConfig};
use catena_mgmtd_client::{RoutingSetter, RoutingWatch};
use catena_net::mem::MemNetwork;
use catena_net::{Identity, Incoming, Listener, PeerId, Service, Transport};
use catena_proto::checksum;
use catena_proto::frame::{self, *};
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::*;
use catena_proto::status::Status;
use catena_proto::token::Token;
use catena_storage_client::{Options, StorageClient};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use zerocopy::IntoBytes;

pub const CHAIN: ChainId = ChainId(1);
pub const CHUNK_SIZE: u32 = 1 << 20;

pub fn chunk(index: u32) -> ChunkId {
    ChunkId { inode: InodeId(9), index }
}

/// What a node does with the next request instead of serving it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trick {
    /// Answers with this status.
    Answer(Status),
    /// Carries it out and never answers.
    DoAndHang,
    /// Never answers.
    Hang,
    /// Serves a read, with a byte flipped.
    Flip,
    /// Serves a read whose items all have this status.
    Items(Status),
    /// Serves it with a reply that is no reply.
    Garble,
}

/// A request that a node saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub node: NodeId,
    pub method: u16,
    pub chain_version: u64,
    pub tag: Tag,
    pub items: usize,
    pub bytes: usize,
}

#[derive(Default)]
pub struct World {
    pub chunks: BTreeMap<ChunkId, (u64, Vec<u8>)>,
    pub tags: BTreeMap<(ClientId, ChannelId), (Sequence, u64, u32)>,
    pub seen: Vec<Seen>,
    pub tricks: BTreeMap<NodeId, VecDeque<Trick>>,
    pub applied: usize,
    /// Most mutations of one channel at once, and how many are under way.
    pub crowded: usize,
    busy: BTreeMap<(ClientId, ChannelId), usize>,
}

pub struct Cluster {
    pub world: Arc<Mutex<World>>,
    pub routing: RoutingSetter,
    pub watch: RoutingWatch,
    pub info: RoutingInfo,
    pub client: StorageClient,
    network: MemNetwork,
    listeners: BTreeMap<NodeId, Box<dyn Listener>>,
}

fn identity(peer: PeerId) -> Identity {
    Identity { cluster: ClusterId(7), token: Token([3; 32]), peer, incarnation: Incarnation(1) }
}

fn pool() -> BufPool {
    BufPool::new(PoolConfig::client(128 << 20)).unwrap()
}

impl Cluster {
    pub async fn new() -> Cluster {
        Cluster::with(Options { seed: 5, ..Options::default() }).await
    }

    pub async fn with(options: Options) -> Cluster {
        let network = MemNetwork::new(1);
        let world = Arc::new(Mutex::new(World::default()));
        let info = three_replicas();
        let (routing, watch) = RoutingWatch::manual(info.clone());
        let transport = network.transport(identity(PeerId::Client(ClientId(77))), pool());
        let client = StorageClient::new(Arc::new(transport), watch.clone(), ClientId(77), options);
        let mut cluster =
            Cluster { world, routing, watch, info, client, network, listeners: BTreeMap::new() };
        for node in 1..=3 {
            cluster.start(NodeId(node)).await;
        }
        cluster
    }

    pub async fn start(&mut self, node: NodeId) {
        let transport = self.network.transport(identity(PeerId::Node(node)), pool());
        let service = Arc::new(Node { id: node, world: self.world.clone() });
        let listener = transport.listen(&format!("mem://{}", node.0), service).await.unwrap();
        self.listeners.insert(node, listener);
    }

    pub fn stop(&mut self, node: NodeId) {
        self.listeners.remove(&node);
    }

    pub fn trick(&self, node: u32, tricks: &[Trick]) {
        self.world.lock().tricks.entry(NodeId(node)).or_default().extend(tricks);
    }

    pub fn everywhere(&self, tricks: &[Trick]) {
        (1..=3).for_each(|node| self.trick(node, tricks));
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.world.lock().seen.clone()
    }

    /// Publishes the routing information after a change.
    pub fn publish(&mut self, change: impl FnOnce(&mut RoutingInfo)) {
        change(&mut self.info);
        self.info.version.0 += 1;
        self.info.chains.get_mut(&CHAIN).unwrap().version.0 += 1;
        assert!(self.routing.set(self.info.clone()));
    }

    pub fn fill(&self, index: u32, bytes: &[u8]) {
        self.world.lock().chunks.insert(chunk(index), (1, bytes.to_vec()));
    }
}

pub fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// As a replica reports it.
pub fn padded_checksum(bytes: &[u8]) -> u32 {
    let padding = bytes.len().next_multiple_of(checksum::BLOCK) - bytes.len();
    checksum::append(checksum::crc32c(bytes), &vec![0; padding])
}

/// One chain on three nodes, all serving, chain version 4.
pub fn three_replicas() -> RoutingInfo {
    let targets: Vec<TargetId> = (1..=3).map(TargetId).collect();
    let mut info = RoutingInfo { version: RoutingVersion(1), cluster: ClusterId(7), ..Default::default() };
    for &id in &targets {
        let node = NodeId(id.0 as u32);
        let address = format!("mem://{}", node.0);
        info.nodes.insert(node, pb::Node { id: node.0, data_address: address, ..Default::default() });
        info.targets.insert(
            id,
            Target {
                id,
                chain: CHAIN,
                node,
                disk: DiskId(1),
                state: PublicState::Serving,
                local: LocalState::UpToDate,
                joined_at: ChainVersion(1),
                used: 0,
                chunks: 0,
            },
        );
    }
    info.chains.insert(CHAIN, Chain { id: CHAIN, version: ChainVersion(4), targets });
    let table = Table { id: TableId(1), version: 1, replicas: 3, chains: vec![CHAIN] };
    info.tables.insert((TableId(1), 1), table);
    info
}

struct Node {
    id: NodeId,
    world: Arc<Mutex<World>>,
}

impl Service for Node {
    fn class(&self, _method: u16, _body: &[u8]) -> PoolClass {
        PoolClass::Client
    }

    fn call(self: Arc<Self>, mut request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let data = request.take_data();
            let trick = self.note(&request, &data);
            // Requests of one channel that overlap in time are noticed here.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let (status, body, data) = match trick {
                Some(Trick::Answer(status)) => (status, Bytes::new(), Vec::new()),
                Some(Trick::Hang) => std::future::pending().await,
                Some(Trick::DoAndHang) => {
                    self.serve(&request, &data, None);
                    std::future::pending().await
                }
                Some(Trick::Garble) => (Status::Ok, Bytes::from_static(b"???"), Vec::new()),
                other => self.serve(&request, &data, other),
            };
            self.leave(&request);
            request.responder().send(status, body, data);
        })
    }
}

impl Node {
    fn note(&self, request: &Incoming, data: &[catena_buf::IoBuf]) -> Option<Trick> {
        let mut world = self.world.lock();
        let mut body = &request.body[..];
        let mut seen = Seen {
            node: self.id,
            method: request.method,
            chain_version: 0,
            tag: Tag::default(),
            items: 1,
            bytes: data.iter().map(|data| data.len()).sum(),
        };
        match request.method {
            method::WRITE => {
                let write = *take_one::<WriteRequest>(&mut body).unwrap();
                (seen.chain_version, seen.tag) = (write.chain_version.get(), write.tag());
                let busy = world.busy.entry((seen.tag.client, seen.tag.channel)).or_default();
                *busy += 1;
                world.crowded = world.crowded.max(*world.busy.values().max().unwrap());
            }
            method::READ => {
                let items = take_all::<ReadItem>(body).unwrap();
                (seen.chain_version, seen.items) = (items[0].chain_version.get(), items.len());
                seen.bytes = items.iter().map(|item| item.length.get() as usize).sum();
            }
            _ => seen.chain_version = take_one::<ChunksRequest>(&mut body).unwrap().chain_version.get(),
        }
        world.seen.push(seen);
        world.tricks.get_mut(&self.id).and_then(VecDeque::pop_front)
    }

    fn leave(&self, request: &Incoming) {
        if request.method == method::WRITE {
            let tag = take_one::<WriteRequest>(&mut &request.body[..]).unwrap().tag();
            *self.world.lock().busy.get_mut(&(tag.client, tag.channel)).unwrap() -= 1;
        }
    }

    fn serve(
        &self,
        request: &Incoming,
        data: &[catena_buf::IoBuf],
        trick: Option<Trick>,
    ) -> (Status, Bytes, Vec<Buf>) {
        match request.method {
            method::WRITE => self.write(&request.body, data),
            method::READ => self.read(&request.body, trick),
            _ => self.chunks(request.method, &request.body),
        }
    }

    fn write(&self, body: &[u8], data: &[catena_buf::IoBuf]) -> (Status, Bytes, Vec<Buf>) {
        let mut body = body;
        let write = *take_one::<WriteRequest>(&mut body).unwrap();
        let checksums = take_checksums(&mut body, write.crc_count.get() as usize).unwrap();
        let offset = write.offset.get();
        let align = offset as usize % checksum::BLOCK;
        let data = data.first().map(|data| &data[align..]).unwrap_or_default();
        if checksum::piece_checksums(offset, data) != checksums {
            return (Status::Damaged, Bytes::new(), Vec::new());
        }
        let mut world = self.world.lock();
        let (tag, at) = (write.tag(), write.chunk());
        let (version, length) = match world.tags.get(&(tag.client, tag.channel)) {
            Some(&(sequence, version, length)) if sequence == tag.sequence => (version, length),
            Some(&(sequence, ..)) if sequence > tag.sequence => {
                return (Status::StaleSequence, Bytes::new(), Vec::new());
            }
            _ => {
                world.applied += 1;
                let (version, bytes) = world.chunks.entry(at).or_default();
                *version += 1;
                match WriteKind::from_code(write.kind).unwrap() {
                    WriteKind::Write => {
                        let end = offset as usize + data.len();
                        bytes.resize(bytes.len().max(end), 0);
                        bytes[offset as usize..end].copy_from_slice(data);
                    }
                    WriteKind::Truncate => bytes.resize(offset as usize, 0),
                    WriteKind::Extend => bytes.resize(bytes.len().max(offset as usize), 0),
                    WriteKind::Remove => bytes.clear(),
                }
                let outcome = (*version, bytes.len() as u32);
                if write.kind == WriteKind::Remove as u8 {
                    world.chunks.remove(&at);
                }
                world.tags.insert((tag.client, tag.channel), (tag.sequence, outcome.0, outcome.1));
                outcome
            }
        };
        let reply = WriteReply {
            version: version.into(),
            assigned: write.chain_version,
            length: length.into(),
            reserved: 0.into(),
        };
        (Status::Ok, frame::body(&reply, &[]), Vec::new())
    }

    fn read(&self, body: &[u8], trick: Option<Trick>) -> (Status, Bytes, Vec<Buf>) {
        let world = self.world.lock();
        let mut results = BytesMut::new();
        let mut all = Vec::new();
        let mut data = Vec::new();
        for item in take_all::<ReadItem>(body).unwrap() {
            let found = world.chunks.get(&item.chunk());
            let (status, found) = match (trick, found) {
                (Some(Trick::Items(status)), _) => (status, None),
                (_, None) => (Status::NotFound, None),
                (_, found) => (Status::Ok, found),
            };
            let Some((version, bytes)) = found else {
                results.put_slice(ReadResult::failed(status).as_bytes());
                data.push(Buf::empty());
                continue;
            };
            let (from, length) = (item.offset.get() as usize, item.length.get() as usize);
            let mut part = bytes[from.min(bytes.len())..(from + length).min(bytes.len())].to_vec();
            let checksums = checksum::piece_checksums(item.offset.get(), &part);
            if trick == Some(Trick::Flip) && !part.is_empty() {
                part[0] ^= 1;
            }
            let result = ReadResult {
                version: (*version).into(),
                length: (part.len() as u32).into(),
                chunk_length: (bytes.len() as u32).into(),
                crc_count: (checksums.len() as u32).into(),
                status: 0.into(),
                reserved: 0.into(),
            };
            results.put_slice(result.as_bytes());
            all.extend(checksums);
            data.push(Buf::from_vec(part));
        }
        put_checksums(&mut results, &all);
        (Status::Ok, results.freeze(), data)
    }

    fn chunks(&self, asked: u16, body: &[u8]) -> (Status, Bytes, Vec<Buf>) {
        let mut body = body;
        let request = *take_one::<ChunksRequest>(&mut body).unwrap();
        let from = ChunkId { inode: InodeId(request.from_inode.get()), index: request.from_index.get() };
        let to = ChunkId { inode: InodeId(request.to_inode.get()), index: u32::MAX };
        let world = self.world.lock();
        let entry = |(id, (version, bytes)): (&ChunkId, &(u64, Vec<u8>))| ChunkEntry {
            inode: id.inode.0.into(),
            version: (*version).into(),
            assigned: 4.into(),
            index: id.index.into(),
            length: (bytes.len() as u32).into(),
            checksum: padded_checksum(bytes).into(),
            pending: 0.into(),
        };
        let range = world.chunks.range(from..=to);
        let entries: Vec<ChunkEntry> = match asked {
            method::LAST_CHUNK => range.map(entry).next_back().into_iter().collect(),
            _ => range.map(entry).take(request.limit.get() as usize).collect(),
        };
        (Status::Ok, Bytes::copy_from_slice(entries.as_bytes()), Vec::new())
    }
}
