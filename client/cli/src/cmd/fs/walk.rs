//! Trees, walked page by page: memory is bounded by the depth and one page a level, not by the number of files.

use std::collections::VecDeque;

use catena_client::{Catena, DirEntry, FileType, ReadDir, Stat};

use crate::cmd::fs::path::Remote;
use crate::exit::Result;

/// Which entries are there at all.
#[derive(Clone, Copy, Default)]
pub struct Filter {
    /// Not those that begin with a dot.
    pub no_hidden: bool,
    /// Only directories.
    pub only_directories: bool,
}

impl Filter {
    fn keeps(self, entry: &DirEntry) -> bool {
        let hidden = self.no_hidden && entry.name.starts_with(b".");
        let other = self.only_directories && entry.kind != FileType::Directory;
        !(hidden || other)
    }
}

/// Entries of a directory, with attributes, in order of name.
pub struct Entries {
    listing: ReadDir,
    filter: Filter,
    page: VecDeque<DirEntry>,
    ended: bool,
}

impl Entries {
    /// Of `path`; nothing is asked for yet.
    pub fn new(fs: &Catena, path: &Remote, filter: Filter) -> Entries {
        Entries { listing: fs.read_dir(path, true), filter, page: VecDeque::new(), ended: false }
    }

    /// The next page, empty at the end.
    pub async fn page(&mut self) -> Result<Vec<DirEntry>> {
        while self.page.is_empty() && !self.ended {
            let page = self.listing.next_page().await?;
            self.ended = page.is_empty();
            self.page = page.into_iter().filter(|entry| self.filter.keeps(entry)).collect();
        }
        Ok(std::mem::take(&mut self.page).into())
    }

    /// The next entry.
    pub async fn next(&mut self) -> Result<Option<DirEntry>> {
        if self.page.is_empty() {
            self.page = self.page().await?.into();
        }
        Ok(self.page.pop_front())
    }

    /// Whether there is none after the last that was given.
    async fn at_end(&mut self) -> Result<bool> {
        if self.page.is_empty() {
            self.page = self.page().await?.into();
        }
        Ok(self.page.is_empty())
    }
}

/// One step of a walk.
pub enum Visit {
    /// A file, directory or other, before what is in it.
    Enter {
        /// Where it is.
        path: Remote,
        /// What it is.
        inode: Stat,
        /// Levels below the root of the walk, which is 0.
        depth: usize,
        /// Nothing follows it in its directory.
        last: bool,
    },
    /// A directory, after all that is in it.
    Leave {
        /// How deep it is.
        depth: usize,
        /// Where it is.
        path: Remote,
    },
}

/// A depth-first walk, directories before and after their contents. Symbolic links are not followed.
pub struct Walk<'a> {
    fs: &'a Catena,
    root: Option<(Remote, Stat)>,
    stack: Vec<(Remote, Entries)>,
    deepest: usize,
    filter: Filter,
}

impl<'a> Walk<'a> {
    /// From `path` on, which is `inode`, entering directories less than `deepest` levels below it.
    pub fn new(fs: &'a Catena, path: Remote, inode: Stat, deepest: usize, filter: Filter) -> Walk<'a> {
        Walk { fs, root: Some((path, inode)), stack: Vec::new(), deepest, filter }
    }

    /// The next step. A directory that cannot be read is an error once, and is left as if it were empty.
    pub async fn next(&mut self) -> Option<Result<Visit>> {
        if let Some((path, inode)) = self.root.take() {
            return Some(Ok(self.enter(path, inode, 0, true)));
        }
        loop {
            let depth = self.stack.len();
            let (path, entries) = self.stack.last_mut()?;
            return match entries.next().await {
                Ok(Some(entry)) => {
                    let path = path.join(&entry.name);
                    // Removed while the directory was being read: as if it had never been there.
                    let Some(inode) = entry.stat else { continue };
                    // An error of looking ahead comes again, and is told, when the next entry is asked for.
                    let last = entries.at_end().await.unwrap_or(false);
                    Some(Ok(self.enter(path, inode, depth, last)))
                }
                Ok(None) => {
                    let path = self.stack.pop().expect("just looked at").0;
                    Some(Ok(Visit::Leave { path, depth: depth - 1 }))
                }
                Err(failure) => {
                    entries.ended = true;
                    Some(Err(failure))
                }
            };
        }
    }

    fn enter(&mut self, path: Remote, inode: Stat, depth: usize, last: bool) -> Visit {
        if inode.is_dir() && depth < self.deepest {
            self.stack.push((path.clone(), Entries::new(self.fs, &path, self.filter)));
        }
        Visit::Enter { path, inode, depth, last }
    }
}
