//! The model check can fail: with any one rule broken, it finds out.

mod world;

use catena_craq::mutant::{Mutant, with};
use world::{Limits, World, wander};

/// Walks until an invariant breaks; the number of walks that took.
fn walks_to_find(mutant: Mutant, most: u64) -> Option<u64> {
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
        let walk = || with(Some(mutant), || wander(World::new(replicas, 4), &limits, seed, 300));
        // An assertion in the shipped code is as good as a checker.
        std::panic::catch_unwind(walk).map_or(true, |result| result.is_err())
    };
    (0..most).find(|&seed| broken(seed))
}

#[test]
fn every_mutant_is_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let most = 20_000;
    let found: Vec<_> = Mutant::ALL.iter().map(|&mutant| (mutant, walks_to_find(mutant, most))).collect();
    let _ = std::panic::take_hook();
    for (mutant, walks) in &found {
        println!("{mutant:?}: {walks:?}");
    }
    let escaped: Vec<_> =
        found.iter().filter(|(_, walks)| walks.is_none()).map(|(mutant, _)| mutant).collect();
    assert!(escaped.is_empty(), "not caught in {most} walks: {escaped:?}");
}
