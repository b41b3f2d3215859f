//! Placement: which disks form which chains.
//!
//! A chain's replicas are in different failure domains. Every disk gets the same number of targets and heads the same number of
//! chains. When a domain fails, the reads that it answered move to the other members of its chains; so that no survivor gets much more
//! of them than another, every two domains should share the same number of chains: a balanced incomplete block design. Exact ones exist
//! for few sizes, so `design` builds a cyclic one that is nearly balanced and improves it by local search, against the bound that
//! counting gives. The same input gives the same placement.

mod design;
mod rotate;

use std::collections::{BTreeMap, BTreeSet};

use catena_proto::ids::{DiskId, NodeId};

/// Most targets that a disk gets by choice of [`place`]; more cost heartbeats and memory and gain nothing.
const MAX_CHOSEN: u32 = 128;
/// Most targets that a disk may be asked to have.
const MAX_ASKED: u32 = 1024;

/// A disk that may get targets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Slot {
    /// Its failure domain; disks of one domain never share a chain.
    pub domain: String,
    /// Its node.
    pub node: NodeId,
    /// Which one.
    pub disk: DiskId,
}

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Targets per chain.
    pub replicas: u32,
    /// Targets per disk; 0 chooses the number that spreads load well (for one to three nodes twice the replicas).
    pub targets_per_disk: u32,
    /// Another seed gives another placement of the same quality.
    pub seed: u64,
}

/// Chains, and how good they are.
#[derive(Clone, PartialEq, Debug)]
pub struct Placement {
    /// Per chain its disks, as indices into the slots given, head first.
    pub chains: Vec<Vec<usize>>,
    /// Targets per disk.
    pub targets_per_disk: u32,
    /// How evenly load is spread after a failure.
    pub balance: Balance,
}

/// How evenly the read load of a failed domain is spread over the others.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Balance {
    /// The worst domain's share over the even share: 1.0 is perfect.
    pub worst: f64,
    /// What counting alone forbids to beat: shares are whole chains.
    pub bound: f64,
}

/// Why there is no placement.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlacementError {
    #[error("a chain needs at least one replica")]
    NoReplicas,
    #[error(
        "{replicas} replicas need {replicas} failure domains, but there are {domains} with a working disk ({names}): start more storage nodes or ask for fewer replicas"
    )]
    TooFewDomains { replicas: u32, domains: usize, names: String },
    #[error("{asked} targets per disk are too many; the limit is {MAX_ASKED}")]
    TooManyTargets { asked: u32 },
}

/// Places chains on `slots`, which must be sorted and without repetition.
pub fn place(slots: &[Slot], wanted: Wanted) -> Result<Placement, PlacementError> {
    debug_assert!(slots.is_sorted_by(|a, b| a < b));
    let replicas = wanted.replicas as usize;
    let mut domains: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, slot) in slots.iter().enumerate() {
        domains.entry(&slot.domain).or_default().push(index);
    }
    if replicas == 0 {
        return Err(PlacementError::NoReplicas);
    }
    if domains.len() < replicas {
        let names: Vec<_> = domains.keys().copied().collect();
        return Err(PlacementError::TooFewDomains {
            replicas: wanted.replicas,
            domains: domains.len(),
            names: if names.is_empty() { "none".into() } else { names.join(", ") },
        });
    }
    if wanted.targets_per_disk > MAX_ASKED {
        return Err(PlacementError::TooManyTargets { asked: wanted.targets_per_disk });
    }
    let disks: Vec<Vec<usize>> = domains.into_values().collect();
    let targets_per_disk = match wanted.targets_per_disk {
        0 => choose_targets_per_disk(&disks, replicas),
        asked => asked,
    };
    let uses = usable(&disks, replicas, targets_per_disk);
    let count = uses.iter().sum::<usize>() / replicas;
    debug_assert!(count > 0, "as many domains as replicas make at least one chain");
    let design = design::design(&uses, replicas, count, wanted.seed);
    let mut chains = onto_disks(&design, &disks, slots.len());
    rotate::rotate_evenly(&mut chains, slots.len());
    let balance = balance(&design, disks.len());
    Ok(Placement { chains, targets_per_disk, balance })
}

