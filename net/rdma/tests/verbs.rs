//! Queue pairs as the transport uses them: on the software double everywhere, on real devices where `CATENA_TEST_RDMA` names two
//! (`rx1=10.9.0.1,rx2=10.9.0.2`). One story for both: what the double promises is what devices do.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use catena_buf::{Buf, BufPool, IoBuf, MAX_BUF, PoolClass, PoolConfig};
use catena_verbs::queue_pair::{Broken, Event, Init, QueuePair, Reading, ReadyToSend, Sizes};
use catena_verbs::soft::Fabric;
use catena_verbs::{Access, CompletionError, LinkLayer, Nic, Path, PeerAddress, Provider, Remote, ibv};

const SIZES: Sizes = Sizes { works: 64, receives: 8, sends: 16, inline: 64 };

/// One end: a device, its pool, the memory of messages.
struct Host {
    nic: Arc<Nic>,
    pool: BufPool,
    messages: BufPool,
}

struct World {
    hosts: [Host; 2],
    /// The double, if there are no devices.
    fabric: Option<Fabric>,
}

fn world() -> World {
    let pool = |class: usize| {
        let mut bytes = [0; 5];
        bytes[class] = 4 * MAX_BUF;
        BufPool::new(PoolConfig { bytes }).unwrap()
    };
    let host = |provider: &dyn Provider, name: &str| {
        let (pool, messages) = (pool(0), pool(4));
        Host { nic: Nic::open(provider, name, &[&pool, &messages]).unwrap(), pool, messages }
    };
    match std::env::var("CATENA_TEST_RDMA") {
        Ok(named) => {
            let names: Vec<&str> = named.split(',').map(|pair| pair.split('=').next().unwrap()).collect();
            let provider = ibv::provider().unwrap();
            World { hosts: [host(&*provider, names[0]), host(&*provider, names[1])], fabric: None }
        }
        Err(_) => {
            let address = |last| IpAddr::from(Ipv4Addr::new(10, 9, 0, last));
            let fabric = Fabric::new(&[("soft0", address(1)), ("soft1", address(2))]);
            World { hosts: [host(&fabric, "soft0"), host(&fabric, "soft1")], fabric: Some(fabric) }
        }
    }
}

/// Half a connection, and what the other half needs to know.
fn half(host: &Host, access: Access) -> (QueuePair<Init>, PeerAddress, Path) {
    let info = host.nic.info().unwrap();
    let port = &info.ports[0];
    let gid = port.gids.iter().find(|gid| gid.gid.ip().is_ipv4()).unwrap();
    let pair = QueuePair::new(host.nic.clone(), &host.messages, SIZES)
        .unwrap()
        .init(port.number, port.pkey_index, access)
        .unwrap();
    let address = PeerAddress { number: pair.number(), psn: 77, lid: port.lid, gid: gid.gid, reads: 8 };
    let path = Path {
        port: port.number,
        link: LinkLayer::Ethernet,
        gid_index: gid.index,
        mtu: port.mtu,
        hop_limit: 64,
        traffic_class: 0,
        service_level: 0,
        timeout: 10,
        retries: 3,
        rnr_retries: 2,
        reads: 8,
    };
    (pair, address, path)
}

type Pair = QueuePair<ReadyToSend>;

/// The first may touch the second's memory.
fn connect(world: &World) -> (Pair, Pair) {
    let (one, one_at, one_path) = half(&world.hosts[0], Access::None);
    let (two, two_at, two_path) = half(&world.hosts[1], Access::ReadWrite);
    let ready = |pair: QueuePair<Init>, path: &Path, peer: &PeerAddress| {
        pair.ready_to_receive(path, peer).unwrap().ready_to_send(path, 77).unwrap()
    };
    (ready(one, &one_path, &two_at), ready(two, &two_path, &one_at))
}

#[derive(Debug, PartialEq)]
enum Seen {
    Message(Vec<u8>),
    Read(usize),
    Written(usize),
}

/// Waits, by events, until something happens.
async fn next(pair: &mut Pair) -> Result<Vec<Seen>, CompletionError> {
    loop {
        let mut seen = Vec::new();
        let mut poll = |pair: &mut Pair| {
            pair.poll(16, |event| {
                seen.push(match event {
                    Event::Message(bytes) => Seen::Message(bytes.to_vec()),
                    Event::Read(_, len) => Seen::Read(len),
                    Event::Written(len) => Seen::Written(len),
                })
            })
        };
        let mut polled = poll(pair);
        if matches!(polled, Ok(0)) {
            pair.arm().unwrap();
            polled = poll(pair);
        }
        match polled {
            Ok(_) if !seen.is_empty() => return Ok(seen),
            // Completions that tell nothing: of messages that were sent.
            Ok(count) if count > 0 => {}
            Ok(_) => {
                let event = poll_fn(|context| pair.poll_event(context));
                tokio::time::timeout(Duration::from_secs(20), event).await.expect("an event").unwrap();
            }
            Err(Broken::Completion(error)) => return Err(error),
            Err(Broken::Verb(error)) => panic!("{error}"),
        }
    }
}

