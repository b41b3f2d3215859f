//! The deterministic executor.
#![cfg(feature = "sim")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use catena_rt::sim::{Limits, Sim, Stuck};
use catena_rt::time::{Instant, sleep, timeout};
use catena_rt::{JoinSet, spawn};
use tokio::sync::mpsc;

const LIMITS: Limits = Limits { steps: 100_000, time: Duration::from_secs(3600) };

/// Ten tasks that pass numbers around; what they saw, in the order in which they saw it.
fn race(seed: u64) -> (Vec<u64>, u64) {
    let sim = Sim::new(seed);
    let seen = sim.run(LIMITS, async {
        let (send, mut receive) = mpsc::unbounded_channel();
        for number in 0..10 {
            let send = send.clone();
            spawn(async move {
                sleep(Duration::from_millis(number % 3)).await;
                let _ = send.send(number);
            });
        }
        drop(send);
        let mut seen = Vec::new();
        while let Some(number) = receive.recv().await {
            seen.push(number);
        }
        seen
    });
    (seen.expect("ends"), sim.digest())
}

#[test]
fn a_seed_gives_one_run_and_another_seed_another() {
    assert_eq!(race(1), race(1));
    assert!((2..20).any(|seed| race(seed).0 != race(1).0));
}

#[test]
fn time_passes_only_when_nothing_can_run() {
    let sim = Sim::new(1);
    let took = sim.run(LIMITS, async {
        let begun = Instant::now();
        sleep(Duration::from_secs(600)).await;
        assert!(timeout(Duration::from_secs(5), std::future::pending::<()>()).await.is_err());
        begun.elapsed()
    });
    let took = took.expect("ends");
    assert!(took >= Duration::from_secs(605) && took < Duration::from_secs(606), "{took:?}");
}

#[test]
fn a_killed_process_takes_its_tasks_with_it_and_a_paused_one_only_waits() {
    let sim = Sim::new(7);
    let ticks = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
    let processes = [sim.process("one"), sim.process("other")];
    for (process, ticks) in processes.iter().zip(&ticks) {
        let ticks = ticks.clone();
        process.handle().spawn(async move {
            // A task of a task belongs to the process too.
            spawn(async move {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    ticks.fetch_add(1, Relaxed);
                }
            });
        });
    }
    let count = ticks.clone();
    sim.run(LIMITS, async move {
        let [one, other] = &processes;
        sleep(Duration::from_millis(5500)).await;
        one.kill();
        other.pause();
        sleep(Duration::from_secs(100)).await;
        assert_eq!([count[0].load(Relaxed), count[1].load(Relaxed)], [5, 5]);
        other.resume();
        sleep(Duration::from_millis(3500)).await;
        assert!(!one.is_alive() && other.is_alive());
        // The alarm that rang in the pause was heard once.
        assert_eq!([count[0].load(Relaxed), count[1].load(Relaxed)], [5, 9]);
        assert!(one.handle().spawn(async {}).await.is_err_and(|error| error.is_cancelled()));
    })
    .expect("ends");
    sim.end();
    assert!(ticks.iter().all(|ticks| Arc::strong_count(ticks) == 1), "something is still held");
}

#[test]
fn a_set_that_is_dropped_ends_its_tasks_and_a_handle_does_not() {
    let sim = Sim::new(3);
    let ended = sim.run(LIMITS, async {
        let ended = Arc::new(AtomicU64::new(0));
        let task = |ended: Arc<AtomicU64>| async move {
            sleep(Duration::from_secs(1)).await;
            ended.fetch_add(1, Relaxed);
        };
        let mut set = JoinSet::new();
        set.spawn(task(ended.clone()));
        drop(set);
        drop(spawn(task(ended.clone())));
        sleep(Duration::from_secs(2)).await;
        ended.load(Relaxed)
    });
    assert_eq!(ended, Ok(1));
}

#[test]
fn a_run_that_cannot_go_on_says_so() {
    let sim = Sim::new(1);
    assert_eq!(sim.run(LIMITS, std::future::pending::<()>()), Err(Stuck::Nothing));
    let sim = Sim::new(1);
    let spin = async {
        loop {
            catena_rt::yield_now().await;
        }
    };
    assert_eq!(sim.run::<()>(Limits { steps: 1000, ..LIMITS }, spin), Err(Stuck::Steps(1000)));
}
