//! Nodes crash, return, lose messages and hear late of chain changes, while writers write and readers read. Every read must show a whole
//! state of the chunk's one history, no older than what was acknowledged before the read began; in the end all replicas are identical
//! and hold what was acknowledged last, each write applied once.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use catena_mgmtd_client::RoutingWatch;
use catena_proto::ids::*;
use catena_proto::routing::{LocalState, PublicState};
use catena_proto::status::Status;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::*;
use tokio::time::sleep;

/// Contents of one chunk after each version, by its only writer.
#[derive(Default)]
struct History {
    states: Mutex<Vec<Vec<u8>>>,
    acknowledged: AtomicU64,
    attempted: AtomicU64,
}

struct Shared {
    watch: RoutingWatch,
    client: Client,
    histories: Vec<History>,
    done: AtomicBool,
    reads: AtomicU64,
}

impl Shared {
    /// Nodes of the serving targets in order, and a client of that chain version.
    fn serving(&self) -> (Vec<u32>, Client) {
        let info = self.watch.current();
        let nodes = info.targets_in(CHAIN, PublicState::Serving).map(|target| target.node.0).collect();
        let version = info.chains[&CHAIN].version;
        (nodes, Client { version, deadline: Duration::from_secs(2), ..self.client.clone() })
    }
}

async fn writer(shared: Arc<Shared>, index: u32, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let history = &shared.histories[index as usize];
    let mut contents: Vec<u8> = Vec::new();
    for sequence in 1.. {
        if shared.done.load(Ordering::Relaxed) {
            return;
        }
        let offset = rng.random_range(0..60_000_u32);
        let data = bytes(sequence, rng.random_range(1..12_000));
        let end = offset as usize + data.len();
        contents.resize(contents.len().max(end), 0);
        contents[offset as usize..end].copy_from_slice(&data);
        history.states.lock().push(contents.clone());
        history.attempted.store(sequence, Ordering::SeqCst);
        loop {
            let (serving, client) = shared.serving();
            let Some(&head) = serving.first() else {
                sleep(Duration::from_millis(2)).await;
                continue;
            };
            match client.write(head, chunk(index), offset, &data, sequence).await {
                Ok(written) => {
                    assert_eq!((written.version, written.length), (sequence, contents.len() as u32), "once");
                    break;
                }
                Err(Status::StaleSequence | Status::Invalid | Status::Malformed | Status::Damaged) => {
                    panic!("chunk {index}: write {sequence} was refused for good")
                }
                Err(_) => sleep(Duration::from_millis(2)).await,
            }
        }
        history.acknowledged.store(sequence, Ordering::SeqCst);
    }
}

