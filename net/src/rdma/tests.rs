//! What only this backend does, on the software double. What all backends do is the conformance suite's, `tests/rdma.rs`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{BufPool, PoolClass, PoolConfig};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use catena_verbs::soft::Fabric;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::{RdmaOptions, RdmaTransport};
use crate::config::Fallback;
use crate::tcp::TcpTransport;
use crate::{Call, Connection, Identity, Incoming, Listener, NetError, PeerId, Segment, Service, Transport};

const LONG: Duration = Duration::from_secs(60);
const ECHO: u16 = 1;
const HOLD: u16 = 2;

/// Answers with what it was sent; [`HOLD`] once the gate opens.
struct Echo(Semaphore);

impl Service for Echo {
    fn class(&self, _: u16, _: &[u8]) -> PoolClass {
        PoolClass::Client
    }
    fn call(self: Arc<Self>, mut request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let data = request.take_data().into_iter().map(|buf| buf.freeze()).collect();
            if request.method == HOLD {
                self.0.acquire().await.expect("the gate stays").forget();
            }
            request.responder().send(Status::Ok, Bytes::new(), data);
        })
    }
}

fn identity(peer: PeerId) -> Identity {
    Identity { cluster: ClusterId(7), token: Token([7; 32]), peer, incarnation: Incarnation(1) }
}

fn pool() -> BufPool {
    BufPool::new(PoolConfig { bytes: [32 << 20, 0, 0, 0, 8 << 20] }).unwrap()
}

fn fabric() -> Fabric {
    let address = |last| IpAddr::from(Ipv4Addr::new(10, 9, 0, last));
    Fabric::new(&[("soft0", address(1)), ("soft1", address(2)), ("soft2", address(3))])
}

fn on(fabric: &Fabric, device: &str, peer: PeerId, options: RdmaOptions) -> RdmaTransport {
    let options = RdmaOptions { devices: vec![device.into()], ..options };
    RdmaTransport::new(Arc::new(fabric.clone()), identity(peer), pool(), options).unwrap()
}

fn server(fabric: &Fabric) -> RdmaTransport {
    on(fabric, "soft0", PeerId::Node(NodeId(1)), RdmaOptions::default())
}

fn client(fabric: &Fabric, options: RdmaOptions) -> RdmaTransport {
    on(fabric, "soft1", PeerId::Client(ClientId(2)), options)
}

async fn listen(transport: &dyn Transport) -> (Arc<Echo>, Box<dyn Listener>) {
    let echo = Arc::new(Echo(Semaphore::new(0)));
    let listener = transport.listen("127.0.0.1:0", echo.clone()).await.unwrap();
    (echo, listener)
}

fn call(transport: &dyn Transport, method: u16, len: usize) -> Call {
    let mut data = transport.pool().try_alloc(len, PoolClass::Client).unwrap();
    data.fill(5);
    let into = transport.pool().try_alloc(len, PoolClass::Client).unwrap();
    Call {
        method,
        data: vec![Segment { data: data.freeze(), align: 0 }],
        into: vec![into],
        deadline: LONG,
        ..Call::default()
    }
}

async fn works(transport: &dyn Transport, address: &str) {
    let connection = transport.connect(address, LONG).await.unwrap();
    let reply = connection.call(call(transport, ECHO, 100_000)).await.unwrap();
    assert!(reply.status == Status::Ok && reply.data[0].iter().all(|&byte| byte == 5));
}

/// A program's own memory, at least 1 MiB.
async fn reached_without_a_copy(transport: &dyn Transport, address: &str, own: &BufPool) {
    let connection = transport.connect(address, LONG).await.unwrap();
    let data = vec![Segment { data: own.claim(0..300_000).unwrap().unwrap().freeze(), align: 0 }];
    let into = vec![own.claim(1 << 19..(1 << 19) + 300_000).unwrap().unwrap()];
    let reply = connection.call(Call { method: ECHO, data, into, deadline: LONG, ..Call::default() }).await;
    assert_eq!((reply.unwrap().status, connection.stats().copied), (Status::Ok, 0));
}

fn used(transport: &dyn Transport) -> usize {
    transport.pool().stats().classes.iter().map(|class| class.used).sum()
}

