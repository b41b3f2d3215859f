//! A client's calls under way on one connection: credits, deadlines, what happens when a caller goes or the connection breaks. What every
//! backend with real connections shares; how messages leave is a [`Lane`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf};
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use crate::call::{Call, Reply};
use crate::error::NetError;
use crate::frame::{Frame, Garbled, Header, Row, kind};
use crate::handshake::PeerId;
use crate::stats::{ConnectionStats, Counters, add};
use crate::transport::Connection;

/// Low bits of an id: the slot in [`State::calls`].
pub(crate) const SLOT: u64 = 0xffff;

/// The way out for requests.
pub(crate) trait Lane: Send + Sync + 'static {
    /// Whether the server may still reach the buffers of a call that was given up: they are kept until it has answered, or until
    /// [`Lane::close`] has returned.
    const REACHES: bool;

    /// Makes a call's buffers fit for the lane, before anything is counted.
    fn prepare(&self, call: &mut Call) -> impl Future<Output = Result<(), NetError>> + Send;
    /// Queues a request's frame. False if the lane is closed.
    fn request(&self, header: Header, call: &mut Waiting, body: &[u8]) -> bool;
    /// Queues the news that a request's caller has gone.
    fn cancel(&self, id: u64, counters: &Counters);
    /// Sends what is queued; `now`: nothing would be gained by waiting for company.
    fn flush(&self, now: bool, counters: &Counters);
    /// Ends the connection. When it returns, nothing that the server does reaches a buffer of this process any more.
    fn close(&self);
}

type Answer = oneshot::Sender<Result<Reply, NetError>>;

/// A request without an answer. It holds its credit until the answer comes, also when its caller has gone.
pub(crate) struct Waiting {
    id: u64,
    /// `None`: the caller has gone.
    answer: Option<Answer>,
    pub into: Vec<IoBuf>,
    align: Vec<u16>,
    /// Until the answer: the server may ask for it (again).
    pub data: Vec<Buf>,
    /// Of each part of `data`.
    pub data_align: Vec<u16>,
}

impl Waiting {
    /// Byte of `into[at]` at which its data begins.
    pub fn align(&self, at: usize) -> usize {
        self.align.get(at).copied().unwrap_or(0).into()
    }
}

struct State {
    calls: Slab<Waiting>,
    serial: u64,
    /// Why no more calls are taken.
    closed: Option<Arc<str>>,
}

/// The calls of one connection.
pub(crate) struct Calls<L: Lane> {
    peer: PeerId,
    name: String,
    pub lane: L,
    state: Mutex<State>,
    credits: Semaphore,
    /// What `state.closed` says, without a lock.
    closed: AtomicBool,
    pub counters: Arc<Counters>,
    in_flight: AtomicU64,
}

/// A request's answer, taken out: where its data belongs is for the lane to say.
pub(crate) struct Answered {
    /// `None`: the caller has gone.
    pub answer: Option<Answer>,
    pub into: Vec<IoBuf>,
    /// First byte and end of what arrives, per buffer.
    pub places: Vec<(usize, usize)>,
    pub reply: Reply,
    /// Bytes of bulk data.
    pub bulk: usize,
}

impl<L: Lane> Calls<L> {
    pub fn new(lane: L, peer: PeerId, address: &str, credits: u32, counters: Arc<Counters>) -> Calls<L> {
        Calls {
            peer,
            name: format!("{peer} at {address}"),
            lane,
            state: Mutex::new(State { calls: Slab::new(), serial: 1, closed: None }),
            credits: Semaphore::new(credits.clamp(1, SLOT as u32) as usize),
            closed: AtomicBool::new(false),
            counters,
            in_flight: AtomicU64::new(0),
        }
    }

    fn broken(&self, sent: bool) -> NetError {
        let reason = self.state.lock().closed.clone();
        self.broke(reason.as_deref().unwrap_or("closed"), sent)
    }

    fn broke(&self, reason: &str, sent: bool) -> NetError {
        NetError::Disconnected { peer: self.name.clone(), reason: reason.into(), sent }
    }

    /// No more calls.
    pub fn leave(&self, reason: &str) {
        self.state.lock().closed.get_or_insert_with(|| reason.into());
        self.closed.store(true, Relaxed);
        self.credits.close();
    }

    /// No more calls, and those under way fail. What was said before is a better reason.
    pub fn close(&self, reason: &str) {
        self.leave(reason);
        // Before any buffer is given back.
        self.lane.close();
        let (calls, reason) = {
            let mut state = self.state.lock();
            (state.calls.drain().collect::<Vec<Waiting>>(), state.closed.clone())
        };
        let reason = reason.as_deref().unwrap_or("closed");
        let waiting = calls.iter().filter(|call| call.answer.is_some()).count();
        match waiting {
            0 => debug!(peer = self.name, reason, "a connection ended"),
            _ => warn!(peer = self.name, reason, waiting, "a connection broke with calls under way"),
        }
        for call in calls {
            if let Some(answer) = call.answer {
                let _ = answer.send(Err(self.broke(reason, true)));
            }
        }
    }

    /// The caller has gone: nobody wants the answer. Where the server cannot reach them, the buffers are free at once: they are this call's
    /// alone, and bytes land in them only once the reader has taken them out of here, and then it keeps them to the end.
    fn give_up(&self, id: u64) {
        let freed = {
            let mut state = self.state.lock();
            match state.calls.get_mut((id & SLOT) as usize) {
                Some(call) if call.id == id => {
                    call.answer = None;
                    (!L::REACHES).then(|| (std::mem::take(&mut call.into), std::mem::take(&mut call.data)))
                }
                // The answer is being received, or the connection is gone.
                _ => return,
            }
        };
        drop(freed);
        self.lane.cancel(id, &self.counters);
    }

