//! Failures that replicated storage is known to get wrong, each as a story by name. The first five are from what was found in the design that
//! Catena follows; the seed still decides everything that a story leaves open.

use std::sync::Arc;
use std::time::Duration;

use catena_engine::sim::Crash;
use catena_net::mem::Weather;
use catena_proto::ids::ChainId;
use catena_proto::routing::PublicState;
use catena_rt::time::{sleep, timeout};
use rand::Rng;
use rand::rngs::StdRng;

use crate::cluster::{World, calm};
use crate::work::chunks;

/// A story.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// The tail commits and dies before its acknowledgement is heard.
    TailCommitsThenDies,
    /// A predecessor adopts chain versions much later than its successor.
    PredecessorIsLate,
    /// Chunks are cut and removed while a target returns.
    CutsDuringResync,
    /// The one that helps a syncing target dies, and then the syncing one.
    TwoFailuresWhileSyncing,
    /// The power of everything goes at once.
    EverythingLosesPower,
    /// One after the other is lost; only the last one may bring the chain back, and only with the disk that it had.
    LastServingLost,
    /// Clients whose answers got lost ask again when others have taken the place of those that knew.
    RetriesMeetOthers,
    /// The head is cut off from the managers, and then from its successor: others go on without it.
    HeadCutOff,
}

/// All of them.
pub const ALL: [Case; 8] = [
    Case::TailCommitsThenDies,
    Case::PredecessorIsLate,
    Case::CutsDuringResync,
    Case::TwoFailuresWhileSyncing,
    Case::EverythingLosesPower,
    Case::LastServingLost,
    Case::RetriesMeetOthers,
    Case::HeadCutOff,
];

fn serving(world: &World) -> Vec<u32> {
    let routing = world.watch().current();
    let chain = routing.chains.keys().next().copied().unwrap_or(ChainId(1));
    routing.targets_in(chain, PublicState::Serving).map(|target| target.node.0).collect()
}

