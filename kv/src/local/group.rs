//! Commits that share one version and one durable write: conflict check, then their mutations in order, into one set of effects.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use catena_rt::time::Instant;

use crate::limits::{check_key, check_range, check_stamp, check_value};
use crate::local::{ConflictWindow, Span, Spans, View};
use crate::{Atomic, KvError, TRANSACTION_LIMIT, VERSIONSTAMP_LEN, Versionstamp, key_after};

/// A write as the transaction made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Set a key.
    Set(Bytes, Bytes),
    /// Clear a key.
    Clear(Bytes),
    /// Clear the keys from the first, included, to the second, not included.
    ClearRange(Bytes, Bytes),
    /// Change a value.
    Atomic(Bytes, Atomic, Bytes),
    /// Set a key with the versionstamp at this byte of it.
    StampedKey(Bytes, usize, Bytes),
    /// Set a key to a value with the versionstamp at this byte of it.
    StampedValue(Bytes, Bytes, usize),
}

/// What FoundationDB counts for a mutation besides its key and value (the size of a `MutationRef`).
const MUTATION_OVERHEAD: usize = 40;

impl Mutation {
    /// Bytes counted towards the size of a transaction, the write conflict range that goes with it included.
    pub fn size(&self) -> usize {
        MUTATION_OVERHEAD
            + match self {
                Mutation::Set(key, value)
                | Mutation::Atomic(key, _, value)
                | Mutation::StampedKey(key, _, value)
                | Mutation::StampedValue(key, value, _) => 3 * key.len() + 25 + value.len(),
                Mutation::Clear(key) => 4 * key.len() + 26,
                Mutation::ClearRange(begin, end) => 2 * (begin.len() + end.len()) + 24,
            }
    }

    fn span(&self, stamp: Versionstamp) -> Span {
        match self {
            Mutation::Set(key, _)
            | Mutation::Clear(key)
            | Mutation::Atomic(key, ..)
            | Mutation::StampedValue(key, ..) => Span::Key(key.clone()),
            Mutation::StampedKey(key, offset, _) => Span::Key(stamped(key, *offset, stamp)),
            Mutation::ClearRange(begin, end) => Span::Range(begin.clone(), end.clone()),
        }
    }
}

/// A transaction's demand to be committed.
#[derive(Debug, Default)]
pub struct Commit {
    /// The version it read at; `None` if it did not read, and then it conflicts with nothing.
    pub read_version: Option<u64>,
    /// What it read serialisably.
    pub reads: Spans,
    /// What else than its mutations counts as written.
    pub writes: Spans,
    /// Its writes, in order.
    pub mutations: Vec<Mutation>,
}

impl Commit {
    /// Whether a transaction of this kit can have made it. One that came from outside is to be asked: keys and stamps that were not
    /// checked must not reach a [`Group`].
    pub fn validate(&self) -> Result<(), KvError> {
        for mutation in &self.mutations {
            match mutation {
                Mutation::Clear(key) => check_key(key)?,
                Mutation::ClearRange(begin, end) => check_range(begin, end)?,
                Mutation::Set(key, value) | Mutation::Atomic(key, _, value) => {
                    check_key(key)?;
                    check_value(value)?;
                }
                Mutation::StampedKey(key, offset, value) => {
                    check_key(key)?;
                    check_stamp(*offset, key.len())?;
                    check_value(value)?;
                }
                Mutation::StampedValue(key, value, offset) => {
                    check_key(key)?;
                    check_stamp(*offset, value.len())?;
                    check_value(value)?;
                }
            }
        }
        for span in self.reads.iter().chain(self.writes.iter()) {
            match span {
                Span::Key(key) => check_range(key, &key_after(key))?,
                Span::Range(begin, end) => check_range(begin, end)?,
            }
        }
        match self.size() {
            size if size > TRANSACTION_LIMIT => Err(KvError::TransactionTooLarge(size)),
            _ => Ok(()),
        }
    }

    /// Bytes counted towards the size of a transaction.
    pub fn size(&self) -> usize {
        self.reads.size() + self.writes.size() + self.mutations.iter().map(Mutation::size).sum::<usize>()
    }
}

