//! A server's requests under way on one connection: the credits that they hold, and how they begin and end. What the backends share; the
//! simulated one keeps its own ledger.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{BufPool, IoBuf};
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::error;

use crate::frame::Garbled;
use crate::handshake::PeerId;
use crate::service::{Incoming, ReplySink, Service};
use crate::stats::Counters;

/// Low bits of an id: the credit that the request holds.
const SLOT: u64 = 0xffff;
/// Bit of a live request's id: its caller has gone.
const ABANDONED: u64 = 1 << 63;

/// What the connections of one listener share.
pub(crate) struct Context {
    pub pool: BufPool,
    pub service: Arc<dyn Service>,
    pub counters: Arc<Counters>,
    /// Requests in flight per connection.
    pub credits: u32,
    /// The listener is shutting down: new requests are turned away,
    pub leaving: AtomicBool,
    /// and it waits for those under way.
    pub answered: Notify,
}

/// The requests of one connection.
pub(crate) struct Ledger {
    pub context: Arc<Context>,
    pub peer: PeerId,
    /// Id of the request that holds each credit; 0 for none.
    live: Box<[AtomicU64]>,
    in_flight: AtomicU64,
    /// Requests that wait for buffers.
    parked: AtomicU64,
    closed: AtomicBool,
}

impl Ledger {
    pub fn new(context: Arc<Context>, peer: PeerId) -> Ledger {
        Ledger {
            live: (0..context.credits).map(|_| AtomicU64::new(0)).collect(),
            context,
            peer,
            in_flight: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Requests received and not yet answered.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(SeqCst)
    }

    /// Requests that wait for buffers.
    pub fn parked(&self) -> u64 {
        self.parked.load(Relaxed)
    }

    /// The connection has ended.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Begins one of its requests.
    pub async fn begin(&self, request: Request, data: Vec<IoBuf>) {
        let spawn = |handler| drop(tokio::spawn(handler));
        let left = request.deadline.saturating_duration_since(Instant::now());
        begin(&self.context.service, self.peer, request, left, data, spawn).await;
    }

    /// Admits a request: it takes one of the connection's credits, which must be free.
    pub fn admit(self: &Arc<Self>, id: u64, method: u16, received: usize) -> Result<Ticket, Garbled> {
        let slot = self.live.get((id & SLOT) as usize).ok_or(Garbled("more requests than credits"))?;
        if id == 0 || id & ABANDONED != 0 || slot.load(Relaxed) != 0 {
            return Err(Garbled("a request with the credit of another"));
        }
        slot.store(id, Relaxed);
        self.in_flight.fetch_add(1, SeqCst);
        self.context.counters.begun(method);
        let begun = Instant::now();
        Ok(Ticket { ledger: self.clone(), id, method, begun, received, answered: false })
    }

    /// The caller of a request has gone.
    pub fn abandon(&self, id: u64) {
        if let Some(slot) = self.live.get((id & SLOT) as usize) {
            // If it is another one's by now, the answer and the cancel have crossed.
            let _ = slot.compare_exchange(id, id | ABANDONED, Relaxed, Relaxed);
        }
    }
}

/// A request under way. It stands for the request's credit.
pub(crate) struct Ticket {
    ledger: Arc<Ledger>,
    pub id: u64,
    pub method: u16,
    begun: Instant,
    received: usize,
    answered: bool,
}

impl Ticket {
    fn slot(&self) -> &AtomicU64 {
        // Checked when it was admitted.
        &self.ledger.live[(self.id & SLOT) as usize]
    }

    /// Frees the credit, before the client can hear of the answer and use it again. Says whether the caller has gone.
    pub fn release(&self) -> bool {
        self.slot().swap(0, Relaxed) & ABANDONED != 0
    }

    /// Counts the request as answered; after the answer was queued, so that a shutdown does not overtake it. Says whether it was the
    /// last one under way.
    pub fn end(&mut self, ok: bool, sent: usize) -> bool {
        self.answered = true;
        let context = &self.ledger.context;
        context.counters.ended(self.method, ok, sent, self.received, self.begun.elapsed());
        let last = self.ledger.in_flight.fetch_sub(1, SeqCst) == 1;
        if context.leaving.load(SeqCst) {
            context.answered.notify_waiters();
        }
        last
    }

    /// The caller has gone.
    pub fn is_abandoned(&self) -> bool {
        self.ledger.closed.load(Relaxed) || self.slot().load(Relaxed) & ABANDONED != 0
    }
}

impl Drop for Ticket {
    /// Only a connection that ends forgets its requests: nobody is left to be answered.
    fn drop(&mut self) {
        if !self.answered {
            self.slot().store(0, Relaxed);
            self.end(false, 0);
        }
    }
}

/// Counts a parked request.
pub(crate) struct Parked(pub Arc<Ledger>);

impl Parked {
    pub fn new(ledger: &Arc<Ledger>) -> Parked {
        ledger.parked.fetch_add(1, Relaxed);
        crate::stats::add(&ledger.context.counters.parked, 1);
        Parked(ledger.clone())
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Relaxed);
    }
}

/// A task that ends with its owner.
pub(crate) struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request that has come in, but for its bulk data. `At`: the clock that its deadline is on.
pub(crate) struct Request<At = Instant> {
    pub method: u16,
    pub body: Bytes,
    pub room: Vec<u32>,
    pub deadline: At,
    pub sink: Box<dyn ReplySink>,
}

/// Begins a request that has `left` of its time: polls its handler once here, leaves the rest to a task of its own, which `spawn` makes.
pub(crate) async fn begin<At>(
    service: &Arc<dyn Service>,
    peer: PeerId,
    request: Request<At>,
    left: Duration,
    data: Vec<IoBuf>,
    spawn: impl FnOnce(BoxFuture<'static, ()>),
) {
    let Request { method, body, room, sink, .. } = request;
    if left.is_zero() {
        return sink.send(Status::TimedOut, Bytes::new(), Vec::new());
    }
    let incoming = Incoming::new(method, body, peer, left, room, data, sink);
    let service = service.clone();
    // A handler that panics has dropped its responder, which answered; the connection goes on.
    let Ok(mut handler) = catch_unwind(AssertUnwindSafe(|| service.call(incoming))) else {
        return error!(method, "a request's handler panicked");
    };
    let first = std::future::poll_fn(|context| {
        Poll::Ready(catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context))))
    });
    match first.await {
        Ok(Poll::Ready(())) => {}
        Ok(Poll::Pending) => spawn(handler),
        Err(_) => error!(method, "a request's handler panicked"),
    }
}
