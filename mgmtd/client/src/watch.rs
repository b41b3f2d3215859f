//! The newest routing information, kept by one long poll per process; readers pay one atomic load.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use catena_proto::ids::RoutingVersion;
use catena_proto::routing::{NodeKind, NodeState, RoutingInfo};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::AbortHandle;
use catena_rt::time::{Instant, sleep, timeout_at};
use tokio::sync::{Mutex, watch};
use tracing::{debug, info, warn};

use crate::calls::MgmtdClient;

/// How the long poll behaves.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// How long one poll may wait for news.
    pub wait: Duration,
    /// Longest pause between failed polls.
    pub max_pause: Duration,
    /// Spreads the polls of many clients after a failure; pass something that differs between processes.
    pub seed: u64,
}

impl Default for WatchOptions {
    fn default() -> WatchOptions {
        WatchOptions { wait: Duration::from_secs(30), max_pause: Duration::from_secs(1), seed: 0 }
    }
}

/// The newest routing information that this process has seen. Cheap to clone; versions never go back.
///
/// Starts as version 0 without any node until the first answer; wait for it with [`RoutingWatch::changed`]`(RoutingVersion(0))`.
#[derive(Clone)]
pub struct RoutingWatch {
    handle: Arc<Handle>,
}

/// Publishes into a [`RoutingWatch`] made by [`RoutingWatch::manual`].
#[derive(Clone)]
pub struct RoutingSetter {
    board: Arc<Board>,
}

struct Handle {
    board: Arc<Board>,
    poll: Option<AbortHandle>,
    /// Absent in a watch that is fed by hand.
    client: Option<MgmtdClient>,
    figures: Mutex<Option<(Instant, Arc<RoutingInfo>)>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(poll) = &self.poll {
            poll.abort();
        }
    }
}

struct Board {
    current: ArcSwap<RoutingInfo>,
    version: watch::Sender<RoutingVersion>,
}

impl Board {
    fn new(info: RoutingInfo) -> Arc<Board> {
        let version = watch::Sender::new(info.version);
        Arc::new(Board { current: ArcSwap::from_pointee(info), version })
    }

    /// Shows `info` unless something newer is there. The version wakes waiters only after the information can be loaded.
    fn show(&self, info: RoutingInfo) -> bool {
        let version = info.version;
        self.version.send_if_modified(|shown| {
            if version <= *shown {
                return false;
            }
            self.current.store(Arc::new(info));
            *shown = version;
            true
        })
    }
}

impl RoutingSetter {
    /// Shows `info` to all watchers; false if its version is not newer than what they have.
    pub fn set(&self, info: RoutingInfo) -> bool {
        self.board.show(info)
    }
}

impl RoutingWatch {
    /// Follows mgmtd by long poll in a task that ends with the last clone of the watch. Must be called inside a tokio runtime.
    pub fn spawn(client: MgmtdClient, options: WatchOptions) -> RoutingWatch {
        let board = Board::new(RoutingInfo { cluster: client.cluster(), ..Default::default() });
        let poll = catena_rt::spawn(follow(client.clone(), options, board.clone())).abort_handle();
        let (poll, client) = (Some(poll), Some(client));
        RoutingWatch { handle: Arc::new(Handle { board, poll, client, figures: Mutex::default() }) }
    }

    /// Fed by hand, for tests and tools.
    pub fn manual(info: RoutingInfo) -> (RoutingSetter, RoutingWatch) {
        let board = Board::new(info);
        let handle = Handle { board: board.clone(), poll: None, client: None, figures: Mutex::default() };
        (RoutingSetter { board }, RoutingWatch { handle: Arc::new(handle) })
    }

    /// The newest snapshot. For a short look on a hot path prefer [`RoutingWatch::load`].
    pub fn current(&self) -> Arc<RoutingInfo> {
        self.handle.board.current.load_full()
    }

    /// The newest snapshot without touching its reference count; do not keep it over an await.
    pub fn load(&self) -> arc_swap::Guard<Arc<RoutingInfo>> {
        self.handle.board.current.load()
    }

