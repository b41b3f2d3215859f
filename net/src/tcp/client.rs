//! The calling end of a TCP connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf};
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::frame::{self, Entry, Frame, Garbled, HEADER, Header, flag, kind};
use super::inbox::{Broken, Inbox, Landing};
use super::outbox::Outbox;
use crate::call::{Call, Reply};
use crate::error::NetError;
use crate::handshake::PeerId;
use crate::limits;
use crate::stats::{ConnectionStats, Counters, add};
use crate::transport::Connection;

/// Low bits of an id: the slot in [`State::calls`].
const SLOT: u64 = 0xffff;

/// A request without an answer. It holds its credit until the answer comes, also when its caller has gone.
struct Waiting {
    id: u64,
    /// `None`: the caller has gone.
    answer: Option<oneshot::Sender<Result<Reply, NetError>>>,
    into: Vec<IoBuf>,
    align: Vec<u16>,
    /// Until the answer: the server may ask for it (again).
    data: Vec<Buf>,
}

struct State {
    calls: Slab<Waiting>,
    serial: u64,
    /// Why no more calls are taken.
    closed: Option<Arc<str>>,
}

struct Shared {
    peer: PeerId,
    name: String,
    outbox: Outbox,
    state: Mutex<State>,
    credits: Semaphore,
    /// What `state.closed` says, without a lock.
    closed: AtomicBool,
    /// The server has requests that wait for buffers: let it ask for bulk data.
    crowded: AtomicBool,
    counters: Arc<Counters>,
    in_flight: AtomicU64,
}

impl Shared {
    fn broken(&self, sent: bool) -> NetError {
        let reason = self.state.lock().closed.clone();
        self.broke(reason.as_deref().unwrap_or("closed"), sent)
    }

    fn broke(&self, reason: &str, sent: bool) -> NetError {
        NetError::Disconnected { peer: self.name.clone(), reason: reason.into(), sent }
    }

    /// No more calls.
    fn leave(&self, reason: &str) {
        self.state.lock().closed.get_or_insert_with(|| reason.into());
        self.closed.store(true, Relaxed);
        self.credits.close();
    }

    /// No more calls, and those under way fail.
    fn close(&self, reason: &str) {
        self.leave(reason);
        self.outbox.close();
        let calls: Vec<Waiting> = self.state.lock().calls.drain().collect();
        for call in calls {
            if let Some(answer) = call.answer {
                let _ = answer.send(Err(self.broke(reason, true)));
            }
        }
    }

    /// The caller has gone: nobody wants the answer, the buffers are free. They are this call's alone: bytes land in them only once the
    /// reader has taken them out of here, and then it keeps them to the end.
    fn give_up(&self, id: u64) {
        let freed = {
            let mut state = self.state.lock();
            match state.calls.get_mut((id & SLOT) as usize) {
                Some(call) if call.id == id => {
                    call.answer = None;
                    (std::mem::take(&mut call.into), std::mem::take(&mut call.data))
                }
                // The answer is being received, or the connection is gone.
                _ => return,
            }
        };
        drop(freed);
        self.outbox.withdraw(id);
        self.outbox.push(|out| frame::put_bare(out, Header::bare(kind::CANCEL, id)), None);
        self.outbox.flush(false, &self.counters);
    }
}

/// A connection as its callers hold it: the last one closes it.
struct Handle {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl Drop for Handle {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.close("closed by this process");
    }
}

/// A connection.
pub(crate) struct TcpConnection {
    handle: Arc<Handle>,
}

impl TcpConnection {
    /// Starts the tasks of a connection that has been agreed upon.
    pub fn start(stream: TcpStream, peer: PeerId, address: &str, credits: u32) -> TcpConnection {
        let stream = Arc::new(stream);
        let counters = Arc::new(Counters::new());
        let shared = Arc::new(Shared {
            peer,
            name: format!("{peer} at {address}"),
            outbox: Outbox::new(stream.clone(), false),
            state: Mutex::new(State { calls: Slab::new(), serial: 1, closed: None }),
            credits: Semaphore::new(credits.clamp(1, SLOT as u32) as usize),
            closed: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            counters: counters.clone(),
            in_flight: AtomicU64::new(0),
        });
        let reader = Reader {
            shared: shared.clone(),
            inbox: Inbox::new(stream, None, counters),
            landing: HashMap::new(),
        };
        let reader = tokio::spawn(reader.run());
        let writer = tokio::spawn({
            let shared = shared.clone();
            async move {
                if let Err(error) = shared.outbox.run(&shared.counters).await {
                    shared.close(&error.to_string());
                }
            }
        });
        let tasks = [reader.abort_handle(), writer.abort_handle()];
        TcpConnection { handle: Arc::new(Handle { shared, tasks }) }
    }
}

impl Connection for TcpConnection {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Reply, NetError>> {
        let handle = self.handle.clone();
        Box::pin(async move { handle.shared.call(call).await })
    }

    fn peer(&self) -> PeerId {
        self.handle.shared.peer
    }

    fn is_closed(&self) -> bool {
        self.handle.shared.closed.load(Relaxed)
    }

