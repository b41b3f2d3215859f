//! The conflict resolver's memory: which keys were written at which version in the last few seconds.
//!
//! It is a queue of generations. A commit is written into the newest; a check looks only into those that hold something newer than the
//! read version, which for a short transaction is the newest one or two, however many writes the window holds. Forgetting is dropping
//! the oldest generation whole.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use catena_rt::time::Instant;

use crate::local::Span;
use crate::{KvError, TRANSACTION_AGE};

/// A generation is closed after this time...
const GENERATION_AGE: Duration = Duration::from_millis(500);
/// ...or when it has this many entries: about 10 MB of memory.
const GENERATION_ENTRIES: usize = if cfg!(test) { 1 << 10 } else { 64 << 10 };
/// So many generations are kept at most. Writing faster than that shortens the age that transactions can reach.
const GENERATIONS: usize = 16;

/// The writes of recent commits.
#[derive(Debug)]
pub struct ConflictWindow {
    generations: VecDeque<Generation>,
    /// Commits up to this version have been forgotten: a transaction that read before it cannot be checked.
    floor: u64,
}

#[derive(Debug)]
struct Generation {
    started: Instant,
    newest: u64,
    keys: BTreeMap<Bytes, u64>,
    /// From each boundary to the next, the version at which this range was last written; 0 is never.
    ranges: BTreeMap<Bytes, u64>,
}

impl ConflictWindow {
    /// A window for a database whose last commit was at `version`: earlier reads cannot be checked.
    pub fn new(version: u64) -> ConflictWindow {
        ConflictWindow { generations: VecDeque::new(), floor: version }
    }

    /// Whether none of `reads`, made at `read_version`, was written since.
    pub fn check<'a>(
        &self,
        read_version: u64,
        reads: impl Iterator<Item = &'a Span> + Clone,
    ) -> Result<(), KvError> {
        if read_version < self.floor {
            return Err(KvError::TooOld);
        }
        for generation in self.generations.iter().rev().take_while(|g| g.newest > read_version) {
            if reads.clone().any(|span| generation.written_since(span, read_version)) {
                return Err(KvError::Conflict);
            }
        }
        Ok(())
    }

    /// Remembers that `writes` were written at `version`, which is not less than any before.
    pub fn record(&mut self, version: u64, now: Instant, writes: impl Iterator<Item = Span>) {
        self.turn(now);
        let generation = self.generations.back_mut().expect("turn left a generation to write into");
        generation.newest = version;
        for span in writes {
            match span {
                Span::Key(key) => {
                    generation.keys.insert(key, version);
                }
                Span::Range(begin, end) => generation.write_range(begin, end, version),
            }
        }
    }

    /// Opens and drops generations as due. One is dropped only when everything in it is older than any transaction may be.
    fn turn(&mut self, now: Instant) {
        let fresh = self.generations.back().is_some_and(|last| {
            now.saturating_duration_since(last.started) < GENERATION_AGE && last.len() < GENERATION_ENTRIES
        });
        if fresh {
            return;
        }
        // The second one's start bounds the age of the youngest commit in the first.
        while self.generations.len() >= GENERATIONS
            || self
                .generations
                .get(1)
                .is_some_and(|next| now.saturating_duration_since(next.started) > TRANSACTION_AGE)
        {
            let dropped = self.generations.pop_front().expect("there are at least two");
            self.floor = self.floor.max(dropped.newest);
        }
        self.generations.push_back(Generation {
            started: now,
            newest: 0,
            keys: BTreeMap::new(),
            ranges: BTreeMap::new(),
        });
    }
}

impl Generation {
    fn len(&self) -> usize {
        self.keys.len() + self.ranges.len()
    }

    fn written_since(&self, span: &Span, version: u64) -> bool {
        match span {
            Span::Key(key) => {
                self.keys.get(key).is_some_and(|&at| at > version)
                    || (!self.ranges.is_empty() && self.range_at(key) > version)
            }
            Span::Range(begin, end) if begin >= end => false,
            Span::Range(begin, end) => {
                self.keys.range::<Bytes, _>(begin..end).any(|(_, &at)| at > version)
                    || (!self.ranges.is_empty()
                        && (self.range_at(begin) > version
                            || self.ranges.range::<Bytes, _>(begin..end).any(|(_, &at)| at > version)))
            }
        }
    }

