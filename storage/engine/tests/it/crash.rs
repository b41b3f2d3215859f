//! Crashes at every operation of a workload, with and without power, also during recovery and checkpoints.

use catena_engine::sim::{Crash, Failure, SimDisk};
use catena_engine::{Engine, EngineError};

use crate::common::*;
use crate::workload::{Run, open, sim};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

async fn formatted(seed: u64, delay: bool) -> SimDisk {
    let disk = sim(seed, delay);
    Engine::format_with(disk.attach(), superblock(), 1 << 20).await.expect("formats");
    let engine = open(&disk, &pool()).await.expect("opens");
    engine.create_target(T).await.expect("creates a target");
    engine.close().await.expect("closes");
    disk
}

/// Recovers, also when recovery itself is cut short a few times.
async fn recover(run: &Run, disk: &SimDisk, cuts: u64) -> Engine {
    for cut in 1..=cuts {
        let handle = disk.attach();
        disk.fail_at(cut * 3, Failure::Cut);
        let opened = Engine::open(handle, EXPECT, run.pool.clone(), crate::workload::small_options()).await;
        drop(opened);
        disk.crash(Crash::Power);
    }
    open(disk, &run.pool).await.expect("recovers")
}

async fn one_cut(formatted: &SimDisk, seed: u64, cut: Option<u64>, steps: u32, crash: Crash) -> u64 {
    let disk = formatted.copy(seed ^ (cut.unwrap_or(0) << 20));
    let run = Run::new(seed);
    let engine = open(&disk, &run.pool).await.expect("opens");
    let before = disk.operations();
    if let Some(cut) = cut {
        disk.fail_at(cut, Failure::Cut);
    }
    match run.work(&engine, steps).await {
        Ok(())
        | Err(
            EngineError::DiskFailed { .. }
            | EngineError::ReadFailed { .. }
            | EngineError::NoSuchVersion { .. },
        ) => {}
        Err(error) => panic!("{error}"),
    }
    let operations = disk.operations() - before;
    drop(engine);
    disk.crash(crash);
    let engine = recover(&run, &disk, seed % 3).await;
    run.check(&engine).await;
    // What was found is whole enough to work on with.
    run.work(&engine, 2).await.expect("works on");
    operations
}

#[test]
fn a_power_cut_at_any_operation_leaves_what_was_acknowledged() {
    runtime().block_on(async {
        let seed = 1;
        let formatted = formatted(seed, true).await;
        let operations = one_cut(&formatted, seed, None, 12, Crash::Process).await;
        assert!(operations > 200, "a workload of {operations} operations proves little");
        for cut in 1..=operations {
            one_cut(&formatted, seed, Some(cut), 12, Crash::Power).await;
        }
    });
}

#[test]
fn a_killed_process_at_any_operation_leaves_what_was_acknowledged() {
    runtime().block_on(async {
        let seed = 2;
        let formatted = formatted(seed, true).await;
        let operations = one_cut(&formatted, seed, None, 8, Crash::Process).await;
        for cut in (1..=operations).step_by(2) {
            one_cut(&formatted, seed, Some(cut), 8, Crash::Process).await;
        }
    });
}

/// Life after life on one disk: random work, random end.
async fn lives(seed: u64, lives: u32) {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed ^ 0x5eed);
    let disk = formatted(seed, !seed.is_multiple_of(4)).await;
    let run = Run::new(seed);
    let mut engine = open(&disk, &run.pool).await.expect("opens");
    for _ in 0..lives {
        let end = rng.random_range(0..8);
        if end > 0 {
            disk.fail_at(rng.random_range(1..1500), Failure::Cut);
        }
        match run.work(&engine, rng.random_range(2..60)).await {
            Ok(())
            | Err(
                EngineError::DiskFailed { .. }
                | EngineError::ReadFailed { .. }
                | EngineError::NoSuchVersion { .. },
            ) => {}
            Err(error) => panic!("{error}"),
        }
        if end == 0 {
            engine.close().await.expect("closes");
        }
        drop(engine);
        disk.crash(if end == 1 { Crash::Process } else { Crash::Power });
        engine = recover(&run, &disk, rng.random_range(0..3)).await;
        run.check(&engine).await;
    }
}

#[test]
fn many_lives_of_many_disks_leave_what_was_acknowledged() {
    let seeds = std::env::var("CATENA_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let from = std::env::var("CATENA_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in from..from + seeds {
        let outcome = std::panic::catch_unwind(|| runtime().block_on(lives(seed, 5)));
        if let Err(panic) = outcome {
            eprintln!("seed {seed}: CATENA_SEED={seed} CATENA_SEEDS=1 repeats it");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let end = |seed| {
        runtime().block_on(async move {
            let disk = formatted(seed, true).await;
            let run = Run::new(seed);
            let engine = open(&disk, &run.pool).await.expect("opens");
            run.work(&engine, 10).await.expect("works");
            (disk.operations(), engine.stats())
        })
    };
    assert_eq!(end(5), end(5));
    assert_ne!(end(5), end(6));
}
