//! One connection: requests that way, replies this way, each in order. The calling end; the serving one is [`super::arrival`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use catena_buf::{Buf, IoBuf};
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep_until, timeout_at};
use catena_rt::{AbortHandle, Process};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use super::host::Host;
use super::{Fate, MemNetwork};
use crate::call::{Call, Reply, Segment};
use crate::error::NetError;
use crate::handshake::PeerId;
use crate::stats::{ConnectionStats, Counters, PeerStats, add};
use crate::transport::Connection;

/// A call whose reply has not come. It holds its credit until then.
struct Waiting {
    /// `None`: the caller has gone.
    answer: Option<oneshot::Sender<Result<Reply, NetError>>>,
    into: Vec<IoBuf>,
    align: Vec<u16>,
    abandoned: Arc<AtomicBool>,
    /// Nothing will come.
    lost: bool,
}

struct Message<T> {
    sent: Instant,
    arrives: Instant,
    /// May pass those before it.
    alone: bool,
    what: T,
}

pub(super) struct Request {
    /// 0: the second of two.
    pub id: u64,
    pub method: u16,
    pub body: Bytes,
    pub deadline: Instant,
    pub data: Vec<Segment>,
    pub room: Vec<u32>,
    pub abandoned: Arc<AtomicBool>,
}

pub(super) struct Answer {
    pub id: u64,
    pub status: Status,
    pub body: Bytes,
    pub data: Vec<Buf>,
}

struct State {
    calls: BTreeMap<u64, Waiting>,
    next: u64,
    closed: Option<&'static str>,
    /// When the last message of each direction arrives: they keep their order.
    last_request: Instant,
    last_answer: Instant,
    pumps: Vec<AbortHandle>,
}

/// A connection.
pub(super) struct Link {
    network: MemNetwork,
    serial: u64,
    pub me: PeerId,
    pub host: Arc<Host>,
    name: String,
    state: Mutex<State>,
    credits: Semaphore,
    counters: Counters,
    requests: mpsc::UnboundedSender<Message<Request>>,
    answers: mpsc::UnboundedSender<Message<Answer>>,
    pub in_flight: AtomicU64,
    pub parked: AtomicU64,
    /// A call has ended.
    ended: Notify,
}

impl Link {
    pub fn start(network: MemNetwork, serial: u64, me: PeerId, host: Arc<Host>, address: &str) -> Arc<Link> {
        let (requests, mut coming) = mpsc::unbounded_channel();
        let (answers, mut going) = mpsc::unbounded_channel();
        let now = Instant::now();
        let (pumps, closed) = (Vec::new(), None);
        let state =
            State { calls: BTreeMap::new(), next: 1, closed, last_request: now, last_answer: now, pumps };
        let link = Arc::new(Link {
            network,
            serial,
            me,
            name: format!("{} at {address}", host.peer()),
            state: Mutex::new(state),
            credits: Semaphore::new(host.credits as usize),
            counters: Counters::new(),
            host,
            requests,
            answers,
            in_flight: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            ended: Notify::new(),
        });
        // Messages travel while processes stop and die; what arrives waits for the process that it came to.
        let world = Process::world();
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let there = world.spawn({
            let link = link.clone();
            async move {
                while let Some(message) = coming.recv().await {
                    let alone = message.alone;
                    let (link, arrived) = (link.clone(), arrived.clone());
                    let trip = async move {
                        if link.travel(link.me, link.host.peer(), &message).await {
                            let _ = arrived.send(message.what);
                        }
                    };
                    if alone { drop(Process::world().spawn(trip)) } else { trip.await }
                }
            }
        });
        let served = link.host.process.spawn({
            let link = link.clone();
            async move {
                while let Some(request) = arrivals.recv().await {
                    link.arrive(request).await;
                }
            }
        });
        let back = world.spawn({
            let link = link.clone();
            async move {
                while let Some(message) = going.recv().await {
                    let alone = message.alone;
                    let link = link.clone();
                    let trip = async move {
                        if link.travel(link.host.peer(), link.me, &message).await {
                            link.answered(message.what);
                        }
                    };
                    if alone { drop(Process::world().spawn(trip)) } else { trip.await }
                }
            }
        });
        link.state.lock().pumps = vec![there.abort_handle(), served.abort_handle(), back.abort_handle()];
        link
    }

    pub fn joins(&self, peer: PeerId) -> bool {
        self.me == peer || self.host.peer() == peer
    }

    pub fn leads_to(&self, host: &Arc<Host>) -> bool {
        Arc::ptr_eq(&self.host, host)
    }

