//! Transactions over a snapshot and a committer: what `mem` and `embedded` share.
//!
//! Reads go to an immutable [`Snapshot`]; writes are kept in an overlay; [`CommitRequest`] carries what was read and written to the
//! [`Committer`], which judges it with a [`Resolver`](crate::Resolver) and applies it with a [`Batch`].

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::database::{KeyValue, RangeRead, RangeResult, Transaction, Versionstamp};
use crate::error::KvError;
use crate::limits;
use crate::mutation::{AtomicOp, Mutation, Versionstamped};
use crate::overlay::{KeyState, Overlay};
use crate::subspace::successor;

pub use crate::resolver::Verdict;

/// Items that a batch of a range holds where the caller set no limit.
const BATCH_ITEMS: usize = 1000;
/// And bytes.
const BATCH_BYTES: usize = 256 << 10;

/// An unchanging view of the whole database at one version.
pub trait Snapshot: Send + Sync + 'static {
    /// The version.
    fn version(&self) -> u64;
    /// One key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;
    /// Calls `each` with the items of `begin <= key < end`, upwards or downwards, until it says to stop by `false`.
    fn scan(
        &self,
        begin: &[u8],
        end: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(Bytes, Bytes) -> bool,
    ) -> Result<(), KvError>;
}

/// What a transaction hands in.
#[derive(Debug)]
pub struct CommitRequest {
    /// The version that it read.
    pub read_version: u64,
    /// Ranges that it read.
    pub reads: Vec<(Bytes, Bytes)>,
    /// Ranges that it wrote, keys with versionstamps not included.
    pub writes: Vec<(Bytes, Bytes)>,
    /// What it does, in order.
    pub mutations: Vec<Mutation>,
}

/// Where commits go.
#[async_trait]
pub trait Committer: Send + Sync + 'static {
    /// Judges, applies, makes durable.
    async fn commit(&self, request: CommitRequest) -> Result<Versionstamp, KvError>;
}

/// Changes of one or more transactions on top of a snapshot.
pub struct Batch<'a, S> {
    base: &'a S,
    /// What the commits leave behind: the new value of every key touched.
    pub changes: BTreeMap<Bytes, Option<Bytes>>,
}

impl<'a, S: Snapshot> Batch<'a, S> {
    /// Nothing yet.
    pub fn new(base: &'a S) -> Self {
        Batch { base, changes: BTreeMap::new() }
    }

    /// Applies one transaction as of now. Returns the write ranges that its versionstamped keys add.
    pub fn apply(
        &mut self,
        mutations: Vec<Mutation>,
        stamp: Versionstamp,
    ) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let mut stamped = Vec::new();
        for mutation in mutations {
            match mutation {
                Mutation::Set(key, value) => drop(self.changes.insert(key, Some(value))),
                Mutation::Clear(key) => drop(self.changes.insert(key, None)),
                Mutation::ClearRange(begin, end) => {
                    for value in self.changes.range_mut(begin.clone()..end.clone()) {
                        *value.1 = None;
                    }
                    let changes = &mut self.changes;
                    self.base.scan(&begin, &end, false, &mut |key, _| {
                        changes.insert(key, None);
                        true
                    })?;
                }
                Mutation::Atomic(op, key, operand) => {
                    let value = match self.changes.get(&key) {
                        Some(value) => value.clone(),
                        None => self.base.get(&key)?,
                    };
                    let value = op.apply(value.as_deref(), &operand);
                    self.changes.insert(key, value);
                }
                Mutation::Versionstamped(write) => {
                    let (key, value) = write.stamp(stamp);
                    stamped.push((key.clone(), successor(&key)));
                    self.changes.insert(key, Some(value));
                }
            }
        }
        Ok(stamped)
    }
}

/// A transaction over a snapshot.
pub struct OptimisticTransaction<S, C> {
    snapshot: Arc<S>,
    committer: Arc<C>,
    started: Instant,
    overlay: Overlay,
    reads: Vec<(Bytes, Bytes)>,
    writes: Vec<(Bytes, Bytes)>,
    size: usize,
    /// The first limit that a mutation broke, told by the commit.
    broken: Option<KvError>,
}

