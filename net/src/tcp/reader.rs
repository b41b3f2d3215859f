//! Receives the requests of one connection and begins them.
//!
//! A request's bulk data usually comes right behind it and lands in buffers taken there and then. When the service's class has none, the
//! request is *parked*: its data is thrown away as it arrives, other requests go on, and once there are buffers the data is asked for
//! again. So a full pool never blocks the connection: behind the parked request may be the very message that frees the buffers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::PoolClass;
use catena_proto::status::Status;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::inbox::{Inbox, Landing};
use super::session::TcpSession;
use crate::frame::{self, Broken, Entry, Garbled, Header, Row, flag, kind};
use crate::requests::{AbortOnDrop, Parked, Request};

enum Stage {
    /// Data with these flags goes there.
    Landing(Landing, u8),
    /// There are no buffers yet; a task waits for some.
    Parked { _task: AbortOnDrop, places: Vec<(usize, usize)> },
    /// It was turned away.
    Refused,
}

struct Arriving {
    request: Option<Request>,
    stage: Stage,
    /// Bytes still to come that are wanted,
    left: usize,
    /// and before them, bytes to be thrown away.
    skip: usize,
}

/// The receiving half of a session.
pub(crate) struct Reader {
    session: Arc<TcpSession>,
    inbox: Inbox,
    arriving: HashMap<u64, Arriving>,
}

impl Reader {
    pub fn new(session: Arc<TcpSession>, stream: Arc<TcpStream>) -> Reader {
        let inbox = Inbox::new(stream, Some(session.outbox.clone()), session.ledger.context.counters.clone());
        Reader { session, inbox, arriving: HashMap::new() }
    }

    /// Serves until the connection ends; says why it did.
    pub async fn run(mut self) -> Broken {
        loop {
            if let Err(broken) = self.frame().await {
                return broken;
            }
        }
    }

    async fn frame(&mut self) -> Result<(), Broken> {
        let header = self.inbox.frame().await?;
        let id = header.id.get();
        match header.kind {
            kind::REQUEST => self.request(header).await?,
            kind::DATA | kind::CANCEL => {
                header.open::<Entry>(self.inbox.bytes(&header))?;
                self.inbox.consume(&header);
                if header.kind == kind::CANCEL {
                    self.cancel(id);
                } else {
                    self.data(id, header.flags, header.body_len.get() as usize).await?;
                }
            }
            _ => return Err(Garbled("a frame that only servers send").into()),
        }
        Ok(())
    }

    async fn request(&mut self, header: Header) -> Result<(), Broken> {
        let (id, method) = (header.id.get(), header.code.get());
        let parts = header.open::<Entry>(self.inbox.bytes(&header))?;
        let body = frame::body(parts.body);
        let room: Vec<u32> = parts.room.iter().map(|entry| entry.len.get()).collect();
        let places: Vec<(usize, usize)> =
            parts.data.iter().map(|entry: &Entry| (entry.align(), entry.align() + entry.len())).collect();
        self.inbox.consume(&header);

        let bulk = header.bulk_len.get() as usize;
        let sink = self.session.admit(id, method, body.len() + bulk)?;
        let deadline = Instant::now() + Duration::from_micros(header.deadline_us.get().into());
        let request = Request { method, body, room, deadline, sink };
        let eager = header.flags & flag::EAGER != 0;
        if self.session.ledger.context.leaving.load(Relaxed) {
            request.sink.send(Status::ShuttingDown, Bytes::new(), Vec::new());
            return self.refused(id, if eager { bulk } else { 0 });
        }
        if places.is_empty() {
            self.session.ledger.begin(request, Vec::new()).await;
            return Ok(());
        }

        let context = &self.session.ledger.context;
        let class = context.service.class(method, &request.body);
        let lens: Vec<usize> = places.iter().map(|&(_, end)| end).collect();
        match context.pool.try_alloc_many(&lens, class) {
            Ok(Some(bufs)) if bulk == 0 => {
                self.session.ledger.begin(request, Landing::new(bufs, places).finish_clean()).await;
            }
            Ok(Some(bufs)) => {
                if !eager {
                    self.ask(id);
                }
                let flags = if eager { 0 } else { flag::PULLED };
                let stage = Stage::Landing(Landing::new(bufs, places), flags);
                self.arriving.insert(id, Arriving { request: Some(request), stage, left: bulk, skip: 0 });
            }
            Ok(None) => {
                let _task = self.park(id, lens, class, deadline);
                let stage = Stage::Parked { _task, places };
                let skip = if eager { bulk } else { 0 };
                self.arriving.insert(id, Arriving { request: Some(request), stage, left: bulk, skip });
            }
            Err(error) => {
                debug!(peer = %self.session.ledger.peer, method, %error, "refused a request's bulk data");
                request.sink.send(Status::Invalid, Bytes::from(error.to_string()), Vec::new());
                return self.refused(id, if eager { bulk } else { 0 });
            }
        }
        Ok(())
    }

