//! A directory as a disk: its lock, its files, and the choice of a backend.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use catena_buf::Region;
use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, StatxFlags};

use super::threads::ThreadDisk;
use super::uring::UringDisk;
use super::{Disk, File};
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

const LOCK: &str = "lock";
/// A file system's own, in the root of a mount.
const NOT_FOREIGN: [&str; 1] = ["lost+found"];

/// The open files of a directory. The lock goes with them.
pub(super) struct Files {
    pub path: PathBuf,
    pub name: String,
    pub fds: [OwnedFd; 5],
    pub granularity: u32,
    _lock: OwnedFd,
}

/// Opens a directory, makes it if it is missing, and locks it against other processes until the disk is dropped. A directory with
/// foreign files and no superblock is refused and left as it was.
pub fn open_dir(path: &Path, config: DirConfig) -> Result<Arc<dyn Disk>, DiskError> {
    let files = Files::open(path)?;
    if config.backend != Backend::Threads {
        match UringDisk::new(files, config.region) {
            Ok(disk) => return Ok(Arc::new(disk)),
            Err((files, error)) if config.backend == Backend::Auto => {
                tracing::warn!(disk = files.name, %error, "io_uring is not available: reading and writing with threads");
                return Ok(Arc::new(ThreadDisk::new(files)));
            }
            Err((_, error)) => {
                return Err(DiskError::NoUring { path: path.to_path_buf(), error: error.to_string() });
            }
        }
    }
    Ok(Arc::new(ThreadDisk::new(files)))
}

fn os(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_path_buf();
    move |error| DiskError::Os { what, path, error: error.to_string() }
}

impl Files {
    fn open(path: &Path) -> Result<Files, DiskError> {
        fs::create_dir_all(path).map_err(os("cannot create", path))?;
        // Before anything is created in it.
        let superblock = path.join(File::Superblock.name());
        let formatted = fs::metadata(&superblock).is_ok_and(|meta| meta.len() > 0);
        if let (false, Some(name)) = (formatted, foreign(path)?) {
            return Err(DiskError::Foreign { path: path.to_path_buf(), name });
        }
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(os("cannot open", &lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                DiskError::Locked { path: path.to_path_buf() }
            } else {
                os("cannot lock", &lock_path)(error.into())
            }
        })?;
        let mut fds = Vec::with_capacity(File::ALL.len());
        for file in File::ALL {
            let path = path.join(file.name());
            fds.push(open_direct(&path).map_err(os("cannot open", &path))?);
        }
        let fds: [OwnedFd; 5] = match fds.try_into() {
            Ok(fds) => fds,
            Err(_) => unreachable!("one descriptor for each file"),
        };
        // The files' names have to survive power loss before anything in them counts.
        let dir = fs::File::open(path).map_err(os("cannot open", path))?;
        dir.sync_all().map_err(os("cannot sync", path))?;
        let granularity = granularity(&fds[File::Store as usize]);
        let name = path.display().to_string();
        Ok(Files { path: path.to_path_buf(), name, fds, granularity, _lock: lock.into() })
    }

    pub fn len(&self, file: File) -> Result<u64, DiskError> {
        let stat = rustix::fs::fstat(&self.fds[file as usize])
            .map_err(|error| os("cannot stat", &self.path.join(file.name()))(error.into()))?;
        Ok(stat.st_size as u64)
    }

    pub fn available(&self) -> Result<u64, DiskError> {
        let stat = rustix::fs::fstatvfs(&self.fds[0])
            .map_err(|error| os("cannot stat the file system of", &self.path)(error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn foreign(path: &Path) -> Result<Option<String>, DiskError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(os("cannot list", path))? {
        names.push(entry.map_err(os("cannot list", path))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let ours = |name: &str| {
        name == LOCK || NOT_FOREIGN.contains(&name) || File::ALL.iter().any(|file| file.name() == name)
    };
    Ok(names.into_iter().find(|name| !ours(name)))
}

/// O_DIRECT, or buffered where the file system has no O_DIRECT.
fn open_direct(path: &Path) -> io::Result<OwnedFd> {
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(path)
            .map(OwnedFd::from)
    };
    match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(path = %path.display(), "the file system has no O_DIRECT: reads and writes go through the page cache");
            open(0)
        }
        other => other,
    }
}

/// What O_DIRECT demands of offsets, as the kernel says (Linux 6.1); 4 KiB where it does not.
fn granularity(fd: &OwnedFd) -> u32 {
    let stat = rustix::fs::statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match stat {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && stat.stx_dio_offset_align > 0 => {
            stat.stx_dio_offset_align.clamp(512, 4096)
        }
        _ => 4096,
    }
}

/// Makes a file at least `length` bytes long, with space behind every byte of it.
pub(super) fn allocate(fd: &OwnedFd, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, length) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let stat = rustix::fs::fstat(fd)?;
            if (stat.st_size as u64) < length {
                rustix::fs::ftruncate(fd, length)?;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}
