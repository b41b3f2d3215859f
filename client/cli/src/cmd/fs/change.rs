//! `mkdir`, `rm`, `mv`, `ln`, `chmod`, `chown`, `touch`, `truncate`: changes of the namespace.

use catena_client::{Catena, FileType, LayoutChoice, RenameMode, SetAttr, Stat};
use catena_proto::status::Status;

use crate::args::fs::{
    ChmodArgs, ChownArgs, LnArgs, MkdirArgs, MvArgs, NewLength, RmArgs, TouchArgs, TruncateArgs,
};
use crate::cmd::fs::mode::ModeChange;
use crate::cmd::fs::path::Remote;
use crate::cmd::fs::users::{Names, parse_owner};
use crate::cmd::fs::walk::{Filter, Visit, Walk};
use crate::exit::{Failure, Failures, Result};

/// `catena fs mkdir`.
pub async fn mkdir(fs: &Catena, args: MkdirArgs) -> Result<()> {
    let mut failures = Failures::of("fs mkdir");
    let mode = args.mode.unwrap_or(0o777 & !umask());
    for path in &args.paths {
        let made = async {
            let path = Remote::new(path)?;
            fs.make_directory(&path, mode, args.parents, LayoutChoice::default()).await?;
            Ok(())
        };
        failures.check(made.await);
    }
    failures.end()
}

/// The process's umask, without changing it.
pub fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|value| u32::from_str_radix(value.trim(), 8).ok()).unwrap_or(0o022)
}

/// `catena fs rm`.
pub async fn rm(fs: &Catena, args: RmArgs) -> Result<()> {
    let mut failures = Failures::of("fs rm");
    for path in &args.paths {
        failures.check(remove(fs, path, &args).await);
    }
    failures.end()
}

async fn remove(fs: &Catena, path: &std::path::Path, args: &RmArgs) -> Result<()> {
    let path = Remote::new(path)?;
    if path.name().is_none() {
        return Err(Failure::usage("/: the root is not removed")
            .hint("name what is in it, such as `catena fs rm -r /a /b`"));
    }
    let stat = match fs.lstat(&path).await {
        Err(error) if error.status() == Status::NotFound && args.force => return Ok(()),
        other => other?,
    };
    let outcome = if !stat.is_dir() {
        fs.remove(&path).await
    } else if args.recursive {
        fs.remove_all(&path).await
    } else if args.dir {
        fs.remove_dir(&path).await
    } else {
        return Err(Failure::failed(format!("{path}: is a directory"))
            .hint("-r removes it with all that is in it, -d an empty one"));
    };
    match outcome {
        Err(error) if error.status() == Status::NotFound && args.force => Ok(()),
        other => Ok(other?),
    }
}

/// `catena fs mv`.
pub async fn mv(fs: &Catena, args: MvArgs) -> Result<()> {
    let mut failures = Failures::of("fs mv");
    let (to, from) = args.paths.split_last().expect("clap wants two");
    let to = Remote::new(to)?;
    let into = if args.no_target_directory || args.exchange { None } else { directory(fs, &to).await? };
    if into.is_none() && from.len() > 1 {
        return Err(not_a_directory(&to));
    }
    let mode = match (args.exchange, args.no_clobber) {
        (true, _) => RenameMode::Exchange,
        (_, true) => RenameMode::Noreplace,
        _ => RenameMode::Replace,
    };
    for path in from {
        let moved = async {
            let path = Remote::new(path)?;
            let target = if into.is_some() { to.join(name(&path)?) } else { to.clone() };
            fs.rename(&path, &target, mode).await?;
            Ok(())
        };
        failures.check(moved.await);
    }
    failures.end()
}

/// The last component of a path that is not the root.
fn name(path: &Remote) -> Result<&[u8]> {
    path.name().ok_or_else(|| Failure::usage("/: the root has no name"))
}

