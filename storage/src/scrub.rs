//! What a disk's scrubber decides, apart from what it reads: how fast it goes, what it reads next, when the next pass begins, and how it
//! stands. No I/O and no clock here: `scrubber.rs` has those.

use std::collections::VecDeque;
use std::time::Duration;

use catena_engine::{At, ReadRequest};
use catena_proto::ids::*;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::disk::Listed;

/// Bytes of one read at most: a foreground read behind it waits no longer than for any other read.
const PIECE: u32 = 1 << 20;
/// Reads of one trip to the disk at most.
const TOGETHER: usize = 64;
/// A disk that is busy answers slowly: for every second that the scrubber waited for it, the scrubber lets it alone for so many.
const YIELD: u32 = 3;
/// Pauses shorter than this are saved up: timers are not that fine.
const SHORTEST: Duration = Duration::from_millis(4);
/// The first pass begins this part of the interval after the start, so that a node that restarts often is scrubbed at all.
const FIRST: u32 = 100;

/// How fast a pass goes: never beyond its rate, and slower while the disk has other things to do.
#[derive(Debug)]
pub(crate) struct Pace {
    owed: Duration,
}

impl Pace {
    pub fn new() -> Pace {
        Pace { owed: Duration::ZERO }
    }

    /// How long to pause after `bytes` were read in `took`, at `rate` bytes a second (0: no limit).
    pub fn pause(&mut self, rate: u64, bytes: u64, took: Duration) -> Duration {
        let at_rate = match rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 / rate as f64).saturating_sub(took),
        };
        self.owed += at_rate.max(took * YIELD);
        if self.owed < SHORTEST { Duration::ZERO } else { std::mem::take(&mut self.owed) }
    }
}

/// The order in which targets are gone through: by number, from a place that chance chose. A position that is not remembered over a
/// restart would leave the last targets of a disk unread if passes never reach their end.
pub(crate) fn turn(mut targets: Vec<TargetId>, chance: u64, only: Option<TargetId>) -> Vec<TargetId> {
    targets.retain(|target| only.is_none_or(|only| *target == only));
    if !targets.is_empty() {
        let first = (chance % targets.len() as u64) as usize;
        targets.rotate_left(first);
    }
    targets
}

/// Chunks of a listing as reads: of at most [`PIECE`] bytes each, and batches of at most that together.
#[derive(Default)]
pub(crate) struct Pieces {
    chunks: VecDeque<Listed>,
    offset: u32,
}

impl Pieces {
    pub fn of(page: Vec<Listed>) -> Pieces {
        let stored = |listed: &Listed| listed.committed.version != ChunkVersion(0) && !listed.tombstone;
        Pieces { chunks: page.into_iter().filter(stored).collect(), offset: 0 }
    }

    /// The next batch; empty at the end.
    pub fn next(&mut self) -> Vec<ReadRequest> {
        let (mut batch, mut room) = (Vec::new(), PIECE);
        while let Some(listed) = self.chunks.front()
            && batch.len() < TOGETHER
        {
            let len = (listed.length - self.offset.min(listed.length)).min(PIECE);
            if len > room {
                break;
            }
            if len > 0 {
                let (chunk, offset) = (listed.chunk, self.offset);
                batch.push(ReadRequest { chunk, at: At::Committed, offset, len, verify: true });
                room -= len;
            }
            self.offset += len;
            if self.offset >= listed.length {
                self.skip(listed.chunk);
            }
        }
        batch
    }

    /// Nothing more of a chunk: it is known to be damaged, or gone.
    pub fn skip(&mut self, chunk: ChunkId) {
        if self.chunks.front().is_some_and(|listed| listed.chunk == chunk) {
            self.chunks.pop_front();
            self.offset = 0;
        }
    }
}

/// A pass that was ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Order {
    /// Only this target.
    pub target: Option<TargetId>,
    /// Bytes a second instead of the configured ones.
    pub rate: Option<u64>,
}

