//! Running operations: transactions until one commits, and the memory of requests that makes retries safe.
//!
//! A mutation records its outcome under its request id in the transaction that makes the change. Whoever sends the request again, a
//! client whose connection broke or this loop after a commit whose outcome is not known, finds the record and gets the first answer.
//! Records live in *periods*: a counter in the store that every mutation reads and some service raises every few minutes. A record is
//! looked for in the current period and the one before; older ones are removed (`crate::collect`). No clocks are compared. A client
//! says in which period it first sent a request, so that one which arrives when its record may be gone is refused, not repeated.
//! A refusal is recorded only if an earlier attempt at the request went unanswered. That attempt may be carried out after the refusal
//! was told, when what forbade it is gone; the record keeps it from that. Otherwise a refusal changed nothing, and asking again is as
//! good as asking later.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_kv::{Database, Isolation, KvError, TxOptions};
use catena_proto::ids::RequestId;
use catena_proto::rpc::Failure;
use catena_proto::status::{RetryClass, Status};
use catena_rt::time::{Instant, sleep};
use prost::Message;
use tokio::sync::Notify;

use crate::access::Caller;
use crate::context::{Context, RESERVE, Range, first_number};
use crate::error::{OpError, refuse};
use crate::metrics::Metrics;
use crate::op::{Mutation, Query};
use crate::schema::codec::integer;
use crate::schema::key::SHARDS;
use crate::schema::{Outcome, decode, encode, key};
use crate::tx::{Purpose, Tx};

/// How long one call goes on trying; a client's deadline is usually what ends it.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What became of a mutation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied<R> {
    /// It is done and recorded.
    Done(R),
    /// Its first part is committed (or was before, `resumed`); the rest decides the outcome.
    Deferred {
        /// The answer as far as it is known.
        reply: R,
        /// The first part was there already.
        resumed: bool,
    },
}

impl<R> Applied<R> {
    /// The answer of a mutation that never defers.
    pub fn reply(self) -> R {
        match self {
            Applied::Done(reply) | Applied::Deferred { reply, .. } => reply,
        }
    }
}

/// Runs operations against one store.
pub struct Runner {
    /// The store.
    pub db: Arc<dyn Database>,
    /// What operations need besides.
    pub cx: Context,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Rung when something was put into a background queue.
    pub queued: Notify,
}

impl Runner {
    /// Answers a query.
    pub async fn query<Q: Query>(&self, query: &Q) -> Result<Q::Reply, Failure> {
        let caller = Caller::from_wire(query.caller())?;
        let mut retry = Retry::new();
        loop {
            match self.answer(query, &caller).await {
                Ok(reply) => return Ok(reply),
                Err(error) => retry.after(self, error).await.map_err(|error| failure(&error))?,
            }
        }
    }

    async fn answer<Q: Query>(&self, query: &Q, caller: &Caller) -> Result<Q::Reply, OpError> {
        let staleness = Q::AGE.staleness(self.cx.staleness);
        let mut tx = Tx::begin(&*self.db, &self.cx, Purpose::Query, staleness)?;
        query.answer(&mut tx, caller).await
    }

    /// Carries out a mutation, once. `Err(None)` asks for a new observation.
    pub async fn mutate<M: Mutation>(&self, mutation: &M) -> Result<Applied<M::Reply>, Option<Failure>> {
        let caller = Caller::from_wire(mutation.caller())?;
        let Some(request) = caller.request else {
            return Err(Some(Failure::new(Status::Invalid, "a mutation needs a request id of 16 bytes")));
        };
        let mut retry = Retry::new();
        loop {
            match self.apply(mutation, &caller, request).await {
                Ok(applied) => return Ok(applied),
                Err(OpError::Observe) => return Err(None),
                Err(OpError::Failed(refusal)) if caller.again && is_final(&refusal) => {
                    return self.record_refusal::<M>(&caller, request, refusal).await.map_err(Some);
                }
                Err(error) => retry.after(self, error).await.map_err(|error| failure(&error))?,
            }
        }
    }

    /// Makes a refusal the outcome of its request, unless an earlier attempt was carried out meanwhile.
    async fn record_refusal<M: Mutation>(
        &self,
        caller: &Caller,
        request: RequestId,
        refusal: Failure,
    ) -> Result<Applied<M::Reply>, Failure> {
        let done = transact!(*self, |tx| {
            match recall(tx, request, M::NAME, caller.period).await? {
                Memory::Done(reply) => Ok(Some(reply)),
                Memory::New(record) => {
                    let outcome = Outcome {
                        call: M::NAME.into(),
                        refused: refusal.status as u32,
                        message: refusal.message.clone(),
                        ..Default::default()
                    };
                    tx.set(record, encode(&outcome));
                    Ok(None)
                }
            }
        });
        match done.map_err(|error| failure(&error))? {
            None => Err(refusal),
            Some(reply) => M::Reply::decode(reply)
                .map(Applied::Done)
                .map_err(|error| Failure::new(Status::Internal, format!("a recorded outcome: {error}"))),
        }
    }

