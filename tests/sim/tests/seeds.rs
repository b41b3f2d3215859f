//! Some hundred seeds, the known failures by name, and the simulator's own promises. `ci/sim` runs as many as wanted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use catena_sim::cases::{self, Case};
use catena_sim::faults::Kind;
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
    all_hold(1, 250, run);
}

/// Beyond those. 6452: a writer dies in the rename that replaces another of its files.
#[test]
fn seeds_that_failed_once_hold() {
    all_hold(6452, 1, run);
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

macro_rules! cases {
    ($($name:ident: $case:ident;)*) => {
        $(#[test]
        fn $name() {
            case(Case::$case);
        })*

        #[test]
        fn every_case_has_a_test() {
            assert_eq!([$(Case::$case),*], cases::ALL);
        }
    };
}

cases! {
    the_tail_commits_then_dies_before_answering: TailCommitsThenDies;
    a_predecessor_has_a_lower_chain_version_than_its_successor: PredecessorIsLate;
    chunks_are_cut_and_removed_during_resync: CutsDuringResync;
    two_failures_in_a_row_while_syncing: TwoFailuresWhileSyncing;
    the_whole_cluster_loses_power: EverythingLosesPower;
    the_last_one_that_served_is_lost: LastServingLost;
    retries_meet_others_than_those_that_knew: RetriesMeetOthers;
    the_head_is_cut_off: HeadCutOff;
}

/// What a target had read when its disk failed must not leave it once others have gone on without it: about one run in a thousand of
/// all, one in a few of these.
#[test]
fn a_target_that_reports_an_outage_answers_nothing_more() {
    let failing = Choice {
        work: Some(Work::Chunks),
        kinds: Some(&[Kind::DiskError]),
        watchers: true,
        ..Choice::default()
    };
    all_hold(1, 30, |seed| run_chosen(seed, failing));
}

/// Those that a few seeds show; `ci/sim --mutants` has all.
#[test]
fn broken_rules_are_noticed() {
    let mutants = mutants::all();
    let sample = ["1 ", "10 ", "16 ", "19b ", "20 ", "engine: a partial write"];
    for name in sample {
        let mutant = mutants.iter().find(|mutant| mutant.name.starts_with(name)).expect("it is in the list");
        assert!((1..40).any(|seed| !mutant.run(seed).broken.is_empty()), "{} escaped", mutant.name);
    }
}
