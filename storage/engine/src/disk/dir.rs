//! A directory as a disk: its lock, its files, and the choice of a backend.

use std::path::Path;
use std::sync::Arc;

use catena_buf::Region;

use super::Disk;
use crate::error::DiskError;

/// How a directory is read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// io_uring, or threads with one line of warning where it is forbidden.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// A pool of threads.
    Threads,
}

/// How [`open_dir`] opens.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirConfig {
    /// The backend.
    pub backend: Backend,
    /// Memory to register with the ring: the pool's.
    pub region: Option<Region>,
}

/// Opens a directory, makes it if it is missing, and locks it against other processes until the disk is dropped.
#[allow(clippy::todo)]
pub fn open_dir(path: &Path, config: DirConfig) -> Result<Arc<dyn Disk>, DiskError> {
    let _ = (path, config);
    todo!()
}