/// What `path` is if it is a directory; it need not exist.
pub async fn directory(fs: &Catena, path: &Remote) -> Result<Option<Stat>> {
    match fs.stat(path).await {
        Ok(stat) if stat.is_dir() => Ok(Some(stat)),
        Ok(_) if path.slash => Err(not_a_directory(path)),
        Ok(_) => Ok(None),
        Err(error) if error.status() == Status::NotFound && !path.slash => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The error of a destination that must be a directory.
pub fn not_a_directory(path: &Remote) -> Failure {
    Failure::failed(format!("{path}: not a directory")).hint(format!("`catena fs mkdir -p {path}` makes it"))
}

/// `catena fs ln`.
pub async fn ln(fs: &Catena, args: LnArgs) -> Result<()> {
    let mut link = Remote::new(&args.link)?;
    let target = args.target.as_os_str();
    if directory(fs, &link).await?.is_some() {
        let name = args
            .target
            .file_name()
            .ok_or_else(|| Failure::usage(format!("{}: has no name", args.target.display())))?;
        link = link.join(name.as_encoded_bytes());
    }
    if args.force {
        match fs.remove(&link).await {
            Err(error) if error.status() != Status::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    if args.symbolic {
        fs.symlink(target.as_encoded_bytes(), &link).await?;
    } else {
        fs.link(&Remote::new(&args.target)?, &link).await?;
    }
    Ok(())
}

/// `catena fs chmod`.
pub async fn chmod(fs: &Catena, args: ChmodArgs) -> Result<()> {
    let change = ModeChange::parse(&args.mode).map_err(Failure::usage)?;
    each(fs, "fs chmod", &args.paths, args.recursive, async |path, stat: &Stat| {
        if stat.kind == FileType::Symlink {
            return Ok(());
        }
        let mode = change.apply(stat.mode, stat.is_dir());
        if mode != stat.mode {
            fs.chmod(path, mode).await?;
        }
        Ok(())
    })
    .await
}

/// `catena fs chown`.
pub async fn chown(fs: &Catena, args: ChownArgs) -> Result<()> {
    let (uid, gid) = parse_owner(&args.owner, &Names::users(), &Names::groups()).map_err(Failure::usage)?;
    let follow = !args.no_dereference && !args.recursive;
    each(fs, "fs chown", &args.paths, args.recursive, async |path, _| {
        fs.set_attr(path, SetAttr { uid, gid, ..SetAttr::default() }, follow).await?;
        Ok(())
    })
    .await
}

/// Calls `change` for every path, and with `recursive` for everything below it.
async fn each(
    fs: &Catena,
    command: &'static str,
    paths: &[std::path::PathBuf],
    recursive: bool,
    change: impl AsyncFn(&Remote, &Stat) -> Result<()>,
) -> Result<()> {
    let mut failures = Failures::of(command);
    for path in paths {
        let found = async {
            let path = Remote::new(path)?;
            let stat = if recursive { fs.lstat(&path).await? } else { fs.stat(&path).await? };
            Ok((path, stat))
        };
        let Some((path, stat)) = failures.check(found.await) else { continue };
        let deepest = if recursive { usize::MAX } else { 0 };
        let mut walk = Walk::new(fs, path, stat, deepest, Filter::default());
        while let Some(step) = walk.next().await {
            if let Some(Visit::Enter { path, inode, .. }) = failures.check(step) {
                failures.check(change(&path, &inode).await);
            }
        }
    }
    failures.end()
}

/// `catena fs touch`.
pub async fn touch(fs: &Catena, args: TouchArgs) -> Result<()> {
    let mut failures = Failures::of("fs touch");
    let both = args.access == args.modification;
    let (access, modification) = (both || args.access, both || args.modification);
    let times = match args.date {
        Some(time) => SetAttr {
            atime: access.then_some(time),
            mtime: modification.then_some(time),
            ..SetAttr::default()
        },
        None => SetAttr { atime_now: access, mtime_now: modification, ..SetAttr::default() },
    };
    for path in &args.paths {
        let touched = async {
            let path = Remote::new(path)?;
            match fs.set_attr(&path, times, true).await {
                Err(error) if error.status() == Status::NotFound && args.no_create => Ok(()),
                Err(error) if error.status() == Status::NotFound => {
                    fs.mknod(&path, FileType::File, 0o666 & !umask(), 0).await?;
                    if args.date.is_some() {
                        fs.set_attr(&path, times, true).await?;
                    }
                    Ok(())
                }
                other => Ok(other.map(drop)?),
            }
        };
        failures.check(touched.await);
    }
    failures.end()
}

/// `catena fs truncate`.
pub async fn truncate(fs: &Catena, args: TruncateArgs) -> Result<()> {
    let mut failures = Failures::of("fs truncate");
    let length = NewLength::parse(&args.size).map_err(Failure::usage)?;
    for path in &args.paths {
        let cut = async {
            let path = Remote::new(path)?;
            let now = match fs.stat(&path).await {
                Err(error) if error.status() == Status::NotFound && args.no_create => return Ok(()),
                Err(error) if error.status() == Status::NotFound => {
                    fs.mknod(&path, FileType::File, 0o666 & !umask(), 0).await?;
                    0
                }
                other => other?.length,
            };
            fs.truncate(&path, length.apply(now)).await?;
            Ok(())
        };
        failures.check(cut.await);
    }
    failures.end()
}
