//! The files that a data benchmark works on, and how tasks share them.

use std::ops::Range;

use catena_client::{Catena, File, LayoutChoice, OpenOptions};

use crate::args::bench::DataArgs;
use crate::cmd::fs::path::Remote;
use crate::content::Content;
use crate::exit::{Failure, Result};
use crate::progress;
use crate::pump::{self, Source};

/// Blocks and depth with which files are made for others to read.
const PREPARE_BLOCK: usize = 4 << 20;
const PREPARE_DEPTH: usize = 8;

/// What a benchmark is to do, with defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of one read or write.
    pub block: usize,
    /// In flight in each task.
    pub depth: usize,
    /// Tasks.
    pub threads: usize,
    /// Files,
    pub files: usize,
    /// and the bytes of each: whole blocks.
    pub file_size: u64,
}

impl Plan {
    /// From the command line.
    pub fn new(args: &DataArgs, random: bool) -> Result<Plan> {
        let (block, depth) = if random { (4 << 10, 64) } else { (4 << 20, 8) };
        let files = args.files.unwrap_or(args.threads).max(1);
        // A block that nobody asked for is at most a file.
        let block = args.block_size.unwrap_or_else(|| block.min(args.size / files as u64));
        let refuse = |what: &str| Err(Failure::usage(what.to_owned()));
        if block == 0 || block > 64 << 20 {
            return refuse("--block-size: between 1 byte and 64 MiB");
        }
        let (depth, threads) = (args.depth.unwrap_or(depth), args.threads);
        if depth == 0 || threads == 0 || args.files == Some(0) || args.batch == 0 {
            return refuse("--depth, --threads, --files and --batch: at least 1");
        }
        if depth > 65_536 || threads > 4096 || files > 65_536 {
            return refuse("--depth, --files: at most 65536, --threads: at most 4096");
        }
        let file_size = args.size / files as u64 / block * block;
        if file_size == 0 {
            return refuse("--size: less than one block for each file");
        }
        Ok(Plan { block: block as usize, depth, threads, files, file_size })
    }

    /// For every task, the parts of files that it goes through in order. Files go round the tasks; where there are more tasks than
    /// files, tasks share a file, each with a part of its own.
    pub fn lanes(&self) -> Vec<Vec<(usize, Range<u64>)>> {
        if self.threads <= self.files {
            let lane = |task: usize| {
                (task..self.files).step_by(self.threads).map(|file| (file, 0..self.file_size)).collect()
            };
            return (0..self.threads).map(lane).collect();
        }
        let blocks = self.file_size / self.block as u64;
        let lane = |task: usize| {
            let (file, part) = (task % self.files, (task / self.files) as u64);
            let parts = ((self.threads - file).div_ceil(self.files)) as u64;
            let edge = |part: u64| blocks * part / parts * self.block as u64;
            vec![(file, edge(part)..edge(part + 1))]
        };
        (0..self.threads).map(lane).collect()
    }

    /// Bytes of all files.
    pub fn total(&self) -> u64 {
        self.file_size * self.files as u64
    }
}

/// The contents of file number `index`.
pub fn content(args: &DataArgs, index: usize) -> Content {
    Content::new(args.seed.wrapping_mul(65_537).wrapping_add(index as u64))
}

/// The name tells what is in it, so that a later run with `--keep` can trust it.
fn name(directory: &Remote, args: &DataArgs, plan: &Plan, index: usize) -> Remote {
    directory.join(format!("seed{}-{}-{index}", args.seed, plan.file_size).as_bytes())
}

/// Makes empty files.
pub async fn create(catena: &Catena, directory: &Remote, args: &DataArgs, plan: &Plan) -> Result<Vec<File>> {
    let layout = LayoutChoice { table: None, chunk_size: args.chunk_size, stripe: args.stripe };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).layout(layout);
    let mut files = Vec::with_capacity(plan.files);
    for index in 0..plan.files {
        files.push(options.open(catena, name(directory, args, plan, index)).await?);
    }
    Ok(files)
}

/// Opens full files, and makes those that are missing or not as long as they should be.
pub async fn prepare(
    catena: &Catena,
    directory: &Remote,
    args: &DataArgs,
    plan: &Plan,
    write: bool,
) -> Result<Vec<File>> {
    let layout = LayoutChoice { table: None, chunk_size: args.chunk_size, stripe: args.stripe };
    let make = OpenOptions::new().read(true).write(true).create(true).truncate(true).layout(layout);
    let open = OpenOptions::new().read(true).write(write);
    let bar = progress::bytes(plan.total(), "preparing");
    let mut files = Vec::with_capacity(plan.files);
    for index in 0..plan.files {
        let path = name(directory, args, plan, index);
        let there = match catena.stat(&path).await {
            Ok(stat) => stat.length == plan.file_size,
            Err(_) => false,
        };
        if there {
            bar.inc(plan.file_size);
        } else {
            let file = make.open(catena, &path).await?;
            let source = Source::Checked(content(args, index));
            let next = pump::blocks(0..plan.file_size, PREPARE_BLOCK);
            let write = |(offset, length)| pump::write_block(&file, &source, offset, length);
            pump::drive(PREPARE_DEPTH, next, write, |bytes| bar.inc(bytes)).await?;
            file.close().await?;
        }
        files.push(open.open(catena, &path).await?);
    }
    bar.finish_and_clear();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(threads: usize, files: usize, blocks: u64) -> Plan {
        Plan { block: 4096, depth: 1, threads, files, file_size: blocks * 4096 }
    }

    #[test]
    fn tasks_share_the_work_without_gap_or_overlap() {
        for (threads, files, blocks) in [(1, 1, 10), (1, 4, 10), (3, 7, 5), (5, 2, 7), (8, 1, 8), (7, 3, 2)] {
            let plan = plan(threads, files, blocks);
            let lanes = plan.lanes();
            assert_eq!(lanes.len(), threads);
            let mut covered = vec![0u64; files];
            let mut parts: Vec<_> = lanes.into_iter().flatten().collect();
            parts.sort_by_key(|(file, range)| (*file, range.start));
            for (file, range) in parts {
                assert_eq!(range.start, covered[file], "{threads} tasks, {files} files");
                covered[file] = range.end;
            }
            assert!(covered.iter().all(|end| *end == plan.file_size));
        }
    }
}
