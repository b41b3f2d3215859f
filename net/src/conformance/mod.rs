//! What every backend must show, as functions that a backend's tests run: [`conformance!`](crate::conformance!) makes a test of each.
//!
//! A backend says how to make transports ([`Backend`]); everything else goes through the traits. No test knows time other than through
//! deadlines, so that they hold on any machine and under a paused clock.

mod bulk;
mod calls;
mod failure;
mod flow;

pub use bulk::*;
pub use calls::*;
pub use failure::*;
pub use flow::*;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, BufPool, IoBuf, MAX_BUF, PoolClass, PoolConfig};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use crate::{
    Call, Connection, Identity, Incoming, Listener, NetError, PeerId, Reply, Responder, Segment, Service,
    Transport,
};

/// Makes transports that reach each other.
pub trait Backend: Send + Sync {
    /// A transport whose servers grant so many credits to each connection.
    fn transport(&self, identity: Identity, pool: BufPool, credits: u32) -> Arc<dyn Transport>;
    /// An address that nobody listens on yet.
    fn address(&self) -> String;
}

/// Makes a `#[tokio::test]` of every function of the suite: `conformance!(backend)`, or with the arguments of `tokio::test` behind.
#[macro_export]
macro_rules! conformance {
    ($backend:expr $(, $($args:tt)*)?) => {
        $crate::conformance!(@tests $backend, ($($($args)*)?),
            a_call_is_answered
            many_calls_run_side_by_side
            a_call_beyond_the_limits_is_not_sent
            a_handler_that_panics_or_forgets_is_answered_for
            an_answer_that_does_not_fit_is_an_error_of_the_server
            requests_begin_in_the_order_sent
            both_ends_count_the_same
            a_batch_carries_data_both_ways_at_any_alignment
            registered_memory_is_used_in_place
            the_largest_message_goes_through
            what_surrounds_data_in_its_pages_is_zero
            a_deadline_ends_a_call_and_nothing_else
            a_call_that_is_given_up_leaves_no_trace
            a_late_reply_never_lands_in_a_buffer_with_a_new_owner
            a_server_that_goes_fails_its_calls
            a_client_that_goes_does_not_stop_its_requests
            a_connection_lives_as_long_as_its_calls
            strangers_are_refused_by_name
            a_shutdown_lets_requests_finish
            nobody_listens_nobody_answers
            credits_bound_what_a_server_holds
            who_finds_no_credit_in_time_has_sent_nothing
            a_full_pool_holds_up_only_those_who_need_it
            who_leaves_the_line_for_buffers_leaves_nothing_behind
            batches_that_each_need_the_whole_pool_take_turns
            more_than_the_server_can_hold_is_refused
            small_calls_pass_between_large_ones
        );
    };
    (@tests $backend:expr, $args:tt, $($name:ident)*) => {
        $($crate::conformance!(@test $backend, $args, $name);)*
    };
    (@test $backend:expr, (), $name:ident) => {
        #[tokio::test]
        async fn $name() {
            $crate::conformance::$name(&$backend).await
        }
    };
    (@test $backend:expr, ($($args:tt)*), $name:ident) => {
        #[tokio::test($($args)*)]
        async fn $name() {
            $crate::conformance::$name(&$backend).await
        }
    };
}

/// Answers with the request's body and data.
const ECHO: u16 = 1;
/// As [`ECHO`], once a permit is given.
const HOLD: u16 = 2;
/// Fills all room with the body's first byte, once a permit is given.
const FILL: u16 = 3;
/// Panics before its first wait, and behind it.
const PANIC: u16 = 4;
const PANIC_LATER: u16 = 5;
/// Drops its request.
const FORGET: u16 = 6;
/// Answers with more than there is room for.
const BOAST: u16 = 7;
/// As [`ECHO`], its data in [`PoolClass::Hop1`].
const HOP: u16 = 8;

/// Long enough for anything on any machine.
const LONG: Duration = Duration::from_secs(60);

struct Actor {
    gate: Semaphore,
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// Requests inside, at most.
    peak: AtomicUsize,
    /// First byte of every body, in the order in which requests began.
    order: Mutex<Vec<u8>>,
    /// A request has begun.
    news: mpsc::UnboundedSender<u16>,
}

impl Service for Actor {
    fn class(&self, method: u16, _: &[u8]) -> PoolClass {
        if method == HOP { PoolClass::Hop1 } else { PoolClass::Client }
    }

    fn call(self: Arc<Self>, request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let begun = self.begun.fetch_add(1, SeqCst) + 1;
            self.peak.fetch_max(begun - self.ended.load(SeqCst), SeqCst);
            self.order.lock().extend(request.body.first());
            let _ = self.news.send(request.method);
            let (request, responder) = request.split();
            self.act(request, responder).await;
        })
    }
}

