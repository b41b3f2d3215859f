//! What goes wrong, drawn from the run's seed. Every run has a diet of its own: some kinds of fault and not others, because faults of all
//! kinds at once hide each other.

use std::sync::Arc;
use std::time::Duration;

use catena_engine::sim::{Crash, Failure};
use catena_net::mem::Weather;
use catena_rt::time::sleep;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::cluster::{World, kv::Mood};

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// One storage process dies and starts again.
    CrashStorage,
    /// A storage node loses power: what was not synced is lost or torn.
    PowerStorage,
    /// Several storage nodes at once, perhaps all.
    PowerAll,
    /// A storage node returns with an empty disk, while others still serve.
    EmptyDisk,
    /// A storage process stands still.
    PauseStorage,
    /// A manager dies.
    CrashMgmtd,
    /// A manager stands still longer than its lease: two may believe to be primary.
    PauseMgmtd,
    /// A metadata service dies or stands still.
    Meta,
    /// Two nodes do not hear each other, one way or both.
    Cut,
    /// A storage node is cut off from the managers but not from clients.
    CutFromMgmtd,
    /// Messages get lost, late, twice and out of order.
    Weather,
    /// One node hears of everything late.
    Late,
    /// The shared store is slow, conflicts, and loses answers.
    Store,
    /// An operation of a disk fails.
    DiskError,
}

use Kind::*;

const ALL: [Kind; 14] = [
    CrashStorage,
    PowerStorage,
    PowerAll,
    EmptyDisk,
    PauseStorage,
    CrashMgmtd,
    PauseMgmtd,
    Meta,
    Cut,
    CutFromMgmtd,
    Weather,
    Late,
    Store,
    DiskError,
];

/// What may go wrong in a run.
#[derive(Clone, Debug)]
pub struct Diet {
    /// Kinds.
    pub kinds: Vec<Kind>,
    /// Faults.
    pub count: u32,
    /// Longest pause between two.
    pub pause: Duration,
}

impl Diet {
    /// Of a seed.
    pub fn of(rng: &mut StdRng) -> Diet {
        let kinds = match rng.random_range(0..6) {
            // Chains change all the time.
            0 => vec![CrashStorage, PowerStorage, Late, Cut],
            1 => vec![CrashStorage, CutFromMgmtd, Late, Weather],
            _ => {
                let some = rng.random_range(2..=6);
                ALL.choose_multiple(rng, some).copied().collect()
            }
        };
        let count = rng.random_range(4..16);
        Diet { kinds, count, pause: Duration::from_millis(rng.random_range(200..3000)) }
    }
}

/// Carries out a diet.
pub struct Nemesis {
    world: Arc<World>,
    rng: StdRng,
    diet: Diet,
    /// Faults so far.
    pub done: usize,
}

impl Nemesis {
    /// Nothing has happened yet.
    pub fn new(world: &Arc<World>, diet: Diet, seed: u64) -> Nemesis {
        Nemesis { world: world.clone(), rng: StdRng::seed_from_u64(seed), diet, done: 0 }
    }

    /// All of it, one fault after the other; some still last when the next one comes.
    pub async fn run(&mut self) {
        for _ in 0..self.diet.count {
            self.pause(self.diet.pause).await;
            let Some(&kind) = self.diet.kinds.choose(&mut self.rng) else { return };
            tracing::info!(?kind, at = ?self.world.sim.now(), "fault");
            self.done += 1;
            self.strike(kind).await;
        }
    }

    async fn pause(&mut self, most: Duration) {
        let most = most.as_micros() as u64;
        let least = most / 20;
        sleep(Duration::from_micros(self.rng.random_range(least..=most))).await;
    }

    fn one_of(&mut self, nodes: &[u32]) -> u32 {
        nodes.choose(&mut self.rng).copied().unwrap_or_default()
    }

    /// Starts `node` again after a while.
    fn later(&mut self, node: u32, most: Duration) {
        let world = self.world.clone();
        let wait = Duration::from_micros(self.rng.random_range(1000..=most.as_micros() as u64));
        catena_rt::spawn(async move {
            sleep(wait).await;
            world.resume(node);
            world.start(node);
        });
    }

