//! A network in memory, for tests and the simulator: addresses are names, time is tokio's, trouble is made to order.
//!
//! Deterministic on a current-thread runtime with paused time: the order of events follows from the seed alone. Bulk data is copied
//! between the two ends' pools, as RDMA READ and WRITE would do it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, BufPool};
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::call::{Call, Reply};
use crate::error::NetError;
use crate::handshake::{Identity, PeerId, advice};
use crate::limits;
use crate::service::{Incoming, ReplySink, Service};
use crate::stats::{ConnectionStats, ListenerStats};
use crate::transport::{Connection, Listener, Transport};

/// How messages travel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Weather {
    /// Every message takes at least this long,
    pub delay: Duration,
    /// and up to this much longer.
    pub jitter: Duration,
    /// Of a million messages, so many are lost; the caller sees its deadline pass.
    pub loss_ppm: u32,
}

impl Default for Weather {
    fn default() -> Self {
        Weather { delay: Duration::ZERO, jitter: Duration::ZERO, loss_ppm: 0 }
    }
}

struct Host {
    identity: Identity,
    pool: BufPool,
    service: Arc<dyn Service>,
    counters: Arc<Counters>,
    /// A listener that was replaced is another one.
    serial: u64,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    in_flight: AtomicU64,
    refused: AtomicU64,
}

struct State {
    hosts: BTreeMap<String, Host>,
    weather: Weather,
    /// (from, to): messages that way do not arrive.
    cut: BTreeSet<(PeerId, PeerId)>,
    random: u64,
    serial: u64,
}

/// The network that a test's transports share.
#[derive(Clone)]
pub struct MemNetwork {
    state: Arc<Mutex<State>>,
}

impl MemNetwork {
    /// A calm network; `seed` decides delays and losses once there are any.
    pub fn new(seed: u64) -> MemNetwork {
        let state = State {
            hosts: BTreeMap::new(),
            weather: Weather::default(),
            cut: BTreeSet::new(),
            random: seed,
            serial: 0,
        };
        MemNetwork { state: Arc::new(Mutex::new(state)) }
    }

    /// One process's way into it.
    pub fn transport(&self, identity: Identity, pool: BufPool) -> MemTransport {
        MemTransport { network: self.clone(), identity, pool }
    }

    /// From now on.
    pub fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    /// Messages from `from` to `to` are lost until [`MemNetwork::heal`]. One way only.
    pub fn cut(&self, from: PeerId, to: PeerId) {
        self.state.lock().cut.insert((from, to));
    }

    /// All ways are open again.
    pub fn heal(&self) {
        self.state.lock().cut.clear();
    }

    /// When a message sent now arrives; `None` if it never does.
    fn arrival(&self, from: PeerId, to: PeerId) -> Option<Instant> {
        let mut state = self.state.lock();
        let lost =
            state.cut.contains(&(from, to)) || state.random() % 1_000_000 < u64::from(state.weather.loss_ppm);
        let jitter = state.weather.jitter.as_nanos() as u64;
        let extra = if jitter == 0 { 0 } else { state.random() % jitter };
        (!lost).then(|| Instant::now() + state.weather.delay + Duration::from_nanos(extra))
    }
}

