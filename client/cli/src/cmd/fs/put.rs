//! `put`: local files into the cluster.

use std::collections::VecDeque;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use catena_client::transfer::{put_blocking, put_file};
use catena_client::{Catena, File, LayoutChoice, OpenOptions, SetTime, Timestamp};
use catena_proto::status::Status;
use futures_util::stream::{self, StreamExt};

use crate::args::fs::PutArgs;
use crate::cmd::fs::change::{directory, not_a_directory, umask};
use crate::cmd::fs::path::Remote;
use crate::cmd::fs::transfer::{Copy, is_dash, local};
use crate::exit::{Exit, Failure, Failures, Result};
use crate::output::Output;
use crate::progress;

/// `catena fs put`.
pub async fn put(fs: &Catena, args: PutArgs, out: Output) -> Result<()> {
    let mut failures = Failures::of("fs put");
    let (to, sources) = args.paths.split_last().expect("clap wants two");
    let to = Remote::new(to)?;
    let many = sources.len() > 1;
    if args.parents {
        let needed = if to.slash || many { to.clone() } else { to.parent() };
        fs.mkdir_all(&needed, 0o777 & !umask()).await?;
    }
    let into = directory(fs, &to).await?.is_some();
    if !into && many {
        return Err(not_a_directory(&to));
    }
    let total: Option<u64> = sources.iter().map(|path| bytes_of(path)).sum();
    let copy = Copy::new(match total {
        Some(total) => progress::bytes(total, "put"),
        None => progress::stream("put"),
    });
    let umask = umask();
    let job = Job { fs, args: &args, copy: &copy, umask };
    for source in sources {
        let target = if !into {
            to.clone()
        } else {
            match source.file_name() {
                Some(name) if !is_dash(source) => to.join(name.as_bytes()),
                // `.`, `..` and `/` stand for what is in them.
                _ if !is_dash(source) => to.clone(),
                _ => {
                    failures.note(
                        Failure::usage(format!("{to}: is a directory"))
                            .hint("stdin needs a file's name: /DIR/NAME"),
                    );
                    continue;
                }
            }
        };
        if is_dash(source) {
            failures.check(job.stdin(&target).await);
        } else {
            job.tree(source, &target, &mut failures).await;
        }
    }
    copy.finish("put", failures, out)
}

/// Bytes below a path, as far as they can be seen; nothing for what has no length.
fn bytes_of(path: &Path) -> Option<u64> {
    if is_dash(path) {
        return None;
    }
    let Ok(meta) = std::fs::metadata(path) else { return Some(0) };
    if !meta.is_dir() {
        return Some(meta.len());
    }
    let mut total = 0;
    let mut open = vec![path.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => open.push(entry.path()),
                Ok(meta) if meta.is_file() => total += meta.len(),
                _ => {}
            }
        }
    }
    Some(total)
}

struct Job<'a> {
    fs: &'a Catena,
    args: &'a PutArgs,
    copy: &'a Copy,
    umask: u32,
}

/// An open destination.
struct Made {
    file: File,
    /// It was not there before.
    fresh: bool,
}

/// A thing to copy, found below an argument.
struct Found {
    local: PathBuf,
    meta: Metadata,
    remote: Remote,
}

