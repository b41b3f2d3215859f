//! Which meta service gets a call, and what happens when it does not answer.
//!
//! All meta services are equal, so a client stays with one until that one fails and then moves to the next. A call is repeated by its
//! status's retry class until its deadline; the request id inside stays the same, so it does not matter which service carried it out.
//!
//! *Silence.* A service that stands still (a stopped process, a machine that hangs) keeps its connections open and answers nothing, so
//! only time tells. A service that works answers in milliseconds, and [`Options::attempt`] (3 s) is beyond what a store's failover makes
//! it wait; a call that needs longer by its nature is found out by its next attempt, which may take twice as long. A silent service
//! then rests for [`SILENT_REST`], longer than mgmtd needs to take it out of the routing information.
//!
//! *Late requests.* What was sent to a service that stood still may be carried out when it goes on, be it minutes later. The service
//! finds the outcome recorded, but records are not kept for ever. So a mutation says in which period of records it was first sent, and
//! is refused once a record of that period may have been forgotten. And an attempt after one that went unanswered says so, upon which
//! the service records even a refusal: the first attempt must not succeed after the application was told that the call failed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_mgmtd_client::RoutingWatch;
use catena_proto::ids::RoutingVersion;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::pb;
use catena_proto::routing::{NodeKind, NodeState, RoutingInfo};
use catena_proto::rpc::Failure;
use catena_proto::status::{RetryClass, Status};
use catena_rt::time::{Instant, sleep, timeout, timeout_at};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One meta service.
#[async_trait]
pub trait Endpoint: Send + Sync + 'static {
    /// Carries out one request within `deadline`.
    async fn call(&self, request: Request, deadline: Duration) -> Result<Reply, Failure>;
}

/// Makes endpoints: gRPC in production, the simulator's network in tests.
pub trait Connector: Send + Sync + 'static {
    /// An endpoint for `address`. Connecting itself may wait for the first call.
    fn connect(&self, address: &str) -> Result<Arc<dyn Endpoint>, Failure>;
}

/// Where meta services are.
#[derive(Clone)]
pub enum Servers {
    /// These, `host:port` each.
    Fixed(Vec<String>),
    /// Those that routing information names, as it changes.
    Routing(RoutingWatch),
}

use crate::choice::Choice;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call may take in all, retries included. Default 30 s; the service remembers outcomes for minutes.
    pub deadline: Duration,
    /// How long the first attempt may take before another service is tried; each further one may take twice as long as the last.
    /// Default 3 s.
    pub attempt: Duration,
    /// Connections to each service. Default 4.
    pub channels: usize,
    /// Seeds request ids and the choice of service; none takes it from the operating system.
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: Duration::from_secs(30),
            attempt: Duration::from_secs(3),
            channels: 4,
            seed: None,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long a service that did not answer is not asked first. Asking it again costs a call a whole attempt.
const SILENT_REST: Duration = Duration::from_secs(30);
/// How long one that broke the connection or stops is not asked first. Asking it again costs next to nothing.
const LOST_REST: Duration = Duration::from_secs(2);

/// The known services and the one in use.
pub(crate) struct Failover {
    servers: Servers,
    connector: Arc<dyn Connector>,
    options: Options,
    state: Mutex<State>,
    /// The period of records, as a service told it, and until when it may be used.
    period: tokio::sync::Mutex<Option<(u32, Instant)>>,
}

struct State {
    seen: Option<RoutingVersion>,
    choice: Choice,
    /// The one in use, once connected.
    endpoint: Option<Arc<dyn Endpoint>>,
    /// Counts departures, so that many calls that fail together leave only once.
    turn: u64,
    rng: StdRng,
}

/// Which period a mutation was sent in may be learned only before anybody can have carried it out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Never,
    Perhaps,
}

impl Failover {
    pub(crate) fn new(servers: Servers, connector: Arc<dyn Connector>, options: Options) -> Failover {
        let mut rng = match options.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        let addresses = match &servers {
            Servers::Fixed(addresses) => addresses.clone(),
            Servers::Routing(_) => Vec::new(),
        };
        let choice = Choice::new(addresses, rng.random_range(0..1 << 20));
        let state = Mutex::new(State { seen: None, choice, endpoint: None, turn: 0, rng });
        Failover { servers, connector, options, state, period: tokio::sync::Mutex::default() }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.options.deadline
    }

    /// Sixteen random bytes: a request id or a session id.
    pub(crate) fn random_id(&self) -> [u8; 16] {
        self.state.lock().rng.random()
    }

