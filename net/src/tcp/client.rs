//! The calling end of a TCP connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::BytesMut;
use catena_buf::IoBuf;
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::frame::{self, Garbled, REPLY, REQUEST};
use super::wire::{Broken, OutFrame, Outbox, Receiver};
use super::{nonce, receive, send};
use crate::call::{Call, Reply};
use crate::error::NetError;
use crate::handshake::{Hello, Identity, PeerId, Proof, Verdict, advice, prove, proves};
use crate::limits;
use crate::stats::{ConnectionStats, Counters};
use crate::transport::Connection;

/// A call whose reply has not come. It owns the buffers until then, also when its caller has gone.
struct Waiting {
    into: Vec<IoBuf>,
    align: Vec<u16>,
    answer: oneshot::Sender<Result<Reply, NetError>>,
    /// Serial number behind the slab key: a late reply to a reused key is told apart.
    serial: u32,
    _credit: OwnedSemaphorePermit,
}

struct Shared {
    peer: PeerId,
    name: String,
    outbox: Outbox,
    calls: Mutex<Slab<Waiting>>,
    credits: Arc<Semaphore>,
    closed: AtomicBool,
    counters: Counters,
}

impl Shared {
    fn broken(&self, reason: &str, sent: bool) -> NetError {
        NetError::Disconnected { peer: self.name.clone(), reason: reason.into(), sent }
    }

    /// Fails everything under way.
    fn close(&self, reason: &str) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.credits.close();
        self.outbox.close();
        let calls: Vec<Waiting> = self.calls.lock().drain().collect();
        for call in calls {
            drop(call.answer.send(Err(self.broken(reason, true))));
        }
    }
}