async fn eventually(condition: impl Fn() -> bool) {
    let mut turns = 0_u64;
    while !condition() {
        turns += 1;
        assert!(turns < 50_000_000, "it never came true");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_listener_serves_clients_over_rdma_and_over_tcp() {
    let fabric = fabric();
    let server = server(&fabric);
    let (_, listener) = listen(&server).await;
    let address = listener.address();
    assert!(address.starts_with("rdma://"));
    works(&client(&fabric, RdmaOptions::default()), &address).await;
    let moved = fabric.moved();
    works(&TcpTransport::new(identity(PeerId::Client(ClientId(3))), pool()), &address).await;
    assert_eq!(fabric.moved(), moved, "that one went over TCP");
}

#[tokio::test]
async fn who_finds_no_rdma_is_told_and_falls_back_only_if_that_was_chosen() {
    let fabric = fabric();
    let server = TcpTransport::new(identity(PeerId::Node(NodeId(1))), pool());
    let (_, listener) = listen(&server).await;
    let address = listener.address();
    let strict = client(&fabric, RdmaOptions::default());
    let error = strict.connect(&address, LONG).await.err().unwrap();
    assert_eq!(error.status(), Status::NoRdma);
    assert!(error.to_string().contains("does not offer RDMA"), "{error}");
    works(&client(&fabric, RdmaOptions { fallback: Fallback::Tcp, ..RdmaOptions::default() }), &address)
        .await;
    // A stranger stays one, whatever it falls back to.
    let options = RdmaOptions { fallback: Fallback::Tcp, ..RdmaOptions::default() };
    let stranger = Identity { token: Token([8; 32]), ..identity(PeerId::Client(ClientId(4))) };
    let stranger = RdmaTransport::new(Arc::new(fabric.clone()), stranger, pool(), options).unwrap();
    assert_eq!(stranger.connect(&address, LONG).await.err().unwrap().status(), Status::BadToken);
}

#[tokio::test]
async fn a_link_that_goes_down_ends_its_connections_and_a_new_one_works_once_it_is_up() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (_, listener) = listen(&server).await;
    let address = listener.address();
    let connection = client.connect(&address, LONG).await.unwrap();
    fabric.set_link("soft1", false);
    let error = connection.call(call(&client, ECHO, 100_000)).await.unwrap_err();
    assert!(matches!(error, NetError::Disconnected { .. }) && error.sent(), "{error}");
    assert!(error.to_string().contains("link is down"), "{error}");
    assert!(connection.is_closed());
    eventually(|| used(&client) == 0).await;
    let error = client.connect(&address, LONG).await.err().unwrap();
    assert!(error.to_string().contains("soft1:1 is DOWN"), "{error}");
    fabric.set_link("soft1", true);
    works(&client, &address).await;
    // Of the server: to be asked again, so nobody gives up for good.
    fabric.set_link("soft0", false);
    assert_eq!(client.connect(&address, LONG).await.err().unwrap().status(), Status::Busy);
}

#[tokio::test]
async fn buffers_of_a_call_that_was_given_up_stay_until_nothing_can_reach_them() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (echo, listener) = listen(&server).await;
    let connection = client.connect(&listener.address(), LONG).await.unwrap();
    // Answered: the reply, behind the last WRITE, gives them back.
    let held = Call { deadline: Duration::from_millis(30), ..call(&client, HOLD, 300_000) };
    let error = connection.call(held).await.unwrap_err();
    assert!(matches!(error, NetError::TimedOut { sent: true, .. }), "{error}");
    assert!(used(&client) >= 600_000, "the server may still write");
    echo.0.add_permits(1);
    eventually(|| used(&client) == 0).await;
    // Not answered: only the queue pair's end does.
    let held = Call { deadline: Duration::from_millis(30), ..call(&client, HOLD, 300_000) };
    connection.call(held).await.unwrap_err();
    assert!(used(&client) >= 600_000);
    drop(connection);
    eventually(|| used(&client) == 0).await;
    echo.0.add_permits(1);
    eventually(|| used(&server) == 0 && fabric.pairs() == 0).await;
}

#[tokio::test]
async fn data_of_a_call_that_was_given_up_is_not_fetched_any_more() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (_, listener) = listen(&server).await;
    let connection = client.connect(&listener.address(), LONG).await.unwrap();
    let (_, before) = fabric.moved();
    fabric.hold();
    let call = Call { deadline: Duration::from_millis(30), ..call(&client, ECHO, 4 << 20) };
    connection.call(call).await.unwrap_err();
    // The request and the news that nobody waits for it arrive together.
    fabric.release();
    eventually(|| used(&client) == 0 && used(&server) == 0).await;
    let moved = fabric.moved().1 - before;
    assert!(moved < 1 << 20, "{moved} bytes for nobody");
}

#[tokio::test]
async fn an_end_that_is_out_of_receives_is_cut_off() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (_, listener) = listen(&server).await;
    let address = listener.address();
    let connection = client.connect(&address, LONG).await.unwrap();
    fabric.lose_receives();
    let error = connection.call(call(&client, ECHO, 100)).await.unwrap_err();
    assert!(error.to_string().contains("out of receives"), "{error}");
    works(&client, &address).await;
}

