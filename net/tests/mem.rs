//! The conformance suite over the simulated network, and what the simulated network does on top.

use std::sync::Arc;

use catena_buf::BufPool;
use catena_net::conformance::Backend;
use catena_net::mem::MemNetwork;
use catena_net::{Identity, Transport};

struct Mem(MemNetwork);

impl Backend for Mem {
    fn transport(&self, identity: Identity, pool: BufPool, credits: u32) -> Arc<dyn Transport> {
        Arc::new(self.0.transport(identity, pool).with_credits(credits))
    }
    fn address(&self) -> String {
        "server".into()
    }
}

mod conformance {
    use super::*;
    catena_net::conformance!(Mem(MemNetwork::new(1)), start_paused = true);
}

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use catena_buf::{PoolClass, PoolConfig};
use catena_net::mem::{PATIENCE, Weather};
use catena_net::{Call, Connection, Incoming, Listener, NetError, PeerId, Service};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::time::Instant;

const CLIENT: PeerId = PeerId::Client(ClientId(1));
const SERVER: PeerId = PeerId::Node(NodeId(1));
const LONG: Duration = Duration::from_secs(600);

/// Notes when which request came, and answers it; method 9 takes an hour.
#[derive(Default)]
struct Diary {
    log: Mutex<Vec<(u8, Duration)>>,
    ended: AtomicUsize,
}

struct Page {
    diary: Arc<Diary>,
    start: Instant,
}

impl Service for Page {
    fn class(&self, _: u16, _: &[u8]) -> PoolClass {
        PoolClass::Client
    }
    fn call(self: Arc<Self>, request: Incoming) -> BoxFuture<'static, ()> {
        self.diary.log.lock().push((request.body[0], self.start.elapsed()));
        Box::pin(async move {
            if request.method == 9 {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            self.diary.ended.fetch_add(1, SeqCst);
            request.responder().status(Status::Ok);
        })
    }
}

struct World {
    network: MemNetwork,
    diary: Arc<Diary>,
    listener: Box<dyn Listener>,
    connection: Arc<dyn Connection>,
}

fn transport(network: &MemNetwork, peer: PeerId) -> impl Transport {
    let identity =
        Identity { cluster: ClusterId(1), token: Token([1; 32]), peer, incarnation: Incarnation(1) };
    network.transport(identity, BufPool::new(PoolConfig::client(8 << 20)).unwrap()).with_credits(64)
}

async fn world(seed: u64) -> World {
    let network = MemNetwork::new(seed);
    let diary = Arc::new(Diary::default());
    let page = Page { diary: diary.clone(), start: Instant::now() };
    let listener = transport(&network, SERVER).listen("server", Arc::new(page)).await.unwrap();
    let connection = transport(&network, CLIENT).connect("server", LONG).await.unwrap();
    World { network, diary, listener, connection }
}