    /// When the range that `key` is in was last written.
    fn range_at(&self, key: &Bytes) -> u64 {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.ranges.range::<Bytes, _>(upto).next_back().map_or(0, |(_, &at)| at)
    }

    fn write_range(&mut self, begin: Bytes, end: Bytes, version: u64) {
        if begin >= end {
            return;
        }
        let behind = self.range_at(&end);
        let inside: Vec<Bytes> =
            self.ranges.range::<Bytes, _>(&begin..&end).map(|(key, _)| key.clone()).collect();
        for key in inside {
            self.ranges.remove(&key);
        }
        self.ranges.insert(begin, version);
        self.ranges.entry(end).or_insert(behind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(k: u8) -> Span {
        Span::Key(Bytes::from(vec![k]))
    }

    fn range(begin: u8, end: u8) -> Span {
        Span::Range(Bytes::from(vec![begin]), Bytes::from(vec![end]))
    }

    #[test]
    fn every_check_agrees_with_a_list_of_all_writes() {
        let draws = crate::Jitter::new(11);
        let byte = |below: u64| (draws.next() % below) as u8;
        let start = Instant::now();
        let mut window = ConflictWindow::new(0);
        let mut writes: Vec<(u64, Span)> = Vec::new();
        let covers = |span: &Span, k: u8| match span {
            Span::Key(key) => key[0] == k,
            Span::Range(begin, end) => begin[0] <= k && k < end[0],
        };
        for version in 1..=600u64 {
            // A generation every twenty versions, and none dropped within the test.
            let now = start + Duration::from_millis(version * 5);
            let span = if byte(3) > 0 { key(byte(40)) } else { range(byte(40), byte(40)) };
            window.record(version, now, [span.clone()].into_iter());
            writes.push((version, span));
            let read_version = version.saturating_sub(u64::from(byte(100)));
            let read = if byte(2) > 0 { key(byte(40)) } else { range(byte(40), byte(40)) };
            let expected = writes.iter().any(|(at, written)| {
                *at > read_version && (0..40).any(|k| covers(written, k) && covers(&read, k))
            });
            let got = window.check(read_version, [read.clone()].iter());
            assert_eq!(got, if expected { Err(KvError::Conflict) } else { Ok(()) }, "{version} {read:?}");
        }
    }

    #[test]
    fn what_was_forgotten_is_too_old_and_never_passed() {
        let start = Instant::now();
        let mut window = ConflictWindow::new(7);
        assert_eq!(window.check(6, [key(1)].iter()), Err(KvError::TooOld));
        for version in 8..108 {
            let now = start + Duration::from_millis((version - 8) * 100);
            window.record(version, now, [key(version as u8)].into_iter());
        }
        // The last commit was at 9.9 s; what is at most five seconds old is still there.
        for version in 58..108 {
            assert_eq!(window.check(version - 1, [key(version as u8)].iter()), Err(KvError::Conflict));
        }
        assert_eq!(window.check(10, [key(200)].iter()), Err(KvError::TooOld));
        assert!(window.generations.len() <= GENERATIONS);
    }

    #[test]
    fn memory_is_bounded_however_fast_the_writes() {
        let now = Instant::now();
        let mut window = ConflictWindow::new(0);
        let count = (GENERATION_ENTRIES * (GENERATIONS + 4)) as u64;
        for version in 1..=count {
            let key = Bytes::from(version.to_be_bytes().to_vec());
            window.record(version, now, [Span::Key(key)].into_iter());
        }
        let entries: usize = window.generations.iter().map(Generation::len).sum();
        assert!(entries <= GENERATION_ENTRIES * GENERATIONS);
        assert_eq!(window.check(1, [key(0)].iter()), Err(KvError::TooOld));
        assert_eq!(window.check(count - 1, [key(0)].iter()), Ok(()));
    }
}
