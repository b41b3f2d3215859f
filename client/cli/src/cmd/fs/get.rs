//! `get` and `cat`: out of the cluster, into local files or stdout.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use catena_client::transfer::{TransferOptions, get_blocking, get_file};
use catena_client::{Catena, FileType, Stat};
use futures_util::stream::{self, StreamExt};

use crate::args::fs::{CatArgs, GetArgs};
use crate::cmd::fs::path::{Remote, local_name, show};
use crate::cmd::fs::transfer::{Copy, is_dash, local};
use crate::cmd::fs::walk::{Filter, Visit, Walk};
use crate::exit::{Failure, Failures, Result};
use crate::output::{Output, gone};
use crate::progress;

/// `catena fs get`.
pub async fn get(fs: &Catena, args: GetArgs, out: Output) -> Result<()> {
    let mut failures = Failures::of("fs get");
    let (to, sources) = args.paths.split_last().expect("clap wants two");
    let mut found = Vec::new();
    let mut total = 0;
    for source in sources {
        let look = async {
            let path = Remote::new(source)?;
            let stat = fs.stat(&path).await?;
            if stat.is_dir() && !args.recursive {
                let failure = Failure::failed(format!("{path}: is a directory"));
                return Err(failure.hint("-r copies it with all that is in it"));
            }
            let bytes = if stat.is_dir() { fs.usage(&path).await?.bytes } else { stat.length };
            Ok((path, stat, bytes))
        };
        if let Some((path, stat, bytes)) = failures.check(look.await) {
            total += bytes;
            found.push((path, stat));
        }
    }
    if is_dash(to) {
        if out.json {
            return Err(Failure::usage("--json: stdout takes the files"));
        }
        for (path, stat) in found {
            if stat.is_dir() {
                failures.note(Failure::failed(format!("{path}: a directory cannot go to stdout")));
                continue;
            }
            failures.check(to_stdout(fs, &path).await);
        }
        return failures.end();
    }
    let into = to.is_dir();
    if !into && sources.len() > 1 {
        return Err(Failure::failed(format!("{}: not a directory", to.display()))
            .hint("several files need a directory"));
    }
    let copy = Copy::new(progress::bytes(total, "get"));
    let job = Job { fs, args: &args, copy: &copy };
    for (path, stat) in found {
        let target = match path.name() {
            Some(name) if into => to.join(local_name(name)),
            _ => to.clone(),
        };
        job.tree(&path, stat, &target, &mut failures).await;
    }
    copy.finish("got", failures, out)
}

struct Job<'a> {
    fs: &'a Catena,
    args: &'a GetArgs,
    copy: &'a Copy,
}