/// How a scrubber stands, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    pub running: bool,
    /// Bytes a second of the pass.
    pub rate: u64,
    /// Bytes of the pass as counted at its beginning, and those verified.
    pub total: u64,
    pub verified: u64,
    /// Passes that reached their end,
    pub passes: u64,
    /// and nanoseconds since 1970.
    pub started: u64,
    pub finished: u64,
}

#[derive(Default)]
struct Inner {
    standing: Standing,
    under_way: Order,
    next: Option<Order>,
    stop: bool,
}

/// A disk's scrubber as the rest of the service sees it.
pub(crate) struct Scrub {
    /// Configured bytes a second.
    rate: u64,
    /// Between the end of one pass and the beginning of the next by itself; zero: never.
    interval: Duration,
    inner: Mutex<Inner>,
    wake: Notify,
}

impl Scrub {
    pub fn new(rate: u64, interval: Duration) -> Scrub {
        let inner = Inner { standing: Standing { rate, ..Standing::default() }, ..Inner::default() };
        Scrub { rate, interval, inner: Mutex::new(inner), wake: Notify::new() }
    }

    /// How long until a pass begins by itself; `None`: only by order.
    pub fn rest(&self) -> Option<Duration> {
        let first = self.inner.lock().standing.passes == 0;
        let rest = if first { self.interval / FIRST } else { self.interval };
        (!self.interval.is_zero()).then_some(rest)
    }

    pub fn standing(&self) -> Standing {
        self.inner.lock().standing
    }