fn filled(host: &Host, len: usize, byte: u8) -> IoBuf {
    let mut buf = host.pool.try_alloc(len, PoolClass::Client).unwrap();
    buf.fill(byte);
    buf
}

#[tokio::test]
async fn messages_arrive_in_order_short_and_long() {
    let world = world();
    let (mut one, mut two) = connect(&world);
    let long = vec![7; 4096];
    let mut batch = one.batch();
    batch.send(&[b"in", b"line"]);
    batch.send(&[&long]);
    batch.send(&[b""]);
    assert_eq!(batch.post().unwrap(), 3);
    let mut got = Vec::new();
    while got.len() < 3 {
        got.extend(next(&mut two).await.unwrap());
    }
    assert_eq!(got, [Seen::Message(b"inline".to_vec()), Seen::Message(long), Seen::Message(Vec::new())]);
}

/// What a reply relies on.
#[tokio::test]
async fn what_was_written_is_there_when_the_message_behind_it_is() {
    let world = world();
    let (mut one, mut two) = connect(&world);
    let mut into = filled(&world.hosts[1], 1 << 20, 0);
    for round in 1..=8 {
        let to = world.hosts[1].nic.writable(&mut into, 4096).unwrap();
        let mut batch = one.batch();
        batch.write(filled(&world.hosts[0], 700_000, round).freeze(), to);
        batch.send(&[&[round]]);
        batch.post().unwrap();
        assert_eq!(next(&mut two).await.unwrap(), [Seen::Message(vec![round])]);
        assert!(into[4096..704_096].iter().all(|&byte| byte == round));
        assert!(into[..4096].iter().chain(&into[704_096..]).all(|&byte| byte == 0), "nothing beside it");
        assert_eq!(next(&mut one).await.unwrap(), [Seen::Written(700_000)]);
    }
    assert_eq!(world.hosts[0].pool.stats().classes[0].used, 0, "written buffers are free");
}

#[tokio::test]
async fn bytes_can_be_fetched_in_parts() {
    let world = world();
    let (mut one, two) = connect(&world);
    let source = filled(&world.hosts[1], 300_000, 9).freeze();
    let from = world.hosts[1].nic.readable(&source).unwrap();
    let reading = Reading::new(vec![filled(&world.hosts[0], 300_100, 0)], 5);
    let mut batch = one.batch();
    batch.read(&reading, 0, 100, 200_000, from);
    batch.read(&reading, 0, 200_100, 100_000, Remote { address: from.address + 200_000, ..from });
    batch.post().unwrap();
    let mut left = 300_000;
    while left > 0 {
        for seen in next(&mut one).await.unwrap() {
            let Seen::Read(len) = seen else { panic!("{seen:?}") };
            left -= len;
        }
    }
    let buf = Arc::into_inner(reading).expect("nobody reads into it any more").finish().remove(0);
    assert!(buf[..100].iter().all(|&byte| byte == 0) && buf[100..300_100].iter().all(|&byte| byte == 9));
    drop(two);
}

