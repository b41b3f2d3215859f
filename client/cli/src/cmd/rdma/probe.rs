//! The two ends of a check: a service that swallows what is written and gives out the same bytes, and a client that times it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use catena_buf::{Buf, BufPool, IoBuf, PoolClass, PoolConfig};
use catena_net::rdma::RdmaTransport;
use catena_net::{
    Call, Connection, Identity, Incoming, Listener, PeerId, Segment, Service, Transport, TransportConfig,
};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use catena_verbs::Provider;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::args::rdma::CheckArgs;
use crate::exit::{Failure, Result};

const WRITE: u16 = 1;
const READ: u16 = 2;
const LARGE: usize = 1 << 20;
const SMALL: usize = 4096;
/// Checks need no cluster and guard nothing.
const NOBODY: ClusterId = ClusterId(0xca7e_c4ec);
const TOKEN: Token = Token([0xca; 32]);
const PATIENCE: Duration = Duration::from_secs(10);
/// Buffers of either end.
const POOL: usize = 64 << 20;

struct Store {
    bytes: Buf,
}

impl Service for Store {
    fn class(&self, _: u16, _: &[u8]) -> PoolClass {
        PoolClass::Client
    }
    fn call(self: Arc<Self>, request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let room = request.room();
            if room.iter().any(|&room| room as usize > LARGE) {
                return request.responder().status(Status::Invalid);
            }
            let data = room.iter().map(|&room| self.bytes.slice(0..room as usize)).collect();
            request.responder().send(Status::Ok, Bytes::new(), data);
        })
    }
}

/// A transport for checks.
pub fn transport(
    provider: Arc<dyn Provider>,
    config: &TransportConfig,
    server: bool,
) -> Result<Arc<dyn Transport>> {
    let peer = if server { PeerId::Node(NodeId(1)) } else { PeerId::Client(ClientId(rand::random())) };
    let identity = Identity { cluster: NOBODY, token: TOKEN, peer, incarnation: Incarnation(1) };
    let pool = BufPool::new(PoolConfig::client(POOL)).map_err(|error| Failure::failed(error.to_string()))?;
    let transport = RdmaTransport::new(provider, identity, pool, config.options());
    Ok(Arc::new(transport.map_err(|error| Failure::failed(error.to_string()))?))
}

/// Answers checks.
pub async fn listen(transport: &dyn Transport, address: &str) -> Result<Box<dyn Listener>> {
    let bytes = transport.pool().alloc(LARGE, PoolClass::Local).await;
    let bytes = bytes.map_err(|error| Failure::failed(error.to_string()))?.freeze();
    let listener = transport.listen(address, Arc::new(Store { bytes })).await;
    listener.map_err(|error| Failure::failed(error.to_string()))
}

/// What a check found.
pub struct Figures {
    read: Throughput,
    write: Throughput,
    round_trip: Duration,
    round_trip_p99: Duration,
    small: Costs,
}

/// Moving 1 MiB at a time.
struct Throughput {
    mib_per_second: f64,
    costs: Costs,
}

/// Of this process (of both ends, when a port is checked with itself), per call.
struct Costs {
    cpu_ns_per_byte: f64,
    doorbells: f64,
    waits: f64,
    copied: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, part) in [("reads of 1 MiB", &self.read), ("writes of 1 MiB", &self.write)] {
            let Costs { cpu_ns_per_byte, doorbells, waits, copied } = part.costs;
            writeln!(
                f,
                "  {name:<18} {:>9.1} MiB/s   {cpu_ns_per_byte:.3} ns of CPU per byte, {doorbells:.2} doorbells and {waits:.2} waits per call, {copied} bytes copied",
                part.mib_per_second
            )?;
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        write!(
            f,
            "  {:<18} {:>9.1} us      p99 {:.1} us, {:.2} doorbells and {:.2} waits per call",
            "4 KiB round trip",
            micros(self.round_trip),
            micros(self.round_trip_p99),
            self.small.doorbells,
            self.small.waits
        )
    }
}

impl Figures {
    /// For programs.
    pub fn json(&self) -> Value {
        let costs = |costs: &Costs| {
            json!({ "cpu_ns_per_byte": costs.cpu_ns_per_byte, "doorbells_per_call": costs.doorbells,
                "waits_per_call": costs.waits, "copied_bytes": costs.copied })
        };
        json!({
            "read_mib_s": self.read.mib_per_second, "read_costs": costs(&self.read.costs),
            "write_mib_s": self.write.mib_per_second, "write_costs": costs(&self.write.costs),
            "round_trip_us": self.round_trip.as_secs_f64() * 1e6,
            "round_trip_p99_us": self.round_trip_p99.as_secs_f64() * 1e6, "round_trip_costs": costs(&self.small),
        })
    }
}