impl<S: Snapshot, C: Committer> OptimisticTransaction<S, C> {
    /// Begins.
    pub fn new(snapshot: Arc<S>, committer: Arc<C>) -> Self {
        OptimisticTransaction {
            snapshot,
            committer,
            started: Instant::now(),
            overlay: Overlay::default(),
            reads: Vec::new(),
            writes: Vec::new(),
            size: 0,
            broken: None,
        }
    }

    fn check_age(&self) -> Result<(), KvError> {
        if self.started.elapsed() > limits::AGE { Err(KvError::TooOld) } else { Ok(()) }
    }

    fn account(&mut self, key: &[u8], value: usize) {
        self.size += key.len() + value;
        if key.len() > limits::KEY {
            self.broken.get_or_insert(KvError::KeyTooLarge(key.len()));
        }
        if value > limits::VALUE {
            self.broken.get_or_insert(KvError::ValueTooLarge(value));
        }
    }

    fn wrote(&mut self, key: &Bytes) {
        self.writes.push((key.clone(), successor(key)));
    }

    /// Reads of the database below the overlay, without the ranges that the transaction has cleared.
    fn scan_visible(
        &self,
        begin: &Bytes,
        end: &Bytes,
        reverse: bool,
        each: &mut dyn FnMut(Bytes, Bytes) -> bool,
    ) -> Result<(), KvError> {
        let (mut from, mut to) = (begin.clone(), end.clone());
        while from < to {
            let cleared =
                if reverse { self.overlay.cleared_to(&to) } else { self.overlay.cleared_from(&from) };
            let (gap_from, gap_to) = match cleared {
                Some((gap_from, gap_to)) => {
                    (gap_from.clone().max(from.clone()), gap_to.clone().min(to.clone()))
                }
                None if reverse => (from.clone(), from.clone()),
                None => (to.clone(), to.clone()),
            };
            let mut go_on = true;
            let mut visit = |key: Bytes, value: Bytes| {
                go_on = each(key, value);
                go_on
            };
            if reverse {
                self.snapshot.scan(&gap_to, &to, true, &mut visit)?;
                to = gap_from.min(to);
            } else {
                self.snapshot.scan(&from, &gap_from.clone().max(from.clone()), false, &mut visit)?;
                from = gap_to.max(from);
            }
            if !go_on {
                break;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<S: Snapshot, C: Committer> Transaction for OptimisticTransaction<S, C> {
    async fn read_version(&mut self) -> Result<u64, KvError> {
        Ok(self.snapshot.version())
    }

    async fn get(&mut self, key: &[u8], snapshot: bool) -> Result<Option<Bytes>, KvError> {
        self.check_age()?;
        if key.len() > limits::KEY {
            return Err(KvError::KeyTooLarge(key.len()));
        }
        if self.overlay.hides(key) {
            return self.overlay.keys.get(key).map_or(Ok(None), |state| state.value(None));
        }
        if !snapshot {
            let key = Bytes::copy_from_slice(key);
            let behind = successor(&key);
            self.reads.push((key, behind));
        }
        let base = self.snapshot.get(key)?;
        self.overlay.keys.get(key).map_or(Ok(base.clone()), |state| state.value(base.clone()))
    }

    async fn get_range(&mut self, range: RangeRead) -> Result<RangeResult, KvError> {
        self.check_age()?;
        let RangeRead { begin, end, limit, target_bytes, reverse, snapshot } = range;
        if begin > end {
            return Err(KvError::Invalid("a range ends before it begins"));
        }
        let limit = if limit == 0 { BATCH_ITEMS } else { limit };
        let target = if target_bytes == 0 { BATCH_BYTES } else { target_bytes };
        let mut own: Vec<(&Bytes, &KeyState)> = self.overlay.keys.range(begin.clone()..end.clone()).collect();
        if !reverse {
            own.reverse(); // the next one is always the last
        }
        let mut items: Vec<KeyValue> = Vec::new();
        let (mut bytes, mut more, mut failed) = (0, false, None);
        // Takes one key of the result; false when it does not fit any more.
        let mut take = |key: Bytes, value: Result<Option<Bytes>, KvError>| match value {
            Err(error) => {
                failed = Some(error);
                false
            }
            Ok(None) => true,
            Ok(Some(_)) if items.len() >= limit || bytes >= target => {
                more = true;
                false
            }
            Ok(Some(value)) => {
                bytes += key.len() + value.len();
                items.push(KeyValue { key, value });
                true
            }
        };
        let mut stopped = false;
        self.scan_visible(&begin, &end, reverse, &mut |key, value| {
            while let Some(&(own_key, state)) = own.last() {
                let order = if reverse { key.cmp(own_key) } else { own_key.cmp(&key) };
                if order.is_gt() {
                    break;
                }
                own.pop();
                if order.is_eq() {
                    stopped = !take(key, state.value(Some(value)));
                    return !stopped;
                }
                if !take(own_key.clone(), state.value(None)) {
                    stopped = true;
                    return false;
                }
            }
            stopped = !take(key, Ok(Some(value)));
            !stopped
        })?;
        while let Some((key, state)) = own.pop().filter(|_| !stopped) {
            stopped = !take(key.clone(), state.value(None));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if !snapshot {
            let read = match items.last() {
                Some(last) if more && reverse => (last.key.clone(), end),
                Some(last) if more => (begin, successor(&last.key)),
                _ => (begin, end),
            };
            self.reads.push(read);
        }
        Ok(RangeResult { items, more })
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.account(key, value.len());
        let key = Bytes::copy_from_slice(key);
        self.wrote(&key);
        self.overlay.set(key, Bytes::copy_from_slice(value));
    }

    fn clear(&mut self, key: &[u8]) {
        self.account(key, 0);
        let key = Bytes::copy_from_slice(key);
        self.wrote(&key);
        self.overlay.clear(key);
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        self.account(begin, 0);
        self.account(end, 0);
        if begin > end {
            self.broken.get_or_insert(KvError::Invalid("a range ends before it begins"));
            return;
        }
        let (begin, end) = (Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        self.writes.push((begin.clone(), end.clone()));
        self.overlay.clear_range(begin, end);
    }

    fn atomic(&mut self, key: &[u8], operand: &[u8], op: AtomicOp) {
        self.account(key, operand.len());
        let key = Bytes::copy_from_slice(key);
        self.wrote(&key);
        self.overlay.atomic(key, Bytes::copy_from_slice(operand), op);
    }

    fn set_versionstamped(&mut self, write: Versionstamped) {
        if !write.is_valid() {
            self.broken
                .get_or_insert(KvError::Invalid("a versionstamp's ten bytes lie outside the key or value"));
            return;
        }
        match &write {
            Versionstamped::Key { key, value, .. } => self.account(key, value.len()),
            Versionstamped::Value { key, value, .. } => {
                self.account(key, value.len());
                self.wrote(key);
            }
        }
        self.overlay.versionstamped(write);
    }

    fn add_read_conflict(&mut self, begin: &[u8], end: &[u8]) {
        self.reads.push((Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end)));
    }

    fn add_write_conflict(&mut self, begin: &[u8], end: &[u8]) {
        self.writes.push((Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end)));
    }

    fn size(&self) -> usize {
        let ranges = self.reads.iter().chain(&self.writes);
        self.size + ranges.map(|(begin, end)| begin.len() + end.len()).sum::<usize>()
    }

    async fn commit(self: Box<Self>) -> Result<Versionstamp, KvError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if self.size() > limits::TRANSACTION {
            return Err(KvError::TransactionTooLarge(self.size()));
        }
        let read_version = self.snapshot.version();
        if self.overlay.mutations.is_empty() && self.writes.is_empty() {
            return Ok(Versionstamp::new(read_version, 0));
        }
        self.check_age()?;
        let request = CommitRequest {
            read_version,
            reads: self.reads,
            writes: self.writes,
            mutations: self.overlay.mutations,
        };
        self.committer.commit(request).await
    }
}
