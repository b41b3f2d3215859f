//! Several mgmtd on one store: who is primary, and that nobody else is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catena_kv::fault::{Chances, Fault, Faulty, Point, random};
use catena_kv::{Database, MemDatabase};
use catena_kv_testing::database;
use catena_mgmtd::{Parts, Service};
use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_proto::pb::*;
use catena_proto::routing::wide_bytes;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep, timeout};
use parking_lot::Mutex;

use crate::parts::*;

/// The way from one mgmtd to the store.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Open,
    /// Neither requests nor answers arrive.
    Cut,
    /// Requests arrive, answers do not.
    Deaf,
}

/// A mgmtd that can be killed, cut off from the store, or paused.
struct One {
    service: Arc<Service>,
    run: catena_rt::JoinHandle<()>,
    way: Arc<Mutex<Way>>,
}

impl One {
    async fn start(db: &Arc<dyn Database>, node: u32, incarnation: u64) -> One {
        One::with(db, several(db.clone(), node, incarnation)).await
    }

    async fn with(db: &Arc<dyn Database>, parts: Parts) -> One {
        let way = Arc::new(Mutex::new(Way::Open));
        let seen = way.clone();
        let hook = move |point| match (*seen.lock(), point) {
            (Way::Open, _) | (_, Point::Begin) => None,
            (Way::Cut, _) => Some(Fault::Delay(LEASE * 1000)),
            (Way::Deaf, Point::Commit) => Some(Fault::CommitThenUnknown),
            (Way::Deaf, _) => None,
        };
        let db: Arc<dyn Database> = Arc::new(Faulty::new(db.clone(), Box::new(hook)));
        let service = Service::open(Parts { db, ..parts }).await.unwrap();
        let run = catena_rt::spawn(service.clone().run());
        One { service, run, way }
    }

    fn set(&self, way: Way) {
        *self.way.lock() = way;
    }

    /// As `kill -9`.
    fn kill(self) {
        self.run.abort();
    }
}

fn mem() -> Arc<dyn Database> {
    database()
}

async fn trio(db: &Arc<dyn Database>) -> [One; 3] {
    [One::start(db, 100, 1).await, One::start(db, 101, 2).await, One::start(db, 102, 3).await]
}

/// When one of them is primary, since `begin`.
async fn until_primary(of: &[&One], begin: Instant) -> Duration {
    for _ in 0..10_000 {
        if of.iter().any(|one| one.service.is_primary()) {
            return begin.elapsed();
        }
        sleep(LEASE / 256).await;
    }
    panic!("nobody becomes primary");
}

fn register_request(node: u32) -> RegisterRequest {
    RegisterRequest { cluster: wide_bytes(CLUSTER.0), node: Some(storage(node, 10)) }
}