    /// Carries out a request on some service.
    pub(crate) async fn call(&self, mut request: Request, limit: Duration) -> Result<Reply, Failure> {
        let end = Instant::now() + limit;
        if !request.mutates() {
            return self.send(&request, end, &mut Sent::Never).await;
        }
        let mut sent = Sent::Never;
        let mut again = true;
        loop {
            let period = self.period(end).await?;
            if let Some(caller) = request.caller_mut() {
                caller.period = period;
            }
            match self.send(&request, end, &mut sent).await {
                Err(failure) if failure.status == Status::StaleSequence => {
                    // This process stood still since it learned the period. If nobody can have the request, a newer one does.
                    self.period.lock().await.take();
                    if sent == Sent::Perhaps || !std::mem::take(&mut again) {
                        return Err(Failure::new(Status::TimedOut, failure.message));
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// The period of records to send mutations in.
    async fn period(&self, end: Instant) -> Result<u32, Failure> {
        let late = || Failure::new(Status::TimedOut, "no meta service answered in time");
        let mut known = timeout_at(end, self.period.lock()).await.map_err(|_| late())?;
        let now = Instant::now();
        if let Some((period, until)) = *known
            && now < until
        {
            return Ok(period);
        }
        let ask = Request::Period(pb::PeriodRequest { caller: Some(pb::Caller::default()) });
        match self.send(&ask, end, &mut Sent::Never).await? {
            Reply::Period(reply) => {
                // Counted from before the question, so that it never counts too long.
                *known = Some((reply.period, now + Duration::from_millis(reply.fresh_ms)));
                Ok(reply.period)
            }
            _ => Err(Failure::new(Status::Malformed, "the meta service answered another call's reply")),
        }
    }

    /// Sends a request until it is answered. `sent` becomes [`Sent::Perhaps`] when an attempt went unanswered.
    async fn send(&self, request: &Request, end: Instant, sent: &mut Sent) -> Result<Reply, Failure> {
        let mut request = request.clone();
        let mut pause = FIRST_PAUSE;
        let mut patience = self.options.attempt;
        let mut last = None;
        loop {
            let attempt = end.saturating_duration_since(Instant::now()).min(patience);
            if attempt.is_zero() {
                // This process stood still: what nobody waits for must not be sent.
                let late = || Failure::new(Status::TimedOut, "no meta service answered in time");
                return Err(last.unwrap_or_else(late));
            }
            let failure = match self.endpoint() {
                Err(failure) => failure,
                Ok((endpoint, turn)) => {
                    let outcome = timeout(attempt, endpoint.call(request.clone(), attempt)).await;
                    let failure = match outcome {
                        Ok(Ok(reply)) => return Ok(reply),
                        Ok(Err(failure)) => failure,
                        Err(_) => Failure::new(
                            Status::TimedOut,
                            format!("the meta service did not answer within {attempt:?}"),
                        ),
                    };
                    match failure.status {
                        Status::TimedOut => {
                            // A caller in a hurry proves nothing.
                            self.leave(turn, if attempt < patience { LOST_REST } else { SILENT_REST });
                            patience *= 2;
                        }
                        Status::Disconnected | Status::ShuttingDown => self.leave(turn, LOST_REST),
                        status if matches!(status.class(), RetryClass::GiveUp | RetryClass::Done) => {
                            return Err(failure);
                        }
                        _ => {}
                    }
                    *sent = Sent::Perhaps;
                    if let Some(caller) = request.caller_mut() {
                        caller.again = true;
                    }
                    failure
                }
            };
            let remaining = end.saturating_duration_since(Instant::now());
            if remaining <= pause {
                return Err(failure);
            }
            tracing::debug!(call = request.name(), %failure, "retrying");
            let jitter = self.state.lock().rng.random_range(0.5..1.0);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            last = Some(failure);
        }
    }

    /// The address of the service in use.
    pub(crate) fn server(&self) -> Option<String> {
        self.state.lock().choice.used().map(str::to_owned)
    }

    /// The service in use, with the turn that [`Failover::leave`] takes.
    fn endpoint(&self) -> Result<(Arc<dyn Endpoint>, u64), Failure> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Servers::Routing(watch) = &self.servers {
            let routing = watch.current();
            if state.seen != Some(routing.version) {
                state.seen = Some(routing.version);
                let addresses = meta_addresses(&routing);
                // While mgmtd knows no service as up the old list is as good a guess as any.
                if !addresses.is_empty() && !state.choice.adopt(addresses) {
                    state.endpoint = None;
                }
            }
        }
        if let Some(endpoint) = &state.endpoint {
            return Ok((endpoint.clone(), state.turn));
        }
        let Some(address) = state.choice.pick(Instant::now()) else {
            let message = "no meta service is known: check that one is running (`catena admin nodes`)";
            return Err(Failure::new(Status::Disconnected, message));
        };
        let endpoint = self.connector.connect(address)?;
        state.endpoint = Some(endpoint.clone());
        Ok((endpoint, state.turn))
    }

    /// Moves on from a service that failed, once for all the calls that it failed.
    fn leave(&self, turn: u64, rest: Duration) {
        let mut state = self.state.lock();
        if state.turn == turn {
            state.turn += 1;
            state.choice.leave(Instant::now() + rest);
            state.endpoint = None;
        }
    }
}

/// Addresses of the meta services that are up, in order of their ids.
fn meta_addresses(routing: &RoutingInfo) -> Vec<String> {
    let meta = routing.nodes.values().filter(|node| node.kind() == NodeKind::Meta);
    meta.filter(|node| node.state() == NodeState::Up && !node.control_address.is_empty())
        .map(|node| node.control_address.clone())
        .collect()
}
