//! Random operations, what they did to a transaction, and what they would do to a plain map.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::conformance::Draws;
use crate::{Atomic, Isolation, KvError, RangeQuery, Tx, key_after};

/// The database as a map.
pub(super) type Map = BTreeMap<Bytes, Bytes>;

/// One operation of a transaction; reads with what they returned.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Get(Bytes, Isolation, Option<Bytes>),
    Range(RangeQuery, Vec<(Bytes, Bytes)>, bool),
    Set(Bytes, Bytes),
    Clear(Bytes),
    ClearRange(Bytes, Bytes),
    Atomic(Bytes, Atomic, Bytes),
}

const ATOMICS: [Atomic; 10] = [
    Atomic::Add,
    Atomic::BitAnd,
    Atomic::BitOr,
    Atomic::BitXor,
    Atomic::Max,
    Atomic::Min,
    Atomic::ByteMax,
    Atomic::ByteMin,
    Atomic::AppendIfFits,
    Atomic::CompareAndClear,
];

fn key(draws: &Draws, keys: u64) -> Bytes {
    let number = draws.below(keys) as u8;
    // Some keys are prefixes of others.
    Bytes::from([vec![b'a' + number / 3], vec![0; (number % 3).into()]].concat())
}

fn bounds(draws: &Draws, keys: u64) -> (Bytes, Bytes) {
    let (a, b) = (key(draws, keys), key(draws, keys));
    if a <= b { (a, b) } else { (b, a) }
}

impl Op {
    /// Draws an operation; reads have no result yet. One in `reads` of the draws, on average, is a write if it is not 1 in 1.
    pub(super) fn draw(draws: &Draws, keys: u64) -> Op {
        let isolation = if draws.below(5) == 0 { Isolation::Snapshot } else { Isolation::Serializable };
        match draws.below(12) {
            0..4 => Op::Get(key(draws, keys), isolation, None),
            4..6 => {
                let (begin, end) = bounds(draws, keys);
                let mut query = RangeQuery::new(begin, key_after(&end)).limit(draws.below(4) as usize);
                query.reverse = draws.below(2) == 0;
                query.isolation = isolation;
                query.target_bytes = [0, 1, 9, 1000][draws.below(4) as usize];
                Op::Range(query, Vec::new(), false)
            }
            6..9 => Op::Set(key(draws, keys), value(draws)),
            9 => Op::Clear(key(draws, keys)),
            10 => {
                let (begin, end) = bounds(draws, keys);
                Op::ClearRange(begin, end)
            }
            _ => {
                let op = ATOMICS[draws.below(10) as usize];
                Op::Atomic(key(draws, keys), op, value(draws))
            }
        }
    }

    /// Does it in `tx`, and notes what a read returned.
    pub(super) async fn run(&mut self, tx: &Tx) -> Result<(), KvError> {
        match self {
            Op::Get(key, isolation, result) => *result = tx.get(key, *isolation).await?,
            Op::Range(query, items, more) => {
                let page = tx.get_range(query.clone()).await?;
                *more = page.more;
                *items = page.items.into_iter().map(|item| (item.key, item.value)).collect();
            }
            Op::Set(key, value) => tx.set(key, value)?,
            Op::Clear(key) => tx.clear(key)?,
            Op::ClearRange(begin, end) => tx.clear_range(begin, end)?,
            Op::Atomic(key, op, operand) => tx.atomic(key, *op, operand)?,
        }
        Ok(())
    }

    /// Does it to `map`. For a read: whether it returned what is in the map. With `only_serializable`, snapshot reads are not held to it.
    pub(super) fn replay(&self, map: &mut Map, only_serializable: bool) -> Result<(), String> {
        match self {
            Op::Get(key, isolation, result) => {
                let excused = only_serializable && *isolation == Isolation::Snapshot;
                let expected = map.get(key);
                if !excused && expected != result.as_ref() {
                    return Err(format!("get {key:?} returned {result:?}, expected {expected:?}"));
                }
            }
            Op::Range(query, items, more) => {
                let excused = only_serializable && query.isolation == Isolation::Snapshot;
                let mut expected: Vec<(Bytes, Bytes)> = map
                    .range::<Bytes, _>(&query.begin..&query.end)
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                if query.reverse {
                    expected.reverse();
                }
                // A page may be shorter than asked, but only with `more`.
                let right = items.len() <= expected.len()
                    && expected[..items.len()] == items[..]
                    && (*more || items.len() == expected.len())
                    && (query.limit == 0 || items.len() <= query.limit)
                    && !(*more && items.is_empty());
                if !excused && !right {
                    return Err(format!("{query:?} returned {items:?} {more}, expected {expected:?}"));
                }
            }
            Op::Set(key, value) => {
                map.insert(key.clone(), value.clone());
            }
            Op::Clear(key) => {
                map.remove(key);
            }
            Op::ClearRange(begin, end) => map.retain(|key, _| key < begin || key >= end),
            Op::Atomic(key, op, operand) => match op.apply(map.get(key), operand) {
                Some(value) => _ = map.insert(key.clone(), value),
                None => _ = map.remove(key),
            },
        }
        Ok(())
    }

    pub(super) fn is_write(&self) -> bool {
        match self {
            Op::Get(..) | Op::Range(..) => false,
            Op::ClearRange(begin, end) => begin < end,
            _ => true,
        }
    }
}

fn value(draws: &Draws) -> Bytes {
    let length = 1 + draws.below(9) as usize;
    Bytes::from_iter((0..length).map(|_| draws.below(256) as u8))
}