    /// The data of a call that still waits for its answer: `Ok(None)` if its caller has gone.
    pub fn data(&self, id: u64) -> Result<Option<Vec<Buf>>, Garbled> {
        match self.state.lock().calls.get((id & SLOT) as usize) {
            Some(call) if call.id == id && call.answer.is_some() => Ok(Some(call.data.clone())),
            Some(call) if call.id == id => Ok(None),
            _ => Err(Garbled("asks for the bulk data of no request")),
        }
    }

    /// Takes a request's call out, now that its reply is here.
    pub fn answered<R: Row>(&self, header: &Header, parts: &Frame<'_, R>) -> Result<Answered, Garbled> {
        let id = header.id.get();
        let slot = (id & SLOT) as usize;
        let call = {
            let mut state = self.state.lock();
            match state.calls.get(slot) {
                Some(call) if call.id == id => state.calls.remove(slot),
                _ => return Err(Garbled("a reply to no request")),
            }
        };
        self.in_flight.fetch_sub(1, Relaxed);
        self.credits.add_permits(1);
        let bulk = header.bulk_len.get() as usize;
        let status = Status::from_code(header.code.get());
        let mut reply = Reply { status, body: Bytes::new(), data: Vec::new() };
        let mut places: Vec<(usize, usize)> = Vec::new();
        if call.answer.is_some() {
            if parts.data.len() > call.into.len() {
                return Err(Garbled("more segments than there is room for"));
            }
            for (at, buf) in call.into.iter().enumerate() {
                let (start, len) = (call.align(at), parts.data.get(at).map_or(0, Row::len));
                if start + len > buf.len() {
                    return Err(Garbled("more bulk data than there is room for"));
                }
                places.push((start, start + len));
            }
            reply.body = crate::frame::body(parts.body);
        }
        let Waiting { answer, into, .. } = call;
        Ok(Answered { answer, into, places, reply, bulk })
    }

    async fn call(&self, mut call: Call) -> Result<Reply, NetError> {
        call.check()?;
        let begun = Instant::now();
        let deadline = begun + call.deadline;
        let timed_out = |sent| NetError::TimedOut { peer: self.name.clone(), sent };
        match timeout_at(deadline, self.lane.prepare(&mut call)).await {
            Ok(prepared) => prepared?,
            Err(_) => return Err(timed_out(false)),
        }
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
        let mut guard = Guard { calls: self, id, method, begun, sent, over: false };
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
        let (data, data_align) = data.into_iter().map(|segment| (segment.data, segment.align)).unzip();

        // Under the lock until the frame is queued, so that the order of slots, frames and polls is one.
        let mut state = self.state.lock();
        if let Some(reason) = &state.closed {
            return Err(self.broke(reason, false));
        }
        let id = state.serial << 16 | state.calls.vacant_key() as u64;
        state.serial += 1;
        let mut call = Waiting { id, answer: Some(answer), into, align: into_align, data, data_align };
        if !self.lane.request(Header { id: id.into(), ..header }, &mut call, &body) {
            return Err(self.broke("closed", false));
        }
        state.calls.insert(call);
        drop(state);
        let alone = self.in_flight.fetch_add(1, Relaxed) == 0;
        self.lane.flush(alone, &self.counters);
        Ok((id, answered))
    }
}

/// Counts a call, and gives it up if it is dropped before its end.
struct Guard<'a, L: Lane> {
    calls: &'a Calls<L>,
    id: u64,
    method: u16,
    begun: Instant,
    sent: usize,
    over: bool,
}

impl<L: Lane> Guard<'_, L> {
    fn end(&mut self, result: &Result<Reply, NetError>) {
        self.over = true;
        self.calls.counters.answered(self.method, self.sent, result, self.begun.elapsed());
    }
}

impl<L: Lane> Drop for Guard<'_, L> {
    fn drop(&mut self) {
        if !self.over {
            self.calls.counters.ended(self.method, false, self.sent, 0, self.begun.elapsed());
            self.calls.give_up(self.id);
        }
    }
}

/// A connection as its callers hold it: the last one closes it, and ends its tasks.
pub(crate) struct Handle<L: Lane> {
    calls: Arc<Calls<L>>,
    tasks: Vec<AbortHandle>,
}

impl<L: Lane> Handle<L> {
    pub fn new(calls: Arc<Calls<L>>, tasks: Vec<AbortHandle>) -> Arc<Handle<L>> {
        Arc::new(Handle { calls, tasks })
    }
}

impl<L: Lane> Drop for Handle<L> {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.calls.close("closed by this process");
    }
}

/// A connection over a lane.
pub(crate) struct LaneConnection<L: Lane>(pub Arc<Handle<L>>);

impl<L: Lane> Connection for LaneConnection<L> {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Reply, NetError>> {
        let handle = self.0.clone();
        Box::pin(async move { handle.calls.call(call).await })
    }

    fn peer(&self) -> PeerId {
        self.0.calls.peer
    }

    fn is_closed(&self) -> bool {
        self.0.calls.closed.load(Relaxed)
    }

    fn stats(&self) -> ConnectionStats {
        self.0.calls.counters.snapshot()
    }
}

const _: () = assert!(crate::limits::CREDITS <= SLOT as u32);
