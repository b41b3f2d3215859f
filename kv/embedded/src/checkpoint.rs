//! Makes what the log holds durable in fjall too, in the background, so that the log's next segment can be overwritten.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use catena_kv::KvError;
use fjall::PersistMode;

use crate::view::storage_error;

/// At most one checkpoint under way.
pub(crate) struct Checkpoint {
    pub(crate) database: fjall::Database,
    journals: PathBuf,
    running: Option<JoinHandle<Result<(), KvError>>>,
}

impl Checkpoint {
    pub(crate) fn new(database: fjall::Database, journals: PathBuf) -> Checkpoint {
        Checkpoint { database, journals, running: None }
    }

    /// Begins to make everything durable that was applied to fjall up to now.
    pub(crate) fn begin(&mut self) -> Result<(), KvError> {
        debug_assert!(self.running.is_none());
        let (database, journals) = (self.database.clone(), self.journals.clone());
        let run = move || {
            // fjall holds commits up while it syncs. Most of the pages are written before that, by syncing through files of our own;
            // should that fail, fjall's own sync does it all and reports.
            let _ = sync_journals(&journals);
            database.persist(PersistMode::SyncData).map_err(|error| storage_error(&error))
        };
        let thread = std::thread::Builder::new().name("kv-checkpoint".into()).spawn(run);
        self.running = Some(thread.map_err(|error| KvError::Storage(error.to_string()))?);
        Ok(())
    }

    /// Waits for the checkpoint under way, if any.
    pub(crate) fn finish(&mut self) -> Result<(), KvError> {
        match self.running.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(done)) => done,
            Some(Err(_)) => Err(KvError::Storage("a checkpoint panicked".into())),
        }
    }
}

impl Drop for Checkpoint {
    /// The thread has a handle on the database, which must be gone when the store is closed.
    fn drop(&mut self) {
        let _ = self.finish(); // The log still has what it was about.
    }
}

fn sync_journals(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            // Gone meanwhile: fjall has its contents in tables.
            match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => file?.sync_data()?,
            }
        }
    }
    Ok(())
}
