//! A file that was checked as a whole, before anything is done with what is in it.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::format::Header;
use crate::progress::{Phase, Progress, Tell};
use crate::read::{ReadError, Reader};
use crate::tally::Tally;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct ArchiveError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub source: ReadError,
}

/// A file whose every byte was found to be what was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Archive {
    path: PathBuf,
    header: Header,
    tally: Tally,
}

impl Archive {
    /// Reads all of the file. The caller's task is not blocked for longer than one block takes.
    pub async fn open(path: &Path, tell: Tell<'_>) -> Result<Archive, ArchiveError> {
        let failed = |source| ArchiveError { path: path.to_owned(), source };
        let total = std::fs::metadata(path).map_err(|error| failed(error.into()))?.len();
        let mut reader = open(path).map_err(failed)?;
        while reader.next_block().map_err(failed)?.is_some() {
            tell(Progress { phase: Phase::Check, bytes: reader.position(), total: Some(total) });
            catena_rt::yield_now().await;
        }
        Ok(Archive { path: path.to_owned(), header: reader.header().clone(), tally: reader.tally().clone() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose state it is, and of when.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What is in it.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Reads it again. It is checked again, too: files change.
    pub(crate) fn read(&self) -> Result<Reader<BufReader<File>>, ArchiveError> {
        open(&self.path).map_err(|source| self.failed(source))
    }

    pub(crate) fn failed(&self, source: ReadError) -> ArchiveError {
        ArchiveError { path: self.path.clone(), source }
    }
}

fn open(path: &Path) -> Result<Reader<BufReader<File>>, ReadError> {
    Reader::new(BufReader::with_capacity(1 << 20, File::open(path)?))
}
