//! Clients of the storage services on a few chunks: overlapping writes, truncates, removes and reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use catena_buf::{Buf, PoolConfig};
use catena_mgmtd_client::{ClientSession, RoutingWatch, WatchOptions};
use catena_net::PeerId;
use catena_proto::frame::WriteKind;
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::sim::SimProcess;
use catena_rt::time::{Instant, sleep, timeout};
use catena_storage_client::{Options, ReadOp, StorageClient};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cluster::World;
use catena_model::chunk::{Change, Op, Stamp};
use catena_model::linear::Call;

/// The inode that all chunks belong to.
const INODE: InodeId = InodeId(0x51);
/// Cells of a chunk.
pub const CELLS: u32 = 16;

/// Clients are numbered from here.
const FIRST: u64 = 0x1_0000;

/// Those that may write, as the network knows them.
pub fn writers() -> impl Iterator<Item = PeerId> {
    (0..4).map(|number| PeerId::Client(ClientId(FIRST + number)))
}

/// Those that only read.
pub fn readers() -> impl Iterator<Item = PeerId> {
    (8..16).map(|number| PeerId::Client(ClientId(FIRST + number)))
}

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients.
    pub clients: u32,
    /// Chunks that they share.
    pub chunks: u32,
    /// Bytes of a cell.
    pub cell: u32,
    /// Operations of each client.
    pub operations: u32,
    /// Longest pause between two.
    pub pause: Duration,
    /// Of ten operations, so many read.
    pub reads: u32,
    /// Truncates and removes too, not only writes.
    pub cuts: bool,
    /// Beside them, one client for each of the chain's nodes that reads there and nowhere else: who is the last to hear of something is asked
    /// too.
    pub watchers: bool,
}

/// Calls on each chunk, in the order in which they began.
pub struct History {
    /// By chunk index.
    pub calls: Mutex<BTreeMap<u32, Vec<Call<Op>>>>,
    stamps: AtomicU32,
    /// Errors that a client was told, with what it did.
    pub errors: Mutex<Vec<String>>,
    /// What was found wrong on the way.
    pub wrong: Mutex<Vec<String>>,
}

/// The clients and what they saw.
pub struct Clients {
    world: Arc<World>,
    plan: Plan,
    /// What they saw.
    pub history: Arc<History>,
    processes: Vec<SimProcess>,
    done: Vec<Option<catena_rt::JoinHandle<()>>>,
}

impl History {
    fn begin(&self, world: &World, index: u32, op: Op) -> usize {
        let mut calls = self.calls.lock();
        let calls = calls.entry(index).or_default();
        calls.push(Call { begun: world.sim.now().as_nanos() as u64, ended: None, op });
        calls.len() - 1
    }

    fn end(&self, world: &World, index: u32, at: usize, op: Op) {
        let mut calls = self.calls.lock();
        if let Some(call) = calls.get_mut(&index).and_then(|calls| calls.get_mut(at)) {
            call.ended = Some(world.sim.now().as_nanos() as u64);
            call.op = op;
        }
    }

    /// It did not happen, for sure.
    fn forget(&self, index: u32, at: usize) {
        let mut calls = self.calls.lock();
        if let Some(call) = calls.get_mut(&index).and_then(|calls| calls.get_mut(at)) {
            // A read that nobody answered says nothing.
            call.op = Op::Change(Change::Extend(0), None);
        }
    }

    /// Operations so far.
    pub fn len(&self) -> usize {
        self.calls.lock().values().map(Vec::len).sum()
    }

