//! One seed: a cluster, clients, faults, and what the checkers say.

use std::sync::Arc;
use std::time::Duration;

use catena_rt::sim::{Limits, Sim};
use catena_rt::time::sleep;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cases::Case;
use crate::check;
use crate::cluster::{Shape, World, calm};
use crate::faults::{Diet, Kind, Nemesis};
use crate::work::{chunks, files, names};

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Operations of clients.
    pub operations: usize,
    /// Faults.
    pub faults: usize,
    /// Errors that clients were told.
    pub errors: usize,
    /// Steps of the executor.
    pub steps: u64,
    /// Virtual time.
    pub time: Duration,
    /// Equal for two runs of one seed.
    pub digest: u64,
    /// Broken invariants, with what shows it.
    pub broken: Vec<String>,
}

/// What clients do in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Chunks, without metadata services.
    Chunks,
    /// The namespace.
    Names,
    /// Whole files.
    Files,
}

/// Which runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// Only this work; otherwise each seed draws.
    pub work: Option<Work>,
    /// Only these faults; otherwise each seed draws.
    pub kinds: Option<&'static [Kind]>,
    /// This story instead of faults by chance; on chunks, with three storage nodes and one chain.
    pub case: Option<Case>,
    /// Each replica is watched by a client that reads nowhere else.
    pub watchers: bool,
}

/// Runs a seed.
pub fn run(seed: u64) -> Outcome {
    run_chosen(seed, Choice::default())
}

/// Runs a seed with some things decided.
pub fn run_chosen(seed: u64, choice: Choice) -> Outcome {
    let sim = Sim::new(seed);
    if std::env::var_os("CATENA_TRACE").is_some() {
        sim.keep_trace();
    }
    let limits = Limits { steps: 3_000_000, time: Duration::from_secs(3600) };
    let run = || sim.run(limits, story(sim.clone(), seed, choice));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    let mut outcome = match result {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(stuck)) => Outcome { broken: vec![format!("live: stuck: {stuck:?}")], ..Outcome::default() },
        Err(panic) => {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()));
            let broken = vec![format!("panic: {}", what.unwrap_or_default())];
            Outcome { broken, ..Outcome::default() }
        }
    };
    outcome.steps = sim.steps();
    outcome.time = sim.now();
    outcome.digest = sim.digest();
    for (now, process, task) in sim.trace() {
        eprintln!("{now} {process} {task}");
    }
    // Dropping what a panic left behind may panic again; the verdict stands.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.end()));
    outcome
}

async fn story(sim: Sim, seed: u64, choice: Choice) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xd1e7);
    let drawn = [Work::Chunks, Work::Chunks, Work::Chunks, Work::Names, Work::Files][rng.random_range(0..5)];
    let work = choice.work.unwrap_or(drawn);
    let mut diet = Diet::of(&mut rng);
    if let Some(kinds) = choice.kinds {
        diet.kinds = kinds.to_vec();
    }
    let shape = Shape {
        mgmtd: if rng.random_bool(0.5) { 3 } else { 2 },
        meta: if work == Work::Chunks { 0 } else { 2 },
        storage: rng.random_range(3..=4),
        replicas: if rng.random_bool(0.8) { 3 } else { 2 },
        targets: if rng.random_bool(0.5) { 1 } else { 2 },
        ..Shape::default()
    };
    let shape = match choice.case {
        None => shape,
        Some(_) => Shape { mgmtd: 2, storage: 3, replicas: 3, targets: 1, ..shape },
    };
    // Whole chains only.
    let targets = if (shape.storage * shape.targets).is_multiple_of(shape.replicas) {
        shape.targets
    } else {
        shape.replicas
    };
    let shape = Shape { targets, ..shape };
    tracing::info!(?work, ?diet, ?shape, "story");
    let world = World::new(&sim, seed, shape);
    world.net.set_weather(calm());
    world.boot().await;
    let mut nemesis = Nemesis::new(&world, diet, rng.random());
    let mut outcome = match work {
        Work::Chunks => on_chunks(&world, &mut nemesis, &mut rng, choice).await,
        Work::Names => on_names(&world, &mut nemesis, &mut rng).await,
        Work::Files => on_files(&world, &mut nemesis, &mut rng).await,
    };
    outcome.faults = nemesis.done;
    outcome.broken.extend(world.witness.wrong());
    world.end();
    outcome
}

