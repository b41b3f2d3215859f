//! A mgmtd with its network, and the real client: registration, heartbeats, leases, the watch, failure and return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::Database;
use catena_kv_testing::database;
use catena_mgmtd::{Config, Env, Running, StartError, start};
use catena_mgmtd_client::{
    CallOptions, ClientSession, HeartbeatOptions, Heartbeats, MgmtdClient, Report, RoutingWatch, WatchOptions,
};
use catena_proto::ids::{ClientId, NodeId, RoutingVersion};
use catena_proto::pb::{self, CreateTableRequest};
use catena_proto::routing::{LocalState, MgmtdRole, NodeState, PublicState, RoutingInfo};
use catena_proto::rpc::ClientAuth;
use catena_proto::token::Token;
use catena_rt::time::Instant;

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
        lease: Duration::from_secs(20),
        client_lease: Duration::from_secs(60),
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

/// A storage service that does everything right: it tells mgmtd at once what it made of new routing information.
struct Pretended {
    beats: Heartbeats,
    kicks: tokio::task::JoinHandle<()>,
}

impl Pretended {
    async fn start(client: &MgmtdClient, watch: &RoutingWatch, node: u32, incarnation: u64) -> Pretended {
        let (reported, seen) = (watch.clone(), watch.clone());
        let reporter = move || report(&reported, node);
        let record = storage(node, incarnation);
        let (clock, options) = (TokioClock::shared(), HeartbeatOptions::default());
        let beats = Heartbeats::start(client.clone(), record, clock, reporter, options).await.unwrap();
        let kick = beats.kicker();
        let kicks = tokio::spawn(async move {
            let mut version = RoutingVersion(0);
            loop {
                version = seen.changed(version).await.version;
                kick();
            }
        });
        Pretended { beats, kicks }
    }

    /// As `kill -9`.
    fn kill(self) {
        self.kicks.abort();
    }

