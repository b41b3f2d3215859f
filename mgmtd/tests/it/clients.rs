//! Services and clients that find the primary by themselves, whichever of several mgmtd that is.

use std::sync::Arc;

use catena_kv::Database;
use catena_kv_testing::database;
use catena_mgmtd::Service;
use catena_mgmtd_client::{
    CallOptions, ClientSession, HeartbeatOptions, Heartbeats, MgmtdApi, MgmtdClient, Report, RoutingWatch,
    WatchOptions,
};
use catena_proto::ids::{ClientId, NodeId};
use catena_proto::pb::*;
use catena_rt::time::{Instant, sleep};

use crate::parts::*;

struct Trio {
    services: Vec<Arc<Service>>,
    runs: Vec<catena_rt::JoinHandle<()>>,
    client: MgmtdClient,
}

async fn trio() -> Trio {
    let db: Arc<dyn Database> = database();
    let (mut services, mut runs, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    for node in 100..103 {
        let parts = several(db.clone(), node, node.into());
        let address = parts.address.clone();
        let service = Service::open(parts).await.unwrap();
        runs.push(catena_rt::spawn(service.clone().run()));
        peers.push((address, service.clone() as Arc<dyn MgmtdApi>));
        services.push(service);
    }
    // A stand-by first, so that the primary has to be found.
    peers.rotate_left(1);
    Trio { services, runs, client: MgmtdClient::new(CLUSTER, peers, CallOptions::default()) }
}

impl Trio {
    fn primary(&self) -> usize {
        self.services.iter().position(|service| service.is_primary()).expect("there is a primary")
    }
}

#[tokio::test(start_paused = true)]
async fn calls_ride_over_the_loss_of_the_primary() {
    let trio = trio().await;
    let node = storage(1, 10);
    let clock = TokioClock::shared();
    let beats = Heartbeats::start(
        trio.client.clone(),
        node,
        clock.clone(),
        Report::default,
        HeartbeatOptions::default(),
    )
    .await
    .unwrap();
    let watch = RoutingWatch::spawn(trio.client.clone(), WatchOptions::default());
    let session = ClientSession::start(trio.client.clone(), ClientId(5), "a test".into()).await.unwrap();
    sleep(LEASE).await;
    assert!(beats.lease().valid(clock.monotonic()));

    let lost = trio.primary();
    trio.runs[lost].abort();
    let begin = Instant::now();
    // Long enough for the dead one's lease to run out; from then on it refuses, as one that does not run would not even do.
    sleep(LEASE / 2).await;
    let request =
        CreateTableRequest { replicas: 1, min_nodes: 1, request: vec![1; 16].into(), ..Default::default() };
    // It answers once the storage service is heard of by the new primary.
    let made = loop {
        match trio.client.create_table(request.clone()).await {
            Ok(made) => break made,
            Err(failure) => assert!(begin.elapsed() < LEASE * 3, "{failure}"),
        }
        sleep(LEASE / 64).await;
    };
    assert!(begin.elapsed() < LEASE * 2, "{:?}", begin.elapsed());
    let now = trio.primary();
    assert_ne!(now, lost);
    let info = watch.at_least(catena_proto::ids::RoutingVersion(made.routing_version)).await;
    assert_eq!(info.nodes[&NodeId(100 + now as u32)].role(), MgmtdRole::Primary);
    // The lease of the service comes back by itself, and nobody has lost a session.
    sleep(LEASE / 2).await;
    assert!(beats.lease().valid(clock.monotonic()));
    let clients = trio.client.list_clients().await.unwrap().clients;
    assert_eq!(clients.iter().map(|client| client.client).collect::<Vec<_>>(), [5]);
    sleep(LEASE * 4).await;
    let info = watch.current();
    assert!(info.nodes[&NodeId(1)].state() == NodeState::Up, "it was never declared failed");
    session.close(LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_of_the_primary_costs_less_than_half_a_lease() {
    let trio = trio().await;
    let clock = TokioClock::shared();
    let options = HeartbeatOptions::default();
    let beats =
        Heartbeats::start(trio.client.clone(), storage(1, 10), clock.clone(), Report::default, options)
            .await
            .unwrap();
    sleep(LEASE).await;
    for _ in 0..2 {
        trio.services[trio.primary()].stop().await;
        let begin = Instant::now();
        trio.client.list_clients().await.unwrap();
        assert!(begin.elapsed() < LEASE / 2);
        for _ in 0..32 {
            assert!(beats.lease().valid(clock.monotonic()), "the data path notices nothing");
            sleep(LEASE / 16).await;
        }
    }
}
