//! The serving end of a connection over RDMA: requests come in as messages, their data is pulled with READs into buffers of the service's
//! class, and replies push theirs with WRITEs.
//!
//! A request begins once its data is here, so that its handler works as it does on TCP. One that finds no buffers is *parked*: nothing of
//! its data has moved, and others go on.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf, PoolClass};
use catena_proto::status::Status;
use catena_verbs::queue_pair::Reading;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::link::Link;
use super::reader::{self, Incoming};
use super::wire::Place;
use crate::frame::{self, Broken, Frame, Garbled, Header, Row, kind};
use crate::handshake::PeerId;
use crate::listener::Session;
use crate::requests::{AbortOnDrop, Context, Ledger, Parked, Request, Ticket};
use crate::service::ReplySink;

/// A request whose data is not here yet.
enum Arriving {
    /// There are no buffers yet; a task waits for some.
    Parked { request: Request, places: Vec<Place>, _task: AbortOnDrop },
    /// READs are under way or queued, so many bytes are to come.
    Pulling { request: Request, reading: Arc<Reading>, left: usize },
}

/// One connection.
pub(crate) struct RdmaSession {
    ledger: Arc<Ledger>,
    address: SocketAddr,
    link: Link,
    arriving: Mutex<HashMap<u64, Arriving>>,
    /// Something that waited to go out has gone.
    progress: Notify,
}

impl RdmaSession {
    pub fn new(context: Arc<Context>, peer: PeerId, address: SocketAddr, link: Link) -> RdmaSession {
        debug!(%peer, path = link.path, "serving over RDMA");
        RdmaSession {
            ledger: Arc::new(Ledger::new(context, peer)),
            address,
            link,
            arriving: Mutex::default(),
            progress: Notify::new(),
        }
    }

    /// Serves it to its end.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, busy_poll: Duration) -> Broken {
        let counters = self.ledger.context.counters.clone();
        let mut end = ServerEnd(self.clone());
        reader::run(&self.link, stream, &mut end, &counters, busy_poll).await
    }

    fn flush(&self) {
        self.link.flush(&self.ledger.context.counters);
    }

    async fn request(self: &Arc<Self>, header: &Header, parts: Frame<'_, Place>) -> Result<(), Garbled> {
        let (id, method) = (header.id.get(), header.code.get());
        let body = frame::body(parts.body);
        let bulk = header.bulk_len.get() as usize;
        let ticket = self.ledger.admit(id, method, body.len() + bulk)?;
        let deadline = Instant::now() + Duration::from_micros(header.deadline_us.get().into());
        let room: Vec<u32> = parts.room.iter().map(|place| place.len() as u32).collect();
        let sink = Box::new(Sink { session: self.clone(), ticket, room: parts.room.into() });
        let request = Request { method, body, room, deadline, sink };
        let context = &self.ledger.context;
        if context.leaving.load(Relaxed) {
            request.sink.send(Status::ShuttingDown, Bytes::new(), Vec::new());
            return Ok(());
        }
        if parts.data.is_empty() {
            self.ledger.begin(request, Vec::new()).await;
            return Ok(());
        }
        let class = context.service.class(method, &request.body);
        let places = parts.data.to_vec();
        let lens: Vec<usize> = places.iter().map(|place| place.align() + place.len()).collect();
        match context.pool.try_alloc_many(&lens, class) {
            Ok(Some(bufs)) if bulk == 0 => self.ledger.begin(request, clean(bufs, &places)).await,
            Ok(Some(bufs)) => self.pull(id, request, &places, bufs, bulk),
            Ok(None) => self.park(id, request, places, lens, class, bulk),
            Err(error) => {
                debug!(peer = %self.ledger.peer, method, %error, "refused a request's bulk data");
                request.sink.send(Status::Invalid, Bytes::from(error.to_string()), Vec::new());
            }
        }
        Ok(())
    }

    /// Queues the READs of a request's data.
    fn pull(&self, id: u64, request: Request, places: &[Place], bufs: Vec<IoBuf>, left: usize) {
        let reading = Reading::new(clean(bufs, places), id);
        // Known before the first READ can be done.
        let known = Arriving::Pulling { request, reading: reading.clone(), left };
        self.arriving.lock().insert(id, known);
        let places = places.iter().map(|place| (place.align(), place.len(), place.remote(0)));
        if !self.link.push_reads(reading, places) {
            // It closed, perhaps before the request was known: whoever closed it did not find it then.
            let lost = self.arriving.lock().remove(&id);
            drop(lost);
        }
    }

    /// Waits for buffers aside, then pulls.
    fn park(
        self: &Arc<Self>,
        id: u64,
        request: Request,
        places: Vec<Place>,
        lens: Vec<usize>,
        class: PoolClass,
        bulk: usize,
    ) {
        let (session, counted, deadline) = (self.clone(), Parked::new(&self.ledger), request.deadline);
        // Under the lock, so that the task finds the request.
        let mut arriving = self.arriving.lock();
        let task = tokio::spawn(async move {
            // Past the deadline the client takes its request back.
            let pool = &session.ledger.context.pool;
            let Ok(Ok(bufs)) = timeout_at(deadline, pool.alloc_many(&lens, class)).await else { return };
            drop(counted);
            let parked = session.arriving.lock().remove(&id);
            if let Some(Arriving::Parked { request, places, _task }) = parked {
                // `_task` is this one, and lives as long as it does.
                if bulk == 0 {
                    return session.ledger.begin(request, clean(bufs, &places)).await;
                }
                session.pull(id, request, &places, bufs, bulk);
                session.flush();
            }
        });
        let _task = AbortOnDrop(task.abort_handle());
        arriving.insert(id, Arriving::Parked { request, places, _task });
    }

    /// The caller has gone. A request that waits for buffers ends here; one whose data is on its way, once that has come to rest. What
    /// was not yet asked for stays where it is.
    async fn cancel(&self, id: u64) {
        self.ledger.abandon(id);
        let parked = {
            let mut arriving = self.arriving.lock();
            let is_parked = matches!(arriving.get(&id), Some(Arriving::Parked { .. }));
            if is_parked { arriving.remove(&id) } else { None }
        };
        if let Some(Arriving::Parked { request, .. }) = parked {
            return request.sink.send(Status::TimedOut, Bytes::new(), Vec::new());
        }
        let dropped = self.link.drop_reads(id);
        if dropped > 0 {
            self.read(id, dropped).await;
        }
    }

    /// A part of a request's data has come, or is not wanted any more.
    async fn read(&self, id: u64, len: usize) {
        let whole = {
            let mut arriving = self.arriving.lock();
            match arriving.get_mut(&id) {
                Some(Arriving::Pulling { left, .. }) if *left > len => {
                    *left -= len;
                    None
                }
                Some(Arriving::Pulling { .. }) => arriving.remove(&id),
                _ => None,
            }
        };
        let Some(Arriving::Pulling { request, reading, .. }) = whole else { return };
        // The last reference: no READ into these buffers is left.
        let Some(reading) = Arc::into_inner(reading) else {
            debug_assert!(false, "all parts of a READ are done, and one is still held");
            return;
        };
        if request.sink.is_abandoned() {
            return request.sink.send(Status::TimedOut, Bytes::new(), Vec::new());
        }
        self.ledger.begin(request, reading.finish()).await;
    }
}

