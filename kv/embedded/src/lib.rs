//! The key-value store of one machine: `catena-kv`'s semantics on [fjall], a log-structured store in Rust.

use std::path::{Path, PathBuf};

use catena_kv::{Database, KvError, Tx, TxOptions};

/// How a store is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Memory for blocks read from disk, in bytes.
    pub cache: u64,
}

impl Default for Options {
    /// 64 MiB of cache.
    fn default() -> Options {
        Options { cache: 64 << 20 }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("key-value store {directory} is in use by {holder}; stop that process first", directory = directory.display())]
    InUse {
        /// The store's directory.
        directory: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The directory holds something else.
    #[error("{directory} is not empty and holds no Catena key-value store; give another directory", directory = directory.display())]
    Foreign {
        /// The directory.
        directory: PathBuf,
    },
    /// The store was written by another version of this program.
    #[error("key-value store {directory} has format {found}, this program reads format {expected}; use a matching version of catena", directory = directory.display())]
    Format {
        /// The store's directory.
        directory: PathBuf,
        /// The format found.
        found: String,
        /// The format this program reads and writes.
        expected: u32,
    },
    /// The store's files are damaged.
    #[error("key-value store {directory} is damaged: {reason}; restore it from a backup", directory = directory.display())]
    Damaged {
        /// The store's directory.
        directory: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Reading or writing the directory failed.
    #[error("cannot open key-value store {directory}: {source}", directory = directory.display())]
    Io {
        /// The store's directory.
        directory: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// A store on one machine's disk. Clones share it; it closes when the last clone and the last transaction are gone.
#[derive(Clone)]
pub struct EmbeddedDatabase {}

impl EmbeddedDatabase {
    /// Opens the store in `directory`, creating both as needed. Blocks while it recovers: call it at start.
    pub fn open(_directory: impl AsRef<Path>, _options: Options) -> Result<EmbeddedDatabase, OpenError> {
        Ok(EmbeddedDatabase {})
    }
}

impl Database for EmbeddedDatabase {
    fn begin(&self, _options: TxOptions) -> Result<Tx, KvError> {
        Err(KvError::Unavailable("not built yet".into()))
    }
}