#[tokio::test]
async fn many_requests_without_completions_of_their_own_leave_room() {
    let world = world();
    let (mut one, mut two) = connect(&world);
    let mut got = 0;
    for round in 0..400_u32 {
        while one.message_room() == 0 || round >= got + SIZES.receives as u32 {
            got += next(&mut two).await.unwrap().len() as u32;
            let _ = one.poll(16, |_| ());
        }
        let mut batch = one.batch();
        batch.send(&[&round.to_le_bytes()]);
        batch.post().unwrap();
    }
    while got < 400 {
        got += next(&mut two).await.unwrap().len() as u32;
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_ends_the_queue_pair() {
    let world = world();
    let (mut one, two) = connect(&world);
    let mut into = filled(&world.hosts[1], 4096, 1);
    let to = world.hosts[1].nic.writable(&mut into, 0).unwrap();
    let mut batch = one.batch();
    batch.write(filled(&world.hosts[0], 4096, 2).freeze(), Remote { key: to.key ^ 0x5a5a_5a00, ..to });
    batch.write(filled(&world.hosts[0], 4096, 3).freeze(), to);
    batch.post().unwrap();
    assert_eq!(next(&mut one).await.unwrap_err(), CompletionError::REMOTE_ACCESS);
    assert!(into.iter().all(|&byte| byte == 1), "and nothing behind it is carried out");
    assert_eq!(world.hosts[0].pool.stats().classes[0].used, 8192, "kept while the queue pair lives");
    drop(one);
    assert_eq!(world.hosts[0].pool.stats().classes[0].used, 0);
    drop(two);
}

/// The key is right, the right to use it is missing.
#[tokio::test]
async fn who_was_given_no_access_has_none() {
    let world = world();
    let (one, mut two) = connect(&world);
    let mut target = filled(&world.hosts[0], 4096, 1);
    let to = world.hosts[0].nic.writable(&mut target, 0).unwrap();
    let mut batch = two.batch();
    batch.write(filled(&world.hosts[1], 4096, 2).freeze(), to);
    batch.post().unwrap();
    let error = next(&mut two).await.unwrap_err();
    assert!([CompletionError::REMOTE_ACCESS, CompletionError::REMOTE_INVALID].contains(&error), "{error}");
    assert!(target.iter().all(|&byte| byte == 1));
    drop(one);
}

#[tokio::test]
async fn a_peer_that_is_gone_is_noticed() {
    let world = world();
    let (mut one, two) = connect(&world);
    drop(two);
    let mut batch = one.batch();
    batch.write(filled(&world.hosts[0], 4096, 2).freeze(), Remote { address: 4096, key: 1 });
    batch.post().unwrap();
    assert_eq!(next(&mut one).await.unwrap_err(), CompletionError::RETRY_EXCEEDED);
}

#[tokio::test]
async fn a_peer_out_of_receives_is_an_error_and_not_a_wait_without_end() {
    let world = world();
    let (mut one, two) = connect(&world);
    let mut batch = one.batch();
    for _ in 0..=SIZES.receives {
        batch.send(&[&[0; 200]]);
    }
    batch.write(filled(&world.hosts[0], 4096, 2).freeze(), Remote { address: 4096, key: 1 });
    batch.post().unwrap();
    assert_eq!(next(&mut one).await.unwrap_err(), CompletionError::RNR_EXCEEDED);
    drop(two);
}

/// **A late WRITE never lands in a buffer with a new owner.** The peer's WRITEs are under way, this end gives up: once its queue pair has
/// been destroyed, the memory can have a new owner, whatever is still in the network.
#[tokio::test]
async fn nothing_lands_after_the_queue_pair_is_gone() {
    let world = world();
    for round in 0..20 {
        let (mut one, two) = connect(&world);
        let mut into = filled(&world.hosts[1], 2 << 20, 0);
        let to = world.hosts[1].nic.writable(&mut into, 0).unwrap();
        if let Some(fabric) = &world.fabric {
            fabric.hold();
        }
        let data: Buf = filled(&world.hosts[0], 2 << 20, 0xdd).freeze();
        let mut batch = one.batch();
        for part in 0..8 {
            let at = part * (256 << 10);
            let to = Remote { address: to.address + at as u64, ..to };
            batch.write(data.slice(at..at + (256 << 10)), to);
        }
        batch.post().unwrap();
        // On a device: at some moment in the middle of it.
        for _ in 0..round * 200 {
            std::hint::spin_loop();
        }
        drop(two);
        // The new owner.
        into.fill(0x11);
        if let Some(fabric) = &world.fabric {
            fabric.release();
        }
        match next(&mut one).await {
            // Whatever was not there before is refused,
            Err(error) => assert_eq!(error, CompletionError::RETRY_EXCEEDED),
            // unless a device was done with all of it by then.
            Ok(seen) => assert!(world.fabric.is_none(), "{seen:?}"),
        }
        assert!(into.iter().all(|&byte| byte == 0x11), "a WRITE landed in somebody's buffer, round {round}");
    }
}

#[tokio::test]
async fn everything_is_given_back() {
    let world = world();
    let pairs: Vec<_> = (0..4).map(|_| connect(&world)).collect();
    drop(pairs);
    let World { hosts, fabric } = world;
    for host in &hosts {
        assert_eq!(host.messages.stats().classes[4].used, 0);
    }
    drop(hosts);
    if let Some(fabric) = fabric {
        assert_eq!((fabric.pairs(), fabric.regions()), (0, 0));
    }
}
