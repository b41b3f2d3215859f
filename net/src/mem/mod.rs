//! A simulated network within one process, for tests and for whole clusters in one thread.
//!
//! Addresses are any text. Messages take time, get lost, come twice, break connections, and stop at cuts, as [`Weather`] and the test
//! say, at run time. On a current-thread runtime with paused time a run depends on the seed alone: every decision is taken from one
//! random sequence in the order in which messages are sent, and messages of one direction of a connection are delivered by one task, in
//! order, unless the weather reorders them.
//!
//! What is modelled is what TCP does to a program: a message over a cut way waits for the cut to heal, and breaks the connection if that
//! takes longer than [`PATIENCE`]; silent loss stands for a server that hangs. Bulk data is copied between the two pools.
//!
//! ```
//! # use catena_buf::{BufPool, PoolConfig};
//! # use catena_net::{Identity, PeerId, mem::{MemNetwork, Weather}};
//! # use catena_proto::{ids::*, token::Token};
//! # use std::time::Duration;
//! let network = MemNetwork::new(42);
//! network.set_weather(Weather { delay: Duration::from_micros(50), jitter: Duration::from_millis(2), ..Weather::default() });
//! let (cluster, token, incarnation) = (ClusterId(1), Token([1; 32]), Incarnation(1));
//! let pool = BufPool::new(PoolConfig::client(8 << 20)).unwrap();
//! let transport = network.transport(Identity { cluster, token, peer: PeerId::Client(ClientId(1)), incarnation }, pool);
//! network.cut(PeerId::Client(ClientId(1)), PeerId::Node(NodeId(2)));
//! # let _ = transport;
//! ```

mod arrival;
mod host;
mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use catena_buf::BufPool;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep_until, timeout_at};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::NetError;
use crate::handshake::{Identity, PeerId, advice};
use crate::limits;
use crate::service::Service;
use crate::stats::add;
use crate::transport::{Connection, Listener, Transport};
use host::Host;
use link::{Link, MemConnection};

/// How long a message waits at a cut before the connection breaks, like TCP's user timeout.
pub const PATIENCE: Duration = Duration::from_secs(12);

/// How messages travel. The default is calm: no time, no harm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weather {
    /// Every message takes at least this long,
    pub delay: Duration,
    /// and up to this much longer.
    pub jitter: Duration,
    /// Messages of one connection may pass each other.
    pub reorder: bool,
    /// Of a million messages, so many vanish: the caller sees its deadline pass.
    pub loss_ppm: u32,
    /// Of a million messages, so many vanish with their connection.
    pub break_ppm: u32,
    /// Of a million requests of the methods in [`MemNetwork::allow_twice`], so many come twice.
    pub twice_ppm: u32,
    /// The second of two is up to this much later. It comes by a way of its own: neither the end of the first one's connection nor the
    /// death of its sender holds it up.
    pub twice_late: Duration,
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Arrives(Instant),
    Vanishes,
    Breaks,
}

struct State {
    hosts: BTreeMap<String, Arc<Host>>,
    links: BTreeMap<u64, Arc<Link>>,
    weather: Weather,
    /// (from, to): weather of this way alone.
    local: BTreeMap<(PeerId, PeerId), Weather>,
    /// (from, to): nothing passes that way.
    cut: BTreeSet<(PeerId, PeerId)>,
    /// Methods whose requests may come twice.
    twice: BTreeSet<u16>,
    random: u64,
    serial: u64,
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

    fn weather(&self, from: PeerId, to: PeerId) -> Weather {
        self.local.get(&(from, to)).copied().unwrap_or(self.weather)
    }
}

/// The network that a test's transports share.
#[derive(Clone)]
pub struct MemNetwork {
    state: Arc<Mutex<State>>,
    healed: Arc<Notify>,
}

impl MemNetwork {
    /// A calm network; `seed` decides what happens once it no longer is.
    pub fn new(seed: u64) -> MemNetwork {
        let state = State {
            hosts: BTreeMap::new(),
            links: BTreeMap::new(),
            weather: Weather::default(),
            local: BTreeMap::new(),
            cut: BTreeSet::new(),
            twice: BTreeSet::new(),
            random: seed,
            serial: 0,
        };
        MemNetwork { state: Arc::new(Mutex::new(state)), healed: Arc::default() }
    }

