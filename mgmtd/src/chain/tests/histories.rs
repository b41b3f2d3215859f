//! What must hold in every history: a ghost set of the targets that hold everything acknowledged is carried along, and nobody serves
//! who is not in it. First all of them for three targets, then random ones for more.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::*;

type Complete = BTreeSet<TargetId>;

const IDS: [TargetId; 5] = [TargetId(1), TargetId(2), TargetId(3), TargetId(4), TargetId(5)];

fn start(size: usize) -> (ChainState, Complete) {
    let member = |&id| Member { id, state: PublicState::Serving, joined_at: ChainVersion(1) };
    let members = IDS[..size].iter().map(member).collect();
    (ChainState { version: ChainVersion(1), members }, IDS[..size].iter().copied().collect())
}

fn in_state(chain: &ChainState, state: PublicState) -> Vec<TargetId> {
    chain.members.iter().filter(|member| member.state == state).map(|member| member.id).collect()
}

/// Checks one change of a chain and gives the new ghost set: whoever serves may have acknowledged writes that nobody else has.
fn check(
    before: &ChainState,
    complete: &Complete,
    news: &dyn Fn(TargetId) -> News,
    after: &ChainState,
) -> Complete {
    let serving = in_state(after, PublicState::Serving);
    let old = |id: TargetId| *before.members.iter().find(|member| member.id == id).unwrap();
    for &id in &serving {
        let (was, heard) = (old(id), news(id));
        let allowed = match was.state {
            PublicState::Serving => heard.local != LocalState::Offline && complete.contains(&id),
            PublicState::Syncing => heard.local == LocalState::UpToDate && heard.joined_at == was.joined_at,
            PublicState::Lastsrv => {
                heard.original_disk
                    && complete.contains(&id)
                    && serving.len() == 1
                    && in_state(before, PublicState::Serving).is_empty()
            }
            _ => false,
        };
        assert!(allowed, "{before} -> {after}: {id} must not serve, {heard:?}, complete {complete:?}");
    }
    assert_eq!(after.version.0, before.version.0 + 1);
    // Order, and one at a time (R26).
    let ranks: Vec<_> = after.members.iter().map(|member| rank(member.state)).collect();
    assert!(ranks.is_sorted(), "{after}");
    assert!(in_state(after, PublicState::Syncing).len() <= 1, "{after}");
    // Serving targets keep their order (R9).
    let kept: Vec<_> =
        in_state(before, PublicState::Serving).into_iter().filter(|id| serving.contains(id)).collect();
    assert!(serving.starts_with(&kept), "{before} -> {after}");
    // Lastsrv only when nobody serves, and only who has everything; nobody syncs from nobody.
    let last = in_state(after, PublicState::Lastsrv);
    assert!(serving.is_empty() || last.is_empty(), "{after}");
    assert!(last.iter().all(|id| complete.contains(id)), "{before} -> {after}, complete {complete:?}");
    assert!(!serving.is_empty() || !last.is_empty(), "{before} -> {after}: nobody remembers who was last");
    assert!(!serving.is_empty() || in_state(after, PublicState::Syncing).is_empty(), "{after}");
    // A new membership has a new name, an unbroken one keeps its.
    for member in &after.members {
        let was = old(member.id);
        let unbroken = matches!(
            (was.state, member.state),
            (PublicState::Serving, PublicState::Serving)
                | (PublicState::Syncing, PublicState::Syncing | PublicState::Serving)
        );
        let is_member = matches!(member.state, PublicState::Serving | PublicState::Syncing);
        let expected = if is_member && !unbroken { after.version } else { was.joined_at };
        assert_eq!(member.joined_at, expected, "{before} -> {after}: {}", member.id);
    }
    if serving.is_empty() { complete.clone() } else { serving.into_iter().collect() }
}

/// Settles step by step, each step checked.
fn settle_checked(chain: &mut ChainState, complete: &mut Complete, news: &dyn Fn(TargetId) -> News) {
    for _ in 0..8 {
        let Some(next) = step(chain, news) else { return };
        *complete = check(chain, complete, news, &next);
        *chain = next;
    }
    panic!("{chain} does not come to rest");
}

