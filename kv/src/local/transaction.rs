//! A transaction on a [`Store`]: collects reads and writes, checks limits, hands itself over to be committed.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use catena_rt::time::Instant;
use parking_lot::{Mutex, MutexGuard};

use crate::limits::{check_key, check_range, check_stamp, check_value};
use crate::local::group::stamped_range;
use crate::local::overlay::Overlay;
use crate::local::{Commit, Mutation, Span, Store, View};
use crate::{
    Atomic, BoxFuture, Isolation, KEY_LIMIT, KvError, RangeQuery, RangeResult, TRANSACTION_AGE,
    TRANSACTION_LIMIT, Transaction, USER_KEY_END, Versionstamp, key_after,
};

/// A [`Transaction`] on a [`Store`]. Reads are done at the call, on the caller's thread.
pub struct LocalTransaction<S: Store> {
    // A mutex for the sake of a transaction shared by concurrent reads; next to never contended.
    state: Mutex<State<S::View>>,
    // Dropped after the view, so that a store that closes with its last transaction has no view left.
    store: Arc<S>,
}

struct State<V> {
    phase: Phase,
    read: Option<Read<V>>,
    overlay: Overlay,
    commit: Commit,
    /// Size of the mutations in `commit`.
    written: usize,
}

#[derive(Clone, Copy)]
enum Phase {
    Open,
    Cancelled,
    Used,
}

/// From the first read on.
struct Read<V> {
    view: V,
    since: Instant,
}

impl<S: Store> LocalTransaction<S> {
    /// A new transaction.
    pub fn new(store: Arc<S>) -> LocalTransaction<S> {
        let state = State {
            phase: Phase::Open,
            read: None,
            overlay: Overlay::default(),
            commit: Commit::default(),
            written: 0,
        };
        LocalTransaction { store, state: Mutex::new(state) }
    }

    fn open(&self) -> Result<MutexGuard<'_, State<S::View>>, KvError> {
        let state = self.state.lock();
        match state.phase {
            Phase::Open => Ok(state),
            Phase::Cancelled => Err(KvError::Cancelled),
            Phase::Used => Err(KvError::Used),
        }
    }

    fn get_now(&self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>, KvError> {
        let mut state = self.open()?;
        if key >= USER_KEY_END {
            return Err(KvError::KeyOutsideRange);
        }
        if key.len() > KEY_LIMIT {
            return Ok(None); // Nothing that long can be there.
        }
        let state = &mut *state;
        let view = state.read.at(&*self.store)?;
        let (value, depends) = state.overlay.get(key, view)?;
        if depends && isolation == Isolation::Serializable {
            state.commit.reads.push(Span::Key(Bytes::copy_from_slice(key)));
        }
        Ok(value)
    }

    fn get_range_now(&self, query: &RangeQuery) -> Result<RangeResult, KvError> {
        let mut state = self.open()?;
        check_range(&query.begin, &query.end)?;
        let state = &mut *state;
        let view = state.read.at(&*self.store)?;
        let reads = &mut state.commit.reads;
        state.overlay.get_range(query, view, &mut |span| {
            if query.isolation == Isolation::Serializable {
                reads.push(span);
            }
        })
    }

    fn take_commit(&self) -> Result<Option<Commit>, KvError> {
        let mut state = self.open()?;
        state.phase = Phase::Used;
        let read = state.read.take();
        let size = state.size();
        let mut commit = std::mem::take(&mut state.commit);
        state.overlay = Overlay::default();
        drop(state);
        if size > TRANSACTION_LIMIT {
            return Err(KvError::TransactionTooLarge(size));
        }
        if commit.mutations.is_empty() && commit.writes.is_empty() {
            return Ok(None);
        }
        if let Some(read) = read {
            if !commit.reads.is_empty() && read.since.elapsed() > TRANSACTION_AGE {
                return Err(KvError::TooOld);
            }
            commit.read_version = Some(read.view.version());
        }
        Ok(Some(commit))
    }
}