/// Everything is whole again, and comes back by itself.
async fn recover(world: &Arc<World>, broken: &mut Vec<String>) {
    // Faults that still wait for their end come to it.
    world.heal();
    sleep(world.shape.lease * 5).await;
    world.heal();
    if !world.full_strength(Duration::from_secs(180)).await {
        broken.push(format!("live: full strength is not reached: {}", world.states()));
    }
}

async fn on_chunks(world: &Arc<World>, nemesis: &mut Nemesis, rng: &mut StdRng, choice: Choice) -> Outcome {
    let case = choice.case;
    let large = rng.random_bool(0.15);
    let plan = chunks::Plan {
        clients: rng.random_range(1..=4),
        chunks: rng.random_range(1..=3),
        cell: if large { 32 << 10 } else { 1 << 10 },
        operations: if large { 30 } else { rng.random_range(40..120) },
        pause: Duration::from_millis(rng.random_range(5..300)),
        reads: rng.random_range(2..8),
        cuts: rng.random_bool(0.6) || case.is_some(),
        watchers: rng.random_bool(0.3) || choice.watchers,
    };
    let plan = match case {
        None => plan,
        // Something has to be under way all the time.
        Some(_) => chunks::Plan {
            operations: rng.random_range(150..400),
            pause: Duration::from_millis(rng.random_range(2..80)),
            chunks: rng.random_range(1..=6),
            ..plan
        },
    };
    let mut broken = Vec::new();
    let mut clients = chunks::Clients::start(world, plan, rng.random());
    match case {
        None => nemesis.run().await,
        Some(case) => nemesis.done += case.play(world, rng, &mut broken).await,
    }
    if case.is_none() && rng.random_bool(0.3) {
        clients.replace(0, rng.random());
    }
    recover(world, &mut broken).await;
    if !clients.finish(Duration::from_secs(600)).await {
        broken.push("live: clients of chunks do not come to an end".to_owned());
    }
    broken.extend(clients.last_look().await);
    broken.extend(clients.history.wrong.lock().drain(..));
    for (index, calls) in &*clients.history.calls.lock() {
        broken.extend(check::chunk(*index, calls));
    }
    let errors = clients.history.errors.lock().clone();
    errors.iter().for_each(|error| tracing::info!(error, "a client was told"));
    Outcome { operations: clients.history.len(), errors: errors.len(), broken, ..Outcome::default() }
}

async fn on_names(world: &Arc<World>, nemesis: &mut Nemesis, rng: &mut StdRng) -> Outcome {
    let mut broken = Vec::new();
    let (clients, operations) = (rng.random_range(2..=4), rng.random_range(20..60));
    let pause = Duration::from_millis(rng.random_range(5..400));
    let mut clients = names::Clients::start(world, clients, operations, pause, rng.random());
    nemesis.run().await;
    recover(world, &mut broken).await;
    if !clients.finish(Duration::from_secs(600)).await {
        broken.push("live: clients of the namespace do not come to an end".to_owned());
    }
    broken.extend(clients.history.contradiction());
    let errors = clients.history.errors.lock().clone();
    errors.iter().for_each(|error| tracing::info!(error, "a client was told"));
    let operations = clients.history.calls.lock().len();
    Outcome { operations, errors: errors.len(), broken, ..Outcome::default() }
}

async fn on_files(world: &Arc<World>, nemesis: &mut Nemesis, rng: &mut StdRng) -> Outcome {
    let mut broken = Vec::new();
    let mut clients =
        files::Clients::start(world, rng.random_range(1..=3), rng.random_range(4..12), rng.random());
    nemesis.run().await;
    if rng.random_bool(0.4) {
        clients.kill_one();
    }
    recover(world, &mut broken).await;
    if !clients.finish(Duration::from_secs(600)).await {
        broken.push("live: clients of files do not come to an end".to_owned());
    }
    // Sessions of the dead run out, and what they left is settled.
    sleep(world.shape.lease * 6 + Duration::from_secs(40)).await;
    broken.extend(clients.last_look().await);
    broken.extend(clients.wrong.lock().drain(..));
    let errors = clients.errors.lock().clone();
    errors.iter().for_each(|error| tracing::info!(error, "a client was told"));
    let operations = *clients.operations.lock();
    Outcome { operations, errors: errors.len(), broken, ..Outcome::default() }
}