impl Actor {
    async fn act(&self, mut request: Incoming, responder: Responder) {
        let data = request.take_data();
        let body = request.body.clone();
        if matches!(request.method, HOLD | FILL) {
            self.gate.acquire().await.expect("the gate stays").forget();
        }
        // Counted before the answer: who has the answer may rely on it.
        self.ended.fetch_add(1, SeqCst);
        let echo = |data: Vec<IoBuf>| data.into_iter().map(IoBuf::freeze).collect::<Vec<Buf>>();
        match request.method {
            ECHO | HOLD | HOP => responder.send(Status::Ok, body, echo(data)),
            FILL => {
                let fill = |&room: &u32| Buf::from_vec(vec![body[0]; room as usize]);
                let data = responder.room().iter().map(fill).collect();
                responder.send(Status::Ok, body, data);
            }
            PANIC => panic!("as asked"),
            PANIC_LATER => {
                tokio::task::yield_now().await;
                panic!("as asked");
            }
            FORGET => drop(responder),
            BOAST => responder.send(Status::Ok, body, vec![Buf::from_vec(vec![0; 100])]),
            _ => responder.refuse(Status::UnknownMethod, "what?"),
        }
    }
}

/// A server and a client connected to it.
struct Pair {
    actor: Arc<Actor>,
    news: mpsc::UnboundedReceiver<u16>,
    server: Arc<dyn Transport>,
    listener: Box<dyn Listener>,
    client: Arc<dyn Transport>,
    connection: Arc<dyn Connection>,
}

fn identity(peer: PeerId) -> Identity {
    Identity { cluster: ClusterId(7), token: Token([7; 32]), peer, incarnation: Incarnation(1) }
}

const SERVER: PeerId = PeerId::Node(NodeId(1));
const CLIENT: PeerId = PeerId::Client(ClientId(2));

fn pool(bytes: usize) -> BufPool {
    BufPool::new(PoolConfig { bytes: [bytes; 5] }).expect("memory for a test")
}

async fn pair(backend: &dyn Backend, credits: u32, server_pool: usize) -> Pair {
    let server = backend.transport(identity(SERVER), pool(server_pool), credits);
    let client = backend.transport(identity(CLIENT), pool(16 * MAX_BUF), credits);
    let (actor, news) = actor();
    let listener = server.listen(&backend.address(), actor.clone()).await.expect("a free address");
    let connection = client.connect(&listener.address(), LONG).await.expect("a connection");
    Pair { actor, news, server, listener, client, connection }
}

fn actor() -> (Arc<Actor>, mpsc::UnboundedReceiver<u16>) {
    let (news, told) = mpsc::unbounded_channel();
    let (begun, ended, peak) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let actor = Actor { gate: Semaphore::new(0), begun, ended, peak, order: Mutex::default(), news };
    (Arc::new(actor), told)
}

impl Pair {
    async fn of(backend: &dyn Backend) -> Pair {
        pair(backend, 64, 16 * MAX_BUF).await
    }

    /// Waits until a request has begun.
    async fn begun(&mut self) -> u16 {
        self.news.recv().await.expect("the actor lives")
    }

    async fn call(&self, call: Call) -> Result<Reply, NetError> {
        self.connection.call(call).await
    }

    /// The connection works.
    async fn works(&self) {
        let reply =
            self.call(Call::new(ECHO, &b"still there?"[..], LONG)).await.expect("the connection works");
        assert_eq!((reply.status, &reply.body[..]), (Status::Ok, &b"still there?"[..]));
    }

    fn buf(&self, len: usize) -> IoBuf {
        self.client.pool().try_alloc(len, PoolClass::Client).expect("the client's pool is large enough")
    }

    fn filled(&self, len: usize, seed: u64) -> Buf {
        let mut buf = self.buf(len);
        pattern(seed, &mut buf);
        buf.freeze()
    }

    /// Requests that wait for buffers at the server.
    fn parked(&self) -> u64 {
        self.listener.stats().open.iter().map(|peer| peer.parked).sum()
    }

    /// Nobody holds a buffer of either pool any more.
    async fn nothing_is_held(&self) {
        for pool in [self.server.pool(), self.client.pool()] {
            eventually(|| pool.stats().classes.iter().all(|class| class.used + class.waiting == 0)).await;
        }
    }
}

/// Bytes that tell places and seeds apart.
fn pattern(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) as usize
}

/// Waits for something that needs no more than the other tasks' going on.
async fn eventually(condition: impl Fn() -> bool) {
    let mut turns = 0_u64;
    while !condition() {
        turns += 1;
        assert!(turns < 50_000_000, "it never came true");
        tokio::task::yield_now().await;
    }
}

/// Polls a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut future = std::pin::Pin::new(future);
    std::future::poll_fn(move |context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

fn segments(bufs: impl IntoIterator<Item = (Buf, u16)>) -> Vec<Segment> {
    bufs.into_iter().map(|(data, align)| Segment { data, align }).collect()
}

fn body(byte: u8) -> Bytes {
    Bytes::copy_from_slice(&[byte])
}