#[tokio::test]
async fn connections_are_bounded_by_the_memory_for_their_messages() {
    let fabric = fabric();
    let options = RdmaOptions { message_memory: 4 << 20, ..RdmaOptions::default() };
    let server = on(&fabric, "soft0", PeerId::Node(NodeId(1)), options);
    let client = client(&fabric, RdmaOptions::default());
    let (_, listener) = listen(&server).await;
    let address = listener.address();
    let mut connections = Vec::new();
    let error = loop {
        match client.connect(&address, LONG).await {
            Ok(connection) => connections.push(connection),
            Err(error) => break error,
        }
        assert!(connections.len() <= 16);
    };
    assert_eq!((connections.len(), error.status()), (16, Status::Busy));
    assert!(error.to_string().contains("message_memory"), "{error}");
    connections.pop();
    eventually(|| listener.stats().open.len() == 15).await;
    works(&client, &address).await;
}

#[tokio::test]
async fn several_ports_are_used_in_turn_and_one_that_is_down_is_left_out() {
    let fabric = fabric();
    let all = |peer| {
        RdmaTransport::new(Arc::new(fabric.clone()), identity(peer), pool(), RdmaOptions::default()).unwrap()
    };
    let (server, client) = (all(PeerId::Node(NodeId(1))), all(PeerId::Client(ClientId(2))));
    let (_, listener) = listen(&server).await;
    let address = listener.address();
    fabric.set_link("soft1", false);
    for _ in 0..6 {
        works(&client, &address).await;
    }
    assert_eq!(fabric.regions(), 2 * 2 * 3, "two pools of two processes on three devices");
}

#[test]
fn a_device_that_is_not_there_is_named_with_those_that_are() {
    let options = RdmaOptions { devices: vec!["mlx5_9".into()], ..RdmaOptions::default() };
    let error = RdmaTransport::new(Arc::new(fabric()), identity(PeerId::Node(NodeId(1))), pool(), options)
        .err()
        .unwrap();
    assert!(error.to_string().contains("`mlx5_9`; there are: soft0, soft1, soft2"), "{error}");
}

/// Data that the device cannot reach goes through the pool, and is counted.
#[tokio::test]
async fn heap_memory_is_copied_and_counted_and_registered_memory_is_not() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (_, listener) = listen(&server).await;
    let connection = client.connect(&listener.address(), LONG).await.unwrap();
    connection.call(call(&client, ECHO, 50_000)).await.unwrap();
    assert_eq!((connection.stats().copied, listener.stats().all.copied), (0, 0));
    let mut heap = call(&client, ECHO, 50_000);
    heap.data = vec![Segment { data: catena_buf::Buf::from_vec(vec![6; 50_000]), align: 0 }];
    let reply = connection.call(heap).await.unwrap();
    assert!(reply.data[0].iter().all(|&byte| byte == 6));
    assert_eq!(connection.stats().copied, 50_000);
}

/// A reply without data asks for no completion of its own: a shutdown waits until it has gone all the same.
#[tokio::test]
async fn a_shutdown_waits_until_the_last_reply_has_left_the_device() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (echo, listener) = listen(&server).await;
    let connection = client.connect(&listener.address(), LONG).await.unwrap();
    let held = tokio::spawn(connection.call(Call::new(HOLD, Bytes::new(), LONG)));
    eventually(|| listener.stats().all.in_flight() == 1).await;
    fabric.hold();
    echo.0.add_permits(1);
    eventually(|| listener.stats().all.in_flight() == 0).await;
    let down = tokio::spawn(listener.shutdown(LONG));
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!down.is_finished() && !held.is_finished());
    fabric.release();
    assert_eq!(held.await.unwrap().unwrap().status, Status::Ok);
    down.await.unwrap();
}

