//! Sets of keys and key ranges: what a transaction read or wrote, for conflict detection.

use bytes::Bytes;

use crate::key_after;

/// A key or a range of keys. Most are single keys, which must not cost a second key for their end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Span {
    /// One key.
    Key(Bytes),
    /// The keys from the first, included, to the second, not included.
    Range(Bytes, Bytes),
}

impl Span {
    fn begin(&self) -> &Bytes {
        match self {
            Span::Key(key) | Span::Range(key, _) => key,
        }
    }

    fn is_range(&self) -> bool {
        matches!(self, Span::Range(..))
    }

    /// Bytes counted towards the size of a transaction: both ends, and what FoundationDB adds for a range.
    fn size(&self) -> usize {
        RANGE_OVERHEAD
            + match self {
                Span::Key(key) => 2 * key.len() + 1,
                Span::Range(begin, end) => begin.len() + end.len(),
            }
    }
}

/// What a range costs towards the size of a transaction besides its keys, as in FoundationDB (the size of a `KeyRangeRef`).
const RANGE_OVERHEAD: usize = 24;

/// Below this many spans it does not pay to look for overlaps.
const COALESCE_FROM: usize = 1024;

/// A set of [`Span`]s. Overlaps are removed now and then, so that reading the same keys again and again does not grow it without end.
#[derive(Debug, Default)]
pub struct Spans {
    spans: Vec<Span>,
    size: usize,
    coalesce_at: usize,
}

impl Spans {
    /// Adds a span.
    pub fn push(&mut self, span: Span) {
        if self.spans.last() == Some(&span) {
            return;
        }
        self.size += span.size();
        self.spans.push(span);
        if self.spans.len() >= self.coalesce_at.max(COALESCE_FROM) {
            self.coalesce();
            self.coalesce_at = 2 * self.spans.len();
        }
    }

    /// The spans, in no particular order.
    pub fn iter(&self) -> std::slice::Iter<'_, Span> {
        self.spans.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes counted towards the size of a transaction.
    pub fn size(&self) -> usize {
        self.size
    }

    fn coalesce(&mut self) {
        self.spans.sort_unstable_by(|a, b| (a.begin(), a.is_range()).cmp(&(b.begin(), b.is_range())));
        let mut kept: Vec<Span> = Vec::with_capacity(self.spans.len());
        for span in self.spans.drain(..) {
            match (kept.last_mut(), &span) {
                (Some(Span::Range(_, end)), Span::Key(key)) if key < end => {}
                (Some(Span::Range(_, end)), Span::Range(begin, more)) if begin <= end => {
                    if *end < *more {
                        *end = more.clone();
                    }
                }
                (Some(Span::Key(a)), Span::Key(b)) if a == b => {}
                (Some(last @ Span::Key(_)), Span::Range(begin, end)) if last.begin() == begin => {
                    let end = end.clone().max(key_after(begin));
                    *last = Span::Range(begin.clone(), end);
                }
                _ => kept.push(span),
            }
        }
        self.size = kept.iter().map(Span::size).sum();
        self.spans = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_removed_and_nothing_else() {
        let key = |k: &'static str| Span::Key(Bytes::from_static(k.as_bytes()));
        let range = |b: &'static str, e: &'static str| {
            Span::Range(Bytes::from_static(b.as_bytes()), Bytes::from_static(e.as_bytes()))
        };
        let mut spans = Spans::default();
        for span in [
            key("m"),
            range("b", "d"),
            key("b"),
            key("c"),
            range("c", "f"),
            key("f"),
            key("m"),
            range("m", "m"),
            range("x", "y"),
        ] {
            spans.push(span);
        }
        spans.coalesce();
        assert_eq!(spans.spans, [range("b", "f"), key("f"), range("m", "m\0"), range("x", "y")]);
    }

    #[test]
    fn reading_one_set_of_keys_for_ever_stays_small() {
        let mut spans = Spans::default();
        for round in 0..100_000u32 {
            spans.push(Span::Key(Bytes::from((round % 100).to_be_bytes().to_vec())));
        }
        assert!(spans.spans.len() < 2 * COALESCE_FROM, "{}", spans.spans.len());
    }
}