    async fn apply<M: Mutation>(
        &self,
        mutation: &M,
        caller: &Caller,
        request: RequestId,
    ) -> Result<Applied<M::Reply>, OpError> {
        let mut tx = Tx::begin(&*self.db, &self.cx, Purpose::Mutation, None)?;
        let record = match recall(&mut tx, request, M::NAME, caller.period).await? {
            Memory::Done(reply) => {
                self.metrics.replayed.inc();
                let reply = M::Reply::decode(reply)
                    .or_else(|error| refuse(Status::Internal, format!("a recorded outcome: {error}")))?;
                return Ok(Applied::Done(reply));
            }
            Memory::New(record) => record,
        };
        let reply = mutation.apply(&mut tx, caller).await?;
        let (wrote, deferred, queued) = (tx.wrote(), tx.outcome_deferred(), tx.queued());
        if wrote {
            if !deferred {
                remember(&mut tx, record, M::NAME, &reply);
            }
            tx.commit().await?;
        }
        if queued {
            self.queued.notify_one();
        }
        Ok(match deferred {
            true => Applied::Deferred { reply, resumed: !wrote },
            false => Applied::Done(reply),
        })
    }

    /// Reserves another range of inode ids.
    async fn refill(&self) -> Result<(), KvError> {
        let shard = self.cx.allocator_shard();
        let tx = self.db.begin(TxOptions::default())?;
        let key = key::allocator(shard);
        let stored = tx.get(&key, Isolation::Serializable).await?;
        let stored = integer("an inode allocator", stored.as_deref())
            .map_err(|error| KvError::Storage(error.to_string()))?;
        let next = (stored as u64).max(first_number());
        let end = next + RESERVE;
        tx.set(&key, &end.to_le_bytes())?;
        // If the outcome is not known the range is not used: ids are plenty.
        tx.commit().await?;
        self.cx.refill(Range { shard, next, end });
        Ok(())
    }
}

/// Runs a transaction of the service's own until it commits: `transact!(runner, |tx| { ... })`. The body finds its own traces: it may
/// run again after it was committed. A macro, because a function that takes an async closure cannot promise a `Send` future.
macro_rules! transact {
    ($runner:expr, |$tx:ident| $body:block) => {{
        let runner: &$crate::run::Runner = &$runner;
        let mut retry = $crate::run::Retry::new();
        loop {
            let attempt = async {
                let mut tx =
                    $crate::tx::Tx::begin(&*runner.db, &runner.cx, $crate::tx::Purpose::Mutation, None)?;
                let done = {
                    let $tx = &mut tx;
                    $crate::run::typed(async { $body }).await?
                };
                if tx.wrote() {
                    tx.commit().await?;
                }
                Ok::<_, $crate::error::OpError>(done)
            };
            let error = match attempt.await {
                Ok(done) => break Ok(done),
                Err(error) => error,
            };
            if let Err(error) = retry.after(runner, error).await {
                break Err(error);
            }
        }
    }};
}
pub(crate) use transact;

/// Says what a transaction's body fails with.
pub(crate) fn typed<T, F: Future<Output = Result<T, OpError>>>(body: F) -> F {
    body
}

/// Whether the caller gives up on this answer.
fn is_final(refusal: &Failure) -> bool {
    refusal.status.class() == RetryClass::GiveUp && refusal.status != Status::StaleSequence
}

/// What is known of a request.
pub(crate) enum Memory {
    /// It was carried out: the encoded reply.
    Done(Bytes),
    /// Nothing; where its outcome is to be recorded.
    New(Bytes),
}