/// The view of a transaction that may not have one yet.
trait ReadAt<V> {
    fn at<S: Store<View = V>>(&mut self, store: &S) -> Result<&V, KvError>;
}

impl<V: View> ReadAt<V> for Option<Read<V>> {
    fn at<S: Store<View = V>>(&mut self, store: &S) -> Result<&V, KvError> {
        let now = Instant::now();
        if self.as_ref().is_some_and(|read| now.saturating_duration_since(read.since) > TRANSACTION_AGE) {
            return Err(KvError::TooOld);
        }
        let read = match self.take() {
            Some(read) => read,
            None => Read { view: store.view()?, since: now },
        };
        Ok(&self.insert(read).view)
    }
}

impl<V> State<V> {
    fn size(&self) -> usize {
        self.written + self.commit.reads.size() + self.commit.writes.size()
    }

    fn push(&mut self, mutation: Mutation) {
        self.written += mutation.size();
        self.commit.mutations.push(mutation);
    }
}

impl<S: Store> Transaction for LocalTransaction<S> {
    fn get<'a>(
        &'a self,
        key: &'a [u8],
        isolation: Isolation,
    ) -> BoxFuture<'a, Result<Option<Bytes>, KvError>> {
        Box::pin(ready(self.get_now(key, isolation)))
    }

    fn get_range(&self, query: RangeQuery) -> BoxFuture<'_, Result<RangeResult, KvError>> {
        Box::pin(ready(self.get_range_now(&query)))
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_key(key)?;
        check_value(value)?;
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        state.overlay.write(key.clone(), Some(value.clone()));
        state.push(Mutation::Set(key, value));
        Ok(())
    }

    fn clear(&self, key: &[u8]) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_key(key)?;
        let key = Bytes::copy_from_slice(key);
        state.overlay.write(key.clone(), None);
        state.push(Mutation::Clear(key));
        Ok(())
    }

    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_range(begin, end)?;
        let (begin, end) = (Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        state.overlay.clear_range(begin.clone(), end.clone());
        state.push(Mutation::ClearRange(begin, end));
        Ok(())
    }

    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_key(key)?;
        check_value(operand)?;
        let (key, operand) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(operand));
        state.overlay.atomic(key.clone(), op, operand.clone());
        state.push(Mutation::Atomic(key, op, operand));
        Ok(())
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_stamp(offset, key.len())?;
        check_key(key)?;
        check_value(value)?;
        // A version never reaches 2^56, so the stamp's first byte is zero and cannot make the key reserved.
        let (begin, end) = stamped_range(key, offset);
        state.overlay.make_unreadable(begin, end);
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        state.push(Mutation::StampedKey(key, offset, value));
        Ok(())
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_key(key)?;
        check_stamp(offset, value.len())?;
        check_value(value)?;
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        state.overlay.make_unreadable(key.clone(), key_after(&key));
        state.push(Mutation::StampedValue(key, value, offset));
        Ok(())
    }

    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_range(begin, end)?;
        let span = Span::Range(Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        state.commit.reads.push(span);
        Ok(())
    }

    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let mut state = self.open()?;
        check_range(begin, end)?;
        let span = Span::Range(Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        state.commit.writes.push(span);
        Ok(())
    }

    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>> {
        let version = self.open().and_then(|mut state| Ok(state.read.at(&*self.store)?.version()));
        Box::pin(ready(version))
    }

    fn size(&self) -> usize {
        self.state.lock().size()
    }

    fn cancel(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Cancelled;
        state.read = None;
    }

    fn commit(&self) -> BoxFuture<'_, Result<Option<Versionstamp>, KvError>> {
        match self.take_commit() {
            Ok(Some(commit)) => {
                let stamp = self.store.commit(commit);
                Box::pin(async move { stamp.await.map(Some) })
            }
            Ok(None) => Box::pin(ready(Ok(None))),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}
