//! What the tests build a mgmtd from.

use std::sync::Arc;
use std::time::Duration;

use catena_kv::{Database, Isolation};
use catena_mgmtd::{Parts, Service};
use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_proto::ids::{ClusterId, Incarnation, NodeId};
use catena_proto::pb::*;
use catena_proto::routing::wide_bytes;
use catena_proto::rpc::Failure;
use catena_rt::time::Instant;

pub const CLUSTER: ClusterId = ClusterId(7);
pub const LEASE: Duration = Duration::from_secs(8);

/// Tokio's clock, so that paused time drives everything.
pub struct TokioClock(Instant);

impl TokioClock {
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(TokioClock(Instant::now()))
    }
}

impl Clock for TokioClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.0.elapsed())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
}

/// A mgmtd that has the store to itself.
pub fn parts(db: Arc<dyn Database>, incarnation: u64) -> Parts {
    Parts { exclusive: true, ..several(db, 100, incarnation) }
}

/// One of several mgmtd on a store.
pub fn several(db: Arc<dyn Database>, node: u32, incarnation: u64) -> Parts {
    Parts {
        cluster: CLUSTER,
        node: NodeId(node),
        incarnation: Incarnation(incarnation),
        address: format!("10.0.0.{node}:7400"),
        metrics: String::new(),
        pid: 1,
        exclusive: false,
        lease: LEASE,
        client_lease: LEASE * 4,
        clock: TokioClock::shared(),
        seed: incarnation,
        db,
    }
}

pub async fn open(db: &Arc<dyn Database>, incarnation: u64) -> Arc<Service> {
    Service::open(parts(db.clone(), incarnation)).await.unwrap()
}

/// A storage service with one disk, which it formatted in its tenth start.
pub fn storage(node: u32, incarnation: u64) -> Node {
    let fresh = incarnation == 10;
    let disk = Disk { id: wide_bytes(node.into()), path: "/disk".into(), fresh, ..Default::default() };
    Node {
        id: node,
        kind: NodeKind::Storage.into(),
        data_address: format!("tcp://10.0.0.{node}:7500"),
        incarnation,
        disks: vec![disk],
        ..Default::default()
    }
}

pub async fn register(service: &Arc<Service>, node: Node) -> RegisterReply {
    let request = RegisterRequest { cluster: wide_bytes(CLUSTER.0), node: Some(node) };
    service.register(request).await.unwrap()
}

pub async fn list(service: &Service) -> Result<ListClientsReply, Failure> {
    service.list_clients(ListClientsRequest { cluster: wide_bytes(CLUSTER.0) }).await
}

pub async fn beat(
    service: &Arc<Service>,
    node: u32,
    incarnation: u64,
    targets: Vec<TargetReport>,
) -> HeartbeatReply {
    let cluster = wide_bytes(CLUSTER.0);
    service
        .heartbeat(HeartbeatRequest { cluster, node, incarnation, targets, ..Default::default() })
        .await
        .unwrap()
}

pub async fn routing(service: &Arc<Service>) -> RoutingInfo {
    let request = GetRoutingRequest { cluster: wide_bytes(CLUSTER.0), ..Default::default() };
    service.get_routing(request).await.unwrap().routing.expect("there is routing information")
}

pub async fn create_table(service: &Arc<Service>, replicas: u32) -> CreateTableReply {
    let cluster = wide_bytes(CLUSTER.0);
    service.create_table(CreateTableRequest { cluster, replicas, ..Default::default() }).await.unwrap()
}

/// Everything in the store.
pub async fn contents(db: &Arc<dyn Database>) -> Vec<catena_kv::KeyValue> {
    let tx = db.begin(Default::default()).unwrap();
    let query =
        catena_kv::RangeQuery { isolation: Isolation::Snapshot, ..catena_kv::RangeQuery::prefix(b"MGMT") };
    tx.get_range(query).await.unwrap().items
}
