//! A throw-away directory for a local cluster, on a disk and with enough room. Whatever way the command ends, it goes.

use std::path::{Path, PathBuf};

use crate::exit::{Exit, Failure, Result};
use crate::units;

/// Room that stores, logs and rounding take besides the replicas.
const SLACK: u64 = 512 << 20;

/// The directory. It is removed at the end, unless it is to be kept.
pub struct Place {
    /// Where it is.
    pub path: PathBuf,
    keep: std::cell::Cell<bool>,
}

/// `f_type` of tmpfs and ramfs, from statfs(2).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

impl Place {
    /// Makes one in `dir`, or where there is a disk, for `bytes` in all; `what` needs them.
    pub fn make(dir: Option<&Path>, name: &str, bytes: u64, what: &str) -> Result<Place> {
        let base = match dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(|error| Failure::io(dir.display(), error))?;
                check_disk(dir)?;
                dir.to_owned()
            }
            None => {
                let candidates = [PathBuf::from("/var/tmp"), PathBuf::from(".")];
                let fits = |dir: &PathBuf| {
                    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok() && check_disk(dir).is_ok()
                };
                candidates.into_iter().find(fits).ok_or_else(|| {
                    Failure::usage(
                        "neither /var/tmp nor the current directory is a writable directory on a disk",
                    )
                    .hint("name one with --dir; tmpfs has no O_DIRECT, which the storage services use")
                })?
            }
        };
        let needed = bytes.saturating_add(SLACK);
        let stat = rustix::fs::statvfs(&base).map_err(|error| Failure::io(base.display(), error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed {
            let message = format!(
                "{} has {} free; {what} need {}",
                base.display(),
                units::size(free),
                units::size(needed)
            );
            return Err(Failure::new(Exit::NoSpace, message).hint("use a smaller --size or another --dir"));
        }
        let base = base.canonicalize().map_err(|error| Failure::io(base.display(), error))?;
        let path = base.join(format!("catena-{name}-{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&path).map_err(|error| Failure::io(path.display(), error))?;
        Ok(Place { path, keep: std::cell::Cell::new(false) })
    }

    /// The end of its use.
    pub fn finish(&self, keep: bool) -> Result<()> {
        self.keep.set(true);
        if keep {
            return Ok(());
        }
        std::fs::remove_dir_all(&self.path).map_err(|error| Failure::io(self.path.display(), error))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only after a panic: every other way goes through `finish`.
        if !self.keep.get() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn check_disk(dir: &Path) -> Result<()> {
    let stat = rustix::fs::statfs(dir).map_err(|error| Failure::io(dir.display(), error.into()))?;
    if IN_MEMORY.contains(&(stat.f_type as i64)) {
        return Err(Failure::usage(format!("{} is in memory (tmpfs)", dir.display()))
            .hint("name a directory on a disk with --dir: the storage services use O_DIRECT"));
    }
    Ok(())
}
