//! What transactions and the committer share, and the [`Store`] made of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use catena_kv::local::{Commit, Store};
use catena_kv::{BoxFuture, KvError, Versionstamp};
use fjall::{Keyspace, Snapshot};
use parking_lot::RwLock;

use crate::checkpoint::Checkpoint;
use crate::committer::{Committer, Queue};
use crate::directory::Directory;
use crate::log::Log;
use crate::view::FjallView;

/// Shared with the committer.
pub(crate) struct Shared {
    view: RwLock<Arc<FjallView>>,
    pub(crate) queue: Queue,
    pub(crate) counters: Counters,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) groups: AtomicU64,
}

impl Shared {
    /// The newest durable version.
    pub(crate) fn view(&self) -> Arc<FjallView> {
        self.view.read().clone()
    }

    /// Makes a version the newest.
    pub(crate) fn publish(&self, version: u64, snapshot: Snapshot) {
        let keyspace = self.view.read().keyspace.clone();
        let view = Arc::new(FjallView { version, snapshot, keyspace });
        let replaced = std::mem::replace(&mut *self.view.write(), view);
        drop(replaced); // Not under the lock: it may be the last holder of a snapshot.
    }
}

/// What a store is started with: a log and a fjall database that holds all of it, durably.
pub(crate) struct Start {
    pub(crate) log: Log,
    pub(crate) database: fjall::Database,
    pub(crate) keyspace: Keyspace,
    /// The version of the last commit.
    pub(crate) version: u64,
    /// Where fjall's journals are.
    pub(crate) journals: PathBuf,
}

/// An open store.
pub(crate) struct EmbeddedStore {
    pub(crate) shared: Arc<Shared>,
    pub(crate) database: fjall::Database,
    committer: Option<JoinHandle<()>>,
    // Last, so that the directory stays locked until everything else is closed.
    _directory: Directory,
}

impl EmbeddedStore {
    /// Starts the committer.
    pub(crate) fn start(directory: Directory, start: Start) -> std::io::Result<EmbeddedStore> {
        let Start { log, database, keyspace, version, journals } = start;
        let view = FjallView { version, snapshot: database.snapshot(), keyspace };
        let shared = Arc::new(Shared {
            view: RwLock::new(Arc::new(view)),
            queue: Queue::default(),
            counters: Counters::default(),
        });
        let committer = Committer::new(shared.clone(), log, Checkpoint::new(database.clone(), journals));
        let committer =
            std::thread::Builder::new().name("kv-commit".into()).spawn(move || committer.run())?;
        Ok(EmbeddedStore { shared, database, committer: Some(committer), _directory: directory })
    }
}

impl Store for EmbeddedStore {
    type View = Arc<FjallView>;

    fn view(&self) -> Result<Arc<FjallView>, KvError> {
        Ok(self.shared.view())
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'static, Result<Versionstamp, KvError>> {
        let answer = self.shared.queue.push(commit);
        Box::pin(async move { answer?.await.unwrap_or(Err(KvError::CommitUnknown)) })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.queue.close(KvError::Unavailable("the store is closed".into()), false);
        if let Some(committer) = self.committer.take() {
            let _ = committer.join(); // It panicked: it has said so, and there is nothing left to close.
        }
    }
}

#[cfg(test)]
mod tests {
    use catena_kv::local::LocalTransaction;
    use catena_kv::{Isolation, Transaction};

    use super::*;
    use crate::{EmbeddedDatabase, FJALL, Options, open_fjall};

    #[test]
    fn nothing_is_committed_after_the_log_failed_and_reads_go_on() {
        let path = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        drop(EmbeddedDatabase::open(path.path(), Options::default()).unwrap());
        let (directory, _) = Directory::lock(path.path()).unwrap();
        let journals = directory.data().join(FJALL);
        let (database, keyspace) = open_fjall(&directory, &journals, &Options::default()).unwrap();
        let Ok((mut log, _)) = Log::open(&directory.data(), 1 << 20) else { panic!("the log opens") };
        log.fail();
        let start = Start { log, database, keyspace, version: 0, journals };
        let store = Arc::new(EmbeddedStore::start(directory, start).unwrap());
        runtime.block_on(async {
            let reader = LocalTransaction::new(store.clone());
            reader.get(b"a", Isolation::Serializable).await.unwrap();
            let commit = async || {
                let tx = LocalTransaction::new(store.clone());
                tx.set(b"a", b"1").unwrap();
                tx.commit().await
            };
            assert_eq!(commit().await, Err(KvError::CommitUnknown));
            for _ in 0..3 {
                assert!(matches!(commit().await, Err(KvError::Storage(_))));
            }
            assert_eq!(reader.get(b"a", Isolation::Serializable).await, Ok(None));
        });
        drop(store);
        // What was not acknowledged as committed was not written in this case.
        let db = EmbeddedDatabase::open(path.path(), Options::default()).unwrap();
        assert_eq!(db.store.shared.view().version, 0);
    }
}
