//! Conflict detection: when was which part of the key space last written?
//!
//! A step function over keys, as in FoundationDB's resolver: every entry holds the version of the last write to the keys from it up
//! to the next entry. A transaction conflicts if any range it read was written after its read version.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// The recent writes.
#[derive(Debug, Default)]
pub struct Resolver {
    steps: BTreeMap<Bytes, u64>,
    /// Reads below this version cannot be judged any more.
    floor: u64,
    /// Entries after the last sweep; the next one comes when they have doubled.
    swept: usize,
}

/// What the resolver says of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing it read has changed.
    Commit,
    /// Something has.
    Conflict,
    /// It is older than the window.
    TooOld,
}

impl Resolver {
    /// A resolver that knows nothing before `floor`.
    pub fn new(floor: u64) -> Resolver {
        Resolver { floor, ..Resolver::default() }
    }

    /// May a transaction that read `reads` at `read_version` commit?
    pub fn check(&self, read_version: u64, reads: &[(Bytes, Bytes)]) -> Verdict {
        if reads.is_empty() {
            return Verdict::Commit;
        }
        if read_version < self.floor {
            return Verdict::TooOld;
        }
        let stale =
            reads.iter().any(|(begin, end)| begin < end && self.last_write(begin, end) > read_version);
        if stale { Verdict::Conflict } else { Verdict::Commit }
    }

    fn last_write(&self, begin: &Bytes, end: &Bytes) -> u64 {
        let before = self.steps.range::<Bytes, _>(..=begin).next_back().map_or(0, |(_, &version)| version);
        let inner = self.steps.range::<Bytes, _>((Bound::Excluded(begin), Bound::Excluded(end)));
        inner.map(|(_, &version)| version).fold(before, u64::max)
    }

    /// Records writes at `version`, which must not be below any earlier one.
    pub fn record(&mut self, version: u64, writes: &[(Bytes, Bytes)]) {
        for (begin, end) in writes {
            if begin >= end {
                continue;
            }
            let behind = self.steps.range::<Bytes, _>(..=end).next_back().map_or(0, |(_, &version)| version);
            let inner: Vec<Bytes> = self
                .steps
                .range::<Bytes, _>((Bound::Included(begin), Bound::Excluded(end)))
                .map(|(key, _)| key.clone())
                .collect();
            for key in inner {
                self.steps.remove(&key);
            }
            self.steps.insert(begin.clone(), version);
            self.steps.insert(end.clone(), behind);
        }
    }

    /// Forgets writes below `floor`; reads below it are too old from now on.
    pub fn advance_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        if self.steps.len() < 1024.max(self.swept * 2) {
            return;
        }
        let floor = self.floor;
        let mut last = 0;
        self.steps.retain(|_, version| {
            if *version < floor {
                *version = 0;
            }
            let keep = *version != last;
            last = *version;
            keep
        });
        self.swept = self.steps.len();
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(begin: u8, end: u8) -> (Bytes, Bytes) {
        (Bytes::copy_from_slice(&[begin]), Bytes::copy_from_slice(&[end]))
    }

    #[test]
    fn it_agrees_with_remembering_every_key() {
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut resolver = Resolver::new(0);
        let mut model = [0_u64; 64];
        for version in 1..4000 {
            let (a, b) = (next(64) as u8, next(64) as u8);
            let (begin, end) = (a.min(b), a.max(b));
            if next(2) == 0 {
                resolver.record(version, &[range(begin, end)]);
                model[begin as usize..end as usize].fill(version);
            } else {
                let read_version = version.saturating_sub(next(50)).max(resolver.floor);
                let expected =
                    model[begin as usize..end as usize].iter().any(|&written| written > read_version);
                let verdict = resolver.check(read_version, &[range(begin, end)]);
                assert_eq!(verdict == Verdict::Conflict, expected);
            }
            resolver.swept = 0;
            resolver.advance_floor(version.saturating_sub(60));
        }
    }

    #[test]
    fn what_cannot_be_judged_is_too_old() {
        let resolver = Resolver::new(10);
        assert_eq!(resolver.check(9, &[range(0, 1)]), Verdict::TooOld);
        assert_eq!(resolver.check(9, &[]), Verdict::Commit);
        assert_eq!(resolver.check(10, &[range(0, 1)]), Verdict::Commit);
    }
}