async fn reader(shared: Arc<Shared>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seen = vec![0; shared.histories.len()];
    while !shared.done.load(Ordering::Relaxed) {
        let index = rng.random_range(0..shared.histories.len());
        let history = &shared.histories[index];
        let (serving, client) = shared.serving();
        if serving.is_empty() {
            sleep(Duration::from_millis(2)).await;
            continue;
        }
        let node = serving[rng.random_range(0..serving.len())];
        let floor = history.acknowledged.load(Ordering::SeqCst).max(seen[index]);
        let read = client.read(node, chunk(index as u32), 0, 100_000).await;
        let ceiling = history.attempted.load(Ordering::SeqCst);
        match read {
            Ok(read) => {
                assert!(
                    (floor..=ceiling).contains(&read.version),
                    "chunk {index} at node {node}: read version {}, acknowledged or seen {floor}, attempted {ceiling}",
                    read.version
                );
                let states = history.states.lock();
                assert!(
                    read.data == states[read.version as usize - 1],
                    "chunk {index}: not version {}",
                    read.version
                );
                seen[index] = read.version;
                shared.reads.fetch_add(1, Ordering::Relaxed);
            }
            Err(Status::NotFound) => assert_eq!(floor, 0, "chunk {index} at node {node} has gone"),
            Err(Status::Corrupt) => panic!("chunk {index} at node {node} is corrupt"),
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Lets every target take its next step towards serving, as mgmtd would.
fn advance(world: &mut World) {
    let serving = world.in_state(PublicState::Serving);
    for id in 1..=world.nodes.len() as u32 {
        let target = &world.info.targets[&TargetId(id.into())];
        let (state, joined_at) = (target.state, target.joined_at.0);
        let Some(report) = world.report(id) else { continue };
        match (state, report.local()) {
            (PublicState::Serving, LocalState::Offline) => panic!("target {id} went offline by itself"),
            (PublicState::Syncing, LocalState::UpToDate) if report.joined_at == joined_at => {
                return world.change(&[(id, PublicState::Serving)]);
            }
            (PublicState::Lastsrv, LocalState::Online) if serving.is_empty() => {
                let others = world.in_state(PublicState::Lastsrv);
                let mut changes = vec![(id, PublicState::Serving)];
                let others = others.into_iter().filter(|&other| other != id);
                changes.extend(others.map(|other| (other, PublicState::Offline)));
                return world.change(&changes);
            }
            (PublicState::Offline | PublicState::Waiting, LocalState::Online)
                if !serving.is_empty() && world.in_state(PublicState::Syncing).is_empty() =>
            {
                return world.change(&[(id, PublicState::Syncing)]);
            }
            _ => {}
        }
    }
}

/// Takes crashed nodes out of the chain; the last ones become lastsrv together.
fn lose(world: &mut World, ids: &[u32]) {
    let serving = world.in_state(PublicState::Serving);
    let all_lost = serving.iter().all(|id| ids.contains(id)) && !serving.is_empty();
    let mut changes = Vec::new();
    for &id in ids {
        let state = world.info.targets[&TargetId(id.into())].state;
        match state {
            PublicState::Serving if all_lost => changes.push((id, PublicState::Lastsrv)),
            PublicState::Lastsrv | PublicState::Offline => {}
            _ => changes.push((id, PublicState::Offline)),
        }
    }
    if all_lost {
        // Nobody can go on bringing another up to date.
        let syncing = world.in_state(PublicState::Syncing);
        changes
            .extend(syncing.into_iter().filter(|id| !ids.contains(id)).map(|id| (id, PublicState::Offline)));
    }
    if !changes.is_empty() {
        world.change(&changes);
    }
}

async fn story(seed: u64, rounds: u32) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new(3).await;
    let shared = Arc::new(Shared {
        watch: world.watch(),
        client: world.client().await,
        histories: (0..4).map(|_| History::default()).collect(),
        done: AtomicBool::new(false),
        reads: AtomicU64::new(0),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..4 {
        tasks.spawn(writer(shared.clone(), index, seed * 100 + u64::from(index)));
        tasks.spawn(reader(shared.clone(), seed * 1000 + u64::from(index)));
    }
    for _ in 0..rounds {
        sleep(Duration::from_millis(rng.random_range(1..60))).await;
        match rng.random_range(0..10) {
            // One or two crash, sometimes all of them.
            0..4 => {
                let count = [1, 1, 1, 2, 3][rng.random_range(0..5)];
                let mut ids: Vec<u32> = (1..=3).collect();
                while ids.len() > count {
                    ids.swap_remove(rng.random_range(0..ids.len()));
                }
                ids.iter().for_each(|&id| world.crash(id));
                lose(&mut world, &ids);
                sleep(Duration::from_millis(rng.random_range(0..30))).await;
                for id in ids {
                    world.start(id).await;
                }
                world.publish();
            }
            4..6 => world.cut(rng.random_range(1..4), rng.random_range(1..4)),
            6 => drop(world.deaf.insert(rng.random_range(1..4))),
            _ => {
                world.net.heal();
                world.deaf.clear();
                world.publish();
            }
        }
        advance(&mut world);
        while let Some(ended) = tasks.try_join_next() {
            ended.unwrap();
        }
    }
    world.net.heal();
    world.deaf.clear();
    world.publish();
    let healing = async {
        while world.in_state(PublicState::Serving).len() < 3 {
            advance(&mut world);
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), healing).await.expect("full strength is reached again");
    shared.done.store(true, Ordering::Relaxed);
    while let Some(ended) =
        tokio::time::timeout(Duration::from_secs(30), tasks.join_next()).await.expect("all end")
    {
        ended.unwrap();
    }
    world.adopted().await;
    world.identical(&[1, 2, 3]).await;
    let client = world.client().await;
    for (index, history) in shared.histories.iter().enumerate() {
        let last = history.acknowledged.load(Ordering::SeqCst);
        assert!(last > 0);
        for node in 1..=3 {
            let read = client.read(node, chunk(index as u32), 0, 100_000).await.unwrap();
            assert_eq!(read.version, last);
            assert!(read.data == history.states.lock()[last as usize - 1]);
        }
    }
    let writes: u64 =
        shared.histories.iter().map(|history| history.acknowledged.load(Ordering::SeqCst)).sum();
    println!("seed {seed}: {writes} writes, {} reads", shared.reads.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_taken_back_whatever_fails() {
    let seeds = std::env::var("CATENA_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2);
    for seed in 1..=seeds {
        story(seed, 40).await;
    }
}
