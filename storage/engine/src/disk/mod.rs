//! One disk as the engine sees it: five files that are read and written in aligned batches. Backends: io_uring, threads, simulated.

mod batch;
mod dir;
mod threads;
mod uring;

pub use batch::{Batch, Completer, Completion, Done, Io, completion};
pub use dir::{Backend, DirConfig, open_dir};

use crate::error::DiskError;

/// The files of a disk. Fixed, so that a ring registers them once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum File {
    /// Whose disk it is.
    Superblock = 0,
    /// The log and all chunk data: one file, so that one sync covers a write and its record.
    Store = 1,
    /// Checksums of data blocks.
    Sums = 2,
    /// One of two checkpoints,
    CheckpointA = 3,
    /// and the other.
    CheckpointB = 4,
}

impl File {
    /// All of them.
    pub const ALL: [File; 5] =
        [File::Superblock, File::Store, File::Sums, File::CheckpointA, File::CheckpointB];

    /// Name in the directory.
    pub fn name(self) -> &'static str {
        ["superblock", "store", "sums", "checkpoint.a", "checkpoint.b"][self as usize]
    }
}

/// A disk. Offsets and lengths of I/O are multiples of [`Disk::granularity`], memory is page-aligned.
///
/// A backend has no queue limit of its own: every I/O holds a buffer of a bounded pool.
pub trait Disk: Send + Sync + 'static {
    /// How logs and errors name it: the directory's path.
    fn name(&self) -> &str;
    /// Smallest unit of I/O, bytes: 512 to 4096.
    fn granularity(&self) -> u32;
    /// Starts a batch. It runs to its end whether or not the completion is awaited.
    fn submit(&self, batch: Batch) -> Completion;
    /// Length of a file. A short call, for open and format.
    fn len(&self, file: File) -> Result<u64, DiskError>;
    /// Bytes that files can still grow by.
    fn available(&self) -> Result<u64, DiskError>;
}
