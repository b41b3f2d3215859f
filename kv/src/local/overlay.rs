//! Read-your-writes: what a transaction has written so far, as far as it matters to its own reads.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::local::{Span, View};
use crate::{Atomic, KeyValue, KvError, RangeQuery, RangeResult, key_after};

/// Own writes.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    keys: BTreeMap<Bytes, Own>,
    /// Disjoint cleared ranges that do not touch, begin to end. Keys written since are in `keys`.
    cleared: BTreeMap<Bytes, Bytes>,
    /// What versionstamps will be written to, or might be: not readable any more. Nearly always empty.
    unreadable: Vec<(Bytes, Bytes)>,
}

/// One key's own writes.
#[derive(Debug)]
enum Own {
    /// It has this value (or none), whatever the database holds.
    Known(Option<Bytes>),
    /// These operations, in order, on what the database holds.
    Ops(Vec<(Atomic, Bytes)>),
}

impl Own {
    fn over(&self, base: Option<Bytes>) -> Option<Bytes> {
        match self {
            Own::Known(value) => value.clone(),
            Own::Ops(ops) => ops.iter().fold(base, |value, (op, operand)| op.apply(value.as_ref(), operand)),
        }
    }
}

/// A part of a range that is wholly cleared or wholly not.
struct Segment {
    begin: Bytes,
    end: Bytes,
    cleared: bool,
}

