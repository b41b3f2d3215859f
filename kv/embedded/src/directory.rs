//! The store's directory: its lock, its format marker, and how it comes into being so that a crash at any moment leaves either nothing
//! of it or all of it.
//!
//! ```text
//! LOCK        locked while open; holds the holder's process id
//! FORMAT      two lines: "catena-kv-embedded" and the format number; written last, so that what has it is complete
//! data/       the log (log.0, log.1) and fjall's files (fjall/)
//! creating/   data/ before it is complete; wiped by the next open
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::OpenError;

/// The format this program reads and writes.
pub(crate) const FORMAT: u32 = 1;
const NAME: &str = "catena-kv-embedded";

/// A directory whose lock this process holds until this is dropped.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

/// What was found.
pub(crate) enum Found {
    /// A store.
    Store,
    /// Nothing, or what an interrupted creation left.
    Nothing,
}

impl Directory {
    /// Creates the directory if need be, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<(Directory, Found), OpenError> {
        let io = |source| OpenError::Io { directory: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io)?;
        // Before anything is put into a directory that is none of ours, LOCK included.
        let mut ours = true;
        for entry in fs::read_dir(path).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let known = ["LOCK", "FORMAT", "FORMAT.tmp", "data", "creating"];
            ours &= known.iter().any(|known| name == *known);
        }
        if !ours && !path.join("FORMAT").is_file() {
            return Err(OpenError::Foreign { directory: path.to_owned() });
        }
        let lock = Self::take_lock(path)?;
        let directory = Directory { path: path.to_owned(), _lock: lock };
        let found = directory.look()?;
        Ok((directory, found))
    }

    fn take_lock(path: &Path) -> Result<File, OpenError> {
        let io = |source| OpenError::Io { directory: path.to_owned(), source };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("LOCK"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid); // Only to say who; the lock itself is what counts.
                let holder = match pid.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(OpenError::InUse { directory: path.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        lock.set_len(0).map_err(io)?;
        lock.rewind().map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;
        Ok(lock)
    }

    fn look(&self) -> Result<Found, OpenError> {
        let marker = match fs::read(self.path.join("FORMAT")) {
            Ok(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(self.io(error)),
        };
        let mut lines = marker.lines();
        if lines.next() != Some(NAME) {
            return Err(OpenError::Foreign { directory: self.path.clone() });
        }
        let found = lines.next().unwrap_or("").trim();
        if found.parse() != Ok(FORMAT) {
            let found = if found.is_empty() { "unknown".to_owned() } else { found.to_owned() };
            return Err(OpenError::Format { directory: self.path.clone(), found, expected: FORMAT });
        }
        if !self.data().is_dir() {
            return Err(self.damaged("its data directory is missing"));
        }
        Ok(Found::Store)
    }

    /// Creates the store. `fill` writes an empty one into the directory it is given and closes it.
    pub(crate) fn create(&self, fill: impl FnOnce(&Path) -> Result<(), OpenError>) -> Result<(), OpenError> {
        let (creating, data) = (self.path.join("creating"), self.data());
        // Without FORMAT, a complete data directory is one that was never opened: the creation stopped just before FORMAT.
        if !data.exists() {
            match fs::remove_dir_all(&creating) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.io(error)),
                _ => {}
            }
            fill(&creating)?;
            fs::rename(&creating, &data).map_err(|error| self.io(error))?;
        }
        let temporary = self.path.join("FORMAT.tmp");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            write!(file, "{NAME}\n{FORMAT}\n")?;
            file.sync_all()?;
            // First the data directory's name, then the marker's, then the directory's own in its parent.
            File::open(&self.path)?.sync_all()?;
            fs::rename(&temporary, self.path.join("FORMAT"))?;
            File::open(&self.path)?.sync_all()?;
            match self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => File::open(parent)?.sync_all(),
                None => File::open(".")?.sync_all(),
            }
        };
        write().map_err(|error| self.io(error))
    }

    /// Where the log and fjall's files are.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// An error about this directory.
    pub(crate) fn damaged(&self, reason: impl Into<String>) -> OpenError {
        OpenError::Damaged { directory: self.path.clone(), reason: reason.into() }
    }

    /// An error about this directory.
    pub(crate) fn io(&self, source: io::Error) -> OpenError {
        OpenError::Io { directory: self.path.clone(), source }
    }
}
