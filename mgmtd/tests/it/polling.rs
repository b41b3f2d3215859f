//! The long poll, leases as time passes, and sessions.

use std::sync::Arc;
use std::time::Duration;

use catena_kv::Database;
use catena_kv_testing::database;
use catena_mgmtd::Service;
use catena_proto::pb::*;
use catena_proto::routing::wide_bytes;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep};

use crate::parts::*;

async fn three() -> Arc<Service> {
    let db: Arc<dyn Database> = database();
    let service = open(&db, 1).await;
    for node in 1..=3 {
        register(&service, storage(node, 10)).await;
    }
    create_table(&service, 3).await;
    tokio::spawn(service.clone().run());
    service
}

fn poll(service: &Arc<Service>, known: u64, wait: Duration) -> tokio::task::JoinHandle<Option<RoutingInfo>> {
    let service = service.clone();
    let request = GetRoutingRequest {
        cluster: wide_bytes(CLUSTER.0),
        known_version: known,
        wait_ms: wait.as_millis() as u64,
    };
    tokio::spawn(async move { service.get_routing(request).await.unwrap().routing })
}

/// On a paused clock, `expected` after `begin`: tokio's timers are a millisecond coarse.
fn exactly(begin: Instant, expected: Duration) {
    let took = begin.elapsed();
    assert!(took >= expected && took <= expected + Duration::from_millis(5), "{took:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_poll_waits_for_news_and_for_nothing_else() {
    let service = three().await;
    let version = routing(&service).await.version;
    let begin = Instant::now();
    let idle = poll(&service, version, Duration::from_secs(2));
    for _ in 0..50 {
        beat(&service, 1, 10, Vec::new()).await;
    }
    assert!(idle.await.unwrap().is_none());
    exactly(begin, Duration::from_secs(2));
    let waiting = poll(&service, version, Duration::from_secs(30));
    let behind = poll(&service, version - 1, Duration::from_secs(30));
    assert_eq!(behind.await.unwrap().unwrap().version, version);
    register(&service, storage(4, 10)).await;
    assert_eq!(waiting.await.unwrap().unwrap().version, version + 1);
    // News are answered at once.
    exactly(begin, Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_failed_when_its_lease_runs_out_and_watchers_see_it() {
    let service = three().await;
    let begin = Instant::now();
    let version = routing(&service).await.version;
    let waiting = poll(&service, version, Duration::from_secs(30));
    for _ in 0..3 {
        sleep(LEASE / 4).await;
        beat(&service, 1, 10, Vec::new()).await;
        beat(&service, 2, 10, Vec::new()).await;
    }
    let info = waiting.await.unwrap().unwrap();
    exactly(begin, LEASE);
    let down: Vec<_> =
        info.nodes.iter().filter(|node| node.state() == NodeState::Down).map(|node| node.id).collect();
    assert_eq!(down, [3]);
    let out = info.targets.iter().filter(|target| target.state() == PublicState::Offline);
    assert!(out.clone().count() == 6 && out.clone().all(|target| target.node == 3));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_loses_its_session() {
    let service = three().await;
    let session = ClientSessionRequest { cluster: wide_bytes(CLUSTER.0), client: 5, ..Default::default() };
    let list = || ListClientsRequest { cluster: wide_bytes(CLUSTER.0) };
    service.extend_client_session(session.clone()).await.unwrap();
    sleep(LEASE * 3).await;
    service.extend_client_session(session).await.unwrap();
    sleep(LEASE * 3).await;
    assert_eq!(service.list_clients(list()).await.unwrap().clients.len(), 1);
    sleep(LEASE * 2).await;
    assert!(service.list_clients(list()).await.unwrap().clients.is_empty());
}

#[tokio::test(start_paused = true)]
async fn requests_for_another_cluster_are_refused() {
    let service = three().await;
    let failure = service.list_clients(ListClientsRequest { cluster: wide_bytes(8) }).await.unwrap_err();
    assert_eq!(failure.status, Status::WrongCluster);
}

#[tokio::test(start_paused = true)]
async fn a_held_registration_is_answered_when_the_others_arrive() {
    let db: Arc<dyn Database> = database();
    let first = open(&db, 1).await;
    for node in 1..=3 {
        register(&first, storage(node, 10)).await;
    }
    create_table(&first, 3).await;
    drop(first);
    // Everything was killed; mgmtd is back, and the storage services come one by one.
    let service = open(&db, 2).await;
    let cluster = wide_bytes(CLUSTER.0);
    let again = |node| {
        let request = RegisterRequest { cluster: cluster.clone(), node: Some(storage(node, 20)) };
        let service = service.clone();
        tokio::spawn(async move { service.register(request).await })
    };
    assert_eq!(again(1).await.unwrap().unwrap_err().status, Status::Busy);
    let begin = Instant::now();
    let (one, two) = (again(1), again(2));
    sleep(Duration::from_millis(10)).await;
    let three = again(3);
    for registration in [one, two, three] {
        registration.await.unwrap().unwrap();
    }
    assert_eq!(begin.elapsed(), Duration::from_millis(10));
    let states = routing(&service).await.targets;
    assert!(states.iter().all(|target| target.state() == PublicState::Lastsrv));
}
