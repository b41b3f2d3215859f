//! The serving end of TCP connections.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use catena_buf::{Buf, BufPool};
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::frame::{self, Garbled, REPLY, REQUEST};
use super::wire::{Broken, OutFrame, Outbox, Receiver};
use super::{nonce, receive, send, tune};
use crate::handshake::{Hello, Identity, PeerId, Proof, Verdict, prove, proves};
use crate::limits;
use crate::service::{Incoming, ReplySink, Service};
use crate::stats::ListenerStats;
use crate::transport::Listener;

/// A peer that connects and then says nothing is cut off after this.
const HANDSHAKE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    in_flight: AtomicU64,
    bulk_sent: AtomicU64,
    bulk_received: AtomicU64,
    connections: AtomicU64,
    garbled: AtomicU64,
    refused: AtomicU64,
}

struct Shared {
    identity: Identity,
    pool: BufPool,
    service: Arc<dyn Service>,
    counters: Arc<Counters>,
}

/// A listening socket and its connections.
pub(crate) struct Server {
    local: SocketAddr,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    acceptor: tokio::task::JoinHandle<()>,
}

impl Server {
    pub fn start(
        listener: TcpListener,
        local: SocketAddr,
        identity: Identity,
        pool: BufPool,
        service: Arc<dyn Service>,
    ) -> Server {
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = watch::channel(false);
        let context = Arc::new(Shared { identity, pool, service, counters: counters.clone() });
        let acceptor = tokio::spawn(accept(listener, context, stopped));
        Server { local, counters, stop, acceptor }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl Listener for Server {
    fn address(&self) -> String {
        format!("tcp://{}", self.local)
    }

    fn stats(&self) -> ListenerStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        ListenerStats {
            open: count(&c.connections),
            garbled: count(&c.garbled),
            refused_other: count(&c.refused),
            ..ListenerStats::default()
        }
    }

    fn shutdown(mut self: Box<Self>, grace: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // The acceptor sees it, and so does every connection, which then reads no more and ends with its last reply.
            let _ = self.stop.send(true);
            let _ = tokio::time::timeout(grace, &mut self.acceptor).await;
        })
    }
}