    fn stats(&self) -> ConnectionStats {
        self.handle.shared.counters.snapshot()
    }
}

/// Counts a call, and gives it up if it is dropped before its end.
struct Guard<'a> {
    shared: &'a Shared,
    id: u64,
    method: u16,
    begun: Instant,
    sent: usize,
    over: bool,
}

impl Guard<'_> {
    fn end(&mut self, result: &Result<Reply, NetError>) {
        let received =
            |reply: &Reply| reply.body.len() + reply.data.iter().map(|buf| buf.len()).sum::<usize>();
        let (ok, received) = match result {
            Ok(reply) => (reply.status == Status::Ok, received(reply)),
            Err(_) => (false, 0),
        };
        self.over = true;
        self.shared.counters.ended(self.method, ok, self.sent, received, self.begun.elapsed());
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.shared.counters.ended(self.method, false, self.sent, 0, self.begun.elapsed());
            self.shared.give_up(self.id);
        }
    }
}

impl Shared {
    async fn call(&self, call: Call) -> Result<Reply, NetError> {
        call.check()?;
        let begun = Instant::now();
        let deadline = begun + call.deadline;
        let timed_out = |sent| NetError::TimedOut { peer: self.name.clone(), sent };
        match self.credits.try_acquire() {
            Ok(credit) => credit.forget(),
            Err(_) => {
                add(&self.counters.waiting, 1);
                let waited = timeout_at(deadline, self.credits.acquire()).await;
                self.counters.waiting.fetch_sub(1, Relaxed);
                match waited {
                    Ok(Ok(credit)) => credit.forget(),
                    Ok(Err(_)) => return Err(self.broken(false)),
                    Err(_) => return Err(timed_out(false)),
                }
            }
        }
        let left = if self.counters.waiting.load(Relaxed) > 0 {
            deadline.saturating_duration_since(Instant::now())
        } else {
            call.deadline
        };
        let (method, sent) = (call.method, call.body.len() + call.data_len());
        self.counters.begun(method);
        let (id, answered) = match self.send(call, left) {
            Ok(sent) => sent,
            Err(error) => {
                self.counters.ended(method, false, 0, 0, begun.elapsed());
                return Err(error);
            }
        };
        let mut guard = Guard { shared: self, id, method, begun, sent, over: false };
        match timeout_at(deadline, answered).await {
            Ok(result) => {
                let result = result.unwrap_or_else(|_| Err(self.broken(true)));
                guard.end(&result);
                result
            }
            Err(_) => Err(timed_out(true)),
        }
    }

    /// Registers a call and queues its frame.
    fn send(
        &self,
        call: Call,
        left: Duration,
    ) -> Result<(u64, oneshot::Receiver<Result<Reply, NetError>>), NetError> {
        let Call { method, body, data, into, into_align, .. } = call;
        let (answer, answered) = oneshot::channel();
        let header = Header {
            code: method.into(),
            deadline_us: u32::try_from(left.as_micros()).unwrap_or(u32::MAX).into(),
            ..Header::bare(kind::REQUEST, 0)
        };
        let entries: Vec<Entry> =
            data.iter().map(|segment| Entry::new(segment.data.len(), segment.align.into())).collect();
        let room = |at: usize| usize::from(into_align.get(at).copied().unwrap_or(0));
        let rooms: Vec<Entry> =
            into.iter().enumerate().map(|(at, buf)| Entry::new(buf.len() - room(at), room(at))).collect();
        let data: Vec<Buf> = data.into_iter().map(|segment| segment.data).collect();
        let eager = !data.is_empty() && !self.crowded.load(Relaxed);
        let bulk = eager.then(|| data.clone());

        // Under the lock until the frame is queued, so that the order of slots, frames and polls is one.
        let mut state = self.state.lock();
        if let Some(reason) = &state.closed {
            return Err(self.broke(reason, false));
        }
        let id = state.serial << 16 | state.calls.vacant_key() as u64;
        state.serial += 1;
        state.calls.insert(Waiting { id, answer: Some(answer), into, align: into_align, data });
        let header = Header { id: id.into(), flags: if eager { flag::EAGER } else { 0 }, ..header };
        let put = |out: &mut Vec<u8>| frame::put(out, header, entries.into_iter(), rooms.into_iter(), &body);
        let queued = self.outbox.push(put, bulk.map(|data| (id, 0, data)));
        if !queued {
            state.calls.try_remove((id & SLOT) as usize);
            return Err(self.broke("closed", false));
        }
        drop(state);
        // Alone on the connection: nothing would be gained by waiting for company.
        let alone = self.in_flight.fetch_add(1, Relaxed) == 0;
        self.outbox.flush(alone, &self.counters);
        Ok((id, answered))
    }
}

/// A reply whose bulk data is arriving. It owns the buffers to the end, whether or not anybody still waits.
struct Arriving {
    landing: Landing,
    left: usize,
    reply: Reply,
    answer: Option<oneshot::Sender<Result<Reply, NetError>>>,
}