fn all_news(joined_at: ChainVersion) -> Vec<News> {
    let mut all = Vec::new();
    for original_disk in [true, false] {
        for local in [LocalState::Online, LocalState::Offline, LocalState::Unspecified] {
            all.push(News { local, joined_at, original_disk });
        }
        for session in [joined_at, ChainVersion(joined_at.0.wrapping_sub(1))] {
            all.push(News { local: LocalState::UpToDate, joined_at: session, original_disk });
        }
    }
    all
}

/// Versions made small again: only whether sessions are equal matters, not how often the chain changed.
fn normal(chain: &ChainState) -> ChainState {
    let mut chain = chain.clone();
    chain.version = ChainVersion(1000);
    for (index, member) in chain.members.iter_mut().enumerate() {
        member.joined_at = ChainVersion(10 * (index as u64 + 1));
    }
    chain
}

#[test]
fn nobody_serves_without_everything_in_any_history_of_three() {
    let (chain, complete) = start(3);
    let mut seen = BTreeSet::new();
    let mut open = vec![(normal(&chain), complete)];
    let mut changes = 0;
    while let Some((chain, complete)) = open.pop() {
        if !seen.insert((chain.to_string(), complete.clone())) {
            continue;
        }
        let per_member: Vec<_> = chain.members.iter().map(|member| all_news(member.joined_at)).collect();
        for a in &per_member[0] {
            for b in &per_member[1] {
                for c in &per_member[2] {
                    let news = |id| {
                        let index = chain.members.iter().position(|member| member.id == id).unwrap();
                        *[a, b, c][index]
                    };
                    if let Some(next) = step(&chain, news) {
                        changes += 1;
                        let complete = check(&chain, &complete, &news, &next);
                        open.push((normal(&next), complete));
                    }
                }
            }
        }
    }
    assert!(seen.len() > 50 && changes > 10_000, "{} states, {changes} changes", seen.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nobody_serves_without_everything_in_random_histories(
        size in 1usize..=5,
        events in prop::collection::vec((0usize..5, 0usize..10), 1..60),
    ) {
        let (mut chain, mut complete) = start(size);
        let mut heard = [News { local: LocalState::Unspecified, joined_at: ChainVersion(0), original_disk: true }; 5];
        for (who, what) in events {
            let id = IDS[who % size];
            let joined_at = chain.members.iter().find(|member| member.id == id).unwrap().joined_at;
            heard[who % size] = all_news(joined_at)[what];
            settle_checked(&mut chain, &mut complete, &|id| heard[id.0 as usize - 1]);
        }
    }

    #[test]
    fn a_chain_with_a_complete_survivor_returns_to_full_strength(
        size in 1usize..=5,
        events in prop::collection::vec((0usize..5, 0usize..5), 1..40),
    ) {
        let (mut chain, mut complete) = start(size);
        let mut heard = [News { local: LocalState::Online, joined_at: ChainVersion(0), original_disk: true }; 5];
        for (who, what) in events {
            let id = IDS[who % size];
            let joined_at = chain.members.iter().find(|member| member.id == id).unwrap().joined_at;
            heard[who % size] = all_news(joined_at)[what];
            settle_checked(&mut chain, &mut complete, &|id| heard[id.0 as usize - 1]);
        }
        // Faults stop: every service is there and finishes the session that it is in.
        for _ in 0..=2 * size {
            for member in &chain.members {
                let local = match member.state {
                    PublicState::Syncing => LocalState::UpToDate,
                    _ => LocalState::Online,
                };
                heard[member.id.0 as usize - 1] = News { local, joined_at: member.joined_at, original_disk: true };
            }
            settle_checked(&mut chain, &mut complete, &|id| heard[id.0 as usize - 1]);
        }
        prop_assert_eq!(in_state(&chain, PublicState::Serving).len(), size, "{}", chain);
    }
}
