//! A transaction's own writes, as its own reads see them.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::error::KvError;
use crate::mutation::{AtomicOp, Mutation, Versionstamped};

/// What the transaction did to a key.
#[derive(Clone, Debug)]
pub(crate) enum KeyState {
    /// Its value is known, or known to be absent, without a read.
    Known(Option<Bytes>),
    /// Changes of whatever the database has.
    Changed(Vec<(AtomicOp, Bytes)>),
    /// Its value has a versionstamp in it.
    Unreadable,
}

impl KeyState {
    /// The value, given what the database has.
    pub fn value(&self, base: Option<Bytes>) -> Result<Option<Bytes>, KvError> {
        match self {
            KeyState::Known(value) => Ok(value.clone()),
            KeyState::Changed(changes) => {
                Ok(changes.iter().fold(base, |value, (op, operand)| op.apply(value.as_deref(), operand)))
            }
            KeyState::Unreadable => Err(KvError::Unreadable),
        }
    }
}

/// The writes so far: in order for the commit, by key for reads.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub mutations: Vec<Mutation>,
    pub keys: BTreeMap<Bytes, KeyState>,
    /// Ranges cleared, disjoint: begin to end. Keys written afterwards are in `keys`.
    cleared: BTreeMap<Bytes, Bytes>,
}

impl Overlay {
    pub fn set(&mut self, key: Bytes, value: Bytes) {
        self.keys.insert(key.clone(), KeyState::Known(Some(value.clone())));
        self.mutations.push(Mutation::Set(key, value));
    }

    pub fn clear(&mut self, key: Bytes) {
        self.keys.insert(key.clone(), KeyState::Known(None));
        self.mutations.push(Mutation::Clear(key));
    }

    pub fn clear_range(&mut self, begin: Bytes, end: Bytes) {
        if begin >= end {
            return;
        }
        let hidden: Vec<Bytes> =
            self.keys.range(begin.clone()..end.clone()).map(|(key, _)| key.clone()).collect();
        for key in hidden {
            self.keys.remove(&key);
        }
        let (mut from, mut to) = (begin.clone(), end.clone());
        let touching: Vec<Bytes> = self
            .cleared
            .range(..=end.clone())
            .rev()
            .take_while(|(_, other)| **other >= begin)
            .map(|(key, _)| key.clone())
            .collect();
        for key in touching {
            if let Some(other) = self.cleared.remove(&key) {
                from = from.min(key);
                to = to.max(other);
            }
        }
        self.cleared.insert(from, to);
        self.mutations.push(Mutation::ClearRange(begin, end));
    }

    pub fn atomic(&mut self, key: Bytes, operand: Bytes, op: AtomicOp) {
        let is_cleared = self.is_cleared(&key);
        let fresh = if is_cleared { KeyState::Known(None) } else { KeyState::Changed(Vec::new()) };
        match self.keys.entry(key.clone()).or_insert(fresh) {
            KeyState::Known(value) => *value = op.apply(value.as_deref(), &operand),
            KeyState::Changed(changes) => changes.push((op, operand.clone())),
            KeyState::Unreadable => {}
        }
        self.mutations.push(Mutation::Atomic(op, key, operand));
    }

    pub fn versionstamped(&mut self, write: Versionstamped) {
        if let Versionstamped::Value { key, .. } = &write {
            self.keys.insert(key.clone(), KeyState::Unreadable);
        }
        self.mutations.push(Mutation::Versionstamped(write));
    }

    /// The key's value is known, whatever the database has.
    pub fn hides(&self, key: &[u8]) -> bool {
        match self.keys.get(key) {
            Some(state) => !matches!(state, KeyState::Changed(_)),
            None => self.is_cleared(key),
        }
    }

    pub fn is_cleared(&self, key: &[u8]) -> bool {
        let at_or_before = (Bound::Unbounded, Bound::Included(key));
        self.cleared.range::<[u8], _>(at_or_before).next_back().is_some_and(|(_, end)| key < &end[..])
    }

    /// The first cleared range that ends behind `at`.
    pub fn cleared_from(&self, at: &Bytes) -> Option<(&Bytes, &Bytes)> {
        let before = self.cleared.range::<Bytes, _>(..=at).next_back().filter(|(_, end)| *end > at);
        before.or_else(|| self.cleared.range::<Bytes, _>((Bound::Excluded(at), Bound::Unbounded)).next())
    }

    /// The last cleared range that begins before `at`.
    pub fn cleared_to(&self, at: &Bytes) -> Option<(&Bytes, &Bytes)> {
        self.cleared.range::<Bytes, _>(..at).next_back()
    }
}
