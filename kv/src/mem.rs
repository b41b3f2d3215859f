//! A database in memory, for tests and the simulator. Deterministic; can be told to fail.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::database::{Database, Transaction, Versionstamp};
use crate::error::KvError;
use crate::optimistic::{Batch, CommitRequest, Committer, OptimisticTransaction, Snapshot, Verdict};
use crate::resolver::Resolver;

/// What a commit can be made to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Fail as if it conflicted.
    Conflict,
    /// Commit, and say that the outcome is unknown.
    UnknownCommitted,
    /// Do not commit, and say that the outcome is unknown.
    UnknownLost,
    /// The database does not answer.
    Unavailable,
}

type FaultHook = Box<dyn FnMut() -> Option<Fault> + Send>;

/// Versions that a snapshot may still read are kept.
#[derive(Default)]
struct State {
    version: u64,
    /// Every key's values by version, oldest first.
    data: BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>,
    /// Versions that snapshots hold, and how many of them.
    held: BTreeMap<u64, usize>,
    resolver: Resolver,
    faults: Option<FaultHook>,
}

/// Commits that the conflict window holds. FoundationDB's window is 5 seconds; transactions that old fail by age anyway.
const WINDOW: u64 = 1_000_000;

/// The database. Clones share it.
#[derive(Clone, Default)]
pub struct MemDatabase {
    state: Arc<Mutex<State>>,
}

impl MemDatabase {
    /// An empty one.
    pub fn new() -> MemDatabase {
        MemDatabase::default()
    }

    /// Asks `hook` at every commit whether it shall fail.
    pub fn set_faults(&self, hook: impl FnMut() -> Option<Fault> + Send + 'static) {
        self.state.lock().faults = Some(Box::new(hook));
    }

    /// No more faults.
    pub fn clear_faults(&self) {
        self.state.lock().faults = None;
    }
}

struct MemSnapshot {
    state: Arc<Mutex<State>>,
    version: u64,
}

impl Drop for MemSnapshot {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if let Some(count) = state.held.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.version);
            }
        }
    }
}

fn value_at(versions: &[(u64, Option<Bytes>)], version: u64) -> Option<Bytes> {
    versions.iter().rev().find(|(written, _)| *written <= version).and_then(|(_, value)| value.clone())
}

/// A view of the locked state, also for commits.
struct View<'a> {
    state: &'a State,
    version: u64,
}

impl View<'_> {
    fn scan(&self, begin: &[u8], end: &[u8], reverse: bool, each: &mut dyn FnMut(Bytes, Bytes) -> bool) {
        if begin >= end {
            return;
        }
        let range = self.state.data.range::<[u8], _>((Bound::Included(begin), Bound::Excluded(end)));
        let visible = |(key, versions): (&Bytes, &Vec<_>)| {
            value_at(versions, self.version).map(|value| (key.clone(), value))
        };
        let mut go = |(key, value)| each(key, value);
        if reverse {
            range.rev().filter_map(visible).all(&mut go);
        } else {
            range.filter_map(visible).all(&mut go);
        }
    }
}

impl Snapshot for MemSnapshot {
    fn version(&self) -> u64 {
        self.version
    }
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.state.lock().data.get(key).and_then(|versions| value_at(versions, self.version)))
    }
    fn scan(
        &self,
        begin: &[u8],
        end: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(Bytes, Bytes) -> bool,
    ) -> Result<(), KvError> {
        View { state: &self.state.lock(), version: self.version }.scan(begin, end, reverse, each);
        Ok(())
    }
}

/// New values by key.
type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// The newest state, while it is locked.
struct Newest<'a>(&'a State);

// A commit reads through the lock that it holds.
impl Newest<'_> {
    fn changes(
        &self,
        request: &mut CommitRequest,
        stamp: Versionstamp,
    ) -> Result<(Changes, Vec<(Bytes, Bytes)>), KvError> {
        // `Batch` wants a `Snapshot`, which is `'static`; an owned copy of what the mutations may touch would do too, but the
        // state is in memory anyway: collect the ranges to clear first.
        let frozen = Frozen { data: self.touched(request), version: self.0.version };
        let mut batch = Batch::new(&frozen);
        let stamped = batch.apply(std::mem::take(&mut request.mutations), stamp)?;
        Ok((batch.changes, stamped))
    }

    /// Current values of everything in the request's write ranges.
    fn touched(&self, request: &CommitRequest) -> BTreeMap<Bytes, Bytes> {
        let view = View { state: self.0, version: u64::MAX };
        let mut data = BTreeMap::new();
        for (begin, end) in &request.writes {
            view.scan(begin, end, false, &mut |key, value| {
                data.insert(key, value);
                true
            });
        }
        data
    }
}

struct Frozen {
    data: BTreeMap<Bytes, Bytes>,
    version: u64,
}

impl Snapshot for Frozen {
    fn version(&self) -> u64 {
        self.version
    }
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.data.get(key).cloned())
    }
    fn scan(
        &self,
        begin: &[u8],
        end: &[u8],
        _reverse: bool,
        each: &mut dyn FnMut(Bytes, Bytes) -> bool,
    ) -> Result<(), KvError> {
        let range = (Bound::Included(begin), Bound::Excluded(end));
        self.data.range::<[u8], _>(range).all(|(key, value)| each(key.clone(), value.clone()));
        Ok(())
    }
}

#[async_trait]
impl Committer for MemDatabase {
    async fn commit(&self, mut request: CommitRequest) -> Result<Versionstamp, KvError> {
        let mut state = self.state.lock();
        let fault = state.faults.as_mut().and_then(|hook| hook());
        match fault {
            Some(Fault::Conflict) => return Err(KvError::Conflict),
            Some(Fault::UnknownLost) => return Err(KvError::CommitUnknown),
            Some(Fault::Unavailable) => return Err(KvError::Unavailable("told to fail".into())),
            Some(Fault::UnknownCommitted) | None => {}
        }
        match state.resolver.check(request.read_version, &request.reads) {
            Verdict::Conflict => return Err(KvError::Conflict),
            Verdict::TooOld => return Err(KvError::TooOld),
            Verdict::Commit => {}
        }
        let version = state.version + 1;
        let stamp = Versionstamp::new(version, 0);
        let (changes, stamped) = Newest(&state).changes(&mut request, stamp)?;
        state.version = version;
        state.resolver.record(version, &request.writes);
        state.resolver.record(version, &stamped);
        state.resolver.advance_floor(version.saturating_sub(WINDOW));
        let oldest = state.held.keys().next().copied().unwrap_or(version).min(version);
        for (key, value) in changes {
            let versions = state.data.entry(key.clone()).or_default();
            versions.push((version, value));
            let keep = versions.iter().rposition(|(written, _)| *written <= oldest).unwrap_or(0);
            versions.drain(..keep);
            if matches!(versions.as_slice(), [(_, None)]) && oldest >= version {
                state.data.remove(&key);
            }
        }
        match fault {
            Some(Fault::UnknownCommitted) => Err(KvError::CommitUnknown),
            _ => Ok(stamp),
        }
    }
}

#[async_trait]
impl Database for MemDatabase {
    async fn begin(&self) -> Result<Box<dyn Transaction>, KvError> {
        let version = {
            let mut state = self.state.lock();
            let version = state.version;
            *state.held.entry(version).or_default() += 1;
            version
        };
        let snapshot = MemSnapshot { state: self.state.clone(), version };
        Ok(Box::new(OptimisticTransaction::new(Arc::new(snapshot), Arc::new(self.clone()))))
    }
}
