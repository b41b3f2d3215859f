//! The key-value store of one machine: `catena-kv`'s semantics on [fjall](https://docs.rs/fjall), a log-structured merge tree in Rust.
//!
//! fjall gives snapshots and tables on disk; this crate adds what makes it FoundationDB's semantics (conflict detection, versionstamps,
//! limits, from [`catena_kv::local`]), group commit, and a log that makes a commit durable. An acknowledged commit is on disk. Reads are done on the
//! caller's thread, from memory or the page cache mostly; commits by one thread per store.
//!
//! It belongs to one process on one machine. Several services of it can share one [`EmbeddedDatabase`]; `catena-kv-remote` serves one to
//! other processes.
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

mod checkpoint;
mod committer;
mod directory;
mod error;
mod journal;
mod log;
mod store;
mod view;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use catena_kv::local::{Commit, Effects, LocalTransaction, Store};
use catena_kv::{BoxFuture, Database, KvError, Tx, TxOptions, Versionstamp};
use fjall::{Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::directory::{Directory, Found};
use crate::log::{Log, LogError};
use crate::store::{EmbeddedStore, Start};

pub use error::OpenError;
pub use view::FjallView;

/// Where the last commit's version is kept, written with every group. Behind all user keys, so no transaction can reach it.
const VERSION_KEY: &[u8] = b"\xff/version";
/// fjall's name for the one keyspace.
const KEYSPACE: &str = "catena";
/// fjall's directory within the data directory.
const FJALL: &str = "fjall";

/// How a store is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Memory for blocks read from disk, in bytes.
    pub cache: u64,
    /// Memory for writes not yet in tables, in bytes; up to five times this much while tables are being written. Takes effect when
    /// the store is created.
    pub write_buffer: u64,
    /// fjall's journal on disk before tables are written early, in bytes: bounds disk space and the time to open. At least 64 MiB.
    pub journal: u64,
    /// Each of the log's two segments, in bytes. After so much was committed, it is made durable in fjall, in the background.
    pub log: u64,
}

impl Default for Options {
    /// 64 MiB of cache, 32 MiB of write buffer, 256 MiB of journal, 32 MiB for each segment of the log.
    fn default() -> Options {
        Options { cache: 64 << 20, write_buffer: 32 << 20, journal: 256 << 20, log: 32 << 20 }
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
    /// Bytes of fjall's tables and journal on disk; the log has up to 64 MiB besides.
    pub disk: u64,
}

/// A store on one machine's disk. Clones share it; it closes when the last clone and the last transaction are gone. Closing waits for
/// commits under way.
#[derive(Clone)]
pub struct EmbeddedDatabase {
    store: Arc<EmbeddedStore>,
}

impl EmbeddedDatabase {
    /// Whether there is a store in `directory`, which [`EmbeddedDatabase::open`] would otherwise make.
    pub fn exists(directory: impl AsRef<Path>) -> bool {
        directory.as_ref().join("FORMAT").is_file()
    }

    /// Opens the store in `directory`, creating both as needed. Blocks while it recovers: call it at start.
    pub fn open(directory: impl AsRef<Path>, options: Options) -> Result<EmbeddedDatabase, OpenError> {
        let (directory, found) = Directory::lock(directory.as_ref())?;
        if let Found::Nothing = found {
            directory.create(|data| create(&directory, data, &options))?;
        }
        let data = directory.data();
        let io = |error| directory.io(error);
        let (log, found) = Log::open(&data, options.log).map_err(|error| match error {
            LogError::Io(error) => io(error),
            LogError::Damaged(reason) => directory.damaged(reason),
        })?;
        let cut = journal::cut_torn_end(&data.join(FJALL)).map_err(io)?;
        if cut > 0 {
            tracing::info!(bytes = cut, "cut off a torn end of fjall's journal; the log has what it lacks");
        }
        let (database, keyspace) = open_fjall(&directory, &data.join(FJALL), &options)?;
        let replayed = replay(&database, &keyspace, &found).map_err(|error| match error {
            ReplayError::Fjall(error) => fjall_error(&directory, error),
            ReplayError::Damaged(reason) => directory.damaged(reason),
        })?;
        let version = found.newest();
        tracing::info!(version, replayed, "key-value store open");
        let committer = Start { log, database, keyspace, version, journals: data.join(FJALL) };
        let store = EmbeddedStore::start(directory, committer)
            .map_err(|source| OpenError::Io { directory: data, source })?;
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

/// Writes an empty store into `data`, synced, and closes it.
fn create(directory: &Directory, data: &Path, options: &Options) -> Result<(), OpenError> {
    let io = |error| directory.io(error);
    std::fs::create_dir(data).map_err(io)?;
    // Not guessable for users whose keys and values the log will hold; nothing else depends on it.
    let salt = RandomState::new().hash_one(std::process::id());
    log::create(data, salt).map_err(io)?;
    open_fjall(directory, &data.join(FJALL), options)?;
    File::open(data).and_then(|data| data.sync_all()).map_err(io)
}

enum ReplayError {
    Fjall(fjall::Error),
    Damaged(String),
}

/// Brings fjall up to the log, durably, so that either segment of the log may be overwritten. Returns how many versions it lacked.
fn replay(database: &fjall::Database, keyspace: &Keyspace, found: &log::Found) -> Result<usize, ReplayError> {
    let version = match keyspace.get(VERSION_KEY).map_err(ReplayError::Fjall)? {
        None => 0,
        Some(bytes) => {
            let bytes = bytes.as_ref().try_into();
            let damaged = |_| ReplayError::Damaged("its version record is not 8 bytes".into());
            u64::from_be_bytes(bytes.map_err(damaged)?)
        }
    };
    let mut replayed = 0;
    for (version, effects) in found.after(version).map_err(ReplayError::Damaged)? {
        apply(database, keyspace, version, effects).map_err(ReplayError::Fjall)?;
        replayed += 1;
    }
    database.persist(PersistMode::SyncAll).map_err(ReplayError::Fjall)?;
    Ok(replayed)
}

/// Writes a group's effects into fjall's memtable and its journal's buffer. Durability is the log's.
fn apply(
    database: &fjall::Database,
    keyspace: &Keyspace,
    version: u64,
    effects: Effects,
) -> fjall::Result<()> {
    let mut batch = database.batch().durability(None);
    for (key, value) in effects {
        match value {
            Some(value) => batch.insert(keyspace, key, value),
            None => batch.remove(keyspace, key),
        }
    }
    batch.insert(keyspace, VERSION_KEY, version.to_be_bytes());
    batch.commit()
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

/// The same data for other transactions than [`Database::begin`]'s: what a service serves.
impl Store for EmbeddedDatabase {
    type View = Arc<FjallView>;

    fn view(&self) -> Result<Arc<FjallView>, KvError> {
        self.store.view()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'static, Result<Versionstamp, KvError>> {
        self.store.commit(commit)
    }
}
