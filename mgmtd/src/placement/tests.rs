//! Every placement is valid, even, and as balanced as counting allows.

use proptest::prelude::*;

use super::*;

fn slots(per_domain: &[usize]) -> Vec<Slot> {
    let mut slots = Vec::new();
    for (domain, &disks) in per_domain.iter().enumerate() {
        for _ in 0..disks {
            let disk = DiskId(slots.len() as u128 + 1);
            slots.push(Slot { domain: format!("d{domain:04}"), node: NodeId(domain as u32 + 1), disk });
        }
    }
    slots
}

fn wanted(replicas: u32, targets_per_disk: u32) -> Wanted {
    Wanted { replicas, targets_per_disk, seed: 1 }
}

fn counts(placement: &Placement, disks: usize, of: impl Fn(&[usize]) -> &[usize]) -> (usize, usize) {
    let mut counts = vec![0; disks];
    placement.chains.iter().flat_map(|chain| of(chain)).for_each(|&disk| counts[disk] += 1);
    (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
}

fn assert_valid(slots: &[Slot], placement: &Placement, replicas: usize) {
    for chain in &placement.chains {
        let domains: BTreeSet<_> = chain.iter().map(|&disk| &slots[disk].domain).collect();
        assert_eq!((chain.len(), domains.len()), (replicas, replicas), "{chain:?}");
    }
}

#[test]
fn three_nodes_with_a_disk_each_get_several_chains() {
    let slots = slots(&[1, 1, 1]);
    let placement = place(&slots, wanted(3, 0)).unwrap();
    assert_eq!((placement.chains.len(), placement.targets_per_disk), (6, 6));
    assert_eq!(counts(&placement, 3, |chain| &chain[..1]), (2, 2));
    assert_eq!(place(&slots, wanted(3, 4)).unwrap().chains.len(), 4);
    assert_eq!(placement.balance, Balance { worst: 1.0, bound: 1.0 });
}

#[test]
fn equal_disks_are_used_equally_and_load_is_spread_as_counting_allows() {
    for (nodes, disks, replicas) in [
        (1, 3, 1),
        (2, 1, 2),
        (4, 1, 3),
        (5, 2, 3),
        (6, 1, 2),
        (7, 1, 3),
        (10, 4, 3),
        (13, 1, 4),
        (50, 1, 3),
        (200, 1, 3),
    ] {
        let slots = slots(&vec![disks; nodes]);
        let placement = place(&slots, wanted(replicas, 0)).unwrap();
        let what = format!("{nodes} nodes of {disks} disks, {replicas} replicas: {:?}", placement.balance);
        assert_valid(&slots, &placement, replicas as usize);
        let each = placement.targets_per_disk as usize;
        assert_eq!(counts(&placement, slots.len(), |chain| chain), (each, each), "{what}");
        let heads = each / replicas as usize;
        assert_eq!(counts(&placement, slots.len(), |chain| &chain[..1]), (heads, heads), "{what}");
        assert!(placement.balance.worst <= placement.balance.bound * 1.0001, "{what}");
        assert!(placement.balance.bound < 1.06, "{what}");
    }
}

#[test]
fn what_does_not_divide_leaves_at_most_a_chain_unused() {
    let slots = slots(&[1; 4]);
    let placement = place(&slots, wanted(3, 4)).unwrap();
    assert_eq!(placement.chains.len(), 5);
    assert_eq!(counts(&placement, 4, |chain| chain), (3, 4));
}

#[test]
fn a_domain_that_is_in_every_chain_already_uses_what_it_can() {
    let slots = slots(&[1, 1, 4]);
    let placement = place(&slots, wanted(3, 6)).unwrap();
    assert_valid(&slots, &placement, 3);
    assert_eq!(placement.chains.len(), 6);
    assert_eq!(counts(&placement, 6, |chain| chain), (1, 6));
}

#[test]
fn racks_are_failure_domains() {
    let mut slots = slots(&[2; 6]);
    for slot in &mut slots {
        slot.domain = format!("rack{}", slot.node.0 % 3);
    }
    slots.sort();
    let placement = place(&slots, wanted(3, 3)).unwrap();
    assert_valid(&slots, &placement, 3);
    assert_eq!(counts(&placement, slots.len(), |chain| chain), (3, 3));
}

#[test]
fn more_replicas_than_domains_are_refused_by_name() {
    let error = place(&slots(&[4, 4]), wanted(3, 0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "3 replicas need 3 failure domains, but there are 2 with a working disk (d0000, d0001): start more storage nodes or ask for fewer replicas"
    );
    assert!(place(&[], wanted(1, 0)).unwrap_err().to_string().contains("(none)"));
    assert_eq!(place(&slots(&[1]), wanted(0, 0)), Err(PlacementError::NoReplicas));
    assert_eq!(place(&slots(&[1]), wanted(1, 5000)), Err(PlacementError::TooManyTargets { asked: 5000 }));
}

#[test]
fn the_same_input_gives_the_same_placement() {
    let slots = slots(&[2; 20]);
    let one = place(&slots, wanted(3, 7)).unwrap();
    assert_eq!(place(&slots, wanted(3, 7)).unwrap(), one);
    assert_ne!(place(&slots, Wanted { seed: 2, ..wanted(3, 7) }).unwrap().chains, one.chains);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_set_of_disks_gets_valid_chains(
        per_domain in prop::collection::vec(1usize..5, 1..12),
        replicas in 1u32..5,
        targets in 0u32..9,
        seed in any::<u64>(),
    ) {
        let slots = slots(&per_domain);
        match place(&slots, Wanted { replicas, targets_per_disk: targets, seed }) {
            Ok(placement) => {
                assert_valid(&slots, &placement, replicas as usize);
                let (_, most) = counts(&placement, slots.len(), |chain| chain);
                prop_assert!(most <= placement.targets_per_disk as usize);
                // Disks of one domain differ by one at most.
                let mut used = vec![0i64; slots.len()];
                placement.chains.iter().flatten().for_each(|&disk| used[disk] += 1);
                for (a, one) in slots.iter().enumerate() {
                    for (b, other) in slots.iter().enumerate() {
                        prop_assert!(one.domain != other.domain || (used[a] - used[b]).abs() <= 1);
                    }
                }
                // No more than one chain's worth of targets is missing, counted over what domains can use.
                let uses: usize = used.iter().sum::<i64>() as usize;
                let cap = placement.chains.len();
                let able: usize = per_domain.iter().map(|disks| (disks * placement.targets_per_disk as usize).min(cap + 1)).sum();
                prop_assert!(able < uses + per_domain.len() + replicas as usize);
            }
            Err(error) => prop_assert!(per_domain.len() < replicas as usize, "{}", error),
        }
    }
}