#[tokio::test]
async fn a_device_that_is_lost_ends_its_connections_and_is_opened_again_when_it_is_back() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (echo, listener) = listen(&server).await;
    let address = listener.address();
    let own = BufPool::for_claims(1 << 20).unwrap();
    client.register(&own).unwrap();
    // In turn the client's and the server's; a call is under way, and nobody is told of it by a completion.
    for (device, transport) in [("soft1", &client), ("soft0", &server)] {
        let connection: Arc<dyn Connection> = client.connect(&address, LONG).await.unwrap();
        let waiting = tokio::spawn({
            let (connection, call) = (connection.clone(), call(&client, HOLD, 100_000));
            async move { connection.call(call).await }
        });
        eventually(|| listener.stats().all.in_flight() == 1).await;
        fabric.take_away(device);
        let error = waiting.await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Disconnected { .. }) && error.sent(), "{error}");
        assert!(connection.is_closed());
        echo.0.add_permits(1);
        eventually(|| used(&client) == 0 && used(&server) == 0 && fabric.pairs() == 0).await;
        let outage = transport.outage().unwrap();
        assert!(outage.contains(device) && outage.contains("opened again"), "{outage}");
        let error = client.connect(&address, LONG).await.err().unwrap();
        assert!(error.to_string().contains(device), "{error}");
        fabric.give_back(device);
        eventually(|| transport.outage().is_none()).await;
        works(&client, &address).await;
    }
    // What a program had registered is registered with the new opening as well.
    reached_without_a_copy(&client, &address, &own).await;
}

#[tokio::test]
async fn a_lost_device_leaves_its_connections_to_the_others() {
    let fabric = fabric();
    let server = server(&fabric);
    let (_, listener) = listen(&server).await;
    let two = RdmaOptions { devices: vec!["soft1".into(), "soft2".into()], ..RdmaOptions::default() };
    let peer = identity(PeerId::Client(ClientId(2)));
    let client = RdmaTransport::new(Arc::new(fabric.clone()), peer, pool(), two).unwrap();
    fabric.take_away("soft1");
    assert_eq!(client.outage(), None);
    for _ in 0..4 {
        works(&client, &listener.address()).await;
    }
}

/// Beside the device that everybody uses there may be one of another kind, whose driver loads by itself.
#[tokio::test]
async fn a_device_that_cannot_be_used_is_left_out_unless_it_was_named() {
    let fabric = fabric();
    fabric.make_foreign("soft1");
    let open = |devices: &[&str]| {
        let devices = devices.iter().map(|&device| device.into()).collect();
        let options = RdmaOptions { devices, ..RdmaOptions::default() };
        RdmaTransport::new(Arc::new(fabric.clone()), identity(PeerId::Node(NodeId(1))), pool(), options)
    };
    let server = open(&[]).unwrap();
    assert_eq!(server.rails.names(), "soft0:1, soft2:1");
    let (_, listener) = listen(&server).await;
    works(&on(&fabric, "soft2", PeerId::Client(ClientId(2)), RdmaOptions::default()), &listener.address())
        .await;
    assert_eq!(open(&["soft2", "soft0:1"]).unwrap().rails.names(), "soft2:1, soft0:1", "as they were named");
    let error = open(&["soft0", "soft1"]).err().unwrap();
    assert!(error.to_string().contains("soft1 cannot do it"), "{error}");
    ["soft0", "soft2"].into_iter().for_each(|device| fabric.make_foreign(device));
    let error = open(&[]).err().unwrap();
    assert!(error.to_string().contains("soft0 cannot do it"), "the first one's reason: {error}");
}

#[tokio::test]
async fn memory_may_be_registered_while_a_device_is_lost() {
    let fabric = fabric();
    let server = server(&fabric);
    let (_, listener) = listen(&server).await;
    let client = client(&fabric, RdmaOptions::default());
    fabric.take_away("soft1");
    let own = BufPool::for_claims(1 << 20).unwrap();
    client.register(&own).unwrap();
    fabric.give_back("soft1");
    eventually(|| client.outage().is_none()).await;
    reached_without_a_copy(&client, &listener.address(), &own).await;
}

/// A post that is refused may have posted a beginning. What is lost must not be followed by a reply that says that all is there.
#[tokio::test]
async fn nothing_is_sent_behind_a_post_that_failed() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (echo, listener) = listen(&server).await;
    let address = listener.address();
    let connection = client.connect(&address, LONG).await.unwrap();
    let held: Vec<_> = [100_000, 100]
        .map(|len| tokio::spawn(connection.call(call(&client, HOLD, len))))
        .into_iter()
        .collect();
    eventually(|| listener.stats().all.in_flight() == 2).await;
    for _ in 0..1000 {
        // The handlers come to their gate.
        tokio::task::yield_now().await;
    }
    fabric.fail_a_batch();
    echo.0.add_permits(2);
    for held in held {
        let error = held.await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Disconnected { .. }) && error.sent(), "{error}");
    }
    eventually(|| used(&server) == 0 && used(&client) == 0 && fabric.pairs() == 0).await;
    works(&client, &address).await;
}

