//! The election as a table: what one mgmtd has seen and when, and what it does next.

use super::*;

const T: Duration = Duration::from_secs(8);

fn at(seconds: u64) -> Monotonic {
    Monotonic(Duration::from_secs(seconds))
}

fn candidate() -> Candidate {
    Candidate {
        node: 1,
        incarnation: 11,
        address: "a:1".into(),
        lease: T,
        client_lease: T * 6,
        exclusive: false,
    }
}

/// Another's record.
fn other(term: u64, beat: u64) -> LeaseRecord {
    LeaseRecord {
        holder: 2,
        incarnation: 22,
        term,
        beat,
        address: "b:1".into(),
        lease_ms: T.as_millis() as u64,
        client_lease_ms: 0,
        released: false,
    }
}

/// What this one writes when it takes over.
fn own(term: u64, beat: u64) -> LeaseRecord {
    LeaseRecord {
        holder: 1,
        incarnation: 11,
        term,
        beat,
        address: "a:1".into(),
        lease_ms: T.as_millis() as u64,
        client_lease_ms: (T * 6).as_millis() as u64,
        released: false,
    }
}

fn take(watched: Option<LeaseRecord>, term: u64) -> Action {
    Action::Take { watched, record: own(term, 0) }
}

fn leading(sent: u64) -> Election {
    let mut election = Election::new(candidate());
    election.saw(at(sent), None);
    election.took(at(sent), own(1, 0));
    election
}

#[test]
fn it_looks_first() {
    let election = Election::new(candidate());
    assert_eq!(election.next(at(5)), (at(0), Action::Look));
    assert_eq!(election.valid_until(), None);
}

#[test]
fn what_was_seen_decides_when_it_is_taken() {
    let given_up = LeaseRecord { released: true, ..other(4, 9) };
    let slower = LeaseRecord { lease_ms: 20_000, ..other(4, 9) };
    let quicker = LeaseRecord { lease_ms: 1_000, ..other(4, 9) };
    let earlier_start = LeaseRecord { incarnation: 10, ..own(4, 9) };
    let table = [
        ("an empty store", None, 0),
        ("given up", Some(given_up), 0),
        ("this very process's", Some(own(4, 9)), 0),
        ("another's", Some(other(4, 9)), 8),
        ("one with a longer lease", Some(slower), 20),
        ("one with a shorter lease", Some(quicker), 8),
        ("another start with the same number", Some(earlier_start), 8),
    ];
    for (what, record, wait) in table {
        let mut election = Election::new(candidate());
        let term = record.as_ref().map_or(0, |record| record.term) + 1;
        let mut now = 100;
        election.saw(at(now), record.clone());
        loop {
            match election.next(at(now)) {
                (when, Action::Look) => {
                    assert!(when.since(at(now)) == T / 8, "{what}: looks often");
                    now += 1;
                    election.saw(at(now), record.clone());
                }
                (when, action) => {
                    assert_eq!((when, action), (at(100 + wait), take(record.clone(), term)), "{what}");
                    break;
                }
            }
        }
    }
}

#[test]
fn an_exclusive_store_is_taken_at_once() {
    let mut election = Election::new(Candidate { exclusive: true, ..candidate() });
    election.saw(at(3), Some(other(4, 9)));
    assert_eq!(election.next(at(3)), (at(3), take(Some(other(4, 9)), 5)));
}

#[test]
fn every_sign_of_life_begins_the_wait_anew() {
    let mut election = Election::new(candidate());
    for beat in 0..50 {
        election.saw(at(beat * 2), Some(other(4, beat)));
        assert_eq!(election.next(at(beat * 2)), (at(beat * 2 + 1), Action::Look));
    }
    // The last sign was seen at 98; the looks at the same record do not count.
    for now in [100, 102, 104, 105] {
        election.saw(at(now), Some(other(4, 49)));
    }
    assert_eq!(election.next(at(106)), (at(106), take(Some(other(4, 49)), 5)));
}

