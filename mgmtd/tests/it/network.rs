//! A mgmtd with its network, and the real client: registration, heartbeats, leases, the watch, failure and return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::{Database, MemDatabase};
use catena_mgmtd::{Config, Env, Running, StartError, start};
use catena_mgmtd_client::{
    CallOptions, ClientSession, HeartbeatOptions, Heartbeats, MgmtdClient, Report, RoutingWatch, WatchOptions,
};
use catena_proto::ids::{ClientId, NodeId, RoutingVersion};
use catena_proto::pb::{self, CreateTableRequest};
use catena_proto::routing::{LocalState, NodeState, PublicState, RoutingInfo};
use catena_proto::rpc::ClientAuth;
use catena_proto::token::Token;
use tokio::time::Instant;

use crate::parts::{CLUSTER, TokioClock, storage};

const TOKEN: Token = Token([9; 32]);

fn config(listen: &str) -> Config {
    Config {
        cluster: CLUSTER,
        token: TOKEN,
        node: 100,
        listen: listen.into(),
        advertise: None,
        metrics: None,
        lease: Duration::from_millis(400),
        client_lease: Duration::from_secs(1),
        store: Default::default(),
        log: None,
    }
}

async fn mgmtd(db: &Arc<dyn Database>, listen: &str, seed: u64) -> Running {
    start(config(listen), Env { clock: TokioClock::shared(), seed }, db.clone()).await.unwrap()
}

fn client(address: &str) -> MgmtdClient {
    let auth = ClientAuth::new(CLUSTER, &TOKEN);
    MgmtdClient::connect(CLUSTER, &[address.to_owned()], auth, CallOptions::default()).unwrap()
}

/// What a storage service that does everything right reports.
fn report(watch: &RoutingWatch, node: u32) -> Report {
    let info = watch.current();
    let mine = info.targets.values().filter(|target| target.node == NodeId(node));
    let targets = mine.map(|target| {
        let local = match target.state {
            PublicState::Serving | PublicState::Syncing => LocalState::UpToDate,
            _ => LocalState::Online,
        };
        pb::TargetReport {
            target: target.id.0,
            local: local.into(),
            known_version: info.chains[&target.chain].version.0,
            joined_at: target.joined_at.0,
            ..Default::default()
        }
    });
    Report { routing_version: info.version, targets: targets.collect(), ..Default::default() }
}

async fn service(client: &MgmtdClient, watch: &RoutingWatch, node: u32, incarnation: u64) -> Heartbeats {
    let watch = watch.clone();
    let reporter = move || report(&watch, node);
    let record = storage(node, incarnation);
    Heartbeats::start(client.clone(), record, TokioClock::shared(), reporter, HeartbeatOptions::default())
        .await
        .unwrap()
}

/// Waits for routing information that looks as wanted, with a limit far beyond what it takes, so that a failure says what it saw.
async fn until(watch: &RoutingWatch, what: impl Fn(&RoutingInfo) -> bool) -> Arc<RoutingInfo> {
    let limit = Instant::now() + Duration::from_secs(60);
    let mut info = watch.current();
    while !what(&info) {
        match watch.newer_than(info.version, limit).await {
            Some(newer) => info = newer,
            None => panic!("still {info:#?}"),
        }
    }
    info
}

fn all_serve(info: &RoutingInfo) -> bool {
    !info.targets.is_empty() && info.targets.values().all(|target| target.state == PublicState::Serving)
}