/// A connection as its caller holds it.
pub(crate) struct TcpConnection {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        self.shared.close("given up by this process");
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Introduces itself, checks the server, starts the connection's tasks.
pub(crate) async fn shake_hands(
    mut stream: TcpStream,
    identity: &Identity,
    address: &str,
) -> Result<TcpConnection, NetError> {
    let refused = |status: Status| NetError::Refused {
        address: address.into(),
        status,
        reason: advice(status).to_owned(),
    };
    let broke =
        |error: std::io::Error| NetError::Connect { address: address.into(), reason: error.to_string() };
    let ours = Hello::new(identity, nonce());
    send(&mut stream, &ours).await.map_err(broke)?;
    let theirs: Hello = receive(&mut stream).await.map_err(broke)?;
    let status = match (theirs.judge(identity), Status::from_code(theirs.status.get())) {
        (Status::Ok, verdict) => verdict,
        (mine, _) => mine,
    };
    if status != Status::Ok {
        return Err(refused(status));
    }
    if !proves(&identity.token, b"server", &ours.nonce, &theirs.nonce, &theirs.proof) {
        return Err(refused(Status::BadToken));
    }
    let proof = Proof { proof: prove(&identity.token, b"client", &ours.nonce, &theirs.nonce) };
    send(&mut stream, &proof).await.map_err(broke)?;
    let verdict: Verdict = receive(&mut stream).await.map_err(broke)?;
    let status = Status::from_code(verdict.status.get());
    let (Status::Ok, Some(peer)) = (status, theirs.peer()) else { return Err(refused(status)) };

    let shared = Arc::new(Shared {
        peer,
        name: format!("{peer} at {address}"),
        outbox: Outbox::default(),
        calls: Mutex::new(Slab::new()),
        credits: Arc::new(Semaphore::new(theirs.credits.get().clamp(1, limits::CREDITS) as usize)),
        closed: AtomicBool::new(false),
        counters: Counters::new(),
    });
    let (read, write) = stream.into_split();
    let reader = tokio::spawn({
        let shared = shared.clone();
        async move {
            let ended = read_replies(&shared, Receiver::new(read)).await;
            shared.close(&ended.to_string());
        }
    });
    let writer = tokio::spawn({
        let shared = shared.clone();
        async move {
            if let Err(broken) = shared.outbox.drain(write).await {
                shared.close(&broken.to_string());
            }
        }
    });
    Ok(TcpConnection { shared, tasks: [reader.abort_handle(), writer.abort_handle()] })
}

async fn read_replies(shared: &Shared, mut receiver: Receiver) -> Broken {
    loop {
        if let Err(broken) = read_reply(shared, &mut receiver).await {
            return broken;
        }
    }
}

async fn read_reply(shared: &Shared, receiver: &mut Receiver) -> Result<(), Broken> {
    let header = receiver.header(REPLY).await?;
    let rest = receiver.rest(header.rest_len()).await?;
    let (table, body) = header.open(rest)?;
    let (key, serial) = (header.id.get() as u32 as usize, (header.id.get() >> 32) as u32);
    let call = {
        let mut calls = shared.calls.lock();
        match calls.get(key) {
            Some(call) if call.serial == serial => Some(calls.remove(key)),
            _ => None,
        }
    };
    let Some(mut call) = call else { return Err(Garbled("a reply to no request").into()) };
    if table.len() > call.into.len()
        || (table.iter().zip(&call.into).zip(&call.align))
            .any(|((entry, buf), align)| entry.len.get() as usize + usize::from(*align) > buf.len())
    {
        return Err(Garbled("more bulk data than there is room for").into());
    }
    let lengths = table.iter().map(|entry| entry.len.get() as usize).chain(std::iter::repeat(0));
    let mut into: Vec<_> = (call.into.iter_mut().zip(&call.align).zip(lengths.clone()))
        .map(|((buf, align), len)| (buf, usize::from(*align), len))
        .collect();
    receiver.bulk(&mut into).await?;
    for ((buf, align), len) in call.into.iter_mut().zip(&call.align).zip(lengths) {
        buf.set_len(usize::from(*align) + len);
    }
    // A caller that has gone does not want it.
    drop(call.answer.send(Ok(Reply { status: Status::from_code(header.code.get()), body, data: call.into })));
    Ok(())
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

impl Connection for TcpConnection {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Reply, NetError>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            call.check()?;
            let align: Vec<u16> = (0..call.into.len()).map(|at| call.align(at) as u16).collect();
            let deadline = Instant::now() + call.deadline;
            let timed_out = |sent| NetError::TimedOut { peer: shared.name.clone(), sent };
            let credit = match shared.credits.clone().try_acquire_owned() {
                Ok(credit) => credit,
                Err(_) => match timeout_at(deadline, shared.credits.clone().acquire_owned()).await {
                    Ok(Ok(credit)) => credit,
                    Ok(Err(_)) => return Err(shared.broken("it was closed", false)),
                    Err(_) => return Err(timed_out(false)),
                },
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let (answer, answered) = oneshot::channel();
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed) as u32;
            let room: Vec<u32> = call
                .into
                .iter()
                .zip(&align)
                .map(|(buf, align)| buf.len() as u32 - u32::from(*align))
                .collect();
            let key = shared.calls.lock().insert(Waiting {
                into: call.into,
                align,
                answer,
                serial,
                _credit: credit,
            });
            let id = u64::from(serial) << 32 | key as u64;
            let mut head = BytesMut::with_capacity(
                frame::HEADER + (call.data.len() + room.len()) * frame::ENTRY + call.body.len(),
            );
            let segments = call.data.iter().map(|segment| (segment.data.len() as u32, segment.align));
            let millis = left.as_millis().clamp(1, u128::from(u32::MAX)) as u32;
            frame::put(&mut head, REQUEST, id, call.method, millis, segments, room.into_iter(), &call.body);
            let bulk: Vec<_> = call.data.into_iter().map(|segment| segment.data).collect();
            let (begun, sent) =
                (Instant::now(), call.body.len() + bulk.iter().map(|buf| buf.len()).sum::<usize>());
            shared.counters.begun(call.method);
            if !shared.outbox.push(OutFrame { head: head.freeze(), bulk }) {
                shared.calls.lock().try_remove(key);
                shared.counters.ended(call.method, false, 0, 0, begun.elapsed());
                return Err(shared.broken("it was closed", false));
            }
            if shared.closed.load(Ordering::Acquire) {
                // Closed between the two: nobody will look at the call again.
                let mut calls = shared.calls.lock();
                if calls.get(key).is_some_and(|call| call.serial == serial) {
                    calls.remove(key);
                }
            }
            let result = match timeout_at(deadline, answered).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(shared.broken("it was closed", true)),
                Err(_) => Err(timed_out(true)),
            };
            let received = result
                .as_ref()
                .map_or(0, |reply| reply.body.len() + reply.data.iter().map(|buf| buf.len()).sum::<usize>());
            let ok = result.as_ref().is_ok_and(|reply| reply.status == Status::Ok);
            shared.counters.ended(call.method, ok, sent, received, begun.elapsed());
            result
        })
    }

    fn peer(&self) -> PeerId {
        self.shared.peer
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    fn stats(&self) -> ConnectionStats {
        self.shared.counters.snapshot()
    }
}
