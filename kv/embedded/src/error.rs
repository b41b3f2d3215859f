//! Why a store could not be opened: what an operator reads.

use std::path::PathBuf;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another handle in this one) has it open.
    #[error("key-value store {} is in use by {holder}; stop that process first", directory.display())]
    InUse {
        /// The store's directory.
        directory: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The directory holds something else.
    #[error("{} is not empty and holds no Catena key-value store; give another directory", directory.display())]
    Foreign {
        /// The directory.
        directory: PathBuf,
    },
    /// The store was written in a format this program does not know.
    #[error(
        "key-value store {} has format {found}, this program reads format {expected}; use a matching version of catena",
        directory.display()
    )]
    Format {
        /// The store's directory.
        directory: PathBuf,
        /// The format found.
        found: String,
        /// The format this program reads and writes.
        expected: u32,
    },
    /// The store's files are damaged.
    #[error("key-value store {} is damaged: {reason}; restore it from a backup", directory.display())]
    Damaged {
        /// The store's directory.
        directory: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Reading or writing the directory failed.
    #[error("cannot open key-value store {}: {source}", directory.display())]
    Io {
        /// The store's directory.
        directory: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