    /// A snapshot whose figures (use and capacity of disks, use of targets) are at most `max_age` old: `df` needs them, routing does not.
    /// Figures change without a new version, so the snapshots of [`RoutingWatch::current`] have them as of the last change only. Asks
    /// mgmtd if need be; if that fails, the newest snapshot has to do.
    pub async fn figures(&self, max_age: Duration) -> Arc<RoutingInfo> {
        let Some(client) = &self.handle.client else { return self.current() };
        let mut figures = self.handle.figures.lock().await;
        if let Some((_, info)) = figures.as_ref().filter(|(at, _)| at.elapsed() <= max_age) {
            return info.clone();
        }
        let asked = Instant::now();
        match poll(client, RoutingVersion(0), Duration::ZERO).await {
            Ok(Some(info)) => {
                let info = Arc::new(info);
                *figures = Some((asked, info.clone()));
                info
            }
            _ => self.current(),
        }
    }

    /// The version of the newest snapshot.
    pub fn version(&self) -> RoutingVersion {
        *self.handle.board.version.borrow()
    }

    /// Waits for a snapshot newer than `known`, without end.
    pub async fn changed(&self, known: RoutingVersion) -> Arc<RoutingInfo> {
        let mut version = self.handle.board.version.subscribe();
        // The sender lives in the board that this value holds, so that waiting cannot fail.
        let _ = version.wait_for(|&shown| shown > known).await;
        self.current()
    }

    /// As [`RoutingWatch::changed`], but gives up at `deadline`.
    pub async fn newer_than(&self, known: RoutingVersion, deadline: Instant) -> Option<Arc<RoutingInfo>> {
        timeout_at(deadline, self.changed(known)).await.ok()
    }

    /// Waits for a snapshot that is at least `version`, without end.
    pub async fn at_least(&self, version: RoutingVersion) -> Arc<RoutingInfo> {
        match version.0.checked_sub(1) {
            Some(before) => self.changed(RoutingVersion(before)).await,
            None => self.current(),
        }
    }
}

/// The long poll. Ends only by being aborted.
async fn follow(client: MgmtdClient, options: WatchOptions, board: Arc<Board>) {
    let mut jitter = Jitter(options.seed);
    let mut pause = Duration::ZERO;
    loop {
        let known = *board.version.borrow();
        match poll(&client, known, options.wait).await {
            Ok(Some(info)) => {
                debug!(
                    version = info.version.0,
                    nodes = info.nodes.len(),
                    chains = info.chains.len(),
                    "new routing information"
                );
                let mgmtd = info.nodes.values().filter(|node| {
                    node.kind() == NodeKind::Mgmtd
                        && node.state() == NodeState::Up
                        && !node.control_address.is_empty()
                });
                client.learn(mgmtd.map(|node| node.control_address.as_str()));
                board.show(info);
            }
            Ok(None) => {}
            Err(failure) => {
                if pause.is_zero() {
                    warn!(%failure, known = known.0, "routing information is not being refreshed; going on with what is known");
                }
                pause = (pause * 2).clamp(Duration::from_millis(20), options.max_pause);
                sleep(jitter.spread(pause)).await;
                continue;
            }
        }
        if !pause.is_zero() {
            info!(version = board.version.borrow().0, "mgmtd answers again");
            pause = Duration::ZERO;
        }
    }
}

async fn poll(
    client: &MgmtdClient,
    known: RoutingVersion,
    wait: Duration,
) -> Result<Option<RoutingInfo>, Failure> {
    let Some(routing) = client.get_routing(known.0, wait).await?.routing else { return Ok(None) };
    let info =
        RoutingInfo::try_from(routing).map_err(|error| Failure::new(Status::Malformed, error.to_string()))?;
    if info.cluster != client.cluster() {
        let message = format!(
            "mgmtd answers for cluster {}, this process belongs to {}",
            info.cluster,
            client.cluster()
        );
        return Err(Failure::new(Status::WrongCluster, message));
    }
    Ok(Some(info))
}

/// SplitMix64: enough to keep a thousand clients from polling in step.
pub(crate) struct Jitter(pub u64);

impl Jitter {
    /// Between half of `pause` and all of it.
    pub(crate) fn spread(&mut self, pause: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let fraction = (z ^ (z >> 31)) >> 48; // 16 bits
        pause / 2 + (pause / 2).mul_f64(fraction as f64 / 65536.0)
    }
}