/// User and system time of this process.
fn cpu() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(usage.tv_sec as u64, usage.tv_nsec as u32)
}

/// Times calls to a service that answers checks. In a task of its own: the runtime hands over between the tasks of one worker without the
/// kernel, and a command's own future is not on a worker.
pub async fn measure(transport: Arc<dyn Transport>, address: &str, args: &CheckArgs) -> Result<Figures> {
    let (address, args) = (address.to_owned(), args.clone());
    let task = tokio::spawn(async move { timed(&*transport, &address, &args).await });
    task.await.unwrap_or_else(|error| Err(Failure::failed(error.to_string())))
}

async fn timed(transport: &dyn Transport, address: &str, args: &CheckArgs) -> Result<Figures> {
    let connection = transport.connect(address, PATIENCE).await;
    let connection = connection.map_err(|error| Failure::failed(error.to_string()))?;
    let probe = Probe { connection, pool: transport.pool().clone() };
    // The first calls touch memory and wake processors.
    probe.one(WRITE, LARGE, &mut None).await?;
    probe.one(READ, LARGE, &mut None).await?;
    let read = probe.throughput(READ, args).await?;
    let write = probe.throughput(WRITE, args).await?;
    let (before, used) = (probe.connection.stats(), cpu());
    let mut times = Vec::with_capacity(args.round_trips as usize);
    let mut into = None;
    for _ in 0..args.round_trips.max(1) {
        let begun = Instant::now();
        probe.one(READ, SMALL, &mut into).await?;
        times.push(begun.elapsed());
    }
    let small = probe.costs(&before, used, times.len(), times.len() * SMALL);
    times.sort();
    let (round_trip, round_trip_p99) = (times[times.len() / 2], times[(times.len() - 1) * 99 / 100]);
    Ok(Figures { read, write, round_trip, round_trip_p99, small })
}

#[derive(Clone)]
struct Probe {
    connection: Arc<dyn Connection>,
    pool: BufPool,
}

impl Probe {
    async fn one(&self, method: u16, len: usize, buf: &mut Option<IoBuf>) -> Result<()> {
        let failed = |error: String| Failure::failed(error);
        let own = match buf.take() {
            Some(buf) => buf,
            None => {
                self.pool.alloc(len, PoolClass::Client).await.map_err(|error| failed(error.to_string()))?
            }
        };
        let mut call = Call { method, deadline: PATIENCE, ..Call::default() };
        let mut kept = None;
        if method == WRITE {
            let data = own.freeze();
            kept = Some(data.clone());
            call.data = vec![Segment { data, align: 0 }];
        } else {
            call.into = vec![own];
        }
        let mut reply = self.connection.call(call).await.map_err(|error| failed(error.to_string()))?;
        if reply.status != Status::Ok {
            return Err(failed(format!("the other end answered: {}", reply.status.text())));
        }
        *buf = match kept {
            Some(data) => data.try_into_iobuf().ok(),
            None => reply.data.pop(),
        };
        Ok(())
    }

    async fn throughput(&self, method: u16, args: &CheckArgs) -> Result<Throughput> {
        let depth = args.depth.clamp(1, POOL / LARGE / 4);
        let calls = (args.size / LARGE as u64).max(depth as u64) as usize;
        let (before, used, begun) = (self.connection.stats(), cpu(), Instant::now());
        let lanes = (0..depth).map(|lane| {
            let probe = self.clone();
            let calls = calls / depth + usize::from(lane < calls % depth);
            async move {
                let mut buf = None;
                for _ in 0..calls {
                    probe.one(method, LARGE, &mut buf).await?;
                }
                Ok(())
            }
        });
        futures_util::future::try_join_all(lanes).await.map_err(|failure: Failure| failure)?;
        let bytes = calls * LARGE;
        let mib_per_second = bytes as f64 / begun.elapsed().as_secs_f64() / (1 << 20) as f64;
        Ok(Throughput { mib_per_second, costs: self.costs(&before, used, calls, bytes) })
    }

    fn costs(
        &self,
        before: &catena_net::ConnectionStats,
        used: Duration,
        calls: usize,
        bytes: usize,
    ) -> Costs {
        let after = self.connection.stats();
        Costs {
            cpu_ns_per_byte: (cpu() - used).as_nanos() as f64 / bytes as f64,
            doorbells: (after.writes - before.writes) as f64 / calls as f64,
            waits: (after.reads - before.reads) as f64 / calls as f64,
            copied: after.copied - before.copied,
        }
    }
}
