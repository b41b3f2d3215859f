//! `ls`, `stat`, `tree`: looking at names and inodes.

use catena_client::{Catena, DirEntry, FileType, Stat};
use serde_json::Value;

use crate::args::fs::{LsArgs, StatArgs, TreeArgs};
use crate::cmd::fs::path::{Remote, show};
use crate::cmd::fs::show::{self as inodes, Long};
use crate::cmd::fs::walk::{Entries, Filter, Visit, Walk};
use crate::exit::{Failures, Result};
use crate::output::Output;

/// `catena fs ls`.
pub async fn ls(fs: &Catena, args: LsArgs, out: Output) -> Result<()> {
    let mut failures = Failures::of("fs ls");
    let mut lister = Lister {
        args: &args,
        out,
        json: Vec::new(),
        long: Long::new(args.units.bytes, args.inode),
        printed: false,
    };
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for path in &args.paths {
        let found = async {
            let path = Remote::new(path)?;
            let follow = !(args.long || args.directory) || path.slash;
            let inode = if follow { fs.stat(&path).await? } else { fs.lstat(&path).await? };
            Ok((path, inode))
        };
        let Some((path, inode)) = failures.check(found.await) else { continue };
        if inode.is_dir() && !args.directory {
            directories.push(path);
        } else {
            files.push((path.to_string(), inode));
        }
    }
    let with_heads = args.paths.len() > 1 || args.recursive;
    lister.entries(files, None);
    let mut open: Vec<Remote> = directories.into_iter().rev().collect();
    while let Some(path) = open.pop() {
        if with_heads {
            lister.head(&path);
        }
        let mut below = Vec::new();
        failures.check(lister.directory(fs, &path, &mut below).await);
        open.extend(below.into_iter().rev());
    }
    if out.json {
        out.object(Value::Array(lister.json));
    }
    failures.end()
}

struct Lister<'a> {
    args: &'a LsArgs,
    out: Output,
    json: Vec<Value>,
    long: Long,
    printed: bool,
}

impl Lister<'_> {
    fn head(&mut self, path: &Remote) {
        if !self.out.json {
            let gap = if self.printed { "\n" } else { "" };
            self.out.say(format_args!("{gap}{path}:"));
            self.printed = true;
        }
    }

    /// Lists a directory. In order of name it is printed page by page; any other order needs all of it first.
    async fn directory(&mut self, fs: &Catena, path: &Remote, below: &mut Vec<Remote>) -> Result<()> {
        let in_order = !(self.args.time || self.args.size || self.args.reverse);
        let filter = Filter { no_hidden: !self.args.all, only_directories: false };
        let mut entries = Entries::new(fs, path, filter);
        let mut all = Vec::new();
        loop {
            let page = entries.page().await?;
            if page.is_empty() {
                break;
            }
            for DirEntry { name, stat, .. } in page {
                let Some(inode) = stat else { continue };
                if self.args.recursive && inode.is_dir() {
                    below.push(path.join(&name));
                }
                all.push((show(&name), inode));
            }
            if in_order {
                self.entries(std::mem::take(&mut all), Some(path));
            }
        }
        self.entries(all, Some(path));
        Ok(())
    }

    fn entries(&mut self, mut entries: Vec<(String, Stat)>, within: Option<&Remote>) {
        if self.args.time {
            entries.sort_by_key(|(_, inode)| std::cmp::Reverse(inode.mtime));
        } else if self.args.size {
            entries.sort_by_key(|(_, inode)| std::cmp::Reverse(inode.length));
        }
        if self.args.reverse {
            entries.reverse();
        }
        if entries.is_empty() {
            return;
        }
        self.printed = true;
        let mut lines = Vec::with_capacity(entries.len());
        for (name, inode) in &entries {
            if self.out.json {
                let path =
                    within.map_or_else(|| name.clone(), |within| within.join(name.as_bytes()).to_string());
                self.json.push(inodes::json(&path, inode));
                continue;
            }
            let mark = match inode.kind {
                FileType::Directory if self.args.classify => "/",
                FileType::Symlink if self.args.classify && !self.args.long => "@",
                FileType::Fifo if self.args.classify => "|",
                FileType::File if self.args.classify && inode.mode & 0o111 != 0 => "*",
                _ => "",
            };
            let name = format!("{name}{mark}");
            if self.args.long {
                self.long.row(&name, inode);
            } else if self.args.inode {
                lines.push(format!("{} {name}", inode.inode.0));
            } else {
                lines.push(name);
            }
        }
        if self.args.long && !self.out.json {
            lines.push(self.long.take());
        }
        if !lines.is_empty() {
            self.out.say(lines.join("\n"));
        }
    }
}

/// `catena fs stat`.
pub async fn stat(fs: &Catena, args: StatArgs, out: Output) -> Result<()> {
    let mut failures = Failures::of("fs stat");
    let mut rows = Vec::new();
    for path in &args.paths {
        let found = async {
            let path = Remote::new(path)?;
            let follow = args.dereference || path.slash;
            let inode = if follow { fs.stat(&path).await? } else { fs.lstat(&path).await? };
            Ok((path, inode))
        };
        let Some((path, inode)) = failures.check(found.await) else { continue };
        if out.json {
            rows.push(inodes::json(&path.to_string(), &inode));
        } else {
            out.say(inodes::details(&path.to_string(), &inode).trim_end());
        }
    }
    if out.json {
        // One argument, one object: what `jq .length` expects.
        let value = if args.paths.len() == 1 { rows.pop() } else { Some(Value::Array(rows)) };
        if let Some(value) = value {
            out.object(value);
        }
    }
    failures.end()
}

/// `catena fs tree`.
pub async fn tree(fs: &Catena, args: TreeArgs, out: Output) -> Result<()> {
    let mut failures = Failures::of("fs tree");
    let root = Remote::new(&args.path)?;
    let inode = fs.stat(&root).await?;
    let deepest = args.level.unwrap_or(usize::MAX);
    let (mut files, mut directories) = (0u64, 0u64);
    let mut rows = Vec::new();
    let filter = Filter { no_hidden: !args.all, only_directories: args.directories };
    let mut walk = Walk::new(fs, root.clone(), inode, deepest, filter);
    // For every level, whether more entries follow below the line that leads to it.
    let mut open: Vec<bool> = Vec::new();
    while let Some(step) = walk.next().await {
        let Some(Visit::Enter { path, inode, depth, last }) = failures.check(step) else { continue };
        if depth > 0 {
            *(if inode.is_dir() { &mut directories } else { &mut files }) += 1;
        }
        if out.json {
            rows.push(inodes::json(&path.to_string(), &inode));
            continue;
        }
        if depth == 0 {
            out.say(&root);
            continue;
        }
        open.truncate(depth - 1);
        let mut line: String = open.iter().map(|open| if *open { "│   " } else { "    " }).collect();
        line += if last { "└── " } else { "├── " };
        open.push(!last);
        line += &label(&show(path.name().unwrap_or(b"/")), &inode, args.size);
        out.say(line);
    }
    if out.json {
        out.object(Value::Array(rows));
    } else {
        let files = if args.directories { String::new() } else { format!(", {files} files") };
        out.say(format_args!("\n{directories} directories{files}"));
    }
    failures.end()
}

fn label(name: &str, inode: &Stat, size: bool) -> String {
    match inode.kind {
        FileType::Symlink => format!("{name} -> {}", show(&inode.symlink)),
        FileType::File if size => format!("[{:>9}]  {name}", crate::units::size(inode.length)),
        FileType::Directory => format!("{name}/"),
        _ => name.to_owned(),
    }
}
