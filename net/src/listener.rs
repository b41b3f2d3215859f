//! A listening socket and its connections, whatever carries their messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use crate::error::NetError;
use crate::frame::{Broken, Garbled};
use crate::handshake::{Identity, PeerId};
use crate::requests::{Context, Ledger};
use crate::service::Service;
use crate::shake;
use crate::stats::{Counters, ListenerStats, PeerStats, add};
use crate::tcp::{TcpSession, tune};
use crate::transport::Listener;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Handshakes at a time: who connects and says nothing takes one of these, for as long as a handshake may take.
const HANDSHAKES: usize = 256;
/// Pause after a failed accept: out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(50);

/// The serving end of a connection, as its listener sees it.
pub(crate) trait Session: Send + Sync {
    /// Its requests.
    fn ledger(&self) -> &Ledger;
    /// Where the client is.
    fn address(&self) -> SocketAddr;
    /// Tells the client to send no more requests.
    fn goodbye(&self);
    /// Ends the connection; answers go nowhere from now on.
    fn close(&self);
    /// Everything said has been handed over.
    fn drained(&self) -> BoxFuture<'_, ()>;
}

/// What a listener offers and grants.
pub(crate) struct Offer {
    pub scheme: &'static str,
    pub credits: u32,
    pub handshake: Duration,
    /// Ports for connections over RDMA; without, there are none.
    #[cfg(feature = "rdma")]
    pub rails: Option<Arc<crate::rdma::Rails>>,
}

impl Offer {
    #[cfg(feature = "rdma")]
    fn busy_poll(&self) -> Duration {
        self.rails.as_ref().map_or(Duration::ZERO, |rails| rails.options().busy_poll)
    }

    fn rdma(&self) -> bool {
        #[cfg(feature = "rdma")]
        return self.rails.is_some();
        #[cfg(not(feature = "rdma"))]
        false
    }
}

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
    offer: Offer,
    context: Arc<Context>,
    refusals: Refusals,
    handshakes: Arc<Semaphore>,
    /// Open connections by serial number.
    sessions: Mutex<BTreeMap<u64, Arc<dyn Session>>>,
}

/// A listening socket.
pub(crate) struct Server {
    local: SocketAddr,
    shared: Arc<Shared>,
    /// Tasks of connections end with it.
    acceptor: AbortHandle,
}

impl Server {
    /// Listens at an address and serves.
    pub async fn start(
        address: &str,
        identity: Identity,
        pool: catena_buf::BufPool,
        offer: Offer,
        service: Arc<dyn Service>,
    ) -> Result<Server, NetError> {
        let failed =
            |error: std::io::Error| NetError::Listen { address: address.into(), reason: explain(&error) };
        let listener = bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let context = Arc::new(Context {
            pool,
            service,
            counters: Arc::new(Counters::new()),
            credits: offer.credits,
            leaving: AtomicBool::new(false),
            answered: Notify::new(),
        });
        let shared = Arc::new(Shared {
            identity,
            offer,
            context,
            refusals: Refusals::default(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            sessions: Mutex::default(),
        });
        let acceptor = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Ok(Server { local, shared, acceptor })
    }
}

async fn bind(address: &str) -> std::io::Result<TcpListener> {
    let mut addresses = tokio::net::lookup_host(crate::transport::host(address)).await?;
    let first = addresses.next().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
    let socket = if first.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(first)?;
    socket.listen(BACKLOG)
}

fn explain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the port is in use: stop the other process or choose another port".into()
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied: ports below 1024 need privileges".into(),
        _ => error.to_string(),
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
        format!("{}{}", self.shared.offer.scheme, self.local)
    }

    fn stats(&self) -> ListenerStats {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let refusals = &self.shared.refusals;
        let peer = |session: &Arc<dyn Session>| PeerStats {
            peer: session.ledger().peer,
            address: session.address().to_string(),
            in_flight: session.ledger().in_flight(),
            parked: session.ledger().parked(),
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
                let busy =
                    self.shared.sessions.lock().values().any(|session| session.ledger().in_flight() > 0);
                if !busy || timeout_at(until, answered).await.is_err() {
                    break;
                }
            }
            for session in sessions {
                let _ = timeout_at(until, session.drained()).await;
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
                    if let Some(greeted) = greet(stream, from, &shared).await {
                        drop(place);
                        serve(serial, greeted, shared).await;
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

/// A client that was let in.
struct Greeted {
    stream: TcpStream,
    from: SocketAddr,
    peer: PeerId,
    how: How,
}

/// What carries its messages.
enum How {
    Stream,
    #[cfg(feature = "rdma")]
    QueuePair(Box<crate::rdma::Link>),
}

/// The handshake. A client that is not let in is counted.
async fn greet(mut stream: TcpStream, from: SocketAddr, shared: &Shared) -> Option<Greeted> {
    tune(&stream);
    let offer = &shared.offer;
    let welcome = async {
        let (peer, _carrier) =
            shake::welcome(&mut stream, &shared.identity, offer.credits, offer.rdma()).await?;
        #[cfg(feature = "rdma")]
        if let Some(rails) =
            offer.rails.as_ref().filter(|_| _carrier == crate::handshake::carrier::QUEUE_PAIR)
        {
            let link = crate::rdma::accept(&mut stream, rails).await?;
            return Ok((peer, How::QueuePair(Box::new(link))));
        }
        Ok((peer, How::Stream))
    };
    let status = match timeout(offer.handshake, welcome).await {
        Ok(Ok((peer, how))) => return Some(Greeted { stream, from, peer, how }),
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

/// Serves a connection to its end.
async fn serve(serial: u64, greeted: Greeted, shared: Arc<Shared>) {
    let Greeted { stream, from, peer, how } = greeted;
    let context = shared.context.clone();
    let broken = match how {
        How::Stream => {
            let stream = Arc::new(stream);
            let session = Arc::new(TcpSession::new(context, peer, from, stream.clone()));
            let _listed = Listed::new(serial, session.clone(), &shared);
            session.serve(stream).await
        }
        #[cfg(feature = "rdma")]
        How::QueuePair(link) => {
            let busy_poll = shared.offer.busy_poll();
            let session = Arc::new(crate::rdma::RdmaSession::new(context, peer, from, *link));
            let _listed = Listed::new(serial, session.clone(), &shared);
            session.serve(stream, busy_poll).await
        }
    };
    if let Broken::Garbled(Garbled(what)) = broken {
        add(&shared.refusals.garbled, 1);
        warn!(%peer, %from, what, "closed a connection: its messages make no sense");
    } else {
        debug!(%peer, %from, reason = %broken, "a connection ended");
    }
}

/// A session in the listener's list. It is closed when this is dropped, also when its task is aborted: the handlers' references must not
/// keep the connection open.
struct Listed {
    serial: u64,
    session: Arc<dyn Session>,
    shared: Arc<Shared>,
}

impl Listed {
    fn new(serial: u64, session: Arc<dyn Session>, shared: &Arc<Shared>) -> Listed {
        shared.sessions.lock().insert(serial, session.clone());
        if shared.context.leaving.load(SeqCst) {
            session.goodbye();
        }
        Listed { serial, session, shared: shared.clone() }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.session.close();
        self.shared.sessions.lock().remove(&self.serial);
        self.shared.context.answered.notify_waiters();
    }
}
