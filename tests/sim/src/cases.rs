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
    /// One after the other is lost; only the last one may bring the chain back.
    LastServingLost,
}

/// All of them.
pub const ALL: [Case; 6] = [
    Case::TailCommitsThenDies,
    Case::PredecessorIsLate,
    Case::CutsDuringResync,
    Case::TwoFailuresWhileSyncing,
    Case::EverythingLosesPower,
    Case::LastServingLost,
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
                    world.crash(tail, how);
                    world.clear_local_weather();
                    faults += 1;
                    until(world, |serving| !serving.contains(&tail)).await;
                    world.start(tail);
                    world.full_strength(lease * 30).await;
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
                    world.start(node);
                    world.full_strength(lease * 30).await;
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
                let now = self::serving(world);
                if now.iter().any(|node| *node != three) {
                    broken.push(format!("durable: {now:?} serve although only {three} had everything"));
                }
                world.start(three);
            }
        }
        faults
    }
}
