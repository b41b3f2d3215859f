//! The shipped replica in small worlds: every schedule of the smallest ones, many of the larger ones.

mod world;

use world::{Limits, World, exhaust, wander};

#[test]
fn every_schedule_of_two_replicas_without_faults() {
    let limits = Limits { sends: 3, views: 1, reads: 2, ..Limits::default() };
    let (worlds, all) = exhaust(World::new(2, 2), &limits, 2_000_000).unwrap();
    assert!(all, "{worlds} worlds were not all");
    assert!(worlds > 1_000, "{worlds}");
}

#[test]
fn schedules_of_two_replicas_with_a_crash() {
    let limits = Limits { sends: 2, crashes: 1, views: 4, reads: 1, ..Limits::default() };
    let (worlds, _) = exhaust(World::new(2, 1), &limits, 150_000).unwrap();
    assert!(worlds > 1_000, "{worlds}");
}

#[test]
fn schedules_of_three_replicas_with_pipelined_writes() {
    let limits = Limits { sends: 2, views: 1, reads: 1, ..Limits::default() };
    let (worlds, _) = exhaust(World::new(3, 2), &limits, 120_000).unwrap();
    assert!(worlds > 10_000, "{worlds}");
}

#[test]
fn long_walks_with_every_kind_of_fault() {
    for seed in 0..6000 {
        let replicas = 2 + seed as usize % 2;
        let limits = Limits {
            sends: 8,
            crashes: 3,
            leases: 2,
            doubles: 4,
            losses: 3,
            ticks: 3,
            views: 14,
            reads: 40,
            dumps: 0,
        };
        if let Err(violation) = wander(World::new(replicas, 4), &limits, seed, 250) {
            panic!("{violation}");
        }
    }
}
