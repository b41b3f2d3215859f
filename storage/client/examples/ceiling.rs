//! How fast client and transport are when the servers behind them do nothing: three services on loopback that know every chunk and
//! forget every write. What a cluster loses against these figures is its servers' share.
//!
//! ```sh
//! cargo run --release -p catena-storage-client --example ceiling
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use catena_buf::{Buf, BufPool, PoolClass, PoolConfig};
use catena_mgmtd_client::RoutingWatch;
use catena_net::tcp::TcpTransport;
use catena_net::{Identity, Incoming, PeerId, Service, Transport};
use catena_proto::checksum;
use catena_proto::frame::{self, *};
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::*;
use catena_proto::status::Status;
use catena_proto::token::Token;
use catena_storage_client::{Options, ReadOp, StorageClient};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use zerocopy::IntoBytes;

const CHUNK: u32 = 1 << 20;

struct Nothing {
    data: Buf,
    block: u32,
}

impl Service for Nothing {
    fn class(&self, _method: u16, _body: &[u8]) -> PoolClass {
        PoolClass::Client
    }

    fn call(self: Arc<Self>, mut request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let bulk = request.take_data();
            let body = request.body.clone();
            if request.method == method::WRITE {
                drop(bulk);
                let reply = WriteReply {
                    version: 1.into(),
                    assigned: 1.into(),
                    length: 0.into(),
                    reserved: 0.into(),
                };
                return request.responder().send(Status::Ok, frame::body(&reply, &[]), Vec::new());
            }
            let items = take_all::<ReadItem>(&body).expect("our own client");
            let mut results = BytesMut::with_capacity(items.len() * 64);
            let (mut checksums, mut data) = (Vec::new(), Vec::with_capacity(items.len()));
            for item in items {
                let length = item.length.get();
                let count = checksum::piece_count(item.offset.get(), length as usize);
                let result = ReadResult {
                    version: 1.into(),
                    length: length.into(),
                    chunk_length: CHUNK.into(),
                    crc_count: (count as u32).into(),
                    status: 0.into(),
                    reserved: 0.into(),
                };
                results.put_slice(result.as_bytes());
                checksums.resize(checksums.len() + count, self.block);
                data.push(self.data.slice(0..length as usize));
            }
            put_checksums(&mut results, &checksums);
            request.responder().send(Status::Ok, results.freeze(), data);
        })
    }
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::main]
async fn main() {
    let identity =
        |peer| Identity { cluster: ClusterId(1), token: Token([1; 32]), peer, incarnation: Incarnation(1) };
    let pool = |bytes| BufPool::new(PoolConfig::client(bytes)).expect("memory");
    let mut info = RoutingInfo { version: RoutingVersion(1), cluster: ClusterId(1), ..Default::default() };
    let mut listeners = Vec::new();
    let targets: Vec<TargetId> = (1..=3).map(TargetId).collect();
    for &id in &targets {
        let node = NodeId(id.0 as u32);
        let transport = TcpTransport::new(identity(PeerId::Node(node)), pool(128 << 20));
        let mut data = transport.pool().alloc(4 << 20, PoolClass::Client).await.expect("a buffer");
        data.fill(7);
        let block = checksum::crc32c(&data[..checksum::BLOCK]);
        let service = Arc::new(Nothing { data: data.freeze(), block });
        let listener = transport.listen("tcp://127.0.0.1:0", service).await.expect("a port");
        let node_info = pb::Node { id: node.0, data_address: listener.address(), ..Default::default() };
        info.nodes.insert(node, node_info);
        listeners.push(listener);
        info.targets.insert(
            id,
            Target {
                id,
                chain: ChainId(1),
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
    info.tables = BTreeMap::new();
    for chain in 1..=3_u32 {
        let mut targets = targets.clone();
        targets.rotate_left(chain as usize);
        info.chains.insert(ChainId(chain), Chain { id: ChainId(chain), version: ChainVersion(1), targets });
    }
    let (_setter, watch) = RoutingWatch::manual(info);
    let client = ClientId(1);
    let transport = Arc::new(TcpTransport::new(identity(PeerId::Client(client)), pool(256 << 20)));
    let connections = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(2);
    let options = Options { connections, ..Options::default() };
    let storage = StorageClient::new(transport, watch, client, options);
    let deadline = || catena_rt::time::Instant::now() + Duration::from_secs(30);
    let chain = |n: u64| ChainId(n as u32 % 3 + 1);
    let chunk = |n: u64| ChunkId { inode: InodeId(9), index: n as u32 };

    let mut data = storage.pool().alloc(CHUNK as usize, PoolClass::Client).await.expect("a buffer");
    data.fill(3);
    let data = data.freeze();
    measure("write 1 MiB, 32 at once", 4096, f64::from(CHUNK), |n| {
        let (storage, data) = (storage.clone(), data.clone());
        async move {
            storage.write(chain(n), chunk(n), 0, data, CHUNK, deadline()).await.expect("written");
        }
    })
    .await;
    measure("read 1 MiB, 32 at once", 4096, f64::from(CHUNK), |n| {
        let storage = storage.clone();
        async move {
            let op = ReadOp { chain: chain(n), chunk: chunk(n), offset: 0, length: CHUNK, into: None };
            storage.read(vec![op], deadline()).await.pop().expect("one").expect("read");
        }
    })
    .await;
    for tasks in [1, 2] {
        let start = (Instant::now(), cpu_seconds());
        let batches = 4000_u64;
        stream::iter(0..batches)
            .map(|batch| {
                let storage = storage.clone();
                tokio::spawn(async move {
                    let ops = (0..64)
                        .map(|n| {
                            let (n, offset) = (batch * 64 + n, (n as u32 * 37 % 256) * 4096);
                            ReadOp { chain: chain(n), chunk: chunk(n), offset, length: 4096, into: None }
                        })
                        .collect();
                    for outcome in storage.read(ops, deadline()).await {
                        outcome.expect("read");
                    }
                })
            })
            .buffer_unordered(tasks)
            .for_each(|_| std::future::ready(()))
            .await;
        let (seconds, cpu) = (start.0.elapsed().as_secs_f64(), cpu_seconds() - start.1);
        let ops = (batches * 64) as f64;
        println!(
            "read 4 KiB, batches of 64, {tasks} at once: {:.0} a second, {:.2} us CPU each (all three services included)",
            ops / seconds,
            cpu * 1e6 / ops
        );
    }
}

async fn measure<F: Future<Output = ()> + Send + 'static>(
    name: &str,
    count: u64,
    bytes: f64,
    operation: impl Fn(u64) -> F,
) {
    let start = (Instant::now(), cpu_seconds());
    stream::iter(0..count)
        .map(|n| tokio::spawn(operation(n)))
        .buffer_unordered(32)
        .for_each(|_| std::future::ready(()))
        .await;
    let (seconds, cpu) = (start.0.elapsed().as_secs_f64(), cpu_seconds() - start.1);
    let gib = count as f64 * bytes / f64::from(1 << 30);
    println!("{name}: {:.2} GiB/s, {:.2} s CPU a GiB (all services included)", gib / seconds, cpu / gib);
}