/// How many chains each domain takes part in. A domain with more disks than it can use (it is in every chain already) uses fewer.
fn usable(disks: &[Vec<usize>], replicas: usize, targets_per_disk: u32) -> Vec<usize> {
    let wanted: Vec<usize> = disks.iter().map(|disks| disks.len() * targets_per_disk as usize).collect();
    let mut count = wanted.iter().sum::<usize>() / replicas;
    loop {
        let capped: Vec<usize> = wanted.iter().map(|&uses| uses.min(count)).collect();
        match capped.iter().sum::<usize>() / replicas {
            fits if fits == count => return capped,
            fits => count = fits,
        }
    }
}

/// The smallest number of targets per disk whose bound is within 5% of the best: whole multiples of the replicas, so that disks head
/// equally many chains, and twice the replicas at least, so that even a small cluster has several chains.
fn choose_targets_per_disk(disks: &[Vec<usize>], replicas: usize) -> u32 {
    let bound = |targets: u32| {
        let uses = disks.iter().map(|disks| disks.len() as f64 * f64::from(targets)).sum::<f64>();
        let mean = uses / disks.len() as f64 * (replicas as f64 - 1.0) / (disks.len() as f64 - 1.0).max(1.0);
        if mean == 0.0 { 1.0 } else { mean.ceil() / mean }
    };
    let candidates: Vec<u32> = (2..).map(|n| n * replicas as u32).take_while(|&n| n <= MAX_CHOSEN).collect();
    let best = candidates.iter().map(|&n| bound(n)).fold(f64::INFINITY, f64::min);
    candidates.iter().copied().find(|&n| bound(n) <= best * 1.05).unwrap_or(replicas as u32)
}

/// Puts each domain's part in a chain on that of its disks which is used least; among equals on the one that has met the chain's other
/// disks least.
fn onto_disks(design: &[Vec<usize>], disks: &[Vec<usize>], slots: usize) -> Vec<Vec<usize>> {
    let mut used = vec![0usize; slots];
    let mut met: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let several = disks.iter().any(|disks| disks.len() > 1);
    let mut chains = Vec::with_capacity(design.len());
    for domains in design {
        let mut chain: Vec<usize> = Vec::with_capacity(domains.len());
        for &domain in domains {
            let meetings = |disk: usize| -> usize {
                let met = |&other: &usize| met.get(&(disk.min(other), disk.max(other))).copied().unwrap_or(0);
                chain.iter().map(met).sum()
            };
            let disk = *disks[domain]
                .iter()
                .min_by_key(|&&disk| (used[disk], meetings(disk)))
                .expect("a domain has at least one disk");
            used[disk] += 1;
            if several {
                for &other in &chain {
                    *met.entry((disk.min(other), disk.max(other))).or_default() += 1;
                }
            }
            chain.push(disk);
        }
        chains.push(chain);
    }
    chains
}

/// For every domain that may fail: its most loaded survivor against the even share, weighted by how many targets the survivor has.
fn balance(design: &[Vec<usize>], domains: usize) -> Balance {
    let shared = design::Pairs::count(design, domains);
    let uses = shared.uses();
    let total: usize = uses.iter().sum();
    let (mut worst, mut bound) = (1.0f64, 1.0f64);
    for (failed, &of_failed) in uses.iter().enumerate() {
        // Reads that move: each of the failed domain's chains goes to the others of that chain.
        let moved: usize =
            (0..domains).filter(|&other| other != failed).map(|other| shared.get(failed, other)).sum();
        let survivors = (total - of_failed) as f64;
        for (other, &weight) in uses.iter().enumerate() {
            if other == failed || moved == 0 || weight == 0 {
                continue;
            }
            let even = moved as f64 * weight as f64 / survivors;
            worst = worst.max(shared.get(failed, other) as f64 / even);
            bound = bound.max(if shared.is_uniform() { even.ceil() / even } else { 1.0 });
        }
    }
    Balance { worst, bound }
}

/// The domains that a set of slots has, for messages.
pub fn domain_names(slots: &[Slot]) -> BTreeSet<&str> {
    slots.iter().map(|slot| slot.domain.as_str()).collect()
}

#[cfg(test)]
mod tests;
