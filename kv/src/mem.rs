//! Everything in memory, nothing durable, deterministic: for the simulator and unit tests.

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use catena_rt::time::Instant;
use parking_lot::RwLock;

use crate::local::{Commit, ConflictWindow, Group, LocalTransaction, Store, View, Visit};
use crate::{BoxFuture, Database, KvError, Tx, TxOptions, Versionstamp};

/// A database in memory. Its operations complete at once (no await inside), so a single-threaded run with given seeds always
/// repeats. Clones share the data. For failures, put a [`Faulty`](crate::fault::Faulty) in front.
#[derive(Clone, Default)]
pub struct MemDatabase {
    store: Arc<MemStore>,
}

impl MemDatabase {
    /// An empty database.
    pub fn new() -> MemDatabase {
        MemDatabase::default()
    }
}

impl Database for MemDatabase {
    fn begin(&self, _options: TxOptions) -> Result<Tx, KvError> {
        Ok(Arc::new(LocalTransaction::new(self.store.clone())))
    }
}

/// The same data for other transactions than [`Database::begin`]'s: what a service serves.
impl Store for MemDatabase {
    type View = MemView;

    fn view(&self) -> Result<MemView, KvError> {
        self.store.view()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'static, Result<Versionstamp, KvError>> {
        Store::commit(&*self.store, commit)
    }
}

#[derive(Default)]
struct MemStore(Arc<RwLock<Data>>);

struct Data {
    history: History,
    window: ConflictWindow,
    /// How many views there are of each version.
    views: BTreeMap<u64, usize>,
}

/// All versions of all keys that a view may still ask for.
#[derive(Default)]
struct History {
    version: u64,
    keys: BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>,
    /// Keys with versions that go once every view is at the version given or later.
    outdated: VecDeque<(u64, Bytes)>,
}

impl Default for Data {
    fn default() -> Data {
        Data { history: History::default(), window: ConflictWindow::new(0), views: BTreeMap::new() }
    }
}

impl Store for MemStore {
    type View = MemView;

    fn view(&self) -> Result<MemView, KvError> {
        let mut data = self.0.write();
        let version = data.history.version;
        *data.views.entry(version).or_default() += 1;
        Ok(MemView { data: self.0.clone(), version })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'static, Result<Versionstamp, KvError>> {
        Box::pin(ready(self.0.write().commit(&commit)))
    }
}

impl Data {
    fn commit(&mut self, commit: &Commit) -> Result<Versionstamp, KvError> {
        let version = self.history.version + 1;
        let mut group = Group::new(&self.history, &mut self.window, version, Instant::now());
        let stamp = group.add(commit)?;
        let effects = group.into_effects();
        self.history.version = version;
        for (key, value) in effects {
            let versions = self.history.keys.entry(key.clone()).or_default();
            if value.is_some() || !versions.is_empty() {
                versions.push((version, value));
                self.history.outdated.push_back((version, key));
            } else {
                self.history.keys.remove(&key);
            }
        }
        let oldest = self.views.keys().next().copied().unwrap_or(version);
        self.history.forget(oldest);
        Ok(stamp)
    }
}

impl History {
    fn at(versions: &[(u64, Option<Bytes>)], version: u64) -> Option<&Bytes> {
        versions.iter().rev().find(|(at, _)| *at <= version)?.1.as_ref()
    }

    fn scan(&self, version: u64, (begin, end): (&Bytes, &Bytes), reverse: bool, visit: &mut Visit<'_>) {
        if begin >= end {
            return;
        }
        let range = self.keys.range::<Bytes, _>(begin..end);
        let mut step =
            |(key, versions): (&Bytes, &Vec<(u64, Option<Bytes>)>)| match Self::at(versions, version) {
                Some(value) => visit(key.clone(), value.clone()),
                None => ControlFlow::Continue(()),
            };
        // Stopping early is the visitor's wish, not a failure.
        let _ = if reverse {
            range.rev().try_for_each(&mut step)
        } else {
            range.into_iter().try_for_each(&mut step)
        };
    }

    /// Drops what no view at `oldest` or later can see.
    fn forget(&mut self, oldest: u64) {
        while self.outdated.front().is_some_and(|(since, _)| *since <= oldest) {
            let Some((_, key)) = self.outdated.pop_front() else { break };
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            let current = versions.iter().rposition(|(at, _)| *at <= oldest).unwrap_or(0);
            versions.drain(..current);
            if let [(at, None)] = versions[..]
                && at <= oldest
            {
                self.keys.remove(&key);
            }
        }
    }
}

/// The newest version, for use under the lock.
impl View for History {
    fn version(&self) -> u64 {
        self.version
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.keys.get(key).and_then(|versions| History::at(versions, self.version)).cloned())
    }

    fn scan(&self, begin: &Bytes, end: &Bytes, reverse: bool, visit: &mut Visit<'_>) -> Result<(), KvError> {
        History::scan(self, self.version, (begin, end), reverse, visit);
        Ok(())
    }
}

/// A version of a [`MemDatabase`], kept for as long as this is held.
pub struct MemView {
    data: Arc<RwLock<Data>>,
    version: u64,
}

impl View for MemView {
    fn version(&self) -> u64 {
        self.version
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let data = self.data.read();
        Ok(data.history.keys.get(key).and_then(|versions| History::at(versions, self.version)).cloned())
    }

    fn scan(&self, begin: &Bytes, end: &Bytes, reverse: bool, visit: &mut Visit<'_>) -> Result<(), KvError> {
        self.data.read().history.scan(self.version, (begin, end), reverse, visit);
        Ok(())
    }
}

impl Drop for MemView {
    fn drop(&mut self) {
        let mut data = self.data.write();
        if let Some(count) = data.views.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                data.views.remove(&self.version);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isolation, RangeQuery};

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime").block_on(future)
    }

    #[test]
    fn old_versions_are_kept_for_views_and_no_longer() {
        block(async {
            let db = MemDatabase::new();
            let write = async |value: Option<&[u8]>| {
                let tx = db.begin(TxOptions::default()).unwrap();
                match value {
                    Some(value) => tx.set(b"k", value).unwrap(),
                    None => tx.clear(b"k").unwrap(),
                }
                tx.commit().await.unwrap();
            };
            write(Some(b"1")).await;
            let old = db.begin(TxOptions::default()).unwrap();
            assert_eq!(old.get(b"k", Isolation::Snapshot).await.unwrap().as_deref(), Some(&b"1"[..]));
            write(Some(b"2")).await;
            write(None).await;
            let page = old.get_range(RangeQuery::prefix(b"")).await.unwrap();
            assert_eq!(page.items[0].value, &b"1"[..]);
            drop(old);
            write(Some(b"3")).await;
            write(None).await;
            let data = db.store.0.read();
            assert!(data.history.keys.is_empty(), "{:?}", data.history.keys);
            assert!(data.history.outdated.is_empty() && data.views.is_empty());
        });
    }
}