#[tokio::test]
async fn an_answer_that_came_before_the_peer_left_is_heard_though_its_event_is_late() {
    let fabric = fabric();
    let (server, client) = (server(&fabric), client(&fabric, RdmaOptions::default()));
    let (echo, listener) = listen(&server).await;
    let connection = client.connect(&listener.address(), LONG).await.unwrap();
    let held = tokio::spawn(connection.call(call(&client, HOLD, 100_000)));
    eventually(|| listener.stats().all.in_flight() == 1).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    fabric.delay_events(true);
    echo.0.add_permits(1);
    eventually(|| listener.stats().all.in_flight() == 0).await;
    drop(listener);
    assert_eq!(held.await.unwrap().unwrap().status, Status::Ok);
}

#[tokio::test]
async fn a_process_whose_ports_are_all_down_says_so() {
    let fabric = fabric();
    let two = RdmaOptions { devices: vec!["soft0".into(), "soft1".into()], ..RdmaOptions::default() };
    let open = |options| {
        RdmaTransport::new(Arc::new(fabric.clone()), identity(PeerId::Node(NodeId(1))), pool(), options)
            .unwrap()
    };
    let (strict, lenient) = (open(two.clone()), open(RdmaOptions { fallback: Fallback::Tcp, ..two }));
    // It says how it was when last asked, and asks.
    let outage = async |transport: &RdmaTransport| {
        transport.rails.ask().await;
        transport.outage()
    };
    assert_eq!(outage(&strict).await, None);
    fabric.set_link("soft0", false);
    assert_eq!(outage(&strict).await, None, "the other is up");
    fabric.set_link("soft1", false);
    let both = outage(&strict).await.unwrap();
    assert!(both.contains("soft0:1 is DOWN") && both.contains("soft1:1 is DOWN"), "{both}");
    assert_eq!(outage(&lenient).await, None, "TCP may go another way");
    fabric.set_link("soft1", true);
    eventually(|| strict.outage().is_none()).await;
}

/// A driver waits for its firmware, up to a minute if that hangs.
#[tokio::test]
async fn a_device_that_does_not_answer_holds_up_nobody_but_its_own_connections() {
    let fabric = fabric();
    let two = RdmaOptions { devices: vec!["soft1".into(), "soft2".into()], ..RdmaOptions::default() };
    let peer = identity(PeerId::Client(ClientId(2)));
    let client = RdmaTransport::new(Arc::new(fabric.clone()), peer, pool(), two).unwrap();
    let server = server(&fabric);
    let (_, listener) = listen(&server).await;
    fabric.set_silent("soft1", true);
    let begun = std::time::Instant::now();
    assert_eq!(client.outage(), None);
    assert!(begun.elapsed() < Duration::from_millis(500), "it was not waited for");
    // Its connections are made over the other one, also while many are.
    works(&client, &listener.address()).await;
    assert_eq!(client.outage(), None);
    // If all are silent, nobody can make a connection to this process any more.
    fabric.set_silent("soft2", true);
    eventually(|| client.outage().is_some_and(|outage| outage.contains("soft2:1 cannot be used"))).await;
    fabric.set_silent("soft2", false);
    eventually(|| client.outage().is_none()).await;
    fabric.set_silent("soft1", false);
    client.rails.ask().await;
    for _ in 0..4 {
        works(&client, &listener.address()).await;
    }
}

#[tokio::test]
async fn memory_that_was_registered_is_reached_without_a_copy_and_other_memory_is_not() {
    let fabric = fabric();
    let server = server(&fabric);
    let (_, listener) = listen(&server).await;
    let client = client(&fabric, RdmaOptions::default());
    let connection = client.connect(&listener.address(), LONG).await.unwrap();
    let own = BufPool::for_claims(8 << 20).unwrap();
    let echo = || {
        let mut data = own.claim(4096..304_096).unwrap().unwrap();
        data.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
        let into = own.claim(1 << 20..(1 << 20) + 300_000).unwrap().unwrap();
        let data = vec![Segment { data: data.freeze(), align: 0 }];
        connection.call(Call { method: ECHO, data, into: vec![into], deadline: LONG, ..Call::default() })
    };
    let refused = echo().await.unwrap_err();
    assert!(refused.to_string().contains("register it first"), "{refused}");
    let copied = connection.stats().copied;
    assert_eq!(copied, 300_000, "what is sent goes through a buffer of the pool");
    client.register(&own).unwrap();
    client.register(&own).unwrap();
    for _ in 0..3 {
        let reply = echo().await.unwrap();
        let back = &reply.data[0];
        assert!(own.owns(back) && back.region_offset() == 1 << 20 && back.len() == 300_000);
        assert!(back.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    }
    assert_eq!(connection.stats().copied, copied);
}
