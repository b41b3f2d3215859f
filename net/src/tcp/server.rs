//! A listening socket and its connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::frame::Garbled;
use super::inbox::Broken;
use super::reader::Reader;
use super::session::{Context, Session};
use super::{TcpOptions, shake, tune};
use crate::handshake::Identity;
use crate::service::Service;
use crate::stats::{Counters, ListenerStats, PeerStats, add};
use crate::transport::Listener;

/// Handshakes at a time: who connects and says nothing takes one of these, for as long as a handshake may take.
const HANDSHAKES: usize = 256;
/// Pause after a failed accept: out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Refusals {
    accepted: AtomicU64,
    protocol: AtomicU64,
    cluster: AtomicU64,
    token: AtomicU64,
    other: AtomicU64,
    garbled: AtomicU64,
}

struct Shared {
    identity: Identity,
    handshake: Duration,
    context: Arc<Context>,
    refusals: Refusals,
    handshakes: Arc<Semaphore>,
    /// Open connections by serial number.
    sessions: Mutex<BTreeMap<u64, Arc<Session>>>,
}

/// A listening socket.
pub(crate) struct Server {
    local: SocketAddr,
    shared: Arc<Shared>,
    /// Tasks of connections end with it.
    acceptor: AbortHandle,
}

impl Server {
    pub fn start(
        listener: TcpListener,
        local: SocketAddr,
        identity: Identity,
        pool: catena_buf::BufPool,
        options: &TcpOptions,
        service: Arc<dyn Service>,
    ) -> Server {
        let context = Arc::new(Context {
            pool,
            service,
            counters: Arc::new(Counters::new()),
            credits: options.credits,
            leaving: AtomicBool::new(false),
            answered: Notify::new(),
        });
        let shared = Arc::new(Shared {
            identity,
            handshake: options.handshake,
            context,
            refusals: Refusals::default(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            sessions: Mutex::default(),
        });
        let acceptor = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Server { local, shared, acceptor }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.acceptor.abort();
        let sessions = std::mem::take(&mut *self.shared.sessions.lock());
        sessions.values().for_each(|session| session.close());
    }
}

impl Listener for Server {
    fn address(&self) -> String {
        format!("{}{}", super::SCHEME, self.local)
    }

    fn stats(&self) -> ListenerStats {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let refusals = &self.shared.refusals;
        let peer = |session: &Arc<Session>| PeerStats {
            peer: session.peer,
            address: session.address.to_string(),
            in_flight: session.in_flight(),
            parked: count(&session.parked),
        };
        ListenerStats {
            all: self.shared.context.counters.snapshot(),
            open: self.shared.sessions.lock().values().map(peer).collect(),
            accepted: count(&refusals.accepted),
            refused_protocol: count(&refusals.protocol),
            refused_cluster: count(&refusals.cluster),
            refused_token: count(&refusals.token),
            refused_other: count(&refusals.other),
            garbled: count(&refusals.garbled),
        }
    }

    fn shutdown(self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let until = Instant::now() + grace;
            let context = &self.shared.context;
            // Connections that are made meanwhile are told as they come; see `serve`.
            context.leaving.store(true, SeqCst);
            let sessions: Vec<_> = self.shared.sessions.lock().values().cloned().collect();
            sessions.iter().for_each(|session| session.goodbye());
            loop {
                let answered = context.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                let busy = self.shared.sessions.lock().values().any(|session| session.in_flight() > 0);
                if !busy || timeout_at(until, answered).await.is_err() {
                    break;
                }
            }
            for session in sessions {
                let _ = timeout_at(until, session.outbox.drained()).await;
            }
            drop(self);
        })
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    for serial in 0_u64.. {
        while connections.try_join_next().is_some() {}
        let Ok(place) = shared.handshakes.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                add(&shared.refusals.accepted, 1);
                let shared = shared.clone();
                connections.spawn(async move {
                    if let Some(session) = greet(stream, from, &shared).await {
                        drop(place);
                        serve(serial, session, shared).await;
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The handshake. A client that is not let in is counted.
async fn greet(
    mut stream: TcpStream,
    from: SocketAddr,
    shared: &Shared,
) -> Option<(Session, Arc<TcpStream>)> {
    tune(&stream);
    let credits = shared.context.credits;
    let welcome = timeout(shared.handshake, shake::welcome(&mut stream, &shared.identity, credits)).await;
    let status = match welcome {
        Ok(Ok(peer)) => {
            let stream = Arc::new(stream);
            return Some((Session::new(shared.context.clone(), peer, from, stream.clone()), stream));
        }
        Ok(Err(status)) => status,
        Err(_) => Status::TimedOut,
    };
    let refusals = &shared.refusals;
    let counter = match status {
        Status::WrongProtocol => &refusals.protocol,
        Status::WrongCluster => &refusals.cluster,
        Status::BadToken => &refusals.token,
        _ => &refusals.other,
    };
    add(counter, 1);
    warn!(%from, reason = %status, "refused a connection");
    None
}

async fn serve(serial: u64, (session, stream): (Session, Arc<TcpStream>), shared: Arc<Shared>) {
    let session = Arc::new(session);
    shared.sessions.lock().insert(serial, session.clone());
    // Also when this task is aborted: the handlers' references must not keep the socket open.
    let _closes = Closes { serial, session: session.clone(), shared: shared.clone() };
    if shared.context.leaving.load(SeqCst) {
        session.goodbye();
    }
    let writer = tokio::spawn({
        let session = session.clone();
        async move {
            if session.outbox.run(&session.context.counters).await.is_err() {
                // The reader sees it end.
                session.close();
            }
        }
    });
    let _writer = AbortOnDrop(writer.abort_handle());
    let broken = Reader::new(session.clone(), stream).run().await;
    let (peer, from) = (session.peer, session.address);
    if let Broken::Garbled(Garbled(what)) = broken {
        add(&shared.refusals.garbled, 1);
        warn!(%peer, %from, what, "closed a connection: its messages make no sense");
    } else {
        debug!(%peer, %from, reason = %broken, "a connection ended");
    }
}

struct Closes {
    serial: u64,
    session: Arc<Session>,
    shared: Arc<Shared>,
}

impl Drop for Closes {
    fn drop(&mut self) {
        self.session.close();
        self.shared.sessions.lock().remove(&self.serial);
        self.shared.context.answered.notify_waiters();
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
