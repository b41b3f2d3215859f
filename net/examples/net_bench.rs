//! What the TCP transport costs, beside a raw stream over the same loopback in the same run.
//!
//! `cargo run --release -p catena-net --example net_bench [-- SECONDS]`: each figure is taken for SECONDS (default 2), client and server
//! in one process: on one runtime with two workers, and on a runtime of one thread each.

use std::future::Future;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use catena_buf::{Buf, BufPool, IoBuf, PoolClass, PoolConfig};
use catena_net::tcp::TcpTransport;
use catena_net::{Call, Connection, Identity, Incoming, PeerId, Segment, Service, Transport};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use futures_util::future::{BoxFuture, join_all};

const WRITE: u16 = 1;
const READ: u16 = 2;
const LARGE: usize = 1 << 20;
const SMALL: usize = 4096;

/// Takes what is written, and answers reads with the same bytes over and over.
struct Store {
    bytes: Buf,
}

impl Service for Store {
    fn class(&self, _: u16, _: &[u8]) -> PoolClass {
        PoolClass::Client
    }
    fn call(self: Arc<Self>, mut request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let data = match request.method {
                WRITE => {
                    drop(request.take_data());
                    Vec::new()
                }
                _ => request.room().iter().map(|&room| self.bytes.slice(0..room as usize)).collect(),
            };
            request.responder().send(Status::Ok, Bytes::new(), data);
        })
    }
}

fn transport(peer: PeerId) -> TcpTransport {
    let identity =
        Identity { cluster: ClusterId(1), token: Token([1; 32]), peer, incarnation: Incarnation(1) };
    TcpTransport::new(identity, BufPool::new(PoolConfig::service(512 << 20)).expect("memory"))
}

async fn serve() -> Box<dyn catena_net::Listener> {
    let server = transport(PeerId::Node(NodeId(1)));
    let bytes = server.pool().alloc(LARGE, PoolClass::Local).await.expect("a buffer").freeze();
    server.listen("127.0.0.1:0", Arc::new(Store { bytes })).await.expect("a free port")
}

/// User and system time of this process.
fn cpu() -> Duration {
    // Clock ticks of 10 ms are fine enough for seconds.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

struct Figure {
    name: String,
    ops: u64,
    bytes: u64,
    seconds: f64,
    cpu: f64,
}

impl Figure {
    fn bandwidth(&self) -> f64 {
        self.bytes as f64 / self.seconds / (1 << 20) as f64
    }
    fn print(&self, raw: f64) {
        let per_gib = self.cpu / (self.bytes as f64 / (1_u64 << 30) as f64);
        println!(
            "{:<44} {:>8.0} MiB/s {:>5.2} of raw {:>9.0} op/s {:>6.2} CPU s/GiB {:>6.2} us CPU/op",
            self.name,
            self.bandwidth(),
            self.bandwidth() / raw,
            self.ops as f64 / self.seconds,
            per_gib,
            self.cpu * 1e6 / self.ops as f64,
        );
    }
}

fn raw(time: Duration) -> Figure {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let stop = Arc::new(AtomicBool::new(false));
    let (start, before) = (Instant::now(), cpu());
    let sender = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut stream = std::net::TcpStream::connect(address).expect("a listener");
            let bytes = vec![1; LARGE];
            while !stop.load(Relaxed) {
                stream.write_all(&bytes).expect("a reader");
            }
        }
    });
    let (mut stream, _) = listener.accept().expect("a client");
    let mut bytes = vec![0; LARGE];
    let mut total = 0;
    loop {
        match stream.read(&mut bytes).expect("a writer") {
            0 => break,
            got => total += got as u64,
        }
        if start.elapsed() > time {
            stop.store(true, Relaxed);
        }
    }
    sender.join().expect("it does not panic");
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64());
    Figure { name: "raw stream, 1 MiB writes".into(), ops: total / LARGE as u64, bytes: total, seconds, cpu }
}