    pub fn at_server(&self) -> PeerStats {
        let (in_flight, parked) = (self.in_flight.load(Relaxed), self.parked.load(Relaxed));
        PeerStats { peer: self.me, address: self.me.to_string(), in_flight, parked }
    }

    fn broke(&self, reason: &str, sent: bool) -> NetError {
        NetError::Disconnected { peer: self.name.clone(), reason: reason.into(), sent }
    }

    /// No more calls.
    pub fn leave(&self) {
        self.state.lock().closed.get_or_insert("the server is shutting down");
        self.credits.close();
    }

    /// Until no call waits for a reply.
    pub async fn settled(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.state.lock().calls.is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Breaks it: calls under way fail, nothing of it arrives any more. Handlers go on.
    pub fn sever(&self, reason: &'static str) {
        let (calls, pumps) = {
            let mut state = self.state.lock();
            state.closed.get_or_insert(reason);
            (std::mem::take(&mut state.calls), std::mem::take(&mut state.pumps))
        };
        self.credits.close();
        pumps.iter().for_each(|pump| pump.abort());
        for call in calls.into_values() {
            call.abandoned.store(true, Relaxed);
            if let Some(answer) = call.answer {
                let _ = answer.send(Err(self.broke(reason, true)));
            }
        }
        self.ended.notify_waiters();
        let gone = self.network.state.lock().links.remove(&self.serial);
        drop(gone);
    }

    pub fn is_severed(&self) -> bool {
        self.state.lock().pumps.is_empty()
    }

    /// Waits for a message's arrival. False if the connection broke over it.
    async fn travel<T>(&self, from: PeerId, to: PeerId, message: &Message<T>) -> bool {
        if message.arrives > Instant::now() {
            sleep_until(message.arrives).await;
        }
        let passed = self.network.passable(from, to, message.sent).await;
        if !passed {
            self.sever("the network is unreachable");
        }
        passed
    }

    /// In order, unless the weather says otherwise.
    fn reorders(&self, from: PeerId, to: PeerId) -> bool {
        self.network.state.lock().weather(from, to).reorder
    }

    /// An answer leaves the server.
    pub fn answer(&self, answer: Answer) {
        let (from, to) = (self.host.peer(), self.me);
        let sent = Instant::now();
        match self.network.fate(from, to) {
            Fate::Arrives(at) => {
                let reorders = self.reorders(from, to);
                let mut state = self.state.lock();
                let arrives = if reorders { at } else { at.max(state.last_answer) };
                state.last_answer = arrives.max(state.last_answer);
                let _ = self.answers.send(Message { sent, arrives, alone: reorders, what: answer });
            }
            Fate::Vanishes => self.lose(answer.id),
            Fate::Breaks => self.sever("connection reset"),
        }
    }

    /// Nothing will come of this call: its credit comes back when its caller gives up.
    fn lose(&self, id: u64) {
        let mut state = self.state.lock();
        match state.calls.get_mut(&id) {
            Some(call) if call.answer.is_none() => {
                state.calls.remove(&id);
                drop(state);
                self.credits.add_permits(1);
                self.ended.notify_waiters();
            }
            Some(call) => call.lost = true,
            None => {}
        }
    }

    /// An answer is here.
    fn answered(&self, answer: Answer) {
        let Some(call) = self.state.lock().calls.remove(&answer.id) else { return };
        self.credits.add_permits(1);
        self.ended.notify_waiters();
        let Waiting { answer: waiter, mut into, align, .. } = call;
        let Some(waiter) = waiter else { return };
        for (at, buf) in into.iter_mut().enumerate() {
            let start = usize::from(align.get(at).copied().unwrap_or(0));
            let bytes = answer.data.get(at).map_or(&[][..], |bytes| &bytes[..]);
            // Checked by the responder against the room that the call made.
            buf.set_len(start + bytes.len());
            buf[start..].copy_from_slice(bytes);
        }
        add(&self.counters.wire_received, answer.data.iter().map(|buf| buf.len() as u64).sum());
        let _ = waiter.send(Ok(Reply { status: answer.status, body: answer.body, data: into }));
    }

    /// The caller has gone.
    fn give_up(&self, id: u64) {
        let mut state = self.state.lock();
        let Some(call) = state.calls.get_mut(&id) else { return };
        call.abandoned.store(true, Relaxed);
        call.answer = None;
        let into = std::mem::take(&mut call.into);
        if call.lost {
            state.calls.remove(&id);
            self.credits.add_permits(1);
        }
        drop(state);
        drop(into);
    }

    async fn call(self: &Arc<Self>, call: Call) -> Result<Reply, NetError> {
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
                    Ok(Err(_)) => return Err(self.broke(self.state.lock().closed.unwrap_or("closed"), false)),
                    Err(_) => return Err(timed_out(false)),
                }
            }
        }
        let (method, sent) = (call.method, call.body.len() + call.data_len());
        self.counters.begun(method);
        let (id, answered) = match self.send(call, deadline) {
            Ok(sent) => sent,
            Err(error) => {
                self.counters.ended(method, false, 0, 0, begun.elapsed());
                return Err(error);
            }
        };
        add(&self.counters.wire_sent, sent as u64);
        let mut guard = Guard { link: self, id, method, sent, begun, over: false };
        match timeout_at(deadline, answered).await {
            Ok(result) => {
                let result = result.unwrap_or_else(|_| Err(self.broke("closed", true)));
                guard.end(&result);
                result
            }
            Err(_) => Err(timed_out(true)),
        }
    }

    fn send(
        self: &Arc<Self>,
        call: Call,
        deadline: Instant,
    ) -> Result<(u64, oneshot::Receiver<Result<Reply, NetError>>), NetError> {
        let room: Vec<u32> =
            call.into.iter().enumerate().map(|(at, buf)| (buf.len() - call.align(at)) as u32).collect();
        let Call { method, body, data, into, into_align: align, .. } = call;
        let (from, to) = (self.me, self.host.peer());
        let (fate, second) = (self.network.fate(from, to), self.network.second(from, to, method));
        let reorders = self.reorders(from, to);
        let (answer, answered) = oneshot::channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let sent = Instant::now();

        let mut state = self.state.lock();
        if let Some(reason) = state.closed {
            return Err(self.broke(reason, false));
        }
        let id = state.next;
        state.next += 1;
        let lost = fate == Fate::Vanishes;
        let waiting = Waiting { answer: Some(answer), into, align, abandoned: abandoned.clone(), lost };
        state.calls.insert(id, waiting);
        let first = match fate {
            Fate::Arrives(at) => Some((id, at)),
            Fate::Vanishes => None,
            Fate::Breaks => {
                drop(state);
                self.sever("connection reset");
                return Ok((id, answered));
            }
        };
        if let Some(at) = second {
            let (body, data, room) = (body.clone(), data.clone(), room.clone());
            let deadline = deadline + self.network.lateness(from, to);
            self.come_again(
                at,
                Request { id: 0, method, body, deadline, data, room, abandoned: Arc::default() },
            );
        }
        if let Some((id, at)) = first {
            let arrives = if reorders { at } else { at.max(state.last_request) };
            state.last_request = arrives.max(state.last_request);
            let what = Request { id, method, body, deadline, data, room, abandoned };
            let _ = self.requests.send(Message { sent, arrives, alone: reorders, what });
        }
        Ok((id, answered))
    }

    /// The second of two is on its way, by itself.
    fn come_again(self: &Arc<Self>, at: Instant, request: Request) {
        let link = self.clone();
        Process::world().spawn(async move {
            sleep_until(at).await;
            if link.network.passable(link.me, link.host.peer(), at).await {
                let arriving = link.clone();
                link.host.spawn(async move { arriving.arrive(request).await });
            }
        });
    }
}

