//! The client itself: what its operations share.

use std::sync::Arc;

use catena_buf::BufPool;
use catena_mgmtd_client::RoutingWatch;
use catena_net::{NetError, Transport};
use catena_proto::ids::ClientId;
use catena_rt::time::Instant;

use crate::channels::Channels;
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::nodes::Nodes;
use crate::options::Options;
use crate::pause::{Pauses, Random};

/// A client of the storage services. Cheap to clone; clones share connections, channels and counters.
///
/// At most one client with a given [`ClientId`] may exist at any time: the id is the first part of every write's tag.
#[derive(Clone)]
pub struct StorageClient {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub nodes: Nodes,
    pub routing: RoutingWatch,
    pub client: ClientId,
    pub options: Options,
    pub channels: Channels,
    pub random: Random,
    pub metrics: Metrics,
}

impl StorageClient {
    /// A client over `transport` that follows `routing`. Connects when first used.
    pub fn new(
        transport: Arc<dyn Transport>,
        routing: RoutingWatch,
        client: ClientId,
        options: Options,
    ) -> StorageClient {
        let shared = Shared {
            nodes: Nodes::new(transport, &options),
            routing,
            client,
            channels: Channels::new(options.channels),
            random: Random::new(options.seed),
            metrics: Metrics::default(),
            options,
        };
        StorageClient { shared: Arc::new(shared) }
    }

    /// The deadline of a call that starts now, as the options say.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.shared.options.deadline
    }

    /// Where chains, targets and nodes are.
    pub fn routing(&self) -> &RoutingWatch {
        &self.shared.routing
    }

    /// Makes buffers of another pool as good as those of [`StorageClient::pool`]. Blocks while memory is locked.
    pub fn register(&self, pool: &BufPool) -> Result<(), NetError> {
        self.shared.nodes.transport().register(pool)
    }

    /// The pool that data comes from and goes to.
    pub fn pool(&self) -> &BufPool {
        self.shared.nodes.transport().pool()
    }

    /// The client's identity.
    pub fn client(&self) -> ClientId {
        self.shared.client
    }

    /// What it has done so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.shared.metrics.snapshot()
    }
}

impl Shared {
    pub fn pauses(&self) -> Pauses<'_> {
        Pauses::new(&self.random, &self.options)
    }
}
