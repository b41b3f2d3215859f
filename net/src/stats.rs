//! Counters of connections and methods, as plain values for whoever exports them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use catena_proto::status::Status;

use crate::call::Reply;
use crate::error::NetError;
use crate::handshake::PeerId;

/// Methods below this are counted each for itself, all others together under this number.
pub(crate) const METHODS: usize = 128;
/// Buckets of the latency histogram.
pub const BUCKETS: usize = 24;

/// What one method did, seen from one end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MethodStats {
    /// The method.
    pub method: u16,
    /// Calls ended, whatever the outcome.
    pub calls: u64,
    /// Of those, ended without [`Status::Ok`](catena_proto::status::Status::Ok): refused, failed, timed out, given up.
    pub failed: u64,
    /// Calls under way.
    pub in_flight: u64,
    /// Bytes of bodies and bulk data sent
    pub sent: u64,
    /// and received.
    pub received: u64,
    /// Time of all calls together, microseconds.
    pub micros: u64,
    /// Calls by time: bucket `i` counts those below `2^i` microseconds (and not below the bucket before), the last one the rest.
    pub latency: [u64; BUCKETS],
}

/// One connection, or several added up.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionStats {
    /// Per method, in order; only those in use.
    pub methods: Vec<MethodStats>,
    /// Calls that wait for a credit.
    pub waiting: u64,
    /// Bytes on the wire, sent
    pub wire_sent: u64,
    /// and received.
    pub wire_received: u64,
    /// System calls that sent (RDMA: doorbells, that is, batches of work posted)
    pub writes: u64,
    /// and that received (RDMA: waits for an event).
    pub reads: u64,
    /// Bytes of bulk data that were copied in user space: TCP, because they came along with a header, small messages only; RDMA, because
    /// they lay in memory that is not registered.
    pub copied: u64,
    /// Requests that came before there was a buffer for their data, and were pulled later.
    pub parked: u64,
}

impl ConnectionStats {
    /// Calls under way.
    pub fn in_flight(&self) -> u64 {
        self.methods.iter().map(|method| method.in_flight).sum()
    }

    /// The counters of a method; zeros if it was never used.
    pub fn method(&self, method: u16) -> MethodStats {
        self.methods.iter().find(|stats| stats.method == method).copied().unwrap_or_default()
    }
}

/// One connection of a listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStats {
    /// The client.
    pub peer: PeerId,
    /// Where it is.
    pub address: String,
    /// Its requests that are under way.
    pub in_flight: u64,
    /// Those of them that wait for buffers.
    pub parked: u64,
}

/// A listener: its connections' counters, closed ones included, and what it kept out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListenerStats {
    /// All connections added up.
    pub all: ConnectionStats,
    /// Connections open now.
    pub open: Vec<PeerStats>,
    /// Connections ever accepted, handshake included.
    pub accepted: u64,
    /// Handshakes refused: protocol version,
    pub refused_protocol: u64,
    /// cluster,
    pub refused_cluster: u64,
    /// token,
    pub refused_token: u64,
    /// and those that were no handshake or did not come in time.
    pub refused_other: u64,
    /// Connections cut off for a message that cannot be: damaged, oversized, out of turn.
    pub garbled: u64,
}

#[derive(Default)]
struct MethodCounters {
    begun: AtomicU64,
    calls: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    micros: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

/// The live counters behind the plain structs.
pub(crate) struct Counters {
    methods: Box<[OnceLock<Box<MethodCounters>>]>,
    pub waiting: AtomicU64,
    pub wire_sent: AtomicU64,
    pub wire_received: AtomicU64,
    pub writes: AtomicU64,
    pub reads: AtomicU64,
    pub copied: AtomicU64,
    pub parked: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

impl Counters {
    pub fn new() -> Counters {
        Counters {
            methods: (0..=METHODS).map(|_| OnceLock::new()).collect(),
            waiting: AtomicU64::new(0),
            wire_sent: AtomicU64::new(0),
            wire_received: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            parked: AtomicU64::new(0),
        }
    }

    fn method(&self, method: u16) -> &MethodCounters {
        self.methods[usize::from(method).min(METHODS)].get_or_init(Box::default)
    }

    pub fn begun(&self, method: u16) {
        add(&self.method(method).begun, 1);
    }

    pub fn ended(&self, method: u16, ok: bool, sent: usize, received: usize, took: Duration) {
        let counters = self.method(method);
        let micros = took.as_micros() as u64;
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        add(&counters.calls, 1);
        add(&counters.failed, u64::from(!ok));
        add(&counters.sent, sent as u64);
        add(&counters.received, received as u64);
        add(&counters.micros, micros);
        add(&counters.latency[bucket.min(BUCKETS - 1)], 1);
    }

    /// A call has ended like this, at the calling end.
    pub fn answered(&self, method: u16, sent: usize, result: &Result<Reply, NetError>, took: Duration) {
        let (ok, received) = match result {
            Ok(reply) => {
                let data: usize = reply.data.iter().map(|buf| buf.len()).sum();
                (reply.status == Status::Ok, reply.body.len() + data)
            }
            Err(_) => (false, 0),
        };
        self.ended(method, ok, sent, received, took);
    }

    pub fn snapshot(&self) -> ConnectionStats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let used =
            self.methods.iter().enumerate().filter_map(|(method, counters)| Some((method, counters.get()?)));
        let methods = used.map(|(method, counters)| {
            // In this order: a call that ends in between must not make the difference negative.
            let calls = get(&counters.calls);
            MethodStats {
                method: method as u16,
                calls,
                failed: get(&counters.failed),
                in_flight: get(&counters.begun).saturating_sub(calls),
                sent: get(&counters.sent),
                received: get(&counters.received),
                micros: get(&counters.micros),
                latency: std::array::from_fn(|bucket| get(&counters.latency[bucket])),
            }
        });
        ConnectionStats {
            methods: methods.collect(),
            waiting: get(&self.waiting),
            wire_sent: get(&self.wire_sent),
            wire_received: get(&self.wire_received),
            writes: get(&self.writes),
            reads: get(&self.reads),
            copied: get(&self.copied),
            parked: get(&self.parked),
        }
    }
}
