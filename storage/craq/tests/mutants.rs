//! The model check can fail: with any one rule broken, it finds out.

mod world;

use catena_craq::mutant::{Mutant, with};
use world::{Limits, World, wander};

/// Walks until an invariant breaks; the number of walks that took.
fn walks_to_find(mutant: Option<Mutant>, most: u64) -> Option<u64> {
    let broken = |seed: u64| {
        let replicas = 2 + seed as usize % 2;
        let limits = Limits {
            sends: 8,
            crashes: 3,
            leases: 3,
            doubles: 4,
            losses: 3,
            ticks: 3,
            views: 16,
            reads: 60,
            dumps: 0,
        };
        let walk = || with(mutant, || wander(World::new(replicas, 4), &limits, seed, 300));
        // An assertion in the shipped code is as good as a checker.
        std::panic::catch_unwind(walk).map_or(true, |result| result.is_err())
    };
    (0..most).find(|&seed| broken(seed))
}

/// Broken rules that walks by chance do not show: a history does (`histories.rs`), or the simulator of whole clusters.
const SHOWN_ELSEWHERE: [Mutant; 2] = [Mutant::WatermarkCleared, Mutant::PendingsNotResent];

#[test]
fn every_mutant_is_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let most = 20_000;
    let walked = Mutant::ALL.iter().filter(|mutant| !SHOWN_ELSEWHERE.contains(mutant));
    let found: Vec<_> = walked.map(|&mutant| (mutant, walks_to_find(Some(mutant), most))).collect();
    let sound = walks_to_find(None, most);
    let _ = std::panic::take_hook();
    assert_eq!(sound, None, "a walk that fails with every rule in force shows nothing about broken ones");
    for (mutant, walks) in &found {
        println!("{mutant:?}: {walks:?}");
    }
    let escaped: Vec<_> =
        found.iter().filter(|(_, walks)| walks.is_none()).map(|(mutant, _)| mutant).collect();
    assert!(escaped.is_empty(), "not caught in {most} walks: {escaped:?}");
}