impl State {
    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// One process's transport.
#[derive(Clone)]
pub struct MemTransport {
    network: MemNetwork,
    identity: Identity,
    pool: BufPool,
}

impl Transport for MemTransport {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, NetError>> {
        Box::pin(async move {
            let failed = |reason: &str| NetError::Connect { address: address.into(), reason: reason.into() };
            let found = {
                let state = self.network.state.lock();
                state
                    .hosts
                    .get(address)
                    .map(|host| (host.identity.clone(), host.serial, host.counters.clone()))
            };
            let (server, serial, counters) = found.ok_or_else(|| failed("connection refused"))?;
            let (me, peer) = (self.identity.peer, server.peer);
            let trip = async {
                for (from, to) in [(me, peer), (peer, me)] {
                    match self.network.arrival(from, to) {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                }
            };
            if tokio::time::timeout(deadline, trip).await.is_err() {
                return Err(failed("no answer within the deadline"));
            }
            let status = if server.cluster != self.identity.cluster {
                Status::WrongCluster
            } else if server.token != self.identity.token {
                Status::BadToken
            } else {
                Status::Ok
            };
            if status != Status::Ok {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                return Err(NetError::Refused {
                    address: address.into(),
                    status,
                    reason: advice(status).into(),
                });
            }
            Ok(Arc::new(MemConnection {
                network: self.network.clone(),
                me,
                peer,
                address: address.into(),
                serial,
                credits: Arc::new(Semaphore::new(limits::CREDITS as usize)),
                closed: Arc::new(AtomicBool::new(false)),
                last: Arc::new(Mutex::new(Instant::now())),
            }) as Arc<dyn Connection>)
        })
    }

    fn listen<'a>(
        &'a self,
        address: &'a str,
        service: Arc<dyn Service>,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, NetError>> {
        let mut state = self.network.state.lock();
        let result = if state.hosts.contains_key(address) {
            Err(NetError::Listen { address: address.into(), reason: "the address is in use".into() })
        } else {
            state.serial += 1;
            let serial = state.serial;
            let counters = Arc::new(Counters::default());
            let host = Host {
                identity: self.identity.clone(),
                pool: self.pool.clone(),
                service,
                counters: counters.clone(),
                serial,
            };
            state.hosts.insert(address.into(), host);
            let network = Arc::downgrade(&self.network.state);
            Ok(Box::new(MemListener { network, address: address.into(), serial, counters })
                as Box<dyn Listener>)
        };
        drop(state);
        Box::pin(std::future::ready(result))
    }