#[test]
fn a_challenger_that_was_paused_takes_only_what_it_watched() {
    let mut election = Election::new(candidate());
    election.saw(at(0), Some(other(4, 0)));
    assert_eq!(election.next(at(1000)), (at(1), Action::Look), "it looks again before it believes anything");
    election.saw(at(1000), Some(other(4, 321)));
    assert_eq!(election.next(at(1000)), (at(1001), Action::Look));
    // The same record all the time: then it has stood for long, and the transaction finds out whether it still does.
    election.saw(at(1002), Some(other(4, 321)));
    election.saw(at(2000), Some(other(4, 321)));
    assert_eq!(election.next(at(2000)), (at(1008), take(Some(other(4, 321)), 5)));
    election.saw(at(2000), Some(other(5, 0)));
    assert_eq!(election.next(at(2000)), (at(2001), Action::Look));
}

#[test]
fn a_primary_renews_every_quarter_and_counts_from_before_the_sending() {
    let mut election = leading(10);
    assert_eq!(election.valid_until(), Some(at(14)));
    assert_eq!(election.next(at(10)), (at(12), Action::Renew { record: own(1, 1) }));
    // Sent at 12; the answer may come whenever it likes.
    election.renewed(at(12), own(1, 1));
    assert_eq!(election.valid_until(), Some(at(16)));
    assert_eq!(election.next(at(13)), (at(14), Action::Renew { record: own(1, 2) }));
}

#[test]
fn a_renewal_that_fails_is_repeated_until_the_lease_may_be_over() {
    let mut election = leading(0);
    election.failed(at(2), true);
    let again = Monotonic(Duration::from_millis(2500));
    assert_eq!(election.next(at(2)), (again, Action::Renew { record: own(1, 1) }));
    election.failed(Monotonic(Duration::from_millis(3700)), true);
    assert_eq!(election.next(at(3)), (at(4), Action::StepDown));
    election.lapsed();
    assert_eq!(election.valid_until(), None);
    // Its own record stands: nobody has taken over, and it may begin a new term at once.
    assert_eq!(election.next(at(5)).1, Action::Look);
    election.saw(at(5), Some(own(1, 1)));
    assert_eq!(election.next(at(5)), (at(5), take(Some(own(1, 1)), 2)));
}

#[test]
fn a_primary_that_was_paused_past_its_lease_steps_down_before_anything_else() {
    let election = leading(0);
    assert_eq!(election.next(at(3)).1, Action::Renew { record: own(1, 1) });
    assert_eq!(election.next(at(4)).1, Action::StepDown);
    assert_eq!(election.next(at(400)).1, Action::StepDown);
}

#[test]
fn a_deposed_primary_watches_its_successor_for_a_full_lease() {
    let mut election = leading(0);
    election.saw(at(3), Some(other(2, 0)));
    assert_eq!(election.valid_until(), None);
    assert_eq!(election.watched(), Some(&other(2, 0)));
    for now in [5, 7, 9, 10] {
        election.saw(at(now), Some(other(2, 0)));
    }
    assert_eq!(election.next(at(10)), (at(11), take(Some(other(2, 0)), 3)));
}

#[test]
fn one_that_never_hears_whether_it_has_taken_the_lease_lets_others_go_first() {
    let mut election = Election::new(candidate());
    election.saw(at(0), None);
    election.failed(at(1), true);
    assert_eq!(election.next(at(1)).0, Monotonic(Duration::from_millis(1500)), "not in a tight loop");
    // It did take it. Others take such a record after T; this one after twice that.
    election.saw(at(2), Some(own(1, 0)));
    for now in 3..=17 {
        assert_eq!(election.next(at(now - 1)).1, Action::Look);
        election.saw(at(now), Some(own(1, 0)));
    }
    assert_eq!(election.next(at(18)), (at(18), take(Some(own(1, 0)), 2)));
    election.took(at(18), own(2, 0));
    election.lapsed();
    election.saw(at(30), Some(own(2, 0)));
    assert_eq!(election.next(at(30)).1, take(Some(own(2, 0)), 3), "an answer makes it sure again");
}
