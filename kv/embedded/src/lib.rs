//! The key-value store of one machine: `catena-kv`'s semantics on [fjall](https://docs.rs/fjall), a log-structured merge tree in Rust.
//!
//! fjall gives snapshots, a journal and tables on disk; this crate adds what makes it FoundationDB's semantics (conflict detection,
//! versionstamps, limits, from [`catena_kv::local`]) and group commit. An acknowledged commit is on disk. Reads are done on the
//! caller's thread, from memory or the page cache mostly; commits by one thread per store.
//!
//! It serves one process on one machine. Several services of it can share one [`EmbeddedDatabase`].
//!
//! ```
//! use catena_kv::{Database, Isolation, TxOptions};
//! use catena_kv_embedded::{EmbeddedDatabase, Options};
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # let directory = tempfile::tempdir()?;
//! # runtime.block_on(async {
//! let db = EmbeddedDatabase::open(directory.path().join("kv"), Options::default())?;
//! let tx = db.begin(TxOptions::default())?;
//! tx.set(b"hello", b"world")?;
//! tx.commit().await?;
//! let tx = db.begin(TxOptions::default())?;
//! assert_eq!(tx.get(b"hello", Isolation::Snapshot).await?.as_deref(), Some(&b"world"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod committer;
mod directory;
mod error;
mod store;
mod view;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use catena_kv::local::LocalTransaction;
use catena_kv::{Database, KvError, Tx, TxOptions};
use fjall::{Keyspace, KeyspaceCreateOptions};

use crate::directory::{Directory, Found};
use crate::store::EmbeddedStore;

pub use error::OpenError;

/// Where the last commit's version is kept, written with every group. Behind all user keys, so no transaction can reach it.
const VERSION_KEY: &[u8] = b"\xff/version";
/// fjall's name for the one keyspace.
const KEYSPACE: &str = "catena";

/// How a store is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Memory for blocks read from disk, in bytes.
    pub cache: u64,
    /// Memory for writes not yet in tables, in bytes; up to five times this much while tables are being written. Takes effect when
    /// the store is created.
    pub write_buffer: u64,
    /// Journal on disk before tables are written early, in bytes: bounds disk space and the time to open. At least 64 MiB.
    pub journal: u64,
}

impl Default for Options {
    /// 64 MiB of cache, 32 MiB of write buffer, 256 MiB of journal.
    fn default() -> Options {
        Options { cache: 64 << 20, write_buffer: 32 << 20, journal: 256 << 20 }
    }
}

/// Counters of an open store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Transactions committed.
    pub commits: u64,
    /// Commits refused because of a conflict or their age.
    pub refused: u64,
    /// Durable writes: commits / groups is how many share one sync.
    pub groups: u64,
    /// Bytes on disk, journal included.
    pub disk: u64,
}

/// A store on one machine's disk. Clones share it; it closes when the last clone and the last transaction are gone. Closing waits for
/// commits under way.
#[derive(Clone)]
pub struct EmbeddedDatabase {
    store: Arc<EmbeddedStore>,
}

impl EmbeddedDatabase {
    /// Opens the store in `directory`, creating both as needed. Blocks while it recovers: call it at start.
    pub fn open(directory: impl AsRef<Path>, options: Options) -> Result<EmbeddedDatabase, OpenError> {
        let (directory, found) = Directory::lock(directory.as_ref())?;
        if let Found::Nothing = found {
            directory.create(|data| open_fjall(&directory, data, &options).map(drop))?;
        }
        let (database, keyspace) = open_fjall(&directory, &directory.data(), &options)?;
        let version = match keyspace.get(VERSION_KEY).map_err(|error| fjall_error(&directory, error))? {
            None => 0,
            Some(bytes) => {
                let bytes = bytes.as_ref().try_into();
                u64::from_be_bytes(bytes.map_err(|_| directory.damaged("the version record is not 8 bytes"))?)
            }
        };
        let path = directory.data();
        let store = EmbeddedStore::start(directory, database, keyspace, version)
            .map_err(|source| OpenError::Io { directory: path, source })?;
        Ok(EmbeddedDatabase { store: Arc::new(store) })
    }

    /// Counters, for metrics.
    pub fn stats(&self) -> Stats {
        let counters = &self.store.shared.counters;
        Stats {
            commits: counters.commits.load(Relaxed),
            refused: counters.refused.load(Relaxed),
            groups: counters.groups.load(Relaxed),
            disk: self.store.database.disk_space().unwrap_or(0),
        }
    }
}

fn open_fjall(
    directory: &Directory,
    data: &Path,
    options: &Options,
) -> Result<(fjall::Database, Keyspace), OpenError> {
    let open = || {
        let database = fjall::Database::builder(data)
            .cache_size(options.cache)
            .max_journaling_size(options.journal.max(64 << 20))
            .open()?;
        let keyspace = database.keyspace(KEYSPACE, || {
            KeyspaceCreateOptions::default().max_memtable_size(options.write_buffer)
        })?;
        Ok((database, keyspace))
    };
    open().map_err(|error| fjall_error(directory, error))
}

fn fjall_error(directory: &Directory, error: fjall::Error) -> OpenError {
    match error {
        fjall::Error::Io(source) => directory.io(source),
        other => directory.damaged(format!("{other:?}")),
    }
}

impl Database for EmbeddedDatabase {
    fn begin(&self, _options: TxOptions) -> Result<Tx, KvError> {
        Ok(Arc::new(LocalTransaction::new(self.store.clone())))
    }
}
