//! What the store keeps, who may write it, and what happens when it fails.

use std::collections::VecDeque;
use std::sync::Arc;

use catena_kv::fault::{Fault, Faulty, Point};
use catena_kv::{Database, KvError, TxOptions};
use catena_kv_testing::{database, is_foundationdb};
use catena_mgmtd::Service;
use catena_mgmtd::store::StoreError;
use catena_proto::ids::ClusterId;
use catena_proto::pb::*;
use catena_proto::routing::wide_bytes;
use catena_proto::status::Status;
use parking_lot::Mutex;

use crate::parts::*;

fn mem() -> Arc<dyn Database> {
    database()
}

#[tokio::test(start_paused = true)]
async fn a_new_start_finds_everything_as_it_was() {
    let db = mem();
    let first = open(&db, 1).await;
    for node in 1..=3 {
        register(&first, storage(node, 10 + u64::from(node))).await;
    }
    let made = create_table(&first, 3).await;
    let session = ClientSessionRequest { cluster: wide_bytes(CLUSTER.0), client: 5, ..Default::default() };
    first.extend_client_session(session).await.unwrap();
    let before = routing(&first).await;
    drop(first);
    let second = open(&db, 2).await;
    let mut after = routing(&second).await;
    let own = after.nodes.iter_mut().find(|node| node.id == 100).unwrap();
    assert_eq!(std::mem::replace(&mut own.incarnation, 1), 2, "only the start of mgmtd is another one");
    assert_eq!(std::mem::replace(&mut after.version, before.version), before.version + 1);
    assert_eq!(after, before);
    assert_eq!(before.tables[0], made.table.unwrap());
    let list = ListClientsRequest { cluster: wide_bytes(CLUSTER.0) };
    assert_eq!(second.list_clients(list).await.unwrap().clients[0].client, 5);
}