/// `depth` tasks call `op` over and over.
async fn measure<F, O>(
    name: String,
    time: Duration,
    depth: usize,
    bytes: usize,
    items: usize,
    op: F,
) -> Figure
where
    F: Fn(Vec<IoBuf>) -> O + Clone + Send + 'static,
    O: Future<Output = Vec<IoBuf>> + Send,
{
    let done = Arc::new(AtomicU64::new(0));
    let (start, before) = (Instant::now(), cpu());
    let tasks = (0..depth).map(|_| {
        let (op, done) = (op.clone(), done.clone());
        tokio::spawn(async move {
            let mut bufs = Vec::new();
            while start.elapsed() < time {
                bufs = op(bufs).await;
                done.fetch_add(1, Relaxed);
            }
        })
    });
    join_all(tasks.collect::<Vec<_>>()).await;
    let calls = done.load(Relaxed);
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64());
    Figure { name, ops: calls * items as u64, bytes: calls * bytes as u64, seconds, cpu }
}

async fn client(address: String, time: Duration, raw: f64) {
    let transport = transport(PeerId::Client(ClientId(1)));
    let pool = transport.pool().clone();
    let connection = transport.connect(&address, Duration::from_secs(5)).await.expect("a server");
    let data = pool.alloc(LARGE, PoolClass::Local).await.expect("a buffer").freeze();
    for depth in [1, 4] {
        let (connection, data) = (connection.clone(), data.clone());
        let write = move |bufs: Vec<IoBuf>| {
            let (connection, data) = (connection.clone(), data.clone());
            async move {
                let data = vec![Segment { data, align: 0 }];
                connection.call(Call { method: WRITE, data, ..Call::default() }).await.expect("an answer");
                bufs
            }
        };
        measure(format!("write 1 MiB, depth {depth}"), time, depth, LARGE, 1, write).await.print(raw);
    }
    for (depth, len, batch) in [(1, LARGE, 1), (4, LARGE, 1), (1, SMALL, 1), (64, SMALL, 1), (4, SMALL, 16)] {
        let (connection, pool) = (connection.clone(), pool.clone());
        let read = move |bufs: Vec<IoBuf>| read(connection.clone(), pool.clone(), bufs, len, batch);
        let name = match (len, batch) {
            (LARGE, _) => format!("read 1 MiB, depth {depth}"),
            (_, 1) => format!("read 4 KiB, depth {depth}"),
            _ => format!("read 4 KiB, depth {}, {batch} per call", depth * batch),
        };
        measure(name, time, depth, len * batch, batch, read).await.print(raw);
    }
    let stats = connection.stats();
    println!(
        "client: {} reads, {} writes, {:.2} GiB received, {:.3} GiB of it copied",
        stats.reads,
        stats.writes,
        stats.wire_received as f64 / (1_u64 << 30) as f64,
        stats.copied as f64 / (1_u64 << 30) as f64,
    );
}

async fn read(
    connection: Arc<dyn Connection>,
    pool: BufPool,
    mut bufs: Vec<IoBuf>,
    len: usize,
    batch: usize,
) -> Vec<IoBuf> {
    while bufs.len() < batch {
        bufs.push(pool.alloc(len, PoolClass::Client).await.expect("a buffer"));
    }
    let reply =
        connection.call(Call { method: READ, into: bufs, ..Call::default() }).await.expect("an answer");
    assert!(reply.data.iter().all(|buf| buf.len() == len));
    reply.data
}

fn main() {
    let time = std::env::args().nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(time);
    let bare = raw(time);
    let bandwidth = bare.bandwidth();
    bare.print(bandwidth);

    println!("client and server on one runtime, two workers:");
    let shared =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    shared.block_on(async {
        let listener = serve().await;
        tokio::spawn(client(listener.address(), time, bandwidth)).await.expect("it does not panic");
    });
    drop(shared);

    println!("a runtime of one thread each:");
    let single = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a thread");
    let (address, given) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        single().block_on(async {
            let listener = serve().await;
            address.send(listener.address()).expect("somebody waits for it");
            std::future::pending::<()>().await;
        });
    });
    let address = given.recv().expect("a server");
    let runtime = single();
    runtime
        .block_on(async { tokio::spawn(client(address, time, bandwidth)).await.expect("it does not panic") });
}
