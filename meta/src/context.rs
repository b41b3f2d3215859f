//! What operations need besides the transaction and the request: time, randomness, routing, reserved inode ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use catena_mgmtd_client::RoutingWatch;
use catena_proto::clock::{Clock, Timestamp};
use catena_proto::ids::InodeId;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::config::LayoutDefaults;
use crate::schema::key::{ALLOCATORS, SHARDS};

/// Ids reserved at a time: one transaction of the allocator serves this many creations.
pub const RESERVE: u64 = 4096;
/// Ids below this are never handed out: 0 is none, 1 the root, the rest is for what comes later.
const FIRST: u64 = 4096;

/// Shared by all operations of one service.
pub struct Context {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chains, tables, disks.
    pub routing: RoutingWatch,
    /// Layout of files that inherit none.
    pub layout: LayoutDefaults,
    /// How old a state every query may be answered from.
    pub staleness: Duration,
    rng: Mutex<StdRng>,
    ids: Mutex<Range>,
    /// The period of outcomes that was seen last: where to look first.
    period: AtomicU32,
}

/// Reserved ids of one allocator shard: numbers `next..end` become ids `number * ALLOCATORS + shard`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The allocator's shard.
    pub shard: u8,
    /// The next number.
    pub next: u64,
    /// Behind the last.
    pub end: u64,
}

impl Context {
    /// All randomness derives from `seed`.
    pub fn new(
        clock: Arc<dyn Clock>,
        routing: RoutingWatch,
        layout: LayoutDefaults,
        staleness: Duration,
        seed: u64,
    ) -> Context {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Context { clock, routing, layout, staleness, rng, ids: Mutex::default(), period: AtomicU32::new(0) }
    }

    /// The period of outcomes that was seen last, by any transaction: a guess.
    pub fn period(&self) -> u32 {
        self.period.load(Ordering::Relaxed)
    }

    /// Says which period was seen.
    pub fn learn_period(&self, period: u32) {
        self.period.store(period, Ordering::Relaxed);
    }

    /// Wall-clock time, nanoseconds since the epoch.
    pub fn now(&self) -> i64 {
        let Timestamp(now) = self.clock.wall();
        now
    }

    /// 64 random bits.
    pub fn random(&self) -> u64 {
        self.rng.lock().random()
    }

    /// A shard of a counter.
    pub fn counter_shard(&self) -> u8 {
        (self.random() % u64::from(SHARDS)) as u8
    }

    /// A shard of the inode allocator.
    pub fn allocator_shard(&self) -> u8 {
        (self.random() % u64::from(ALLOCATORS)) as u8
    }

    /// An id that nobody else will ever get, if one is in reserve.
    pub fn take_id(&self) -> Option<InodeId> {
        let mut ids = self.ids.lock();
        if ids.next >= ids.end {
            return None;
        }
        ids.next += 1;
        Some(InodeId((ids.next - 1) * u64::from(ALLOCATORS) + u64::from(ids.shard)))
    }

    /// Puts a range in reserve. What was left of an older one is given up: 64 bits do not run out.
    pub fn refill(&self, range: Range) {
        *self.ids.lock() = range;
    }
}

/// The first number that an allocator shard hands out.
pub fn first_number() -> u64 {
    FIRST / u64::from(ALLOCATORS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_proto::clock::Monotonic;
    use catena_proto::routing::RoutingInfo;

    struct Still;
    impl Clock for Still {
        fn monotonic(&self) -> Monotonic {
            Monotonic::default()
        }
        fn wall(&self) -> Timestamp {
            Timestamp(5)
        }
    }

    #[test]
    fn ids_of_different_shards_and_ranges_never_meet() {
        let (_set, routing) = RoutingWatch::manual(RoutingInfo::default());
        let context = Context::new(Arc::new(Still), routing, LayoutDefaults::default(), Duration::ZERO, 1);
        assert_eq!(context.take_id(), None);
        let mut seen = std::collections::BTreeSet::new();
        for shard in 0..ALLOCATORS {
            for start in [first_number(), first_number() + 3] {
                context.refill(Range { shard, next: start, end: start + 3 });
                let ids: Vec<_> = std::iter::from_fn(|| context.take_id()).collect();
                assert_eq!(ids.len(), 3);
                assert!(ids.iter().all(|&id| id.0 >= FIRST && seen.insert(id)));
            }
        }
    }
}
