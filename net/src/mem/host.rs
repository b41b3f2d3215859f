//! A process that listens: its service, its handlers, and its death.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use catena_buf::BufPool;
use catena_rt::time::{Instant, timeout_at};
use catena_rt::{JoinSet, Process};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::MemNetwork;
use super::link::Link;
use crate::handshake::{Identity, PeerId};
use crate::service::Service;
use crate::stats::{Counters, ListenerStats};
use crate::transport::Listener;

#[derive(Default)]
pub(super) struct Refusals {
    pub accepted: AtomicU64,
    pub cluster: AtomicU64,
    pub token: AtomicU64,
}

pub(super) struct Host {
    pub identity: Identity,
    pub pool: BufPool,
    pub credits: u32,
    pub service: Arc<dyn Service>,
    pub counters: Counters,
    pub refusals: Refusals,
    /// Where requests are served.
    pub process: Process,
    leaving: AtomicBool,
    dead: AtomicBool,
    in_flight: AtomicU64,
    answered: Notify,
    handlers: Mutex<JoinSet<()>>,
}

impl Host {
    pub fn new(identity: Identity, pool: BufPool, credits: u32, service: Arc<dyn Service>) -> Host {
        Host {
            identity,
            pool,
            credits,
            service,
            counters: Counters::new(),
            refusals: Refusals::default(),
            process: Process::current(),
            leaving: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            answered: Notify::new(),
            handlers: Mutex::default(),
        }
    }

    pub fn peer(&self) -> PeerId {
        self.identity.peer
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(SeqCst)
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(SeqCst)
    }

    /// A request has come.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, SeqCst);
    }

    /// It has been answered.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
        self.answered.notify_waiters();
    }

    /// Goes on with a handler for as long as this host lives.
    pub fn spawn(&self, handler: impl Future<Output = ()> + Send + 'static) {
        let mut handlers = self.handlers.lock();
        while handlers.try_join_next().is_some() {}
        if !self.is_dead() {
            handlers.spawn_in(&self.process, handler);
        }
    }

    /// Handlers stop where they are.
    pub fn kill(&self) {
        self.dead.store(true, SeqCst);
        let handlers = std::mem::take(&mut *self.handlers.lock());
        drop(handlers);
    }

    pub fn listener(self: Arc<Self>, network: &MemNetwork, address: &str) -> Box<dyn Listener> {
        Box::new(MemListener { host: self, network: network.clone(), address: address.into() })
    }
}

struct MemListener {
    host: Arc<Host>,
    network: MemNetwork,
    address: String,
}

impl MemListener {
    fn links(&self) -> Vec<Arc<Link>> {
        let state = self.network.state.lock();
        state.links.values().filter(|link| link.leads_to(&self.host)).cloned().collect()
    }

    fn close(&self) {
        let mut state = self.network.state.lock();
        let mine = state.hosts.get(&self.address).is_some_and(|host| Arc::ptr_eq(host, &self.host));
        let gone = if mine { state.hosts.remove(&self.address) } else { None };
        drop(state);
        drop(gone);
        self.links().iter().for_each(|link| link.sever("closed by the peer"));
    }
}

impl Drop for MemListener {
    fn drop(&mut self) {
        self.close();
    }
}

impl Listener for MemListener {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn stats(&self) -> ListenerStats {
        let count = |counter: &AtomicU64| counter.load(SeqCst);
        let refusals = &self.host.refusals;
        ListenerStats {
            all: self.host.counters.snapshot(),
            open: self.links().iter().map(|link| link.at_server()).collect(),
            accepted: count(&refusals.accepted) + count(&refusals.cluster) + count(&refusals.token),
            refused_cluster: count(&refusals.cluster),
            refused_token: count(&refusals.token),
            ..ListenerStats::default()
        }
    }

    fn shutdown(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let until = Instant::now() + grace;
            self.host.leaving.store(true, SeqCst);
            self.links().iter().for_each(|link| link.leave());
            loop {
                let answered = self.host.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                let busy = self.host.in_flight.load(SeqCst) > 0;
                if !busy || timeout_at(until, answered).await.is_err() {
                    break;
                }
            }
            for link in self.links() {
                let _ = timeout_at(until, link.settled()).await;
            }
        })
    }
}