/// Counts a call, and gives it up if it is dropped before its end.
struct Guard<'a> {
    link: &'a Link,
    id: u64,
    method: u16,
    sent: usize,
    begun: Instant,
    over: bool,
}

impl Guard<'_> {
    fn end(&mut self, result: &Result<Reply, NetError>) {
        self.over = true;
        self.link.counters.answered(self.method, self.sent, result, self.begun.elapsed());
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.link.counters.ended(self.method, false, self.sent, 0, self.begun.elapsed());
            self.link.give_up(self.id);
        }
    }
}

/// A connection as its callers hold it: the last one closes it.
struct Handle(Arc<Link>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.sever("closed by this process");
    }
}

/// A connection.
pub(super) struct MemConnection(Arc<Handle>);

impl MemConnection {
    pub fn new(link: Arc<Link>) -> MemConnection {
        MemConnection(Arc::new(Handle(link)))
    }
}

impl Connection for MemConnection {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Reply, NetError>> {
        let handle = self.0.clone();
        Box::pin(async move { handle.0.call(call).await })
    }

    fn peer(&self) -> PeerId {
        self.0.0.host.peer()
    }

    fn is_closed(&self) -> bool {
        self.0.0.state.lock().closed.is_some()
    }

    fn stats(&self) -> ConnectionStats {
        self.0.0.counters.snapshot()
    }
}