    /// One process's way into it.
    pub fn transport(&self, identity: Identity, pool: BufPool) -> MemTransport {
        MemTransport { network: self.clone(), identity, pool, credits: limits::CREDITS }
    }

    /// The weather from now on, for messages not yet sent.
    pub fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    /// Other weather for messages from `from` to `to`; `None` ends that.
    pub fn set_weather_between(&self, from: PeerId, to: PeerId, weather: Option<Weather>) {
        let mut state = self.state.lock();
        match weather {
            Some(weather) => state.local.insert((from, to), weather),
            None => state.local.remove(&(from, to)),
        };
    }

    /// Requests of these methods may come twice ([`Weather::twice_ppm`]): those that their service carries out once however often they
    /// come, as if a client had sent them again over a new connection.
    pub fn allow_twice(&self, methods: impl IntoIterator<Item = u16>) {
        self.state.lock().twice.extend(methods);
    }

    /// Nothing passes from `from` to `to` until it is healed. One way only.
    pub fn cut(&self, from: PeerId, to: PeerId) {
        self.state.lock().cut.insert((from, to));
    }

    /// Nothing passes between the two, either way.
    pub fn part(&self, one: PeerId, other: PeerId) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// This way is open again.
    pub fn mend(&self, from: PeerId, to: PeerId) {
        self.state.lock().cut.remove(&(from, to));
        self.healed.notify_waiters();
    }

    /// All ways are open again.
    pub fn heal(&self) {
        self.state.lock().cut.clear();
        self.healed.notify_waiters();
    }

    /// The process `peer` dies: its listeners are gone, its handlers stop where they are, its connections break at both ends. It starts
    /// anew by listening again.
    pub fn kill(&self, peer: PeerId) {
        let (hosts, links) = {
            let mut state = self.state.lock();
            let dead: Vec<String> = state
                .hosts
                .iter()
                .filter(|(_, host)| host.peer() == peer)
                .map(|(at, _)| at.clone())
                .collect();
            let hosts: Vec<Arc<Host>> = dead.iter().filter_map(|at| state.hosts.remove(at)).collect();
            let links: Vec<Arc<Link>> =
                state.links.values().filter(|link| link.joins(peer)).cloned().collect();
            (hosts, links)
        };
        for link in links {
            link.sever("the peer died");
        }
        for host in hosts {
            host.kill();
        }
    }

    /// Breaks every connection between the two; both go on.
    pub fn sever(&self, one: PeerId, other: PeerId) {
        let links: Vec<Arc<Link>> = self
            .state
            .lock()
            .links
            .values()
            .filter(|link| link.joins(one) && link.joins(other))
            .cloned()
            .collect();
        for link in links {
            link.sever("connection reset");
        }
    }

    /// A message that this network does not carry itself, such as a control-plane call, travels from `from` to `to` through the same
    /// weather and cuts. False if it got lost: its sender hears nothing.
    pub async fn trip(&self, from: PeerId, to: PeerId) -> bool {
        let Fate::Arrives(at) = self.fate(from, to) else { return false };
        let sent = Instant::now();
        sleep_until(at).await;
        self.passable(from, to, sent).await
    }

    fn fate(&self, from: PeerId, to: PeerId) -> Fate {
        let mut state = self.state.lock();
        let weather = state.weather(from, to);
        // Always as many draws, so that what one message suffers does not shift what the next ones do.
        let (luck, extra) = ((state.random() % 1_000_000) as u32, state.random());
        if luck < weather.loss_ppm {
            return Fate::Vanishes;
        }
        if luck < weather.loss_ppm.saturating_add(weather.break_ppm) {
            return Fate::Breaks;
        }
        let jitter = weather.jitter.as_nanos() as u64;
        let extra = if jitter == 0 { 0 } else { extra % jitter };
        Fate::Arrives(Instant::now() + weather.delay + Duration::from_nanos(extra))
    }