impl Job<'_> {
    /// Copies a file, or a directory with all that is in it. Directories are made as they are met, files go side by side.
    async fn tree(&self, source: &Remote, stat: Stat, target: &Path, failures: &mut Failures) {
        let walk = Walk::new(self.fs, source.clone(), stat, usize::MAX, Filter::default());
        // The local path of the directory that is open at each level, and what it was like.
        let open: Vec<(PathBuf, Stat)> = Vec::new();
        let found = stream::unfold((walk, open), async |(mut walk, mut open)| {
            let step = walk.next().await?;
            let outcome = match step {
                Err(failure) => Err(failure),
                Ok(Visit::Leave { .. }) => Ok(open.pop()),
                Ok(Visit::Enter { path, inode, depth, .. }) => {
                    let place = match (depth, open.last()) {
                        (0, _) | (_, None) => target.to_owned(),
                        (_, Some((above, _))) => above.join(local_name(path.name().unwrap_or_default())),
                    };
                    if inode.is_dir() {
                        // Its mode is set when all that is in it is there: it may forbid writing.
                        let made = match std::fs::create_dir(&place) {
                            Err(error)
                                if error.kind() == std::io::ErrorKind::AlreadyExists && place.is_dir() =>
                            {
                                Ok(None)
                            }
                            Err(error) => Err(local(&place, error)),
                            Ok(()) => Ok(None),
                        };
                        open.push((place, inode));
                        made
                    } else {
                        Ok(Some((place, inode)))
                    }
                }
            };
            Some((outcome, (walk, open)))
        });
        let mut directories = Vec::new();
        let copies = found.map(async |found: Result<Option<(PathBuf, Stat)>>| match found? {
            None => Ok(None),
            Some((path, stat)) if stat.is_dir() => Ok(Some((path, stat))),
            Some((path, stat)) => self.one(&path, &stat).await.map(|()| None),
        });
        let mut copies = std::pin::pin!(copies.buffer_unordered(self.args.jobs.max(1)));
        while let Some(outcome) = copies.next().await {
            directories.extend(failures.check(outcome).flatten());
        }
        if self.args.preserve {
            for (path, stat) in directories {
                failures.check(preserve(&path, &stat));
            }
        }
    }

    async fn one(&self, target: &Path, stat: &Stat) -> Result<()> {
        if self.args.no_clobber && target.symlink_metadata().is_ok() {
            return Ok(());
        }
        match stat.kind {
            FileType::File => {}
            FileType::Symlink => {
                let text = local_name(&stat.symlink);
                let made = match std::os::unix::fs::symlink(text, target) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        std::fs::remove_file(target).and_then(|()| std::os::unix::fs::symlink(text, target))
                    }
                    other => other,
                };
                return made.map_err(|error| local(target, error));
            }
            kind => {
                let kind = crate::cmd::fs::mode::type_name(kind);
                return Err(Failure::failed(format!("{}: a {kind} is not copied", target.display())));
            }
        }
        let file = self.fs.open(stat.inode).await?;
        let moved = get_file(&file, target, &self.copy.options()).await;
        file.close().await?;
        let moved = moved?;
        if self.args.preserve {
            preserve(target, stat)?;
        } else if let Ok(meta) = target.metadata()
            && meta.is_file()
        {
            // As `cp` does: executables stay executable.
            let mode = stat.mode & 0o777 & !crate::cmd::fs::change::umask();
            std::fs::set_permissions(target, PermissionsExt::from_mode(mode))
                .map_err(|error| local(target, error))?;
        }
        self.copy.done(moved.bytes);
        Ok(())
    }
}

fn preserve(path: &Path, stat: &Stat) -> Result<()> {
    let time = |nanos: i64| UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    let set = || {
        let file = std::fs::File::open(path)?;
        file.set_times(
            std::fs::FileTimes::new().set_accessed(time(stat.atime.0)).set_modified(time(stat.mtime.0)),
        )?;
        file.set_permissions(PermissionsExt::from_mode(stat.mode & 0o7777))
    };
    set().map_err(|error| local(path, error))
}

/// Stdout, as a target that ends the program quietly when its reader is gone.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().lock().write(bytes).or_else(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => gone(&error),
            _ => Err(error),
        })
    }
    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().lock().flush().or_else(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => gone(&error),
            _ => Err(error),
        })
    }
}

async fn to_stdout(fs: &Catena, path: &Remote) -> Result<()> {
    let file = fs.open(path).await?;
    get_blocking(&file, Stdout, &TransferOptions::default()).await?;
    Ok(file.close().await?)
}

/// `catena fs cat`.
pub async fn cat(fs: &Catena, args: CatArgs) -> Result<()> {
    let mut failures = Failures::of("fs cat");
    for path in &args.paths {
        let shown = async {
            let path = Remote::new(path)?;
            if args.offset == 0 && args.length.is_none() {
                to_stdout(fs, &path).await
            } else {
                part(fs, &path, &args).await
            }
        };
        failures.check(shown.await);
    }
    failures.end()
}

async fn part(fs: &Catena, path: &Remote, args: &CatArgs) -> Result<()> {
    let file = fs.open(path).await?;
    let mut left = args.length.unwrap_or(u64::MAX);
    let mut offset = args.offset;
    let mut stdout = Stdout;
    let failed = |error: std::io::Error| Failure::io(show(b"stdout"), error);
    while left > 0 {
        let data = file.read_buf_at(offset, left.min(4 << 20) as usize).await?;
        if data.is_empty() {
            break;
        }
        for bytes in data.parts() {
            stdout.write_all(bytes).map_err(failed)?;
        }
        offset += data.len() as u64;
        left -= data.len() as u64;
    }
    stdout.flush().map_err(failed)?;
    Ok(file.close().await?)
}