async fn until(world: &World, holds: impl Fn(&[u32]) -> bool) -> bool {
    let watch = world.watch();
    let waiting = async {
        loop {
            let version = watch.current().version;
            if holds(&serving(world)) {
                return;
            }
            watch.changed(version).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.is_ok()
}

async fn a_moment(rng: &mut StdRng, most: Duration) {
    sleep(Duration::from_micros(rng.random_range(100..=most.as_micros() as u64))).await;
}

impl Case {
    /// Plays it under whatever clients do. Returns the number of faults; adds to `broken` what must not be.
    pub async fn play(self, world: &Arc<World>, rng: &mut StdRng, broken: &mut Vec<String>) -> usize {
        let lease = world.shape.lease;
        let mut faults = 0;
        match self {
            Case::TailCommitsThenDies => {
                for _ in 0..4 {
                    a_moment(rng, lease / 2).await;
                    let Some(&tail) = serving(world).last() else { continue };
                    // What it says is heard late, so it is probably not heard at all.
                    let slow = Weather { delay: Duration::from_millis(30), ..calm() };
                    for node in world.storage_nodes().into_iter().filter(|&node| node != tail) {
                        world.net.set_weather_between(World::peer(tail), World::peer(node), Some(slow));
                    }
                    a_moment(rng, Duration::from_millis(200)).await;
                    let how = if rng.random_bool(0.5) { Crash::Process } else { Crash::Power };
                    let head = serving(world).first().copied().filter(|_| rng.random_bool(0.5));
                    world.crash(tail, how);
                    world.clear_local_weather();
                    // Who is the tail now hears of it before its predecessor does, and has to know by itself what was committed.
                    for (mgmtd, head) in
                        world.mgmtd_nodes().into_iter().flat_map(|mgmtd| Some((mgmtd, head?)))
                    {
                        let delay = Duration::from_millis(rng.random_range(5..300));
                        let late = Weather { delay, jitter: delay / 4, ..calm() };
                        world.net.set_weather_between(World::peer(mgmtd), World::peer(head), Some(late));
                    }
                    faults += 1;
                    if rng.random_bool(0.5) {
                        world.start(tail);
                    }
                    until(world, |serving| !serving.contains(&tail)).await;
                    world.start(tail);
                    world.full_strength(lease * 30).await;
                    world.clear_local_weather();
                }
            }
            Case::PredecessorIsLate => {
                for _ in 0..3 {
                    a_moment(rng, lease / 2).await;
                    let serving = serving(world);
                    let [head, middle, ..] = serving[..] else { continue };
                    let late = Weather { delay: lease / 3, jitter: lease / 3, ..calm() };
                    for mgmtd in world.mgmtd_nodes() {
                        world.net.set_weather_between(World::peer(mgmtd), World::peer(head), Some(late));
                    }
                    world.crash(middle, Crash::Process);
                    a_moment(rng, lease / 4).await;
                    world.start(middle);
                    faults += 2;
                    world.full_strength(lease * 30).await;
                    world.clear_local_weather();
                }
            }
            Case::CutsDuringResync => {
                for _ in 0..5 {
                    let serving = serving(world);
                    let Some(&node) = serving.get(rng.random_range(0..serving.len().max(1))) else {
                        continue;
                    };
                    world.crash(node, Crash::Power);
                    faults += 1;
                    a_moment(rng, lease).await;
                    if rng.random_bool(0.3)
                        && world.storage_nodes().iter().filter(|&&node| world.is_up(node)).count() == 2
                    {
                        world.exchange_disk(node);
                    }
                    if rng.random_bool(0.5) {
                        // What the predecessor says of a chunk and what clients write meanwhile overtake each other.
                        let delay = Duration::from_millis(rng.random_range(1..80));
                        let slow = Weather { delay, jitter: delay * 2, reorder: true, ..calm() };
                        for other in world.storage_nodes().into_iter().filter(|&other| other != node) {
                            world.net.set_weather_between(World::peer(other), World::peer(node), Some(slow));
                        }
                    }
                    world.start(node);
                    world.full_strength(lease * 30).await;
                    world.clear_local_weather();
                }
            }
            Case::TwoFailuresWhileSyncing => {
                for _ in 0..3 {
                    let serving = serving(world);
                    let [one, two, three] = serving[..] else { continue };
                    world.crash(one, Crash::Process);
                    a_moment(rng, lease * 2).await;
                    world.start(one);
                    a_moment(rng, Duration::from_millis(300)).await;
                    world.crash(three, Crash::Power);
                    a_moment(rng, Duration::from_millis(300)).await;
                    world.crash(one, Crash::Power);
                    faults += 3;
                    a_moment(rng, lease * 2).await;
                    if rng.random_bool(0.5) {
                        world.crash(two, Crash::Power);
                        faults += 1;
                    }
                    for node in [three, one, two] {
                        a_moment(rng, lease / 2).await;
                        world.start(node);
                    }
                    world.full_strength(lease * 30).await;
                }
            }
            Case::EverythingLosesPower => {
                for _ in 0..3 {
                    a_moment(rng, lease).await;
                    for node in world.nodes() {
                        world.crash(node, Crash::Power);
                        faults += 1;
                    }
                    for node in world.nodes() {
                        a_moment(rng, lease / 4).await;
                        world.start(node);
                    }
                    world.full_strength(lease * 40).await;
                }
            }
            Case::LastServingLost => {
                a_moment(rng, lease).await;
                let serving = serving(world);
                let [one, two, three] = serving[..] else { return faults };
                for node in [one, two] {
                    world.crash(node, Crash::Process);
                    if !until(world, |serving| !serving.contains(&node)).await {
                        broken.push("live: a dead node is not taken out of its chain".into());
                    }
                    a_moment(rng, lease).await;
                }
                world.crash(three, Crash::Power);
                faults += 3;
                world.start(one);
                world.start(two);
                sleep(lease * 6).await;
                // They miss what only the last one has: neither may serve.
                let none_serves = |broken: &mut Vec<String>, others: &[u32]| {
                    let now = self::serving(world);
                    if now.iter().any(|node| others.contains(node)) {
                        broken.push(format!("durable: {now:?} serve although only {three} had everything"));
                    }
                };
                none_serves(broken, &[one, two]);
                if rng.random_bool(0.5) {
                    // Nor may it, with another disk; with its own it may.
                    let own = world.exchange_disk(three);
                    world.start(three);
                    sleep(lease * 6).await;
                    none_serves(broken, &[one, two, three]);
                    world.crash(three, Crash::Process);
                    world.put_disk(three, own);
                    faults += 1;
                }
                world.start(three);
            }
            Case::RetriesMeetOthers => {
                for _ in 0..2 {
                    let serving = serving(world);
                    let [one, two, three] = serving[..] else { continue };
                    let deaf = |from: u32| {
                        for client in chunks::writers() {
                            world.net.cut(World::peer(from), client);
                        }
                    };
                    if rng.random_bool(0.5) {
                        // One alone has carried it out, and nobody hears of it.
                        for node in [two, three] {
                            world.crash(node, Crash::Process);
                        }
                        until(world, |serving| serving == [one]).await;
                        deaf(one);
                        a_moment(rng, Duration::from_millis(400)).await;
                        world.net.heal();
                        world.start(two);
                        until(world, |serving| serving.contains(&two)).await;
                        world.crash(one, Crash::Process);
                        world.start(one);
                        faults += 3;
                    } else {
                        // The first two have it and the third does not, and goes on without them.
                        world.net.cut(World::peer(two), World::peer(three));
                        deaf(one);
                        a_moment(rng, Duration::from_millis(400)).await;
                        for node in [one, two] {
                            world.crash(node, Crash::Process);
                        }
                        world.net.heal();
                        world.start(two);
                        if rng.random_bool(0.5) {
                            until(world, |serving| serving == [three, two]).await;
                        }
                        world.start(one);
                        until(world, |serving| serving.len() >= 2 && serving[0] == three).await;
                        world.crash(three, Crash::Process);
                        faults += 3;
                        a_moment(rng, lease / 8).await;
                        world.start(three);
                    }
                    // Who waited for an answer asks again.
                    a_moment(rng, lease * 3).await;
                    for node in [one, two, three] {
                        world.start(node);
                    }
                    world.full_strength(lease * 30).await;
                }
            }
            Case::HeadCutOff => {
                for _ in 0..3 {
                    a_moment(rng, lease / 2).await;
                    let serving = serving(world);
                    let [head, next, ..] = serving[..] else { continue };
                    for mgmtd in world.mgmtd_nodes() {
                        world.net.part(World::peer(head), World::peer(mgmtd));
                    }
                    // Some clients go on as it does.
                    for client in chunks::readers() {
                        for mgmtd in world.mgmtd_nodes().into_iter().filter(|_| rng.random_bool(0.7)) {
                            world.net.cut(World::peer(mgmtd), client);
                        }
                    }
                    sleep(lease / 8 * rng.random_range(1..6)).await;
                    world.net.cut(World::peer(head), World::peer(next));
                    if rng.random_bool(0.5) {
                        world.net.cut(World::peer(next), World::peer(head));
                    }
                    faults += 2;
                    until(world, |serving| !serving.contains(&head)).await;
                    // What it had sent comes out of the network when others have begun to count on from where it was.
                    a_moment(rng, Duration::from_millis(60)).await;
                    world.net.mend(World::peer(head), World::peer(next));
                    world.net.mend(World::peer(next), World::peer(head));
                    a_moment(rng, lease / 2).await;
                    world.net.heal();
                    world.full_strength(lease * 30).await;
                }
            }
        }
        faults
    }
}