    /// Bulk data that is on its way although its request has been answered.
    fn refused(&mut self, id: u64, skip: usize) -> Result<(), Broken> {
        if skip > 0 {
            self.arriving.insert(id, Arriving { request: None, stage: Stage::Refused, left: 0, skip });
        }
        // A client sends a request's data before too many other requests; this one does not.
        if self.arriving.len() > 4 * self.session.ledger.context.credits as usize {
            return Err(Garbled("too many requests that owe their bulk data").into());
        }
        Ok(())
    }

    fn ask(&self, id: u64) {
        self.session.outbox.push(|out| frame::put_bare(out, Header::bare(kind::PULL, id)), None);
        self.session.outbox.flush(false, &self.session.ledger.context.counters);
    }

    /// Waits for buffers aside, then asks for the data.
    fn park(&self, id: u64, lens: Vec<usize>, class: PoolClass, deadline: Instant) -> AbortOnDrop {
        let session = self.session.clone();
        let counted = Parked::new(&session.ledger);
        self.session.granted.lock().insert(id, None);
        let task = tokio::spawn(async move {
            // Past the deadline the client takes its request back.
            let Ok(Ok(bufs)) =
                timeout_at(deadline, session.ledger.context.pool.alloc_many(&lens, class)).await
            else {
                return;
            };
            drop(counted);
            // Under the lock: either the request still waits and is asked for its data, or it is gone and is not.
            let mut granted = session.granted.lock();
            let Some(place) = granted.get_mut(&id) else { return };
            *place = Some(bufs);
            session.outbox.push(|out| frame::put_bare(out, Header::bare(kind::PULL, id)), None);
            drop(granted);
            session.outbox.flush(false, &session.ledger.context.counters);
        });
        AbortOnDrop(task.abort_handle())
    }

    /// The caller has gone. A request whose data is still coming ends here; one that is being handled is told.
    fn cancel(&mut self, id: u64) {
        match self.arriving.remove(&id) {
            Some(arriving) => {
                self.session.granted.lock().remove(&id);
                if let Some(request) = arriving.request {
                    request.sink.send(Status::TimedOut, Bytes::new(), Vec::new());
                }
            }
            None => self.session.ledger.abandon(id),
        }
    }

    async fn data(&mut self, id: u64, flags: u8, len: usize) -> Result<(), Broken> {
        let Some(arriving) = self.arriving.get_mut(&id) else {
            return Err(Garbled("bulk data of no request").into());
        };
        let flags = flags & flag::PULLED;
        if arriving.skip > 0 {
            if flags != 0 || len > arriving.skip {
                return Err(Garbled("more bulk data than announced").into());
            }
            self.inbox.skip(len).await?;
            arriving.skip -= len;
            if arriving.skip == 0 && arriving.request.is_none() {
                self.arriving.remove(&id);
            }
            return Ok(());
        }
        if let Stage::Parked { places, .. } = &mut arriving.stage {
            let bufs = self.session.granted.lock().remove(&id).flatten();
            let bufs = bufs.ok_or(Garbled("bulk data that was not asked for"))?;
            arriving.stage = Stage::Landing(Landing::new(bufs, std::mem::take(places)), flag::PULLED);
        }
        match &mut arriving.stage {
            Stage::Landing(landing, expected) if *expected == flags && len <= arriving.left => {
                self.inbox.land(landing, len).await?;
                arriving.left -= len;
            }
            _ => return Err(Garbled("more bulk data than announced").into()),
        }
        if arriving.left == 0
            && let Some(Arriving { request: Some(request), stage: Stage::Landing(landing, _), .. }) =
                self.arriving.remove(&id)
        {
            self.session.ledger.begin(request, landing.finish_clean()).await;
        }
        Ok(())
    }
}
