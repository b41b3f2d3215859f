//! Some hundred seeds, the known failures by name, and the simulator's own promises. `ci/sim` runs as many as wanted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use catena_sim::cases::{self, Case};
use catena_sim::mutants;
use catena_sim::run::{Choice, Outcome, Work, run, run_chosen};
use parking_lot::Mutex;

/// Runs `count` seeds on both cores; panics with everything that broke.
fn all_hold(from: u64, count: u64, run: impl Fn(u64) -> Outcome + Sync) {
    let next = AtomicU64::new(from);
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let outcome = run(seed);
                    broken
                        .lock()
                        .extend(outcome.broken.into_iter().map(|what| format!("seed {seed}: {what}")));
                }
            });
        }
    });
    let broken = broken.into_inner();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn invariants_hold_whatever_fails() {
    all_hold(1, 120, run);
}

#[test]
fn one_seed_is_one_run() {
    for work in [Work::Chunks, Work::Names, Work::Files] {
        let once = || run_chosen(9, Choice { work: Some(work), ..Choice::default() });
        assert_eq!(once(), once(), "{work:?}");
    }
}

fn case(case: Case) {
    all_hold(1, 10, |seed| {
        run_chosen(seed, Choice { work: Some(Work::Chunks), case: Some(case), ..Choice::default() })
    });
}

#[test]
fn the_tail_commits_then_dies_before_answering() {
    case(Case::TailCommitsThenDies);
}

#[test]
fn a_predecessor_has_a_lower_chain_version_than_its_successor() {
    case(Case::PredecessorIsLate);
}

#[test]
fn chunks_are_cut_and_removed_during_resync() {
    case(Case::CutsDuringResync);
}

#[test]
fn two_failures_in_a_row_while_syncing() {
    case(Case::TwoFailuresWhileSyncing);
}

#[test]
fn the_whole_cluster_loses_power() {
    case(Case::EverythingLosesPower);
}

#[test]
fn the_last_one_that_served_is_lost() {
    case(Case::LastServingLost);
}

#[test]
fn every_case_has_a_test() {
    assert_eq!(cases::ALL.len(), 6);
}

#[test]
fn a_broken_rule_is_noticed() {
    let broken = mutants::all();
    let sample =
        broken.iter().find(|mutant| mutant.name.contains("partial write")).expect("it is in the list");
    assert!((1..40).any(|seed| !sample.run(seed).broken.is_empty()), "{} escaped", sample.name);
}