/// Buffers as they were asked for, with nothing of their last owner around where data will be.
fn clean(mut bufs: Vec<IoBuf>, places: &[Place]) -> Vec<IoBuf> {
    for (buf, place) in bufs.iter_mut().zip(places) {
        buf.zero_around(place.align());
    }
    bufs
}

struct ServerEnd(Arc<RdmaSession>);

impl Incoming for ServerEnd {
    async fn frame(&mut self, header: &Header, parts: Frame<'_, Place>) -> Result<(), Garbled> {
        match header.kind {
            kind::REQUEST => self.0.request(header, parts).await?,
            kind::CANCEL => self.0.cancel(header.id.get()).await,
            _ => return Err(Garbled("a frame that only servers send")),
        }
        Ok(())
    }

    async fn read(&mut self, id: u64, len: usize) {
        self.0.read(id, len).await;
    }

    fn progress(&mut self) {
        self.0.progress.notify_waiters();
    }

    fn pong(&mut self) {}
}

impl Session for RdmaSession {
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn goodbye(&self) {
        self.link.push(|out| frame::put_bare(out, Header::bare(kind::GOODBYE, 0)));
        self.flush();
    }

    fn close(&self) {
        self.ledger.close();
        // Before the buffers of READs that were under way.
        self.link.close();
        let arriving = std::mem::take(&mut *self.arriving.lock());
        drop(arriving);
        self.progress.notify_waiters();
    }

    fn drained(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.link.drain(&self.ledger.context.counters);
            loop {
                let progress = self.progress.notified();
                tokio::pin!(progress);
                progress.as_mut().enable();
                if self.link.is_idle() {
                    return;
                }
                progress.await;
            }
        })
    }
}

/// The way back of one request.
struct Sink {
    session: Arc<RdmaSession>,
    ticket: Ticket,
    /// Where the caller made room.
    room: Box<[Place]>,
}

impl ReplySink for Sink {
    fn send(mut self: Box<Self>, status: Status, body: Bytes, mut data: Vec<Buf>) {
        let session = self.session.clone();
        if self.ticket.release() {
            data.clear();
        }
        let header = Header { code: (status as u16).into(), ..Header::bare(kind::REPLY, self.ticket.id) };
        let rows: Vec<Place> = data.iter().map(|buf| Place::new(buf.len(), 0, None)).collect();
        let bulk: usize = data.iter().map(|buf| buf.len()).sum();
        let put = |out: &mut Vec<u8>| frame::put(out, header, rows.into_iter(), std::iter::empty(), &body);
        if bulk == 0 {
            session.link.push(put);
        } else {
            let mut reply = Vec::new();
            put(&mut reply);
            let writes = data.into_iter().zip(&self.room).filter(|(buf, _)| !buf.is_empty());
            let writes: VecDeque<_> = writes.map(|(buf, room)| (buf, room.remote(0))).collect();
            session.link.push_bulk(writes, reply);
        }
        self.ticket.end(status == Status::Ok, body.len() + bulk);
        session.flush();
    }

    fn is_abandoned(&self) -> bool {
        self.ticket.is_abandoned()
    }
}