    async fn strike(&mut self, kind: Kind) {
        let world = self.world.clone();
        let lease = world.shape.lease;
        let storage = world.storage_nodes();
        match kind {
            CrashStorage | PowerStorage => {
                let node = self.one_of(&storage);
                let how = if kind == CrashStorage { Crash::Process } else { Crash::Power };
                world.crash(node, how);
                // Often faster than anybody notices.
                let wait = if self.rng.random_bool(0.5) { lease / 4 } else { lease * 3 };
                self.later(node, wait);
            }
            PowerAll => {
                let count = if self.rng.random_bool(0.5) { storage.len() } else { 2 };
                let nodes: Vec<u32> = storage.choose_multiple(&mut self.rng, count).copied().collect();
                for &node in &nodes {
                    world.crash(node, Crash::Power);
                    if self.rng.random_bool(0.3) {
                        self.pause(lease).await;
                    }
                }
                for node in nodes {
                    self.later(node, lease * 3);
                }
            }
            EmptyDisk => {
                // Only while nothing else is missing or under way: the last copy is not thrown away.
                world.heal();
                sleep(lease * 5).await;
                world.heal();
                sleep(lease * 2).await;
                if world.full_strength(lease * 30).await {
                    let node = self.one_of(&storage);
                    world.crash(node, Crash::Process);
                    world.exchange_disk(node);
                    self.later(node, lease);
                    world.full_strength(lease * 60).await;
                }
            }
            PauseStorage => {
                let node = self.one_of(&storage);
                world.pause(node);
                self.later(node, lease * 3);
            }
            CrashMgmtd => {
                let node = self.one_of(&world.mgmtd_nodes());
                world.crash(node, Crash::Process);
                self.later(node, lease * 3);
            }
            PauseMgmtd => {
                let node = self.one_of(&world.mgmtd_nodes());
                world.pause(node);
                self.later(node, lease * 3);
            }
            Meta => {
                let nodes = world.meta_nodes();
                if !nodes.is_empty() {
                    let node = self.one_of(&nodes);
                    if self.rng.random_bool(0.5) {
                        world.crash(node, Crash::Process)
                    } else {
                        world.pause(node)
                    }
                    self.later(node, lease * 3);
                }
            }
            Cut => {
                let nodes = world.nodes();
                let (one, other) = (self.one_of(&nodes), self.one_of(&nodes));
                world.net.cut(World::peer(one), World::peer(other));
                if self.rng.random_bool(0.5) {
                    world.net.cut(World::peer(other), World::peer(one));
                }
                self.heals_later(lease * 3);
            }
            CutFromMgmtd => {
                let node = self.one_of(&storage);
                for mgmtd in world.mgmtd_nodes() {
                    world.net.cut(World::peer(node), World::peer(mgmtd));
                    if self.rng.random_bool(0.7) {
                        world.net.cut(World::peer(mgmtd), World::peer(node));
                    }
                }
                self.heals_later(lease * 3);
            }
            Weather => {
                let rng = &mut self.rng;
                let jitter = Duration::from_micros(rng.random_range(100..50_000));
                world.net.set_weather(Weather {
                    delay: Duration::from_micros(rng.random_range(10..2_000)),
                    jitter,
                    reorder: rng.random_bool(0.5),
                    loss_ppm: rng.random_range(0..20_000),
                    break_ppm: rng.random_range(0..20_000),
                    twice_ppm: 100_000,
                    twice_late: Duration::from_millis([0, 50, 3000][rng.random_range(0..3)]),
                });
            }
            Late => {
                // One storage node hears of everything late, from managers or from its peers.
                let node = self.one_of(&storage);
                let delay = Duration::from_millis(self.rng.random_range(5..1500));
                let weather = Weather { delay, jitter: delay / 2, ..crate::cluster::calm() };
                let from = if self.rng.random_bool(0.6) { world.mgmtd_nodes() } else { storage };
                for from in from.into_iter().filter(|&from| from != node) {
                    world.net.set_weather_between(World::peer(from), World::peer(node), Some(weather));
                }
                let wait = Duration::from_micros(self.rng.random_range(1000..lease.as_micros() as u64 * 4));
                catena_rt::spawn(async move {
                    sleep(wait).await;
                    world.clear_local_weather();
                });
            }
            Store => {
                let rng = &mut self.rng;
                world.store.set_mood(Mood {
                    delay: Duration::from_micros(rng.random_range(10..40_000)),
                    unknown: rng.random_range(0..60),
                    conflict: rng.random_range(0..60),
                    unavailable: rng.random_range(0..40),
                });
                if rng.random_bool(0.3) {
                    let node = self.one_of(&world.mgmtd_nodes());
                    world.store.cut(World::peer(node));
                    let wait =
                        Duration::from_micros(self.rng.random_range(1000..lease.as_micros() as u64 * 3));
                    catena_rt::spawn(async move {
                        sleep(wait).await;
                        world.store.heal();
                    });
                }
            }
            DiskError => {
                let node = self.one_of(&storage);
                if let Some(disk) = world.disk(node) {
                    let after = self.rng.random_range(1..60);
                    disk.fail_at(
                        after,
                        if self.rng.random_bool(0.7) { Failure::Error } else { Failure::Cut },
                    );
                    // A failed disk needs its service started anew.
                    let wait = Duration::from_micros(
                        self.rng.random_range(lease.as_micros() as u64..lease.as_micros() as u64 * 3),
                    );
                    catena_rt::spawn(async move {
                        sleep(wait).await;
                        world.crash(node, Crash::Process);
                        sleep(wait / 3).await;
                        world.start(node);
                    });
                }
            }
        }
    }

    fn heals_later(&mut self, most: Duration) {
        let wait = Duration::from_micros(self.rng.random_range(1000..=most.as_micros() as u64));
        let net = self.world.net.clone();
        catena_rt::spawn(async move {
            sleep(wait).await;
            net.heal();
        });
    }
}
