//! What transactions and the committer share, and the [`Store`] made of it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use catena_kv::local::{Commit, Store};
use catena_kv::{BoxFuture, KvError, Versionstamp};
use fjall::{Keyspace, Snapshot};
use parking_lot::RwLock;

use crate::committer::{Committer, Queue};
use crate::directory::Directory;
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

/// An open store.
pub(crate) struct EmbeddedStore {
    pub(crate) shared: Arc<Shared>,
    pub(crate) database: fjall::Database,
    committer: Option<JoinHandle<()>>,
    // Last, so that the directory stays locked until everything else is closed.
    _directory: Directory,
}

impl EmbeddedStore {
    /// Starts the committer on an open fjall database whose last commit was at `version`.
    pub(crate) fn start(
        directory: Directory,
        database: fjall::Database,
        keyspace: Keyspace,
        version: u64,
    ) -> std::io::Result<EmbeddedStore> {
        let view = FjallView { version, snapshot: database.snapshot(), keyspace };
        let shared = Arc::new(Shared {
            view: RwLock::new(Arc::new(view)),
            queue: Queue::default(),
            counters: Counters::default(),
        });
        let committer = Committer::new(shared.clone(), database.clone());
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
