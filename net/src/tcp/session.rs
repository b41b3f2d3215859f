//! The serving end of one connection: what its requests share, and how they are answered. Receiving is [`super::reader`]'s part.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use bytes::Bytes;
use catena_buf::{Buf, BufPool, IoBuf};
use catena_proto::status::Status;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::frame::{self, Entry, Garbled, Header, flag, kind};
use super::outbox::Outbox;
use crate::handshake::PeerId;
use crate::service::{ReplySink, Service};
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

/// One connection.
pub(crate) struct Session {
    pub context: Arc<Context>,
    pub peer: PeerId,
    pub address: SocketAddr,
    pub outbox: Arc<Outbox>,
    /// Id of the request that holds each credit; 0 for none.
    live: Box<[AtomicU64]>,
    in_flight: AtomicU64,
    /// Requests that wait for buffers.
    pub parked: AtomicU64,
    /// Their buffers, once there are any. Who is not in here no longer waits.
    pub granted: Mutex<HashMap<u64, Option<Vec<IoBuf>>>>,
    closed: AtomicBool,
}

impl Session {
    pub fn new(context: Arc<Context>, peer: PeerId, address: SocketAddr, stream: Arc<TcpStream>) -> Session {
        Session {
            live: (0..context.credits).map(|_| AtomicU64::new(0)).collect(),
            context,
            peer,
            address,
            outbox: Arc::new(Outbox::new(stream, true)),
            in_flight: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            granted: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Requests received and not yet answered.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(SeqCst)
    }

    /// Admits a request: it takes one of the connection's credits, which must be free.
    pub fn admit(self: &Arc<Self>, id: u64, method: u16, received: usize) -> Result<Box<Sink>, Garbled> {
        let slot = self.live.get((id & SLOT) as usize).ok_or(Garbled("more requests than credits"))?;
        if id == 0 || id & ABANDONED != 0 || slot.load(Relaxed) != 0 {
            return Err(Garbled("a request with the credit of another"));
        }
        slot.store(id, Relaxed);
        self.in_flight.fetch_add(1, SeqCst);
        self.context.counters.begun(method);
        Ok(Box::new(Sink {
            session: self.clone(),
            id,
            method,
            begun: Instant::now(),
            received,
            answered: false,
        }))
    }

    /// The caller of a request has gone.
    pub fn abandon(&self, id: u64) {
        if let Some(slot) = self.live.get((id & SLOT) as usize) {
            // If it is another one's by now, the answer and the cancel have crossed.
            let _ = slot.compare_exchange(id, id | ABANDONED, Relaxed, Relaxed);
        }
    }

    /// Tells the client to send no more requests.
    pub fn goodbye(&self) {
        self.outbox.push(|out| frame::put_bare(out, Header::bare(kind::GOODBYE, 0)), None);
        self.outbox.flush(true, &self.context.counters);
    }

    /// Shuts the socket; answers go nowhere from now on.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
        self.granted.lock().clear();
        self.outbox.close();
    }
}

/// The way back of one request. It stands for the request's credit.
pub(crate) struct Sink {
    session: Arc<Session>,
    id: u64,
    method: u16,
    begun: Instant,
    received: usize,
    answered: bool,
}

impl Sink {
    fn slot(&self) -> &AtomicU64 {
        // Checked when it was admitted.
        &self.session.live[(self.id & SLOT) as usize]
    }

    /// Counts the request as answered. Says whether it was the last one under way.
    fn end(&mut self, ok: bool, sent: usize) -> bool {
        self.answered = true;
        let context = &self.session.context;
        context.counters.ended(self.method, ok, sent, self.received, self.begun.elapsed());
        let last = self.session.in_flight.fetch_sub(1, SeqCst) == 1;
        if context.leaving.load(SeqCst) {
            context.answered.notify_waiters();
        }
        last
    }
}

impl ReplySink for Sink {
    fn send(mut self: Box<Self>, status: Status, body: Bytes, mut data: Vec<Buf>) {
        let session = self.session.clone();
        // The credit is free before the client can hear of the answer and use it again.
        if self.slot().swap(0, Relaxed) & ABANDONED != 0 {
            data.clear();
        }
        let flags = if session.parked.load(Relaxed) > 0 { flag::CROWDED } else { 0 };
        let header = Header { code: (status as u16).into(), flags, ..Header::bare(kind::REPLY, self.id) };
        let entries: Vec<Entry> = data.iter().map(|buf| Entry::new(buf.len(), 0)).collect();
        let bulk: usize = data.iter().map(|buf| buf.len()).sum();
        let put = |out: &mut Vec<u8>| frame::put(out, header, entries.into_iter(), std::iter::empty(), &body);
        session.outbox.push(put, (bulk > 0).then_some((self.id, 0, data)));
        // Only now, so that a shutdown does not overtake the answer.
        let last = self.end(status == Status::Ok, body.len() + bulk);
        session.outbox.flush(last, &session.context.counters);
    }

    fn is_abandoned(&self) -> bool {
        self.session.closed.load(Relaxed) || self.slot().load(Relaxed) & ABANDONED != 0
    }
}

impl Drop for Sink {
    /// Only a connection that ends forgets its requests: nobody is left to be answered.
    fn drop(&mut self) {
        if !self.answered {
            self.slot().store(0, Relaxed);
            self.end(false, 0);
        }
    }
}