/// Looks for a request's outcome. `sent` is the period in which it was sent first: whoever carried it out recorded it then or later.
pub(crate) async fn recall(
    tx: &mut Tx<'_>,
    request: RequestId,
    call: &str,
    sent: Option<u32>,
) -> Result<Memory, OpError> {
    // The period rarely changes: the records are read with it, where they were last.
    let guess = tx.cx.period();
    let places = |period: u32| [period, period.wrapping_sub(1)].map(|period| key::outcome(period, request));
    let [now, before] = places(guess);
    let [copy, mut now, mut before] = tx.get_all([period_copy(request.0), now, before]).await?;
    let period = decode_period(tx, copy).await?;
    if period != guess {
        tx.cx.learn_period(period);
        [now, before] = tx.get_all(places(period)).await?;
    }
    if sent.is_some_and(|sent| period.wrapping_sub(sent) > 1) {
        // Held up on its way, in a service or client that stood still. It may have been carried out and forgotten.
        return refuse(
            Status::StaleSequence,
            "the request is older than the memory of requests; its outcome is not known",
        );
    }
    let record = key::outcome(period, request);
    if catena_rt::broken("meta: outcomes are not remembered") {
        return Ok(Memory::New(record));
    }
    let Some(value) = now.or(before) else { return Ok(Memory::New(record)) };
    let outcome: Outcome = decode("the outcome of a request", &value)?;
    if outcome.call != call {
        return refuse(
            Status::Invalid,
            format!("request {request} was a {} before, now it is a {call}", outcome.call),
        );
    }
    if outcome.refused != 0 {
        let status = Status::from_code(u16::try_from(outcome.refused).unwrap_or(u16::MAX));
        return refuse(status, outcome.message);
    }
    Ok(Memory::Done(outcome.reply))
}

/// Records a request's outcome.
pub(crate) fn remember(tx: &mut Tx<'_>, record: Bytes, call: &str, reply: &impl Message) {
    let outcome = Outcome { call: call.into(), reply: reply.encode_to_vec().into(), ..Default::default() };
    tx.set(record, encode(&outcome));
}

/// The current period of outcomes, from the copy that `reader` picks.
pub(crate) async fn current_period(tx: &mut Tx<'_>, reader: u128) -> Result<u32, OpError> {
    let copy = tx.get(period_copy(reader)).await?;
    decode_period(tx, copy).await
}

/// The copy of the period that `reader` reads.
fn period_copy(reader: u128) -> Bytes {
    key::period_copy((reader % u128::from(SHARDS)) as u8)
}

/// The period in a copy.
async fn decode_period(tx: &mut Tx<'_>, copy: Option<Bytes>) -> Result<u32, OpError> {
    let value = match copy {
        Some(value) => Some(value),
        // A store from before there were copies; the next change of the period makes them.
        None => tx.get(key::period()).await?,
    };
    Ok(integer("the period of outcomes", value.as_deref())? as u32)
}

/// Changes the period of outcomes, everywhere at once: whoever has read any copy is in conflict.
pub(crate) fn put_period(tx: &mut Tx<'_>, period: u32) {
    let value = Bytes::copy_from_slice(&i64::from(period).to_le_bytes());
    tx.set(key::period(), value.clone());
    for copy in 0..SHARDS {
        tx.set(key::period_copy(copy), value.clone());
    }
}

/// One call's patience.
pub(crate) struct Retry {
    until: Instant,
    pause: Duration,
    first: bool,
}

impl Retry {
    pub(crate) fn new() -> Retry {
        Retry { until: Instant::now() + PATIENCE, pause: FIRST_PAUSE, first: true }
    }

    /// Prepares the next attempt, or says that there is none.
    pub(crate) async fn after(&mut self, runner: &Runner, error: OpError) -> Result<(), OpError> {
        match &error {
            OpError::NeedIds => match runner.refill().await {
                Ok(()) => return Ok(()),
                Err(error) if error.retryable() => {}
                Err(error) => return Err(error.into()),
            },
            OpError::Store(kv) if kv.retryable() => {
                runner.metrics.conflicts.inc();
                // The first conflict is usually chance.
                if std::mem::take(&mut self.first) && *kv == KvError::Conflict {
                    return Ok(());
                }
            }
            _ => return Err(error),
        }
        if Instant::now() + self.pause >= self.until {
            return Err(error);
        }
        let share = 0.5 + (runner.cx.random() >> 11) as f64 / (1_u64 << 54) as f64;
        sleep(self.pause.mul_f64(share)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// What the caller is told.
pub(crate) fn failure(error: &OpError) -> Failure {
    let status = match error {
        OpError::Failed(failure) => return failure.clone(),
        OpError::Store(KvError::Conflict | KvError::TooOld | KvError::CommitUnknown) => Status::Conflict,
        OpError::Store(KvError::Unavailable(_) | KvError::TimedOut | KvError::Cancelled) => Status::Busy,
        // This service's store is gone; another service may have one.
        OpError::Store(KvError::Storage(_)) => Status::ShuttingDown,
        OpError::Store(_) | OpError::Corrupt(_) => Status::Internal,
        OpError::NeedIds | OpError::Observe => Status::Conflict,
    };
    if status == Status::Internal {
        tracing::error!(%error, "operation failed");
    }
    Failure::new(status, error.to_string())
}
