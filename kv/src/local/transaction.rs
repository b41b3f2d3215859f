//! A transaction on a [`Store`]: own writes over a view of it, handed over to be committed.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use catena_rt::time::Instant;
use parking_lot::Mutex;

use crate::local::{Buffer, Commit, ReadAt, Store, View};
use crate::{Atomic, BoxFuture, Isolation, KvError, RangeQuery, RangeResult, Transaction, Versionstamp};

/// A [`Transaction`] on a [`Store`]. Reads are done at the call, on the caller's thread.
pub struct LocalTransaction<S: Store> {
    // A mutex for the sake of a transaction shared by concurrent reads; next to never contended.
    state: Mutex<State<S::View>>,
    // Dropped after the view, so that a store that closes with its last transaction has no view left.
    store: Arc<S>,
}

struct State<V> {
    buffer: Buffer,
    read: Option<Read<V>>,
}

/// From the first read on.
struct Read<V> {
    view: V,
    at: ReadAt,
}

/// The view of a transaction that may not have one yet.
fn view<'a, S: Store>(read: &'a mut Option<Read<S::View>>, store: &S) -> Result<&'a S::View, KvError> {
    let now = Instant::now();
    let taken = match read.take() {
        Some(taken) => taken,
        None => {
            let view = store.view()?;
            Read { at: ReadAt { version: view.version(), since: now }, view }
        }
    };
    let read = read.insert(taken);
    read.at.check_age(now)?;
    Ok(&read.view)
}

impl<S: Store> LocalTransaction<S> {
    /// A new transaction.
    pub fn new(store: Arc<S>) -> LocalTransaction<S> {
        let state = State { buffer: Buffer::default(), read: None };
        LocalTransaction { store, state: Mutex::new(state) }
    }

    fn get_now(&self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>, KvError> {
        let State { buffer, read } = &mut *self.state.lock();
        match buffer.check_get(key)? {
            true => buffer.get(key, isolation, view(read, &*self.store)?),
            false => Ok(None),
        }
    }

    fn get_range_now(&self, query: &RangeQuery) -> Result<RangeResult, KvError> {
        let State { buffer, read } = &mut *self.state.lock();
        buffer.check_get_range(query)?;
        buffer.get_range(query, view(read, &*self.store)?, false)
    }

    fn take_commit(&self) -> Result<Option<Commit>, KvError> {
        let mut state = self.state.lock();
        state.buffer.check_open()?;
        let read = state.read.take();
        let commit = state.buffer.take_commit(read.as_ref().map(|read| read.at), Instant::now());
        drop(state);
        commit
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
        self.state.lock().buffer.set(key, value)
    }

    fn clear(&self, key: &[u8]) -> Result<(), KvError> {
        self.state.lock().buffer.clear(key)
    }

    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.state.lock().buffer.clear_range(begin, end)
    }

    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        self.state.lock().buffer.atomic(key, op, operand)
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        self.state.lock().buffer.set_versionstamped_key(key, offset, value)
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError> {
        self.state.lock().buffer.set_versionstamped_value(key, value, offset)
    }

    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.state.lock().buffer.add_read_conflict(begin, end)
    }

    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.state.lock().buffer.add_write_conflict(begin, end)
    }

    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>> {
        let version = || {
            let State { buffer, read } = &mut *self.state.lock();
            buffer.check_open()?;
            Ok(view(read, &*self.store)?.version())
        };
        Box::pin(ready(version()))
    }

    fn size(&self) -> usize {
        self.state.lock().buffer.size()
    }

    fn cancel(&self) {
        let mut state = self.state.lock();
        state.buffer.cancel();
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