async fn accept(listener: TcpListener, context: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    connections.spawn(serve(stream, from, context.clone(), stopped.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: those under way must finish first.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(
    mut stream: TcpStream,
    from: SocketAddr,
    context: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) {
    tune(&stream);
    let peer = match tokio::time::timeout(HANDSHAKE, welcome(&mut stream, &context.identity)).await {
        Ok(Ok(peer)) => peer,
        Ok(Err(status)) => {
            context.counters.refused.fetch_add(1, Ordering::Relaxed);
            warn!(%from, reason = %status, "refused a connection");
            return;
        }
        Err(_) => {
            context.counters.refused.fetch_add(1, Ordering::Relaxed);
            debug!(%from, "a connection did not introduce itself in time");
            return;
        }
    };
    context.counters.connections.fetch_add(1, Ordering::Relaxed);
    let (read, write) = stream.into_split();
    let outbox = Arc::new(Outbox::default());
    let connection =
        Connection { context: context.clone(), peer, outbox: outbox.clone(), in_flight: Arc::default() };
    let ended = tokio::select! {
        ended = connection.read_requests(Receiver::new(read), stopped) => ended,
        sent = outbox.drain(write) => sent.err().unwrap_or(Broken::Closed),
    };
    outbox.close();
    context.counters.connections.fetch_sub(1, Ordering::Relaxed);
    if let Broken::Garbled(Garbled(what)) = ended {
        context.counters.garbled.fetch_add(1, Ordering::Relaxed);
        warn!(%peer, %from, what, "closed a connection: its messages make no sense");
    } else {
        debug!(%peer, %from, reason = %ended, "connection ended");
    }
}

/// The server's part of the handshake. An error has been told to the client.
async fn welcome(stream: &mut TcpStream, identity: &Identity) -> Result<PeerId, Status> {
    let gone = |_| Status::Disconnected;
    let theirs: Hello = receive(stream).await.map_err(gone)?;
    let mut ours = Hello::new(identity, nonce());
    let status = theirs.judge(identity);
    ours.status = (status as u16).into();
    ours.credits = limits::CREDITS.into();
    if status == Status::Ok {
        ours.proof = prove(&identity.token, b"server", &theirs.nonce, &ours.nonce);
    }
    send(stream, &ours).await.map_err(gone)?;
    let (Status::Ok, Some(peer)) = (status, theirs.peer()) else { return Err(status) };
    let proof: Proof = receive(stream).await.map_err(|_| Status::BadToken)?;
    let known = proves(&identity.token, b"client", &theirs.nonce, &ours.nonce, &proof.proof);
    let status = if known { Status::Ok } else { Status::BadToken };
    send(stream, &Verdict { status: (status as u16).into(), reserved: [0; 6] }).await.map_err(gone)?;
    if known { Ok(peer) } else { Err(status) }
}

struct Connection {
    context: Arc<Shared>,
    peer: PeerId,
    outbox: Arc<Outbox>,
    in_flight: Arc<AtomicU64>,
}

/// What is left of a reply's way: one of the connection's credits.
struct Credit {
    in_flight: Arc<AtomicU64>,
    counters: Arc<Counters>,
}

impl Credit {
    fn take(connection: &Connection) -> Credit {
        connection.in_flight.fetch_add(1, Ordering::AcqRel);
        connection.context.counters.in_flight.fetch_add(1, Ordering::Relaxed);
        Credit { in_flight: connection.in_flight.clone(), counters: connection.context.counters.clone() }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Sink {
    id: u64,
    outbox: Arc<Outbox>,
    credit: Credit,
}

impl ReplySink for Sink {
    fn is_abandoned(&self) -> bool {
        false
    }

    fn send(self: Box<Self>, status: Status, body: Bytes, data: Vec<Buf>) {
        let mut head = BytesMut::with_capacity(frame::HEADER + data.len() * frame::ENTRY + body.len());
        let segments = data.iter().map(|buf| (buf.len() as u32, 0));
        frame::put(&mut head, REPLY, self.id, status as u16, 0, segments, std::iter::empty(), &body);
        let bulk: u64 = data.iter().map(|buf| buf.len() as u64).sum();
        self.credit.counters.bulk_sent.fetch_add(bulk, Ordering::Relaxed);
        self.outbox.push(OutFrame { head: head.freeze(), bulk: data });
    }
}

impl Connection {
    async fn read_requests(&self, mut receiver: Receiver, mut stopped: watch::Receiver<bool>) -> Broken {
        loop {
            let next = tokio::select! {
                biased;
                _ = stopped.wait_for(|&stop| stop) => break,
                next = receiver.header(REQUEST) => next,
            };
            let begun = match next {
                Ok(header) => self.begin(header, &mut receiver).await,
                Err(broken) => Err(broken),
            };
            if let Err(broken) = begun {
                return broken;
            }
        }
        // Requests under way may finish, and their replies leave. The caller bounds how long.
        while self.in_flight.load(Ordering::Acquire) > 0 || !self.outbox.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Broken::Closed
    }

    /// Receives one request and runs its handler up to the first wait.
    async fn begin(&self, header: frame::Header, receiver: &mut Receiver) -> Result<(), Broken> {
        let rest = receiver.rest(header.rest_len()).await?;
        let (table, body) = header.open(rest)?;
        if self.in_flight.load(Ordering::Acquire) >= u64::from(limits::CREDITS) {
            return Err(Garbled("more requests than credits").into());
        }
        let (data, room) = table.split_at(usize::from(header.segments.get()));
        let room: Vec<u32> = room.iter().map(|entry| entry.len.get()).collect();
        let method = header.code.get();
        let credit = Credit::take(self);
        let counters = &self.context.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.bulk_received.fetch_add(u64::from(header.bulk_len.get()), Ordering::Relaxed);
        let sink = Box::new(Sink { id: header.id.get(), outbox: self.outbox.clone(), credit });
        let mut buffers = Vec::with_capacity(data.len());
        if !data.is_empty() {
            let class = self.context.service.class(method, &body);
            for entry in data {
                let end = usize::from(entry.align.get()) + entry.len.get() as usize;
                match self.context.pool.alloc(end, class).await {
                    Ok(buf) => buffers.push(buf),
                    Err(error) => {
                        // A segment longer than any buffer: the request is at fault, the connection is not.
                        debug!(peer = %self.peer, %error, "refused a request's bulk data");
                        receiver.skip(header.bulk_len.get() as usize).await?;
                        sink.send(Status::Invalid, Bytes::new(), Vec::new());
                        return Ok(());
                    }
                }
            }
            let places = data.iter().map(|entry| (usize::from(entry.align.get()), entry.len.get() as usize));
            let mut into: Vec<_> =
                buffers.iter_mut().zip(places).map(|(buf, (align, len))| (buf, align, len)).collect();
            receiver.bulk(&mut into).await?;
            for (buf, entry) in buffers.iter_mut().zip(data) {
                buf.zero_around(entry.align.get().into());
            }
        }
        let deadline = Duration::from_millis(u64::from(header.deadline_ms.get()));
        let request = Incoming::new(method, body, self.peer, deadline, room, buffers, sink);
        let mut handler = self.context.service.clone().call(request);
        // Most small requests end at their first poll: no task for those, and requests begin in order.
        let first =
            std::future::poll_fn(|cx: &mut Context<'_>| Poll::Ready(Pin::new(&mut handler).poll(cx))).await;
        if first.is_pending() {
            tokio::spawn(handler);
        }
        Ok(())
    }
}