/// For each key written by a [`Group`], its value after it (`None`: absent).
pub type Effects = BTreeMap<Bytes, Option<Bytes>>;

/// Commits under one version, on top of the view of everything committed before.
pub struct Group<'a, V> {
    view: &'a V,
    window: &'a mut ConflictWindow,
    now: Instant,
    version: u64,
    order: u16,
    effects: Effects,
}

impl<'a, V: View> Group<'a, V> {
    /// A group that will be committed at `version`, greater than the view's.
    pub fn new(view: &'a V, window: &'a mut ConflictWindow, version: u64, now: Instant) -> Group<'a, V> {
        debug_assert!(version > view.version());
        Group { view, window, now, version, order: 0, effects: Effects::new() }
    }

    /// Adds a commit, behind those already added. [`KvError::Conflict`] and [`KvError::TooOld`] leave the group as it was; any other
    /// error is the view's, and then the group must not be written: it may hold half of this commit.
    pub fn add(&mut self, commit: &Commit) -> Result<Versionstamp, KvError> {
        if let Some(read_version) = commit.read_version.filter(|_| !commit.reads.is_empty()) {
            self.window.check(read_version, commit.reads.iter())?;
        }
        let stamp = Versionstamp::new(self.version, self.order);
        self.order = self.order.checked_add(1).expect("groups are smaller than 65536 commits");
        for mutation in &commit.mutations {
            self.apply(mutation, stamp)?;
        }
        let written = commit.mutations.iter().map(|mutation| mutation.span(stamp));
        self.window.record(self.version, self.now, written.chain(commit.writes.iter().cloned()));
        Ok(stamp)
    }

    /// How many commits were added.
    pub fn len(&self) -> usize {
        self.order.into()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.order == 0
    }

    /// What is to be written.
    pub fn into_effects(self) -> Effects {
        self.effects
    }

    fn apply(&mut self, mutation: &Mutation, stamp: Versionstamp) -> Result<(), KvError> {
        let (key, value) = match mutation {
            Mutation::Set(key, value) => (key.clone(), Some(value.clone())),
            Mutation::Clear(key) => (key.clone(), None),
            Mutation::StampedKey(key, offset, value) => (stamped(key, *offset, stamp), Some(value.clone())),
            Mutation::StampedValue(key, value, offset) => (key.clone(), Some(stamped(value, *offset, stamp))),
            Mutation::Atomic(key, op, operand) => {
                let after = match self.effects.get(key) {
                    Some(before) => op.apply(before.as_ref(), operand),
                    None => op.apply(self.view.get(key)?.as_ref(), operand),
                };
                (key.clone(), after)
            }
            Mutation::ClearRange(begin, end) => return self.clear_range(begin, end),
        };
        self.effects.insert(key, value);
        Ok(())
    }

    fn clear_range(&mut self, begin: &Bytes, end: &Bytes) -> Result<(), KvError> {
        if begin >= end {
            return Ok(());
        }
        for (_, value) in self.effects.range_mut::<Bytes, _>(begin..end) {
            *value = None;
        }
        let effects = &mut self.effects;
        self.view.scan(begin, end, false, &mut |key, _| {
            effects.insert(key, None);
            ControlFlow::Continue(())
        })
    }
}

/// `template` with the stamp at `offset`, which was checked to fit when it was given.
fn stamped(template: &Bytes, offset: usize, stamp: Versionstamp) -> Bytes {
    let mut bytes = BytesMut::from(&template[..]);
    bytes[offset..offset + VERSIONSTAMP_LEN].copy_from_slice(stamp.as_bytes());
    bytes.freeze()
}

/// The keys that `template` may become: from all-zero stamp to all-ones stamp.
pub fn stamped_range(template: &[u8], offset: usize) -> (Bytes, Bytes) {
    let with = |fill: u8| {
        let mut key = template.to_vec();
        key[offset..offset + VERSIONSTAMP_LEN].fill(fill);
        key
    };
    (Bytes::from(with(0)), key_after(&with(0xff)))
}
