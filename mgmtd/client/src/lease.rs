//! The lease: whether this service, and each of its targets, may still answer.
//!
//! Counted on this process's own monotonic clock from when the last answered heartbeat was *sent*, and for half the time after which
//! mgmtd declares the service failed. So whatever the network did to the answer, and with clocks that differ in rate by less than a
//! factor of two, a target stops answering before mgmtd may have replaced it (design section 5, R13, R24).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catena_proto::clock::Monotonic;
use catena_proto::ids::TargetId;
use parking_lot::RwLock;

/// A service's lease. Cheap to clone; all clones see the same one.
#[derive(Clone, Default)]
pub struct Lease {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    node: Until,
    targets: RwLock<BTreeMap<TargetId, TargetLease>>,
}

/// One target's lease: hold on to it where requests are served, so that a check costs one atomic load.
#[derive(Clone, Default)]
pub struct TargetLease {
    until: Arc<Until>,
}

/// Nanoseconds on the own clock; 0 was never renewed. Only grows.
#[derive(Default)]
struct Until(AtomicU64);

impl Until {
    fn raise(&self, to: Monotonic) {
        let nanos = u64::try_from(to.0.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_max(nanos, Ordering::AcqRel);
    }
    fn get(&self) -> Monotonic {
        Monotonic(Duration::from_nanos(self.0.load(Ordering::Acquire)))
    }
}

impl TargetLease {
    /// Whether the target may answer at `now`. For reads, take the committed version first and the clock afterwards (R11).
    pub fn valid(&self, now: Monotonic) -> bool {
        now < self.until.get()
    }
    /// When it runs out unless renewed.
    pub fn valid_until(&self) -> Monotonic {
        self.until.get()
    }
    /// A lease that never runs out, for tests.
    pub fn forever() -> TargetLease {
        let lease = TargetLease::default();
        lease.until.raise(Monotonic(Duration::from_nanos(u64::MAX)));
        lease
    }
}

impl Lease {
    /// One that was never renewed.
    pub fn new() -> Lease {
        Lease::default()
    }

    /// Whether the service as a whole has been answered recently enough.
    pub fn valid(&self, now: Monotonic) -> bool {
        now < self.shared.node.get()
    }

    /// When the service's lease runs out unless renewed.
    pub fn valid_until(&self) -> Monotonic {
        self.shared.node.get()
    }

    /// The lease of one target: never valid before mgmtd renewed that target by name (R24).
    pub fn target(&self, target: TargetId) -> TargetLease {
        if let Some(lease) = self.shared.targets.read().get(&target) {
            return lease.clone();
        }
        self.shared.targets.write().entry(target).or_default().clone()
    }

    /// Notes an answered heartbeat: `sent` is when it was sent, `term` the lease time T that mgmtd named. Half of T is used.
    ///
    /// Called by [`crate::Heartbeats`]; public for the simulator and tests.
    pub fn renew(&self, sent: Monotonic, term: Duration, renewed: impl IntoIterator<Item = TargetId>) {
        let until = sent + term / 2;
        for target in renewed {
            self.target(target).until.raise(until);
        }
        self.shared.node.raise(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(Duration::from_millis(ms))
    }

    #[test]
    fn half_the_term_counts_from_the_sending() {
        let lease = Lease::new();
        assert!(!lease.valid(at(0)));
        lease.renew(at(1000), Duration::from_millis(400), []);
        assert!(lease.valid(at(1199)));
        assert!(!lease.valid(at(1200)));
    }

    #[test]
    fn only_named_targets_are_renewed_and_handles_follow() {
        let lease = Lease::new();
        let (kept, removed) = (lease.target(TargetId(1)), lease.target(TargetId(2)));
        lease.renew(at(0), Duration::from_secs(2), [TargetId(1), TargetId(2)]);
        lease.renew(at(900), Duration::from_secs(2), [TargetId(1)]);
        assert!(kept.valid(at(1500)));
        assert!(removed.valid(at(999)) && !removed.valid(at(1000)));
    }

    #[test]
    fn a_late_answer_to_an_early_heartbeat_takes_nothing_back() {
        let lease = Lease::new();
        lease.renew(at(900), Duration::from_secs(2), [TargetId(1)]);
        lease.renew(at(100), Duration::from_secs(2), [TargetId(1)]);
        assert_eq!(lease.target(TargetId(1)).valid_until(), at(1900));
    }
}