    /// Whether a request comes a second time, and when.
    fn second(&self, from: PeerId, to: PeerId, method: u16) -> Option<Instant> {
        let twice = {
            let mut state = self.state.lock();
            let weather = state.weather(from, to);
            weather.twice_ppm > 0
                && state.twice.contains(&method)
                && state.random() % 1_000_000 < u64::from(weather.twice_ppm)
        };
        match twice.then(|| self.fate(from, to)) {
            Some(Fate::Arrives(at)) => {
                let mut state = self.state.lock();
                let late = state.weather(from, to).twice_late.as_nanos() as u64;
                let late = if late == 0 { 0 } else { state.random() % late };
                Some(at + Duration::from_nanos(late))
            }
            _ => None,
        }
    }

    fn lateness(&self, from: PeerId, to: PeerId) -> Duration {
        self.state.lock().weather(from, to).twice_late
    }

    /// Until the way is open. False if that took too long.
    async fn passable(&self, from: PeerId, to: PeerId, since: Instant) -> bool {
        loop {
            let healed = self.healed.notified();
            tokio::pin!(healed);
            healed.as_mut().enable();
            if !self.state.lock().cut.contains(&(from, to)) {
                return true;
            }
            if timeout_at(since + PATIENCE, healed).await.is_err() {
                return false;
            }
        }
    }
}

/// One process's transport.
#[derive(Clone)]
pub struct MemTransport {
    network: MemNetwork,
    identity: Identity,
    pool: BufPool,
    credits: u32,
}

impl MemTransport {
    /// Grants other than the usual number of credits to each connection.
    pub fn with_credits(self, credits: u32) -> MemTransport {
        MemTransport { credits: credits.max(1), ..self }
    }

    async fn connect_to(&self, address: &str) -> Result<Arc<dyn Connection>, NetError> {
        let failed = |reason: &str| NetError::Connect { address: address.into(), reason: reason.into() };
        let network = &self.network;
        let find = || network.state.lock().hosts.get(address).cloned();
        let host = find().ok_or_else(|| failed("connection refused"))?;
        let (me, peer) = (self.identity.peer, host.peer());
        for (from, to) in [(me, peer), (peer, me)] {
            let Fate::Arrives(at) = network.fate(from, to) else {
                std::future::pending::<()>().await;
                continue;
            };
            let sent = Instant::now();
            if at > sent {
                sleep_until(at).await;
            }
            if !network.passable(from, to, sent).await {
                return Err(failed("the network is unreachable"));
            }
        }
        // It may have gone meanwhile.
        let host =
            find().filter(|now| Arc::ptr_eq(now, &host)).ok_or_else(|| failed("connection refused"))?;
        let counters = &host.refusals;
        let (status, counter) = if host.identity.cluster != self.identity.cluster {
            (Status::WrongCluster, &counters.cluster)
        } else if host.identity.token != self.identity.token {
            (Status::BadToken, &counters.token)
        } else if host.is_leaving() {
            return Err(failed("connection refused"));
        } else {
            (Status::Ok, &counters.accepted)
        };
        add(counter, 1);
        if status != Status::Ok {
            return Err(NetError::Refused { address: address.into(), status, reason: advice(status).into() });
        }
        let serial = {
            let mut state = network.state.lock();
            state.serial += 1;
            state.serial
        };
        let link = Link::start(network.clone(), serial, me, host, address);
        network.state.lock().links.insert(serial, link.clone());
        Ok(Arc::new(MemConnection::new(link)))
    }
}

impl Transport for MemTransport {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, NetError>> {
        Box::pin(async move {
            catena_rt::time::timeout(deadline, self.connect_to(address)).await.unwrap_or_else(|_| {
                let reason = "no answer within the deadline".into();
                Err(NetError::Connect { address: address.into(), reason })
            })
        })
    }

    fn listen<'a>(
        &'a self,
        address: &'a str,
        service: Arc<dyn Service>,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, NetError>> {
        let mut state = self.network.state.lock();
        let listener = if state.hosts.contains_key(address) {
            let reason = "the address is in use: stop the other listener or choose another address".into();
            Err(NetError::Listen { address: address.into(), reason })
        } else {
            let host = Arc::new(Host::new(self.identity.clone(), self.pool.clone(), self.credits, service));
            state.hosts.insert(address.into(), host.clone());
            Ok(host.listener(&self.network, address))
        };
        drop(state);
        Box::pin(std::future::ready(listener))
    }

    fn pool(&self) -> &BufPool {
        &self.pool
    }
}