impl Overlay {
    pub(super) fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        self.keys.insert(key, Own::Known(value));
    }

    pub(super) fn clear_range(&mut self, begin: Bytes, end: Bytes) {
        if begin >= end {
            return;
        }
        let inside: Vec<Bytes> =
            self.keys.range::<Bytes, _>(&begin..&end).map(|(key, _)| key.clone()).collect();
        for key in inside {
            self.keys.remove(&key);
        }
        // Ranges that overlap or touch the new one grow together with it.
        let (mut from, mut to) = (begin, end);
        while let Some((b, e)) = self.cleared.range::<Bytes, _>(..=&to).next_back() {
            if *e < from {
                break;
            }
            let (b, e) = (b.clone(), e.clone());
            self.cleared.remove(&b);
            from = from.min(b);
            to = to.max(e);
        }
        self.cleared.insert(from, to);
    }

    pub(super) fn atomic(&mut self, key: Bytes, op: Atomic, operand: Bytes) {
        let known_absent = self.is_cleared(&key);
        let own = self
            .keys
            .entry(key)
            .or_insert_with(|| if known_absent { Own::Known(None) } else { Own::Ops(Vec::new()) });
        match own {
            Own::Known(value) => *value = op.apply(value.as_ref(), &operand),
            Own::Ops(ops) => ops.push((op, operand)),
        }
    }

    pub(super) fn make_unreadable(&mut self, begin: Bytes, end: Bytes) {
        self.unreadable.push((begin, end));
    }

    fn check_readable(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        match self.unreadable.iter().any(|(b, e)| &b[..] < end && begin < &e[..]) {
            true => Err(KvError::Unreadable),
            false => Ok(()),
        }
    }

    fn is_cleared(&self, key: &[u8]) -> bool {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.cleared.range::<[u8], _>(upto).next_back().is_some_and(|(_, end)| key < &end[..])
    }

    /// The value of `key`, and whether it depends on the database (so that reading it can conflict).
    pub(super) fn get(&self, key: &[u8], view: &impl View) -> Result<(Option<Bytes>, bool), KvError> {
        if !self.unreadable.is_empty() {
            self.check_readable(key, &key_after(key))?;
        }
        match self.keys.get(key) {
            Some(Own::Known(value)) => Ok((value.clone(), false)),
            Some(own @ Own::Ops(_)) => Ok((own.over(view.get(key)?), true)),
            None if self.is_cleared(key) => Ok((None, false)),
            None => Ok((view.get(key)?, true)),
        }
    }

    /// Whether the value of `key` depends on the database.
    pub(super) fn depends_on(&self, key: &[u8]) -> bool {
        match self.keys.get(key) {
            Some(own) => matches!(own, Own::Ops(_)),
            None => !self.is_cleared(key),
        }
    }

    /// The parts of `begin..end` that depend on the database, in order.
    pub(super) fn unknown(&self, begin: &Bytes, end: &Bytes) -> Vec<(Bytes, Bytes)> {
        let segments = self.segments(begin, end).into_iter().filter(|segment| !segment.cleared);
        segments.map(|segment| (segment.begin, segment.end)).collect()
    }

    /// One page, and in `depends` the parts of it that depend on the database. See [`Buffer::get_range`](super::Buffer::get_range) for
    /// `cut_short`.
    pub(super) fn get_range(
        &self,
        query: &RangeQuery,
        view: &impl View,
        cut_short: bool,
        depends: &mut dyn FnMut(Span),
    ) -> Result<RangeResult, KvError> {
        let mut page = Page::new(query);
        let mut segments = self.segments(&query.begin, &query.end);
        if query.reverse {
            segments.reverse();
        }
        for segment in &segments {
            if self.read_segment(segment, query.reverse, view, &mut page)?.is_break() {
                break;
            }
        }
        let mut result = page.result;
        if cut_short && result.items.is_empty() {
            return Ok(result);
        }
        result.more |= cut_short;
        let (begin, end) = match (result.more, result.items.last()) {
            (true, Some(last)) if query.reverse => (last.key.clone(), query.end.clone()),
            (true, Some(last)) => (query.begin.clone(), key_after(&last.key)),
            _ => (query.begin.clone(), query.end.clone()),
        };
        self.check_readable(&begin, &end)?;
        for segment in segments.into_iter().filter(|segment| !segment.cleared) {
            self.dependent(segment.begin.max(begin.clone()), segment.end.min(end.clone()), depends);
        }
        Ok(result)
    }

    fn read_segment(
        &self,
        segment: &Segment,
        reverse: bool,
        view: &impl View,
        page: &mut Page,
    ) -> Result<ControlFlow<()>, KvError> {
        let range = self.keys.range::<Bytes, _>(&segment.begin..&segment.end);
        let mut own: Box<dyn Iterator<Item = (&Bytes, &Own)>> =
            if reverse { Box::new(range.rev()) } else { Box::new(range) };
        let mut next = own.next();
        let mut flow = ControlFlow::Continue(());
        if !segment.cleared {
            view.scan(&segment.begin, &segment.end, reverse, &mut |key, value| {
                flow = (|| {
                    while let Some((k, o)) = next.filter(|(k, _)| if reverse { **k > key } else { **k < key })
                    {
                        page.push(k.clone(), o.over(None))?;
                        next = own.next();
                    }
                    match next.filter(|(k, _)| **k == key) {
                        None => page.push(key, Some(value)),
                        Some((_, o)) => {
                            next = own.next();
                            page.push(key, o.over(Some(value)))
                        }
                    }
                })();
                flow
            })?;
        }
        while let (ControlFlow::Continue(()), Some((key, o))) = (flow, next) {
            flow = page.push(key.clone(), o.over(None));
            next = own.next();
        }
        Ok(flow)
    }

    /// `begin..end` in parts, in order. Empty if the range is.
    fn segments(&self, begin: &Bytes, end: &Bytes) -> Vec<Segment> {
        let mut segments = Vec::with_capacity(1);
        let mut at = begin.clone();
        let before = self.cleared.range::<Bytes, _>(..=begin).next_back();
        for (b, e) in before
            .into_iter()
            .chain(self.cleared.range::<Bytes, _>((Bound::Excluded(begin), Bound::Excluded(end.max(begin)))))
        {
            let (b, e) = (b.max(&at).clone(), e.min(end).clone());
            if b >= e {
                continue;
            }
            if at < b {
                segments.push(Segment { begin: at, end: b.clone(), cleared: false });
            }
            at = e.clone();
            segments.push(Segment { begin: b, end: e, cleared: true });
        }
        if at < *end {
            segments.push(Segment { begin: at, end: end.clone(), cleared: false });
        }
        segments
    }

    /// `begin..end` without the keys that are known whatever the database holds.
    fn dependent(&self, begin: Bytes, end: Bytes, depends: &mut dyn FnMut(Span)) {
        if begin >= end {
            return;
        }
        let mut at = begin.clone();
        for (key, own) in self.keys.range::<Bytes, _>(&begin..&end) {
            if matches!(own, Own::Known(_)) {
                if at < *key {
                    depends(Span::Range(at, key.clone()));
                }
                at = key_after(key);
            }
        }
        if at < end {
            depends(Span::Range(at, end));
        }
    }
}

/// A page being filled.
struct Page {
    result: RangeResult,
    items_left: usize,
    bytes_left: usize,
}

impl Page {
    fn new(query: &RangeQuery) -> Page {
        let no_limit = |limit: usize| if limit == 0 { usize::MAX } else { limit };
        Page {
            result: RangeResult::default(),
            items_left: no_limit(query.limit),
            bytes_left: no_limit(query.target_bytes),
        }
    }

    fn push(&mut self, key: Bytes, value: Option<Bytes>) -> ControlFlow<()> {
        let Some(value) = value else { return ControlFlow::Continue(()) };
        self.items_left -= 1;
        self.bytes_left = self.bytes_left.saturating_sub(key.len() + value.len());
        self.result.items.push(KeyValue { key, value });
        if self.items_left == 0 || self.bytes_left == 0 {
            self.result.more = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}