impl World {
    async fn call(&self, number: u8) -> Result<Status, NetError> {
        self.connection.call(Call::new(1, vec![number], LONG)).await.map(|reply| reply.status)
    }
    fn order(&self) -> Vec<u8> {
        self.diary.log.lock().iter().map(|&(number, _)| number).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn messages_take_the_time_that_the_weather_says() {
    let world = world(1).await;
    let delay = Duration::from_millis(5);
    world.network.set_weather(Weather { delay, ..Weather::default() });
    let start = Instant::now();
    world.call(1).await.unwrap();
    assert!(start.elapsed() >= 2 * delay && start.elapsed() < 3 * delay, "{:?}", start.elapsed());
    world.network.set_weather_between(CLIENT, SERVER, Some(Weather::default()));
    let start = Instant::now();
    world.call(2).await.unwrap();
    assert!(start.elapsed() >= delay && start.elapsed() < 2 * delay, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn jitter_keeps_the_order_unless_reordering_is_allowed() {
    for reorder in [false, true] {
        let world = world(7).await;
        world.network.set_weather(Weather { jitter: Duration::from_secs(1), reorder, ..Weather::default() });
        let calls = join_all((0..50).map(|number| world.call(number))).await;
        assert!(calls.into_iter().all(|call| call == Ok(Status::Ok)));
        assert_eq!(world.order() != (0..50).collect::<Vec<u8>>(), reorder);
    }
}

#[tokio::test(start_paused = true)]
async fn one_seed_is_one_run() {
    async fn run(seed: u64) -> Vec<(u8, Duration)> {
        let world = world(seed).await;
        world.network.allow_twice([1]);
        let jitter = Duration::from_millis(300);
        world.network.set_weather(Weather {
            jitter,
            reorder: true,
            loss_ppm: 50_000,
            twice_ppm: 100_000,
            ..Weather::default()
        });
        let calls =
            (0..200).map(|number| world.connection.call(Call::new(1, vec![number], Duration::from_secs(5))));
        join_all(calls).await;
        let log = world.diary.log.lock();
        log.clone()
    }
    let one = run(5).await;
    assert_eq!(one, run(5).await);
    assert_ne!(one, run(6).await);
}

#[tokio::test(start_paused = true)]
async fn a_cut_holds_messages_until_it_heals() {
    let world = world(1).await;
    world.network.cut(SERVER, CLIENT);
    let mut waiting = world.connection.call(Call::new(1, &b"a"[..], LONG));
    assert!(tokio::time::timeout(PATIENCE / 2, &mut waiting).await.is_err());
    assert_eq!(world.order(), b"a", "the other way is open");
    world.network.heal();
    assert_eq!(waiting.await.unwrap().status, Status::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_lasts_breaks_the_connection_and_stops_new_ones() {
    let world = world(1).await;
    world.network.part(CLIENT, SERVER);
    let start = Instant::now();
    let error = world.call(1).await.unwrap_err();
    assert!(matches!(error, NetError::Disconnected { sent: true, .. }), "{error}");
    assert!(start.elapsed() >= PATIENCE);
    assert!(world.connection.is_closed() && world.order().is_empty());
    let client = transport(&world.network, CLIENT);
    let error = client.connect("server", Duration::from_secs(3)).await.err().unwrap();
    assert!(matches!(error, NetError::Connect { .. }), "{error}");
    world.network.mend(CLIENT, SERVER);
    world.network.mend(SERVER, CLIENT);
    client.connect("server", LONG).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_is_killed_stops_where_it_is_and_may_come_back() {
    let world = world(1).await;
    let slow = tokio::spawn(world.connection.call(Call::new(9, &b"x"[..], Duration::from_secs(7200))));
    world.call(1).await.unwrap();
    world.network.kill(SERVER);
    let error = slow.await.unwrap().unwrap_err();
    assert!(matches!(error, NetError::Disconnected { sent: true, .. }), "{error}");
    let client = transport(&world.network, CLIENT);
    assert!(client.connect("server", LONG).await.is_err());
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(world.diary.ended.load(SeqCst), 1, "the handler of the dead does not go on");

    let page = Page { diary: world.diary.clone(), start: Instant::now() };
    let again = transport(&world.network, SERVER).listen("server", Arc::new(page)).await.unwrap();
    // The old listener is not the new one's.
    drop(world.listener);
    let connection = client.connect(&again.address(), LONG).await.unwrap();
    connection.call(Call::new(1, &b"y"[..], LONG)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dead_client_leaves_its_requests_to_the_server() {
    let world = world(1).await;
    let slow = tokio::spawn(world.connection.call(Call::new(9, &b"x"[..], LONG)));
    world.call(1).await.unwrap();
    world.network.kill(CLIENT);
    assert!(slow.await.unwrap().is_err());
    tokio::time::sleep(Duration::from_secs(3601)).await;
    assert_eq!(world.diary.ended.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn lost_messages_cost_a_deadline_and_no_credit() {
    let world = world(3).await;
    world.network.set_weather(Weather { loss_ppm: 1_000_000, ..Weather::default() });
    for _ in 0..200 {
        let call = Call::new(1, &b"x"[..], Duration::from_secs(1));
        let error = world.connection.call(call).await.unwrap_err();
        assert!(matches!(error, NetError::TimedOut { sent: true, .. }), "{error}");
    }
    assert!(world.order().is_empty());
    // Answers only: the requests were carried out.
    world.network.set_weather_between(CLIENT, SERVER, Some(Weather::default()));
    for _ in 0..200 {
        let call = Call::new(1, &b"y"[..], Duration::from_secs(1));
        assert!(world.connection.call(call).await.is_err());
    }
    assert_eq!(world.order().len(), 200);
    world.network.set_weather(Weather::default());
    world.call(1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_break_fails_what_is_under_way() {
    let world = world(3).await;
    let slow = tokio::spawn(world.connection.call(Call::new(9, &b"x"[..], LONG)));
    world.call(1).await.unwrap();
    world.network.set_weather(Weather { break_ppm: 1_000_000, ..Weather::default() });
    assert!(matches!(world.call(2).await, Err(NetError::Disconnected { sent: true, .. })));
    assert!(matches!(slow.await.unwrap(), Err(NetError::Disconnected { sent: true, .. })));
    assert!(matches!(world.call(3).await, Err(NetError::Disconnected { sent: false, .. })));
    world.network.set_weather(Weather::default());
    let client = transport(&world.network, CLIENT);
    let connection = client.connect("server", LONG).await.unwrap();
    world.network.sever(CLIENT, SERVER);
    assert!(connection.is_closed());
}

#[tokio::test(start_paused = true)]
async fn only_what_may_come_twice_does_and_is_answered_once() {
    let world = world(3).await;
    world.network.set_weather(Weather { twice_ppm: 1_000_000, ..Weather::default() });
    world.call(1).await.unwrap();
    assert_eq!(world.order(), [1]);
    world.network.allow_twice([1]);
    world.call(2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.order(), [1, 2, 2]);
    assert_eq!(world.connection.stats().method(1).calls, 2);
    assert_eq!(world.listener.stats().all.method(1).calls, 3);
}