#[tokio::test]
async fn a_cluster_lives_through_a_failure_a_restart_of_everything_and_a_stop() {
    let db: Arc<dyn Database> = Arc::new(MemDatabase::new());
    let running = mgmtd(&db, "127.0.0.1:0", 1).await;
    let address = running.control_address().to_string();
    let client = client(&address);
    let watch = RoutingWatch::spawn(client.clone(), WatchOptions::default());
    let mut services = BTreeMap::new();
    for node in 1..=3 {
        services.insert(node, service(&client, &watch, node, 10).await);
    }
    let request = CreateTableRequest { replicas: 3, min_nodes: 3, ..Default::default() };
    let made = client.create_table(request).await.unwrap();
    assert_eq!((made.table.unwrap().chains.len(), made.recovery_balance), (6, 1.0));
    let info = watch.at_least(RoutingVersion(made.routing_version)).await;
    assert!(all_serve(&info) && info.nodes[&NodeId(100)].control_address == address);
    let session = ClientSession::start(client.clone(), ClientId(5), "a test".into()).await.unwrap();
    assert_eq!(client.list_clients().await.unwrap().clients[0].description, "a test");

    // One dies, is missed, returns, and is whole again.
    drop(services.remove(&2));
    until(&watch, |info| info.nodes[&NodeId(2)].state() == NodeState::Down).await;
    services.insert(2, service(&client, &watch, 2, 11).await);
    until(&watch, all_serve).await;

    // mgmtd restarts under the living cluster: nothing changes for anyone.
    let chains = watch.current().chains.clone();
    running.stop().await;
    let running = mgmtd(&db, &address, 2).await;
    assert_eq!(client.get_routing(0, Duration::ZERO).await.unwrap().routing.unwrap().chains.len(), 6);
    assert_eq!(watch.current().chains, chains);

    // Everything is killed and started again.
    services.clear();
    running.stop().await;
    let running = mgmtd(&db, &address, 3).await;
    let starts: Vec<_> = (1..=3)
        .map(|node| {
            let (client, watch) = (client.clone(), watch.clone());
            tokio::spawn(async move { (node, service(&client, &watch, node, 12).await) })
        })
        .collect();
    for start in starts {
        let (node, beats) = start.await.unwrap();
        let seen = watch.at_least(beats.registered_at()).await;
        let mine =
            seen.targets.values().filter(|target| target.node == NodeId(node) && target.joined_at.0 < 3);
        assert!(mine.clone().all(|target| target.state != PublicState::Serving), "{mine:?}");
        services.insert(node, beats);
    }
    until(&watch, all_serve).await;

    // A clean stop is seen at once.
    services.remove(&1).unwrap().stop(Duration::from_secs(5)).await;
    let info = until(&watch, |info| info.nodes[&NodeId(1)].state() == NodeState::Down).await;
    assert!(
        info.targets
            .values()
            .filter(|target| target.node == NodeId(1))
            .all(|target| target.state == PublicState::Offline)
    );
    session.close(Duration::from_secs(5)).await;
    assert!(client.list_clients().await.unwrap().clients.is_empty());

    let mut registry = prometheus_client::registry::Registry::default();
    running.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in
        ["mgmtd_chains 6", "mgmtd_nodes{kind=\"storage\",state=\"down\"} 1", "mgmtd_client_sessions 0"]
    {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_refused_before_anything_is_touched() {
    let db: Arc<dyn Database> = Arc::new(MemDatabase::new());
    let running = mgmtd(&db, "127.0.0.1:0", 1).await;
    let address = running.control_address().to_string();
    let env = Env { clock: TokioClock::shared(), seed: 2 };
    let error = start(config(&address), env, db.clone()).await.err().unwrap();
    assert!(matches!(error, StartError::Listen { .. }) && error.to_string().contains(&address), "{error}");
    client(&address).list_clients().await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_mgmtd_cannot_take_the_number_of_a_storage_service() {
    let db: Arc<dyn Database> = Arc::new(MemDatabase::new());
    let running = mgmtd(&db, "127.0.0.1:0", 1).await;
    client(&running.control_address().to_string()).register(storage(3, 10)).await.unwrap();
    running.stop().await;
    let mut config = config("127.0.0.1:0");
    config.node = 3;
    let error = start(config, Env { clock: TokioClock::shared(), seed: 2 }, db).await.err().unwrap();
    assert!(error.to_string().contains("node n3 is a storage service"), "{error}");
}