struct Reader {
    shared: Arc<Shared>,
    inbox: Inbox,
    landing: HashMap<u64, Arriving>,
}

impl Reader {
    async fn run(mut self) {
        let broken = loop {
            if let Err(broken) = self.frame().await {
                break broken;
            }
        };
        // What the server said before it left is a better reason than that it left.
        let reason = self.shared.state.lock().closed.clone();
        self.shared.close(reason.as_deref().unwrap_or(&broken.to_string()));
    }

    async fn frame(&mut self) -> Result<(), Broken> {
        let header = self.inbox.frame().await?;
        let parts = header.open(self.inbox.bytes(&header))?;
        match header.kind {
            kind::REPLY => {
                let arriving = self.shared.answered(&header, &parts)?;
                self.inbox.consume(&header);
                match arriving {
                    Some(arriving) if arriving.left > 0 => {
                        self.landing.insert(header.id.get(), arriving);
                    }
                    Some(arriving) => arriving.deliver(),
                    None => {}
                }
            }
            kind::DATA => {
                self.inbox.consume(&header);
                self.data(header.id.get(), header.body_len.get() as usize).await?;
            }
            kind::PULL => {
                self.inbox.consume(&header);
                self.shared.pulled(header.id.get())?;
            }
            kind::GOODBYE => {
                self.inbox.consume(&header);
                self.shared.leave("the server is shutting down");
            }
            _ => return Err(Garbled("a frame that only clients send").into()),
        }
        Ok(())
    }

    async fn data(&mut self, id: u64, len: usize) -> Result<(), Broken> {
        let Some(arriving) = self.landing.get_mut(&id) else {
            return Err(Garbled("bulk data of no reply").into());
        };
        if len > arriving.left {
            return Err(Garbled("more bulk data than announced").into());
        }
        arriving.left -= len;
        if arriving.landing.is_nowhere() {
            self.inbox.skip(len).await?;
        } else {
            self.inbox.land(&mut arriving.landing, len).await?;
        }
        if arriving.left == 0
            && let Some(arriving) = self.landing.remove(&id)
        {
            arriving.deliver();
        }
        Ok(())
    }
}

impl Arriving {
    fn deliver(self) {
        let Arriving { landing, mut reply, answer, .. } = self;
        reply.data = landing.finish();
        // A caller that has gone does not want it.
        if let Some(answer) = answer {
            let _ = answer.send(Ok(reply));
        }
    }
}

impl Shared {
    /// A reply: takes the call out, and says what of it is still to come.
    fn answered(&self, header: &Header, parts: &Frame<'_>) -> Result<Option<Arriving>, Garbled> {
        let id = header.id.get();
        let slot = (id & SLOT) as usize;
        let call = {
            let mut state = self.state.lock();
            match state.calls.get(slot) {
                Some(call) if call.id == id => state.calls.remove(slot),
                _ => return Err(Garbled("a reply to no request")),
            }
        };
        self.crowded.store(header.flags & flag::CROWDED != 0, Relaxed);
        self.in_flight.fetch_sub(1, Relaxed);
        self.credits.add_permits(1);
        let Waiting { answer, into, align, .. } = call;
        let left = header.bulk_len.get() as usize;
        let status = Status::from_code(header.code.get());
        let reply = Reply { status, body: Bytes::new(), data: Vec::new() };
        let Some(answer) = answer else {
            return Ok((left > 0).then(|| Arriving {
                landing: Landing::default(),
                left,
                reply,
                answer: None,
            }));
        };
        let align = |at: usize| usize::from(align.get(at).copied().unwrap_or(0));
        let mut places: Vec<(usize, usize)> = Vec::with_capacity(into.len());
        for (at, buf) in into.iter().enumerate() {
            let len = parts.data.get(at).map_or(0, Entry::len);
            places.push((align(at), align(at) + len));
            if align(at) + len > buf.len() {
                return Err(Garbled("more bulk data than there is room for"));
            }
        }
        if parts.data.len() > into.len() {
            return Err(Garbled("more segments than there is room for"));
        }
        let reply = Reply { body: frame::body(parts.body), ..reply };
        Ok(Some(Arriving { landing: Landing::new(into, places), left, reply, answer: Some(answer) }))
    }

    /// The server has room for a request's bulk data.
    fn pulled(&self, id: u64) -> Result<(), Garbled> {
        self.crowded.store(true, Relaxed);
        let data = {
            let state = self.state.lock();
            match state.calls.get((id & SLOT) as usize) {
                Some(call) if call.id == id && call.answer.is_some() => call.data.clone(),
                // Given up: the server learns of it by the cancel that is on its way.
                Some(call) if call.id == id => return Ok(()),
                _ => return Err(Garbled("asks for the bulk data of no request")),
            }
        };
        if data.is_empty() {
            return Err(Garbled("asks for bulk data that was not announced"));
        }
        self.outbox.push(|_| {}, Some((id, flag::PULLED, data)));
        self.outbox.flush(false, &self.counters);
        Ok(())
    }
}

const _: () = assert!(limits::CREDITS <= SLOT as u32 && HEADER < limits::BODY);