    fn pool(&self) -> &BufPool {
        &self.pool
    }
}

struct MemListener {
    network: Weak<Mutex<State>>,
    address: String,
    serial: u64,
    counters: Arc<Counters>,
}

impl Drop for MemListener {
    fn drop(&mut self) {
        let Some(network) = self.network.upgrade() else { return };
        let mut state = network.lock();
        if state.hosts.get(&self.address).is_some_and(|host| host.serial == self.serial) {
            let gone = state.hosts.remove(&self.address);
            drop(state);
            drop(gone);
        }
    }
}

impl Listener for MemListener {
    fn address(&self) -> String {
        self.address.clone()
    }
    fn stats(&self) -> ListenerStats {
        ListenerStats {
            refused_other: self.counters.refused.load(Ordering::Relaxed),
            ..ListenerStats::default()
        }
    }
    fn shutdown(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let counters = self.counters.clone();
            drop(self);
            let deadline = Instant::now() + grace;
            while counters.in_flight.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    }
}

struct MemConnection {
    network: MemNetwork,
    me: PeerId,
    peer: PeerId,
    address: String,
    serial: u64,
    credits: Arc<Semaphore>,
    closed: Arc<AtomicBool>,
    /// Arrival of the last request: requests of one connection do not overtake each other.
    last: Arc<Mutex<Instant>>,
}

type Answer = (Status, Bytes, Vec<Buf>);

struct Sink {
    answer: oneshot::Sender<Answer>,
    counters: Arc<Counters>,
}

impl ReplySink for Sink {
    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn send(self: Box<Self>, status: Status, body: Bytes, data: Vec<Buf>) {
        self.counters.in_flight.fetch_sub(1, Ordering::AcqRel);
        drop(self.answer.send((status, body, data)));
    }
}

impl Connection for MemConnection {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Reply, NetError>> {
        let deadline = Instant::now() + call.deadline;
        let (network, me, peer, address) = (self.network.clone(), self.me, self.peer, self.address.clone());
        let (serial, credits, closed, last) =
            (self.serial, self.credits.clone(), self.closed.clone(), self.last.clone());
        Box::pin(async move {
            let name = format!("{peer} at {address}");
            let broken = |reason: &str| NetError::Disconnected {
                peer: name.clone(),
                reason: reason.into(),
                sent: true,
            };
            let timed_out = || NetError::TimedOut { peer: name.clone(), sent: true };
            call.check()?;
            let align: Vec<usize> = (0..call.into.len()).map(|at| call.align(at)).collect();
            let Ok(Ok(credit)) = timeout_at(deadline, credits.acquire_owned()).await else {
                return Err(timed_out());
            };
            let arrival = network.arrival(me, peer).map(|at| {
                let mut last = last.lock();
                *last = at.max(*last);
                *last
            });
            let (answered, answer) = oneshot::channel();
            let network_ = network.clone();
            let Call { method, body, data, mut into, .. } = call;
            let room: Vec<u32> =
                into.iter().zip(&align).map(|(buf, align)| (buf.len() - align) as u32).collect();
            let room_ = room.clone();
            // The request's way is a task of its own: it arrives whether or not the caller still waits.
            let way = async move {
                let Some(at) = arrival else { return std::future::pending().await };
                if at > Instant::now() {
                    sleep_until(at).await;
                }
                let host = {
                    let state = network_.state.lock();
                    let host = state.hosts.get(&address).filter(|host| host.serial == serial);
                    host.map(|host| (host.service.clone(), host.pool.clone(), host.counters.clone()))
                };
                let Some((service, pool, counters)) = host else { return };
                counters.requests.fetch_add(1, Ordering::Relaxed);
                counters.in_flight.fetch_add(1, Ordering::AcqRel);
                let sink = Box::new(Sink { answer: answered, counters });
                let mut buffers = Vec::with_capacity(data.len());
                for segment in data {
                    let start = usize::from(segment.align);
                    let class = service.class(method, &body);
                    let Ok(mut buf) = pool.alloc(start + segment.data.len(), class).await else {
                        return sink.send(Status::Invalid, Bytes::new(), Vec::new());
                    };
                    buf[start..].copy_from_slice(&segment.data);
                    buf.zero_around(start);
                    buffers.push(buf);
                }
                let deadline = deadline.saturating_duration_since(Instant::now());
                let request = Incoming::new(method, body, me, deadline, room_, buffers, sink);
                service.call(request).await;
            };
            let mut way = Box::pin(way);
            // Begin in the order of the calls where nothing delays them.
            let first =
                std::future::poll_fn(|cx: &mut Context<'_>| Poll::Ready(Pin::new(&mut way).poll(cx))).await;
            if first.is_pending() {
                tokio::spawn(way);
            }
            let trip = async {
                let Ok((status, body, data)) = answer.await else {
                    closed.store(true, Ordering::Release);
                    return Err(broken("nobody is there any more"));
                };
                match network.arrival(peer, me) {
                    Some(at) if at > Instant::now() => sleep_until(at).await,
                    Some(_) => {}
                    None => std::future::pending().await,
                }
                if data.len() > into.len()
                    || data.iter().zip(&room).any(|(buf, &room)| buf.len() > room as usize)
                {
                    closed.store(true, Ordering::Release);
                    return Err(broken("more bulk data than there is room for"));
                }
                let lengths = data.iter().map(|buf| buf.len()).chain(std::iter::repeat(0));
                for (index, (buf, len)) in into.iter_mut().zip(lengths).enumerate() {
                    buf.set_len(align[index] + len);
                    if let Some(bytes) = data.get(index) {
                        buf[align[index]..].copy_from_slice(bytes);
                    }
                }
                Ok(Reply { status, body, data: into })
            };
            let result = timeout_at(deadline, trip).await.unwrap_or_else(|_| Err(timed_out()));
            drop(credit);
            result
        })
    }

    fn peer(&self) -> PeerId {
        self.peer
    }

    fn is_closed(&self) -> bool {
        let state = self.network.state.lock();
        self.closed.load(Ordering::Acquire)
            || state.hosts.get(&self.address).is_none_or(|host| host.serial != self.serial)
    }

    fn stats(&self) -> ConnectionStats {
        ConnectionStats::default()
    }
}