#[tokio::test(start_paused = true)]
async fn one_alone_on_an_empty_store_is_primary_at_once() {
    let begin = Instant::now();
    let service = Service::open(several(mem(), 100, 1)).await.unwrap();
    assert!(service.is_primary());
    register(&service, storage(1, 10)).await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn of_several_that_start_together_one_is_primary_and_the_others_point_to_it() {
    let db = mem();
    let (a, b, c) = tokio::join!(One::start(&db, 100, 1), One::start(&db, 101, 2), One::start(&db, 102, 3));
    sleep(LEASE / 4).await;
    let all = [&a, &b, &c];
    let primary: Vec<_> = all.iter().filter(|one| one.service.is_primary()).collect();
    assert_eq!(primary.len(), 1);
    let address =
        routing(&primary[0].service).await.nodes.into_iter().find(|node| node.role() == MgmtdRole::Primary);
    for one in all.iter().filter(|one| !one.service.is_primary()) {
        let failure = list(&one.service).await.unwrap_err();
        assert_eq!(failure.status, Status::NoPrimary);
        assert_eq!(failure.primary, Some(address.clone().unwrap().control_address), "{failure}");
    }
    // And it stays so while nothing happens.
    sleep(LEASE * 20).await;
    assert!(primary[0].service.is_primary());
}

#[tokio::test(start_paused = true)]
async fn the_role_moves_within_two_leases_when_the_primary_is_killed() {
    let db = mem();
    let [a, b, c] = trio(&db).await;
    register(&a.service, storage(1, 10)).await;
    create_table(&a.service, 1).await;
    let before = routing(&a.service).await;
    sleep(LEASE * 3 / 8).await;
    beat(&a.service, 1, 10, Vec::new()).await;
    let begin = Instant::now();
    a.kill();
    let took = until_primary(&[&b, &c], begin).await;
    assert!(took > LEASE / 2 && took < LEASE * 2, "{took:?}");
    let new = if b.service.is_primary() { &b } else { &c };
    let after = routing(&new.service).await;
    assert_eq!(
        (&after.chains, &after.tables, &after.targets),
        (&before.chains, &before.tables, &before.targets)
    );
    assert!(after.version > before.version);

    // The storage service, last heard by the old primary, has a full lease from here.
    let silent = |info: RoutingInfo| info.nodes.iter().find(|node| node.id == 1).unwrap().state();
    sleep(LEASE - LEASE / 64).await;
    assert_eq!(silent(routing(&new.service).await), NodeState::Up);
    sleep(LEASE / 32).await;
    assert_eq!(silent(routing(&new.service).await), NodeState::Down);
}

/// A stand-by writes when it looks, and on a busy disk it may not learn whether that has happened. It was no attempt to lead.
#[tokio::test(start_paused = true)]
async fn stand_bys_that_once_heard_nothing_from_the_store_take_over_as_soon_as_others() {
    let db = mem();
    let [a, b, c] = trio(&db).await;
    b.set(Way::Deaf);
    c.set(Way::Deaf);
    sleep(LEASE).await;
    b.set(Way::Open);
    c.set(Way::Open);
    sleep(LEASE).await;
    let begin = Instant::now();
    a.kill();
    let took = until_primary(&[&b, &c], begin).await;
    assert!(took < LEASE * 3 / 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_primary_gives_the_role_up_at_once() {
    let db = mem();
    let [a, b, c] = trio(&db).await;
    sleep(LEASE).await;
    let begin = Instant::now();
    a.service.stop().await;
    assert_eq!(list(&a.service).await.unwrap_err().status, Status::ShuttingDown);
    let took = until_primary(&[&b, &c], begin).await;
    assert!(took <= LEASE * 3 / 8, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rolling_restart_never_waits_for_a_lease() {
    let db = mem();
    let mut all = Vec::from(trio(&db).await);
    register(&all[0].service, storage(1, 10)).await;
    sleep(LEASE).await;
    for (index, incarnation) in [(0, 4), (1, 5), (2, 6), (0, 7), (1, 8)] {
        let begin = Instant::now();
        all[index].service.stop().await;
        all[index] = One::start(&db, 100 + index as u32, incarnation).await;
        let took = until_primary(&all.iter().collect::<Vec<_>>(), begin).await;
        assert!(took <= LEASE * 3 / 8, "{took:?}");
        sleep(LEASE).await;
        let primary = all.iter().find(|one| one.service.is_primary()).unwrap();
        let nodes = routing(&primary.service).await.nodes;
        assert!(nodes.iter().filter(|node| node.id >= 100).all(|node| node.state() == NodeState::Up));
    }
}

#[tokio::test(start_paused = true)]
async fn a_primary_cut_off_from_the_store_falls_silent_before_another_speaks() {
    for way in [Way::Cut, Way::Deaf] {
        let db = mem();
        let [a, b, c] = trio(&db).await;
        sleep(LEASE).await;
        let begin = Instant::now();
        a.set(way);
        let poll = GetRoutingRequest {
            cluster: wide_bytes(CLUSTER.0),
            known_version: routing(&a.service).await.version,
            wait_ms: 60_000,
        };
        let service = a.service.clone();
        let polled = catena_rt::spawn(async move { (service.get_routing(poll).await, Instant::now()) });
        let mut silent = None;
        let mut spoke = None;
        for _ in 0..LEASE.as_millis() / 10 * 3 {
            let others = [&b, &c].iter().filter(|one| one.service.is_primary()).count();
            assert!(others + usize::from(a.service.is_primary()) <= 1, "{way:?}: two answer");
            if !a.service.is_primary() {
                silent.get_or_insert(begin.elapsed());
                assert_eq!(list(&a.service).await.unwrap_err().status, Status::NoPrimary);
            }
            if others == 1 {
                spoke.get_or_insert(begin.elapsed());
            }
            sleep(Duration::from_millis(10)).await;
        }
        let (silent, spoke) = (silent.unwrap(), spoke.unwrap());
        assert!(silent <= LEASE / 2 + Duration::from_millis(10), "{way:?}: {silent:?}");
        assert!(spoke < LEASE * 2, "{way:?}: {spoke:?}");
        // The long poll ended with the role, and not as if there were no news.
        let (polled, at) = polled.await.unwrap();
        assert_eq!(polled.unwrap_err().status, Status::NoPrimary);
        assert!(at - begin <= silent + Duration::from_millis(10));
        // It stands by once the store is reached again, and may be elected once more.
        a.set(Way::Open);
        sleep(LEASE * 3).await;
        assert!(!a.service.is_primary() && list(&a.service).await.unwrap_err().primary.is_some());
        let begin = Instant::now();
        b.kill();
        c.kill();
        assert!(until_primary(&[&a], begin).await < LEASE * 2);
        register(&a.service, storage(1, 10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_that_believe_to_be_primary_only_the_one_in_the_store_writes() {
    let db = mem();
    let old = One::start(&db, 100, 1).await;
    register(&old.service, storage(1, 10)).await;
    // Another takes over while the lease of the first one has long to run.
    let new = One::with(&db, Parts { exclusive: true, ..several(db.clone(), 101, 2) }).await;
    assert!(old.service.is_primary() && new.service.is_primary());
    // All but the list of those who run, where a stand-by signs too.
    let state =
        async || contents(&db).await.into_iter().filter(|item| item.key[4] != b'M').collect::<Vec<_>>();
    let before = state().await;
    let failure = old.service.register(register_request(2)).await.unwrap_err();
    assert_eq!(failure.status, Status::NoPrimary);
    let stop = HeartbeatRequest {
        cluster: wide_bytes(CLUSTER.0),
        node: 1,
        incarnation: 10,
        stopping: true,
        ..Default::default()
    };
    assert_eq!(old.service.heartbeat(stop).await.unwrap_err().status, Status::NoPrimary);
    assert_eq!(state().await, before);
    // It stands by, and sends people to the other.
    sleep(LEASE / 4).await;
    assert_eq!(list(&old.service).await.unwrap_err().primary.as_deref(), Some("10.0.0.101:7400"));
    new.service.register(register_request(2)).await.unwrap();
    let nodes = routing(&new.service).await.nodes;
    assert_eq!(nodes.iter().filter(|node| node.kind() == NodeKind::Storage).count(), 2);
}

/// A clock that a test can push forward, as it is for a process that was stopped and goes on.
struct Jumping {
    inner: Arc<dyn Clock>,
    ahead: Arc<AtomicU64>,
}

impl Clock for Jumping {
    fn monotonic(&self) -> Monotonic {
        self.inner.monotonic() + Duration::from_millis(self.ahead.load(Ordering::Relaxed))
    }
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_was_paused_in_the_middle_of_a_call_does_not_answer_it() {
    let ahead = Arc::new(AtomicU64::new(0));
    let armed = Arc::new(Mutex::new(false));
    let (jump, arm) = (ahead.clone(), armed.clone());
    // The pause comes right behind the commit: everything is written, and nothing is answered yet.
    let hook = move |point| {
        if point == Point::Commit && std::mem::take(&mut *arm.lock()) {
            jump.fetch_add(LEASE.as_millis() as u64, Ordering::Relaxed);
        }
        None
    };
    let db: Arc<dyn Database> = Arc::new(Faulty::new(mem(), Box::new(hook)));
    let clock = Arc::new(Jumping { inner: TokioClock::shared(), ahead: ahead.clone() });
    let service = Service::open(Parts { clock, ..several(db, 100, 1) }).await.unwrap();
    *armed.lock() = true;
    let failure = service.register(register_request(1)).await.unwrap_err();
    assert_eq!(failure.status, Status::NoPrimary);
    assert!(!service.is_primary());
    // A table that was asked for without a name may have been made, which is another thing to say than that it was not.
    catena_rt::spawn(service.clone().run());
    service.elected().await;
    register(&service, storage(2, 10)).await;
    for (request, expected) in [(vec![], Status::Disconnected), (vec![1; 16], Status::NoPrimary)] {
        timeout(LEASE, async {
            while !service.is_primary() {
                sleep(LEASE / 64).await
            }
        })
        .await
        .unwrap();
        *armed.lock() = true;
        let request = CreateTableRequest {
            cluster: wide_bytes(CLUSTER.0),
            replicas: 1,
            request: request.into(),
            ..Default::default()
        };
        // Services are known again only by their next registration or heartbeat.
        beat(&service, 2, 10, Vec::new()).await;
        assert_eq!(service.create_table(request).await.unwrap_err().status, expected);
        sleep(LEASE / 4).await;
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_that_fail_now_and_then_or_of_unknown_outcome_change_nothing() {
    let chances =
        Chances { conflict: 100, unknown_applied: 100, unknown_lost: 100, too_old: 20, unavailable: 20 };
    let inner = mem();
    let db: Arc<dyn Database> = Arc::new(Faulty::new(inner.clone(), random(7, chances)));
    let service = Service::open(several(db, 100, 1)).await.unwrap();
    catena_rt::spawn(service.clone().run());
    service.elected().await;
    let other = One::start(&inner, 101, 2).await;
    for _ in 0..1000 {
        sleep(LEASE / 16).await;
        assert!(service.is_primary() && !other.service.is_primary());
    }
}

#[tokio::test(start_paused = true)]
async fn a_challenger_waits_as_long_as_the_holder_of_the_lease_does() {
    let db = mem();
    let slow = One::with(&db, Parts { lease: LEASE * 4, ..several(db.clone(), 100, 1) }).await;
    register(&slow.service, storage(1, 10)).await;
    let quick = One::start(&db, 101, 2).await;
    let begin = Instant::now();
    slow.kill();
    assert!(until_primary(&[&quick], begin).await >= LEASE * 4);
    // What the predecessor promised to services holds too.
    sleep(LEASE * 4 - LEASE / 64).await;
    let up = |info: RoutingInfo| info.nodes.iter().any(|node| node.id == 1 && node.state() == NodeState::Up);
    assert!(up(routing(&quick.service).await));
    sleep(LEASE / 32).await;
    assert!(!up(routing(&quick.service).await));
}

#[tokio::test(start_paused = true)]
async fn everyone_is_shown_who_is_primary_and_who_stands_by() {
    let db = mem();
    let [a, b, c] = trio(&db).await;
    sleep(LEASE / 2).await;
    let rows = async |one: &One| {
        let nodes = routing(&one.service).await.nodes;
        nodes.iter().map(|node| (node.id, node.state(), node.role())).collect::<Vec<_>>()
    };
    let (up, down) = (NodeState::Up, NodeState::Down);
    let (leads, waits, none) = (MgmtdRole::Primary, MgmtdRole::StandBy, MgmtdRole::Unspecified);
    assert_eq!(rows(&a).await, [(100, up, leads), (101, up, waits), (102, up, waits)]);
    c.kill();
    sleep(LEASE * 5 / 4).await;
    assert_eq!(rows(&a).await[2].1, down);
    let begin = Instant::now();
    a.kill();
    until_primary(&[&b], begin).await;
    assert_eq!(rows(&b).await[..2], [(100, down, none), (101, up, leads)]);
    let back = One::start(&db, 100, 4).await;
    sleep(LEASE / 2).await;
    assert_eq!(rows(&b).await[..2], [(100, up, waits), (101, up, leads)]);
    back.service.stop().await;
    sleep(LEASE / 2).await;
    assert_eq!(rows(&b).await[0].1, down);
}

#[tokio::test(start_paused = true)]
async fn two_processes_with_one_number_damage_nothing_and_the_later_one_is_told() {
    let db = mem();
    let [a, b, _c] = trio(&db).await;
    register(&a.service, storage(1, 10)).await;
    sleep(LEASE).await;
    for number in [100, 101] {
        let twin = Parts { address: "10.0.9.9:7400".into(), ..several(db.clone(), number, 9) };
        let twin = One::with(&db, twin).await;
        let reason = timeout(LEASE, twin.service.failed()).await.unwrap();
        assert!(
            reason.contains(&format!("node n{number} is in use by another mgmtd, at 10.0.0.{number}:7400")),
            "{reason}"
        );
    }
    sleep(LEASE * 2).await;
    assert!(a.service.is_primary() && !b.service.is_primary());
    register(&a.service, storage(2, 10)).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_start_of_everything_gives_the_same_history() {
    let run = async || {
        // The history of everything but a real store.
        let db: Arc<dyn Database> = Arc::new(MemDatabase::new());
        let [a, b, c] = trio(&db).await;
        register(&a.service, storage(1, 10)).await;
        sleep(LEASE * 2).await;
        a.kill();
        let took = until_primary(&[&b, &c], Instant::now()).await;
        (took, b.service.is_primary(), contents(&db).await)
    };
    assert_eq!(run().await, run().await);
}
