//! Which meta service gets a call, and what happens when it does not answer.
//!
//! All meta services are equal, so a client stays with one until that one fails and then moves to the next. A call is repeated by its
//! status's retry class until its deadline; the request id inside stays the same, so it does not matter which service carried it out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_mgmtd_client::RoutingWatch;
use catena_proto::ids::RoutingVersion;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::routing::{NodeKind, NodeState, RoutingInfo};
use catena_proto::rpc::Failure;
use catena_proto::status::{RetryClass, Status};
use catena_rt::time::{Instant, sleep, timeout};
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

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call may take in all, retries included. Default 30 s; the service remembers outcomes for minutes.
    pub deadline: Duration,
    /// How long one attempt may take before another service is tried. Default 10 s.
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
            attempt: Duration::from_secs(10),
            channels: 4,
            seed: None,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The known services and the one in use.
pub(crate) struct Failover {
    servers: Servers,
    connector: Arc<dyn Connector>,
    options: Options,
    state: Mutex<State>,
}

struct State {
    seen: Option<RoutingVersion>,
    addresses: Vec<String>,
    /// Index of the service in use; its endpoint, once made.
    current: usize,
    endpoint: Option<Arc<dyn Endpoint>>,
    rng: StdRng,
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
        // Clients start at different services, which spreads them.
        let current = rng.random_range(0..1 << 20);
        let state = Mutex::new(State { seen: None, addresses, current, endpoint: None, rng });
        Failover { servers, connector, options, state }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.options.deadline
    }

    /// Sixteen random bytes: a request id or a session id.
    pub(crate) fn random_id(&self) -> [u8; 16] {
        self.state.lock().rng.random()
    }

    /// Carries out a request on some service.
    pub(crate) async fn call(&self, request: Request, limit: Duration) -> Result<Reply, Failure> {
        let end = Instant::now() + limit;
        let mut pause = FIRST_PAUSE;
        loop {
            let remaining = end.saturating_duration_since(Instant::now());
            let attempt = remaining.min(self.options.attempt);
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
                        Status::Disconnected | Status::ShuttingDown | Status::TimedOut => self.leave(turn),
                        status if matches!(status.class(), RetryClass::GiveUp | RetryClass::Done) => {
                            return Err(failure);
                        }
                        _ => {}
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
        }
    }

    /// The service in use, with the turn that [`Failover::leave`] takes.
    fn endpoint(&self) -> Result<(Arc<dyn Endpoint>, usize), Failure> {
        let mut state = self.state.lock();
        if let Servers::Routing(watch) = &self.servers {
            let routing = watch.current();
            if state.seen != Some(routing.version) {
                state.seen = Some(routing.version);
                let addresses = meta_addresses(&routing);
                // While mgmtd knows no service as up the old list is as good a guess as any.
                if addresses != state.addresses && !addresses.is_empty() {
                    let used = state.current.checked_rem(state.addresses.len()).unwrap_or(0);
                    let kept = state.addresses.get(used).cloned();
                    let position =
                        kept.and_then(|kept| addresses.iter().position(|address| *address == kept));
                    match position {
                        Some(position) => state.current = position,
                        None => state.endpoint = None,
                    }
                    state.addresses = addresses;
                }
            }
        }
        if state.addresses.is_empty() {
            let message = "no meta service is known: check that one is running (`catena admin nodes`)";
            return Err(Failure::new(Status::Disconnected, message));
        }
        let turn = state.current;
        if let Some(endpoint) = &state.endpoint {
            return Ok((endpoint.clone(), turn));
        }
        let endpoint = self.connector.connect(&state.addresses[turn % state.addresses.len()])?;
        state.endpoint = Some(endpoint.clone());
        Ok((endpoint, turn))
    }

    /// Moves on from a service that failed, once for all the calls that it failed.
    fn leave(&self, turn: usize) {
        let mut state = self.state.lock();
        if state.current == turn {
            state.current = turn.wrapping_add(1);
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