    async fn stop(self) {
        self.kicks.abort();
        self.beats.stop(Duration::from_secs(30)).await;
    }
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

/// Whether every target of `node` has had a session of its own.
fn rejoined(info: &RoutingInfo, node: u32) -> bool {
    info.targets.values().filter(|target| target.node == NodeId(node)).all(|target| target.joined_at.0 > 1)
}

fn all_serve(info: &RoutingInfo) -> bool {
    !info.targets.is_empty() && info.targets.values().all(|target| target.state == PublicState::Serving)
}

#[tokio::test]
async fn a_cluster_lives_through_a_failure_a_restart_of_everything_and_a_stop() {
    let db: Arc<dyn Database> = database();
    let running = mgmtd(&db, "127.0.0.1:0", 1).await;
    let address = running.control_address().to_string();
    let client = client(&address);
    let watch = RoutingWatch::spawn(client.clone(), WatchOptions::default());
    let mut services = BTreeMap::new();
    for node in 1..=3 {
        services.insert(node, Pretended::start(&client, &watch, node, 10).await);
    }
    let request = CreateTableRequest { replicas: 3, min_nodes: 3, ..Default::default() };
    let made = client.create_table(request).await.unwrap();
    assert_eq!((made.table.unwrap().chains.len(), made.recovery_balance), (6, 1.0));
    let info = watch.at_least(RoutingVersion(made.routing_version)).await;
    assert!(all_serve(&info) && info.nodes[&NodeId(100)].control_address == address);
    let session = ClientSession::start(client.clone(), ClientId(5), "a test".into()).await.unwrap();
    assert_eq!(client.list_clients().await.unwrap().clients[0].description, "a test");

    // One is killed, starts again before anybody misses it, and is whole again after a session of its own.
    services.remove(&2).unwrap().kill();
    services.insert(2, Pretended::start(&client, &watch, 2, 11).await);
    let info = until(&watch, |info| rejoined(info, 2) && all_serve(info)).await;
    assert!(info.targets.values().all(|target| (target.joined_at.0 > 1) == (target.node == NodeId(2))));

    // mgmtd restarts under the living cluster: nothing changes for anyone.
    let old = watch.current();
    let chains = old.chains.clone();
    running.stop().await;
    let running = mgmtd(&db, &address, 2).await;
    assert_eq!(client.get_routing(0, Duration::ZERO).await.unwrap().routing.unwrap().chains.len(), 6);
    assert_eq!(watch.current().chains, chains);

    // Everything is killed and started again.
    std::mem::take(&mut services).into_values().for_each(Pretended::kill);
    running.stop().await;
    let running = mgmtd(&db, &address, 3).await;
    let starts: Vec<_> = (1..=3)
        .map(|node| {
            let (client, watch) = (client.clone(), watch.clone());
            tokio::spawn(async move { (node, Pretended::start(&client, &watch, node, 12).await) })
        })
        .collect();
    for start in starts {
        let (node, service) = start.await.unwrap();
        let info = watch.at_least(service.beats.registered_at()).await;
        for target in info.targets.values().filter(|target| target.node == NodeId(node)) {
            let renewed = target.joined_at > old.targets[&target.id].joined_at;
            assert!(
                renewed || target.state != PublicState::Serving,
                "{target:?} goes on as if nothing had happened"
            );
        }
        services.insert(node, service);
    }
    let before: u64 = chains.values().map(|chain| chain.version.0).sum();
    let after = |info: &RoutingInfo| info.chains.values().map(|chain| chain.version.0).sum::<u64>();
    until(&watch, |info| after(info) > before && all_serve(info)).await;

    // A clean stop is seen at once.
    services.remove(&1).unwrap().stop().await;
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
    let db: Arc<dyn Database> = database();
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
    let db: Arc<dyn Database> = database();
    let running = mgmtd(&db, "127.0.0.1:0", 1).await;
    client(&running.control_address().to_string()).register(storage(3, 10)).await.unwrap();
    running.stop().await;
    let mut config = config("127.0.0.1:0");
    config.node = 3;
    let error = start(config, Env { clock: TokioClock::shared(), seed: 2 }, db).await.err().unwrap();
    assert!(error.to_string().contains("node n3 is a storage service"), "{error}");
}

#[tokio::test]
async fn three_on_one_store_are_found_through_any_and_lost_one_after_the_other() {
    let db: Arc<dyn Database> = database();
    let start_one = async |node: u32| {
        let mut config = config("127.0.0.1:0");
        (config.node, config.lease) = (node, Duration::from_secs(2));
        start(config, Env { clock: TokioClock::shared(), seed: node.into() }, db.clone()).await.unwrap()
    };
    let mut all = vec![start_one(100).await, start_one(101).await, start_one(102).await];
    assert!(all[0].service().is_primary());
    // Only a stand-by is configured: it names the primary, and routing information the others.
    let client = client(&all[2].control_address().to_string());
    // A crash ends connections and the polls on them; here only the service behind them is lost, so polls are kept short.
    let options = WatchOptions { wait: Duration::from_secs(1), ..WatchOptions::default() };
    let watch = RoutingWatch::spawn(client.clone(), options);
    let service = Pretended::start(&client, &watch, 1, 10).await;
    let info = until(&watch, |info| {
        info.nodes.values().filter(|node| node.role() == MgmtdRole::StandBy).count() == 2
    })
    .await;
    assert_eq!(info.nodes[&NodeId(100)].role(), MgmtdRole::Primary);

    // A clean stop.
    all.remove(0).stop().await;
    let leads = |info: &RoutingInfo, but: u32| {
        info.nodes.values().any(|node| node.role() == MgmtdRole::Primary && node.id != but)
    };
    until(&watch, |info| leads(info, 100)).await;
    client.list_clients().await.unwrap();

    // The next primary is lost without a word; what listens at its address does not matter to anyone.
    let lost = all.iter().position(|running| running.service().is_primary()).unwrap();
    let lost_number = if lost == 0 { 101 } else { 102 };
    let lost = all.remove(lost);
    lost.abort();
    let begin = Instant::now();
    client.list_clients().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "two leases: {:?}", begin.elapsed());
    let info = until(&watch, |info| leads(info, lost_number)).await;
    assert_eq!(info.nodes[&NodeId(1)].state(), NodeState::Up);
    service.stop().await;
    for running in all {
        running.stop().await;
    }
}