    /// None yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A client, and the storage node that it is pinned to.
#[derive(Clone, Copy)]
struct Who {
    id: u64,
    pinned: Option<u32>,
}

/// A client's identity within its process.
struct Client {
    world: Arc<World>,
    storage: StorageClient,
    chain: ChainId,
    plan: Plan,
    history: Arc<History>,
    rng: StdRng,
    _session: ClientSession,
}

/// Where the chain's targets are.
fn nodes(world: &World, chain: ChainId) -> Vec<u32> {
    let routing = world.watch().current();
    routing.targets.values().filter(|target| target.chain == chain).map(|target| target.node.0).collect()
}

fn chunk_size(plan: &Plan) -> u32 {
    (plan.cell * CELLS).next_power_of_two().max(64 << 10)
}

fn pattern(stamp: Stamp, cell: u32, size: u32) -> Vec<u8> {
    let mut x = u64::from(stamp) << 32 | u64::from(cell) | 1 << 63;
    let mut bytes = Vec::with_capacity(size as usize);
    bytes.extend_from_slice(&stamp.to_le_bytes());
    while bytes.len() < size as usize {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes
}

/// Whose bytes a cell holds; an error if it is nobody's.
fn stamp_of(bytes: &[u8], cell: u32) -> Result<Stamp, String> {
    let stamp = bytes.first_chunk().map_or(0, |head| Stamp::from_le_bytes(*head));
    let whole = if stamp == 0 {
        bytes.iter().all(|byte| *byte == 0)
    } else {
        bytes == pattern(stamp, cell, bytes.len() as u32)
    };
    if whole { Ok(stamp) } else { Err(format!("cell {cell} is a mixture (its head says write {stamp})")) }
}

impl Client {
    async fn connect(world: &Arc<World>, who: Who, plan: Plan, history: &Arc<History>, seed: u64) -> Client {
        let Who { id, pinned } = who;
        let peer = PeerId::Client(ClientId(id));
        let mut rng = StdRng::seed_from_u64(seed);
        let mgmtd = world.mgmtd_client_pinned(peer, pinned);
        let plan = if pinned.is_some() { Plan { reads: 10, ..plan } } else { plan };
        let session = loop {
            match ClientSession::start(mgmtd.clone(), ClientId(id), "simulated".into()).await {
                Ok(session) => break session,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        };
        let watch =
            RoutingWatch::spawn(mgmtd, WatchOptions { seed: rng.random(), ..WatchOptions::default() });
        let routing = watch.changed(RoutingVersion(0)).await;
        let chain = routing.chains.keys().next().copied().unwrap_or(ChainId(1));
        let transport = Arc::new(world.transport(peer, Incarnation(id), PoolConfig::client(16 << 20)));
        let options = Options {
            seed: rng.random(),
            deadline: Duration::from_secs(120),
            write_attempt: Duration::from_millis([1000, 4000, 8000][rng.random_range(0..3)]),
            read_attempt: Duration::from_millis([800, 800, 4000][rng.random_range(0..3)]),
            channels: 4,
            ..Options::default()
        };
        let storage = StorageClient::new(transport, watch, ClientId(id), options);
        let (world, history) = (world.clone(), history.clone());
        Client { world, storage, chain, plan, history, rng, _session: session }
    }

    async fn run(mut self) {
        for _ in 0..self.plan.operations {
            let pause = self.rng.random_range(0..=self.plan.pause.as_micros() as u64);
            sleep(Duration::from_micros(pause)).await;
            let index = self.rng.random_range(0..self.plan.chunks);
            if self.rng.random_range(0..10) < self.plan.reads {
                self.read(index).await;
            } else {
                let change = self.change();
                self.mutate(index, change).await;
            }
        }
    }

    fn change(&mut self) -> Change {
        let rng = &mut self.rng;
        let kind = if self.plan.cuts { rng.random_range(0..10) } else { 0 };
        match kind {
            7 => Change::Truncate(rng.random_range(0..=CELLS)),
            8 => Change::Extend(rng.random_range(0..=CELLS)),
            9 => Change::Remove,
            _ => {
                let from = rng.random_range(0..CELLS);
                let most = CELLS - from;
                // Most are small; some cover everything.
                let count = if rng.random_bool(0.7) { rng.random_range(1..=most.min(3)) } else { most };
                Change::Write { from, count, stamp: self.history.stamps.fetch_add(1, Relaxed) + 1 }
            }
        }
    }

    async fn mutate(&mut self, index: u32, change: Change) {
        let chunk = ChunkId { inode: INODE, index };
        let (cell, size) = (self.plan.cell, chunk_size(&self.plan));
        let at = self.history.begin(&self.world, index, Op::Change(change.clone(), None));
        let deadline = self.storage.deadline();
        let outcome = match change {
            Change::Write { from, count, stamp } => {
                let bytes: Vec<u8> =
                    (from..from + count).flat_map(|number| pattern(stamp, number, cell)).collect();
                let data = Buf::from_vec(bytes);
                self.storage.write(self.chain, chunk, from * cell, data, size, deadline).await
            }
            Change::Truncate(to) => self.cut(chunk, WriteKind::Truncate, to, deadline).await,
            Change::Extend(to) => self.cut(chunk, WriteKind::Extend, to, deadline).await,
            Change::Remove => self.cut(chunk, WriteKind::Remove, 0, deadline).await,
        };
        match outcome {
            Ok(written) => {
                if !written.length.is_multiple_of(cell) {
                    let what = format!("chunk {index}: {} bytes are no whole cells", written.length);
                    self.history.wrong.lock().push(what);
                }
                let length = Some(written.length / cell);
                self.history.end(&self.world, index, at, Op::Change(change, length));
            }
            // Nobody knows whether it happened.
            Err(error) => self.history.errors.lock().push(format!("{change:?}: {error}")),
        }
    }

    async fn cut(
        &self,
        chunk: ChunkId,
        kind: WriteKind,
        to: u32,
        deadline: Instant,
    ) -> Result<catena_storage_client::Written, catena_storage_client::StorageError> {
        let size = chunk_size(&self.plan);
        self.storage.mutate(self.chain, chunk, kind, to * self.plan.cell, size, deadline).await
    }

    async fn read(&mut self, index: u32) {
        let at = self.history.begin(&self.world, index, Op::Read(None));
        let seen = self.look(index).await;
        match seen {
            Ok(seen) => self.history.end(&self.world, index, at, Op::Read(seen)),
            Err(error) => {
                self.history.forget(index, at);
                self.history.errors.lock().push(error);
            }
        }
    }

    async fn look(&mut self, index: u32) -> Result<Option<Vec<Stamp>>, String> {
        let (cell, size) = (self.plan.cell, chunk_size(&self.plan));
        let op = ReadOp {
            chain: self.chain,
            chunk: ChunkId { inode: INODE, index },
            offset: 0,
            length: size,
            into: None,
        };
        let outcome = self.storage.read(vec![op], self.storage.deadline()).await.pop();
        match outcome {
            Some(Ok(read)) => {
                let mut bytes = read.data[..].to_vec();
                bytes.resize(read.chunk_length as usize, 0);
                let cells =
                    bytes.chunks(cell as usize).zip(0..).map(|(bytes, number)| stamp_of(bytes, number));
                match cells.collect() {
                    Ok(cells) => Ok(Some(cells)),
                    Err(mixture) => {
                        let what = format!("chunk {index} version {}: {mixture}", read.version);
                        self.history.wrong.lock().push(what.clone());
                        Err(what)
                    }
                }
            }
            Some(Err(error)) if error.status == Status::NotFound => Ok(None),
            Some(Err(error)) => Err(format!("read of chunk {index}: {error}")),
            None => Err(format!("read of chunk {index}: no outcome")),
        }
    }
}

impl Clients {
    /// Starts them.
    pub fn start(world: &Arc<World>, plan: Plan, seed: u64) -> Clients {
        let history = Arc::new(History {
            calls: Mutex::default(),
            stamps: AtomicU32::new(0),
            errors: Mutex::default(),
            wrong: Mutex::default(),
        });
        let mut clients =
            Clients { world: world.clone(), plan, history, processes: Vec::new(), done: Vec::new() };
        for number in 0..plan.clients {
            clients.one(seed.wrapping_mul(1000) + u64::from(number), None);
        }
        if plan.watchers {
            let chain = world.watch().current().chains.keys().next().copied().unwrap_or(ChainId(1));
            for node in nodes(world, chain) {
                clients.one(seed.wrapping_mul(1000) + u64::from(node), Some(node));
            }
        }
        clients
    }

    fn one(&mut self, seed: u64, pinned: Option<u32>) {
        let id = FIRST + self.processes.len() as u64 + if pinned.is_some() { 8 } else { 0 };
        let who = Who { id, pinned };
        let process = self.world.sim.process(&format!("client{id}"));
        let (world, plan, history) = (self.world.clone(), self.plan, self.history.clone());
        let run = process.handle().spawn(async move {
            Client::connect(&world, who, plan, &history, seed).await.run().await;
        });
        self.processes.push(process);
        self.done.push(Some(run));
    }

    /// One of them dies; another takes its place.
    pub fn replace(&mut self, number: usize, seed: u64) {
        let number = number % self.processes.len();
        self.world.net.kill(PeerId::Client(ClientId(FIRST + number as u64)));
        self.processes[number].kill();
        self.one(seed, None);
    }

    /// Waits for all that live. False if they take longer than `patience`.
    pub async fn finish(&mut self, patience: Duration) -> bool {
        let all = async {
            for run in &mut self.done {
                if let Some(run) = run.take() {
                    let _ = run.await;
                }
            }
        };
        timeout(patience, all).await.is_ok()
    }

    /// A last read of every chunk by a new client, and one at every replica by itself, so that what was acknowledged has to be there;
    /// then a comparison of the replicas. What is wrong.
    pub async fn last_look(&mut self) -> Vec<String> {
        let (world, plan, history) = (self.world.clone(), self.plan, self.history.clone());
        let process = self.world.sim.process("last look");
        let look = process.handle().spawn(async move {
            let who = Who { id: 0xffff, pinned: None };
            let mut client = Client::connect(&world, who, plan, &history, 1).await;
            for index in 0..plan.chunks {
                client.read(index).await;
            }
            let nodes = nodes(&world, client.chain);
            for (number, node) in (1..).zip(nodes) {
                let who = Who { id: 0xffff + number, pinned: Some(node) };
                let mut there = Client::connect(&world, who, plan, &history, 1).await;
                for index in 0..plan.chunks {
                    there.read(index).await;
                }
            }
            crate::check::converged(&client.storage).await
        });
        let done = timeout(Duration::from_secs(300), look).await;
        process.kill();
        match done {
            Ok(Ok(wrong)) => wrong,
            _ => vec!["live: chunks cannot be read at the end".into()],
        }
    }
}