#[tokio::test(start_paused = true)]
async fn the_store_of_another_cluster_is_refused_by_name() {
    let db = mem();
    open(&db, 1).await;
    let mut other = parts(db.clone(), 2);
    other.cluster = ClusterId(8);
    let error = Service::open(other).await.err().unwrap();
    assert!(matches!(error, StoreError::OtherCluster { .. }));
    assert_eq!(
        error.to_string(),
        "the mgmtd store belongs to cluster 00000000000000000000000000000007, the configuration says 00000000000000000000000000000008: correct `cluster` or `store`"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_a_restore_left_half_filled_is_refused_until_the_restore_is_done() {
    let db = mem();
    let mark = async |set: bool| {
        let tx = db.begin(TxOptions::default()).unwrap();
        match set {
            true => tx.set(catena_kv::reserved::RESTORE_MARKER, b"run").unwrap(),
            false => tx.clear(catena_kv::reserved::RESTORE_MARKER).unwrap(),
        }
        tx.commit().await.unwrap();
    };
    mark(true).await;
    let error = Service::open(parts(db.clone(), 1)).await.err().unwrap();
    assert_eq!(error, StoreError::HalfRestored);
    assert!(error.to_string().contains("with --replace"), "{error}");
    mark(false).await;
    Service::open(parts(db.clone(), 1)).await.expect("a store like any other");
}

#[tokio::test(start_paused = true)]
async fn a_deposed_primary_writes_nothing_and_answers_nothing() {
    let db = mem();
    let old = open(&db, 1).await;
    register(&old, storage(1, 11)).await;
    let new = open(&db, 2).await;
    let before = contents(&db).await;
    let request = RegisterRequest { cluster: wide_bytes(CLUSTER.0), node: Some(storage(2, 12)) };
    assert_eq!(old.register(request.clone()).await.unwrap_err().status, Status::NoPrimary);
    assert_eq!(contents(&db).await, before);
    // Even what needs no write: a lease that it renews is not known to the new primary.
    let heartbeat =
        HeartbeatRequest { cluster: wide_bytes(CLUSTER.0), node: 1, incarnation: 11, ..Default::default() };
    assert_eq!(old.heartbeat(heartbeat).await.unwrap_err().status, Status::NoPrimary);
    new.register(request).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn heartbeats_that_say_nothing_new_write_nothing() {
    let db = mem();
    let service = open(&db, 1).await;
    for node in 1..=3 {
        register(&service, storage(node, 10)).await;
    }
    create_table(&service, 3).await;
    let report = |target: &Target, used| TargetReport {
        target: target.id,
        local: LocalState::UpToDate.into(),
        known_version: 1,
        joined_at: 1,
        used,
        chunks: used,
    };
    let targets = routing(&service).await.targets;
    let mine: Vec<_> = targets.iter().filter(|target| target.node == 1).collect();
    beat(&service, 1, 10, mine.iter().map(|target| report(target, 0)).collect()).await;
    let before = contents(&db).await;
    let version = db.begin(Default::default()).unwrap().read_version().await.unwrap();
    for used in 1..100 {
        let reply = beat(&service, 1, 10, mine.iter().map(|target| report(target, used)).collect()).await;
        assert_eq!(reply.renewed.len(), mine.len());
    }
    // FoundationDB's versions pass with time.
    if !is_foundationdb() {
        assert_eq!(db.begin(Default::default()).unwrap().read_version().await.unwrap(), version);
    }
    assert_eq!(contents(&db).await, before);
    let shown = routing(&service).await.targets;
    assert!(shown.iter().filter(|target| target.node == 1).all(|target| target.used == 99));
}

/// What happens at the next commits.
type Script = Arc<Mutex<VecDeque<Option<Fault>>>>;

/// A store that does as it is told.
fn faulty() -> (Arc<dyn Database>, Script) {
    let script = Script::default();
    let hook = script.clone();
    let hook = move |point| (point == Point::Commit).then(|| hook.lock().pop_front().flatten()).flatten();
    (Arc::new(Faulty::new(mem(), Box::new(hook))), script)
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_unknown_outcome_happens_once() {
    for fault in
        [Fault::CommitThenUnknown, Fault::Fail(KvError::CommitUnknown), Fault::Fail(KvError::Conflict)]
    {
        let (db, script) = faulty();
        let service = open(&db, 1).await;
        script.lock().push_back(Some(fault));
        assert_eq!(register(&service, storage(1, 11)).await.routing_version, 2);
        assert_eq!(register(&service, storage(2, 11)).await.routing_version, 3);
        assert_eq!(routing(&service).await.nodes.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_a_while_is_waited_for() {
    let (db, script) = faulty();
    let service = open(&db, 1).await;
    catena_rt::spawn(service.clone().run());
    script.lock().extend(vec![Some(Fault::Fail(KvError::Unavailable("net".into()))); 10_000]);
    let request = RegisterRequest { cluster: wide_bytes(CLUSTER.0), node: Some(storage(1, 11)) };
    // Long enough to lose the role.
    assert_eq!(service.register(request).await.unwrap_err().status, Status::NoPrimary);
    assert!(!service.is_primary());
    script.lock().clear();
    service.elected().await;
    register(&service, storage(1, 11)).await;
    assert_eq!(routing(&service).await.version, 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_failed_ends_the_service() {
    let (db, script) = faulty();
    let service = open(&db, 1).await;
    script.lock().push_back(Some(Fault::Fail(KvError::Storage("no disk".into()))));
    let request = RegisterRequest { cluster: wide_bytes(CLUSTER.0), node: Some(storage(1, 11)) };
    assert_eq!(service.register(request.clone()).await.unwrap_err().status, Status::Internal);
    assert!(service.failed().await.contains("no disk"));
    assert_eq!(service.register(request).await.unwrap_err().status, Status::NoPrimary);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_store_and_memory_together() {
    let (db, script) = faulty();
    let service = open(&db, 1).await;
    script.lock().push_back(Some(Fault::Delay(LEASE / 8)));
    let request = RegisterRequest { cluster: wide_bytes(CLUSTER.0), node: Some(storage(1, 11)) };
    assert!(tokio::time::timeout(LEASE / 16, service.register(request)).await.is_err());
    register(&service, storage(2, 11)).await;
    let shown = routing(&service).await;
    assert_eq!((shown.version, shown.nodes.len()), (3, 3));
    drop(service);
    let again = routing(&open(&db, 2).await).await;
    assert_eq!(again.nodes[..2], shown.nodes[..2]);
}