    /// Orders a pass. One of the same scope that is under way goes on, at the new rate.
    pub fn order(&self, order: Order) {
        let mut inner = self.inner.lock();
        if inner.standing.running && !inner.stop && inner.under_way.target == order.target {
            inner.under_way.rate = order.rate.or(inner.under_way.rate);
            inner.standing.rate = inner.under_way.rate.unwrap_or(self.rate);
        } else {
            inner.stop = inner.standing.running;
            inner.next = Some(order);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Ends the pass under way, and forgets one that was ordered.
    pub fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stop = inner.standing.running;
        inner.next = None;
        drop(inner);
        self.wake.notify_one();
    }

    /// Resolves when something was ordered.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The pass that was ordered, once.
    pub fn take(&self) -> Option<Order> {
        self.inner.lock().next.take()
    }

    pub fn begin(&self, order: Order, now: u64) {
        let mut inner = self.inner.lock();
        inner.under_way = order;
        inner.stop = inner.next.is_some();
        let standing = &mut inner.standing;
        (standing.running, standing.started) = (true, now);
        (standing.total, standing.verified) = (0, 0);
        standing.rate = order.rate.unwrap_or(self.rate);
    }

    /// The pass's rate, unless it is to end.
    pub fn going(&self) -> Option<u64> {
        let inner = self.inner.lock();
        (!inner.stop).then_some(inner.standing.rate)
    }

    pub fn counted(&self, total: u64) {
        self.inner.lock().standing.total = total;
    }
    pub fn verified(&self, bytes: u64) {
        self.inner.lock().standing.verified += bytes;
    }

    /// The pass has reached its end, or was stopped before.
    pub fn end(&self, whole: bool, now: u64) {
        let mut inner = self.inner.lock();
        inner.stop = false;
        inner.standing.running = false;
        inner.standing.rate = self.rate;
        if whole {
            inner.standing.passes += 1;
            inner.standing.finished = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_idle_disk_is_read_at_the_rate_and_a_busy_one_is_let_alone() {
        let pause = |rate, took| Pace::new().pause(rate, MIB, took);
        assert_eq!(pause(50 * MIB, ms(1)), ms(19));
        // What the read took counts.
        assert_eq!(pause(50 * MIB, ms(4)), ms(16));
        // Three quarters of a busy disk's time are others', whatever the rate.
        assert_eq!(pause(50 * MIB, ms(40)), ms(120));
        assert_eq!(pause(0, ms(10)), ms(30));
    }

    #[test]
    fn small_pauses_are_saved_up_and_not_lost() {
        let mut pace = Pace::new();
        let pauses: Vec<Duration> = (0..10).map(|_| pace.pause(4096 * 1000, 4096, ms(0))).collect();
        assert_eq!(pauses.iter().sum::<Duration>(), ms(8));
        assert_eq!(pauses.iter().filter(|pause| pause.is_zero()).count(), 8);
    }

    fn listed(index: u32, length: u32) -> Listed {
        let chunk = ChunkId { inode: InodeId(1), index };
        let committed = VersionId { version: ChunkVersion(1), assigned: ChainVersion(1) };
        Listed { chunk, committed, length, tombstone: false, pending: 0 }
    }

    fn batches(mut pieces: Pieces) -> Vec<Vec<(u32, u32, u32)>> {
        std::iter::from_fn(|| {
            let batch = pieces.next();
            let shown = batch.iter().map(|read| (read.chunk.index, read.offset, read.len)).collect();
            (!batch.is_empty()).then_some(shown)
        })
        .collect()
    }

    #[test]
    fn small_chunks_are_read_together_and_long_ones_in_pieces() {
        let page = vec![
            listed(0, 100),
            Listed { tombstone: true, ..listed(1, 0) },
            listed(2, 0),
            listed(3, (2 << 20) + 5),
            Listed { committed: VersionId::default(), ..listed(4, 0) },
            listed(5, 7),
        ];
        let mib = 1 << 20;
        assert_eq!(
            batches(Pieces::of(page)),
            [vec![(0, 0, 100)], vec![(3, 0, mib)], vec![(3, mib, mib)], vec![(3, 2 * mib, 5), (5, 0, 7)]]
        );
        let many: Vec<Listed> = (0..100).map(|index| listed(index, 4096)).collect();
        let sizes: Vec<usize> = batches(Pieces::of(many)).iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 36]);
    }

    #[test]
    fn of_a_damaged_chunk_no_more_is_read() {
        let mut pieces = Pieces::of(vec![listed(0, 3 << 20), listed(1, 10)]);
        assert_eq!(pieces.next().len(), 1);
        pieces.skip(ChunkId { inode: InodeId(1), index: 0 });
        pieces.skip(ChunkId { inode: InodeId(1), index: 9 });
        assert_eq!(batches(pieces), [vec![(1, 0, 10)]]);
    }

    #[test]
    fn every_target_has_its_turn_wherever_a_pass_begins() {
        let targets: Vec<TargetId> = (1..=3).map(TargetId).collect();
        let numbers = |chance, only| -> Vec<u64> {
            turn(targets.clone(), chance, only).iter().map(|target| target.0).collect()
        };
        assert_eq!(numbers(0, None), [1, 2, 3]);
        assert_eq!(numbers(5, None), [3, 1, 2]);
        assert_eq!(numbers(5, Some(TargetId(2))), [2]);
        assert!(numbers(5, Some(TargetId(9))).is_empty() && turn(vec![], 5, None).is_empty());
    }

    #[test]
    fn an_order_changes_the_rate_of_the_pass_under_way_or_begins_another() {
        let scrub = Scrub::new(50, Duration::from_secs(1000));
        assert_eq!(scrub.rest(), Some(Duration::from_secs(10)), "soon after a start");
        scrub.begin(Order::default(), 7);
        assert_eq!(scrub.going(), Some(50));
        scrub.order(Order { rate: Some(99), target: None });
        assert_eq!((scrub.going(), scrub.take()), (Some(99), None));
        let narrow = Order { rate: None, target: Some(TargetId(3)) };
        scrub.order(narrow);
        assert_eq!(scrub.going(), None);
        scrub.end(false, 8);
        assert_eq!((scrub.take(), scrub.standing().passes), (Some(narrow), 0));
        scrub.begin(narrow, 9);
        assert_eq!(scrub.going(), Some(50));
        scrub.end(true, 10);
        let Standing { running, passes, started, finished, .. } = scrub.standing();
        assert_eq!((running, passes, started, finished), (false, 1, 9, 10));
        assert_eq!(scrub.rest(), Some(Duration::from_secs(1000)));
        scrub.begin(narrow, 11);
        scrub.order(Order::default());
        scrub.stop();
        assert_eq!((scrub.going(), scrub.take()), (None, None));
        assert_eq!(Scrub::new(50, Duration::ZERO).rest(), None);
    }
}