impl Job<'_> {
    /// Copies a file, or a directory with all that is in it.
    async fn tree(&self, source: &Path, target: &Remote, failures: &mut Failures) {
        let meta = match std::fs::metadata(source) {
            Ok(meta) => meta,
            Err(error) => return failures.note(local(source, error)),
        };
        if meta.is_dir() && !self.args.recursive {
            let failure = Failure::failed(format!("{}: is a directory", source.display()));
            return failures.note(failure.hint("-r copies it with all that is in it"));
        }
        // Directories are made when they are met, before what is in them; files go side by side.
        let root = Found { local: source.to_owned(), meta, remote: target.clone() };
        let walk = stream::unfold(VecDeque::from([root]), async |mut open| {
            let found = open.pop_front()?;
            let outcome =
                if found.meta.is_dir() { self.directory(&found, &mut open).await } else { Ok(Some(found)) };
            Some((outcome, open))
        });
        let copies = walk.map(async |found: Result<Option<Found>>| match found {
            Ok(Some(found)) => self.one(&found).await,
            Ok(None) => Ok(()),
            Err(failure) => Err(failure),
        });
        let mut copies = std::pin::pin!(copies.buffer_unordered(self.args.jobs.max(1)));
        while let Some(outcome) = copies.next().await {
            failures.check(outcome);
        }
        // A directory's time moves with every entry, so it is set when all are there.
        if self.args.preserve && self.args.recursive {
            failures.check(self.times_below(source, target).await);
        }
    }

    /// Makes a directory and finds what is in it.
    async fn directory(&self, found: &Found, open: &mut VecDeque<Found>) -> Result<Option<Found>> {
        let mode = found.meta.permissions().mode() & 0o777 & !self.umask;
        match self.fs.mkdir(&found.remote, mode | 0o700).await {
            Err(error) if error.status() == Status::Exists => {
                if !self.fs.stat(&found.remote).await?.is_dir() {
                    return Err(not_a_directory(&found.remote));
                }
            }
            other => drop(other?),
        }
        let entries = std::fs::read_dir(&found.local).map_err(|error| local(&found.local, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| local(&found.local, error))?;
            let meta = entry.metadata().map_err(|error| local(&entry.path(), error))?;
            let below =
                Found { local: entry.path(), meta, remote: found.remote.join(entry.file_name().as_bytes()) };
            // Depth first: the queue stays as short as a path is deep, times what is in a directory.
            if below.meta.is_dir() { open.push_back(below) } else { open.push_front(below) }
        }
        Ok(None)
    }

    async fn times_below(&self, source: &Path, target: &Remote) -> Result<()> {
        let mut open = vec![(source.to_owned(), target.clone())];
        let mut directories = Vec::new();
        while let Some((path, remote)) = open.pop() {
            let meta = std::fs::symlink_metadata(&path).map_err(|error| local(&path, error))?;
            if meta.is_dir() {
                for entry in std::fs::read_dir(&path).map_err(|error| local(&path, error))?.flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        open.push((entry.path(), remote.join(entry.file_name().as_bytes())));
                    }
                }
                directories.push((remote, meta));
            }
        }
        for (remote, meta) in directories.into_iter().rev() {
            self.preserve(&remote, &meta).await?;
        }
        Ok(())
    }

    async fn one(&self, found: &Found) -> Result<()> {
        let kind = found.meta.file_type();
        if kind.is_symlink() {
            let target = std::fs::read_link(&found.local).map_err(|error| local(&found.local, error))?;
            match self.fs.symlink(target.as_os_str().as_bytes(), &found.remote).await {
                Err(error) if error.status() == Status::Exists && self.args.no_clobber => {}
                Err(error) if error.status() == Status::Exists => {
                    self.fs.remove(&found.remote).await?;
                    self.fs.symlink(target.as_os_str().as_bytes(), &found.remote).await?;
                }
                other => drop(other?),
            }
            return Ok(());
        }
        if !kind.is_file() && found.meta.len() == 0 && self.args.recursive {
            return Err(Failure::failed(format!(
                "{}: neither a file nor a directory nor a link",
                found.local.display()
            )));
        }
        let mode = found.meta.permissions().mode() & 0o777 & !self.umask;
        let Some(made) = self.create(&found.remote, mode).await? else { return Ok(()) };
        let moved = put_file(&found.local, &made.file, &self.copy.options()).await;
        let moved = self.settle(&made, &found.remote, moved).await?;
        if self.args.preserve {
            self.preserve(&found.remote, &found.meta).await?;
        }
        self.copy.done(moved.bytes);
        Ok(())
    }

    async fn stdin(&self, target: &Remote) -> Result<()> {
        let Some(made) = self.create(target, 0o666 & !self.umask).await? else { return Ok(()) };
        let moved = put_blocking(std::io::stdin(), &made.file, &self.copy.options()).await;
        let moved = self.settle(&made, target, moved).await?;
        self.copy.done(moved.bytes);
        Ok(())
    }

    /// Opens the destination, and says whether it was made; nothing if it exists and is to be left alone.
    async fn create(&self, target: &Remote, mode: u32) -> Result<Option<Made>> {
        if target.slash {
            return Err(not_a_directory(target));
        }
        let layout = LayoutChoice { table: None, chunk_size: self.args.chunk_size, stripe: self.args.stripe };
        let options = OpenOptions::new().write(true).mode(mode).layout(layout);
        match options.clone().create_new(true).open(self.fs, target).await {
            Ok(file) => Ok(Some(Made { file, fresh: true })),
            Err(error) if error.status() == Status::Exists && self.args.no_clobber => Ok(None),
            Err(error) if error.status() == Status::Exists => {
                let file = options.create(true).truncate(true).open(self.fs, target).await?;
                Ok(Some(Made { file, fresh: false }))
            }
            // The name is right, what it lacks is a place.
            Err(error) if error.status() == Status::NotFound => {
                let failure =
                    Failure::new(Exit::NotFound, format!("{target}: no such directory {}", target.parent()));
                Err(failure.hint("--parents makes it"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Closes the file, whatever came before; the first error counts. Half a file that was not there before goes.
    async fn settle<T>(&self, made: &Made, target: &Remote, moved: catena_client::Result<T>) -> Result<T> {
        let closed = made.file.close().await;
        let outcome = moved.and_then(|moved| closed.map(|()| moved));
        if outcome.is_err() && made.fresh {
            let _ = self.fs.remove(target).await;
        }
        Ok(outcome?)
    }

    async fn preserve(&self, remote: &Remote, meta: &Metadata) -> Result<()> {
        self.fs.chmod(remote, meta.permissions().mode() & 0o7777).await?;
        let time = |seconds: i64, nanos: i64| {
            Some(SetTime::To(Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))))
        };
        let (access, modification) =
            (time(meta.atime(), meta.atime_nsec()), time(meta.mtime(), meta.mtime_nsec()));
        self.fs.utimes(remote, access, modification).await?;
        Ok(())
    }
}
