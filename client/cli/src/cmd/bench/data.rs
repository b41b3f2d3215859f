//! Reads and writes, in order and at random.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use catena_client::{Catena, File, ReadRequest};
use futures_util::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};
use tokio::task::JoinHandle;

use crate::args::bench::DataArgs;
use crate::cmd::bench::cpu::Servers;
use crate::cmd::bench::files::{self, Plan, content};
use crate::cmd::bench::stats::{Report, Tally, Watch, show};
use crate::cmd::fs::path::Remote;
use crate::content::Content;
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::pump::{self, Done, Source};
use crate::{progress, units};

/// Time of a random benchmark that was given none.
const RANDOM_TIME: Duration = Duration::from_secs(10);

/// Bytes that may be on their way in the client; what the plan can have in flight, checked later for sense.
pub fn in_flight(args: &DataArgs, random: bool) -> usize {
    let Ok(plan) = Plan::new(args, random) else { return 0 };
    plan.block.next_power_of_two().max(4096).saturating_mul(plan.depth).saturating_mul(plan.threads)
}

/// `bench write`.
pub async fn write(
    catena: &Catena,
    directory: &Remote,
    args: &DataArgs,
    out: Output,
) -> Result<Map<String, Value>> {
    let plan = Plan::new(args, false)?;
    let files = files::create(catena, directory, args, &plan).await?;
    let same = if args.verify { None } else { Some(Source::same(&files[0], plan.block).await?) };
    let bar = progress::bytes(plan.total(), "writing");
    let watch = Watch::start(&Servers::of(&catena.routing().current()));
    let until = args.duration.map(|time| Instant::now() + time);
    let tasks = plan.lanes().into_iter().map(|lane| {
        let (files, args, bar, same) = (files.clone(), args.clone(), bar.clone(), same.clone());
        tokio::spawn(async move {
            let mut tally = Tally::new();
            for (index, range) in lane {
                let file = &files[index];
                let source = same.clone().unwrap_or_else(|| Source::Checked(content(&args, index)));
                let next = timed(pump::blocks(range, plan.block), until);
                let write = |(offset, length)| pump::write_block(file, &source, offset, length);
                tally.add(&pump::drive(plan.depth, next, write, |bytes| bar.inc(bytes)).await?);
                file.sync().await?;
            }
            Ok(tally)
        })
    });
    let tally = gather(tasks.collect()).await?;
    // Other tasks may have parts of the same file; all are done now.
    try_join_all(files.iter().map(File::close)).await?;
    let report = watch.finish("write", tally);
    bar.finish_and_clear();
    if args.verify {
        let names = files.iter().map(|file| catena.open(file.inode()));
        let files = try_join_all(names).await?;
        let written: Vec<u64> = files.iter().map(File::known_len).collect();
        if args.duration.is_none() || written.iter().all(|length| *length == plan.file_size) {
            verify(&files, &plan, |index| (content(args, index), None)).await?;
        } else {
            return Err(Failure::usage(
                "--verify with --duration: the time was over before everything was written",
            )
            .hint("leave --duration out, or choose a smaller --size"));
        }
    }
    Ok(finish(report, args, out))
}

/// `bench read`.
pub async fn read(
    catena: &Catena,
    directory: &Remote,
    args: &DataArgs,
    out: Output,
) -> Result<Map<String, Value>> {
    let plan = Plan::new(args, false)?;
    let files = files::prepare(catena, directory, args, &plan, false).await?;
    let bar = progress::bytes(plan.total(), "reading");
    let watch = Watch::start(&Servers::of(&catena.routing().current()));
    let until = args.duration.map(|time| Instant::now() + time);
    let tasks = plan.lanes().into_iter().map(|lane| {
        let (files, args, bar) = (files.clone(), args.clone(), bar.clone());
        tokio::spawn(async move {
            let mut tally = Tally::new();
            for (index, range) in lane {
                let file = &files[index];
                let expected = args.verify.then(|| content(&args, index));
                let next = timed(pump::blocks(range, plan.block), until);
                let read = |(offset, length)| pump::read_block(file, expected.as_ref(), offset, length);
                tally.add(&pump::drive(plan.depth, next, read, |bytes| bar.inc(bytes)).await?);
            }
            Ok(tally)
        })
    });
    let tally = gather(tasks.collect()).await?;
    let report = watch.finish("read", tally);
    bar.finish_and_clear();
    Ok(finish(report, args, out))
}

/// `bench randread`: every operation of the queue is a batch.
pub async fn randread(
    catena: &Catena,
    directory: &Remote,
    args: &DataArgs,
    out: Output,
) -> Result<Map<String, Value>> {
    let plan = Plan::new(args, true)?;
    let files = files::prepare(catena, directory, args, &plan, false).await?;
    let contents: Vec<Content> = (0..plan.files).map(|index| content(args, index)).collect();
    let batch = args.batch.min(plan.depth);
    let time = args.duration.unwrap_or(RANDOM_TIME);
    let bar = progress::seconds(time, "reading");
    let watch = Watch::start(&Servers::of(&catena.routing().current()));
    let until = Instant::now() + time;
    let tasks = (0..plan.threads).map(|task| {
        let (catena, files, contents, bar) = (catena.clone(), files.clone(), contents.clone(), bar.clone());
        let verify = args.verify;
        let mut random = Places::new(args.seed, task, &plan);
        tokio::spawn(async move {
            let next =
                timed(move || Some((0..batch).map(|_| random.next()).collect::<Vec<_>>()), Some(until));
            let read = async |places: Vec<(usize, u64)>| {
                let request = |&(index, offset): &(usize, u64)| ReadRequest {
                    file: &files[index],
                    offset,
                    length: plan.block,
                };
                let requests: Vec<_> = places.iter().map(request).collect();
                let start = Instant::now();
                let outcomes = catena.read_batch(&requests).await;
                let time = start.elapsed();
                for (&(index, offset), data) in places.iter().zip(outcomes) {
                    let expected = verify.then(|| &contents[index]);
                    pump::check(&files[index], expected, offset, plan.block, &data?)?;
                }
                let ops = places.len() as u64;
                Ok(Done { time, ops, bytes: ops * plan.block as u64 })
            };
            let queue = plan.depth / batch;
            pump::drive(queue, next, read, |_| tick(&bar, until, time)).await
        })
    });
    let tally = gather(tasks.collect()).await?;
    let report = watch.finish("randread", tally);
    bar.finish_and_clear();
    Ok(finish(report, args, out))
}

/// `bench randwrite`.
pub async fn randwrite(
    catena: &Catena,
    directory: &Remote,
    args: &DataArgs,
    out: Output,
) -> Result<Map<String, Value>> {
    let plan = Plan::new(args, true)?;
    let files = files::prepare(catena, directory, args, &plan, true).await?;
    let same = if args.verify { None } else { Some(Source::same(&files[0], plan.block).await?) };
    // Overwrites have contents of their own, the same for every overwrite of a block, so that their order does not matter.
    let new = |index: usize| content(args, index + plan.files);
    let sources: Vec<Source> =
        (0..plan.files).map(|index| same.clone().unwrap_or_else(|| Source::Checked(new(index)))).collect();
    let blocks = (plan.file_size / plan.block as u64) as usize;
    let marks: std::sync::Arc<Vec<Marks>> =
        std::sync::Arc::new((0..plan.files).map(|_| Marks::new(blocks)).collect());
    let time = args.duration.unwrap_or(RANDOM_TIME);
    let bar = progress::seconds(time, "writing");
    let watch = Watch::start(&Servers::of(&catena.routing().current()));
    let until = Instant::now() + time;
    let tasks = (0..plan.threads).map(|task| {
        let (files, sources, marks, bar) = (files.clone(), sources.clone(), marks.clone(), bar.clone());
        let mut random = Places::new(args.seed, task, &plan);
        tokio::spawn(async move {
            let next = timed(move || Some(random.next()), Some(until));
            let write = async |(index, offset): (usize, u64)| {
                let done = pump::write_block(&files[index], &sources[index], offset, plan.block).await?;
                marks[index].set((offset / plan.block as u64) as usize);
                Ok(done)
            };
            pump::drive(plan.depth, next, write, |_| tick(&bar, until, time)).await
        })
    });
    let tally = gather(tasks.collect()).await?;
    try_join_all(files.iter().map(File::close)).await?;
    let report = watch.finish("randwrite", tally);
    bar.finish_and_clear();
    if args.verify {
        let files = try_join_all(files.iter().map(|file| catena.open(file.inode()))).await?;
        verify(&files, &plan, |index| (content(args, index), Some((new(index), &marks[index])))).await?;
    }
    Ok(finish(report, args, out))
}

/// Stops giving out work when the time is over.
fn timed<T>(mut next: impl FnMut() -> Option<T>, until: Option<Instant>) -> impl FnMut() -> Option<T> {
    move || if until.is_some_and(|until| Instant::now() >= until) { None } else { next() }
}

fn tick(bar: &indicatif::ProgressBar, until: Instant, time: Duration) {
    let passed = time.saturating_sub(until.saturating_duration_since(Instant::now()));
    bar.set_position(passed.as_millis() as u64);
}

async fn gather(tasks: Vec<JoinHandle<Result<Tally>>>) -> Result<Tally> {
    // The first failure ends all: what is not awaited any more is aborted.
    struct Abort(Vec<tokio::task::AbortHandle>);
    impl Drop for Abort {
        fn drop(&mut self) {
            self.0.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
    let _abort = Abort(tasks.iter().map(JoinHandle::abort_handle).collect());
    let joined =
        tasks.into_iter().map(async |task| task.await.map_err(|error| Failure::failed(error.to_string()))?);
    let mut all = Tally::new();
    for tally in try_join_all(joined).await? {
        all.add(&tally);
    }
    Ok(all)
}

/// Reads everything once and compares. Blocks that are marked have the other contents.
async fn verify<'a>(
    files: &[File],
    plan: &Plan,
    expected: impl Fn(usize) -> (Content, Option<(Content, &'a Marks)>),
) -> Result<()> {
    let bar = progress::bytes(plan.total(), "verifying");
    for (index, file) in files.iter().enumerate() {
        let (old, new) = expected(index);
        // Marks are of blocks; without them any size will do.
        let block = if new.is_some() { plan.block } else { 4 << 20 };
        let depth = if new.is_some() { 64 } else { 8 };
        let next = pump::blocks(0..plan.file_size, block);
        let read = async |(offset, length)| {
            let content = match &new {
                Some((new, marks)) if marks.get((offset / block as u64) as usize) => new,
                _ => &old,
            };
            pump::read_block(file, Some(content), offset, length).await
        };
        pump::drive(depth, next, read, |bytes| bar.inc(bytes)).await?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn finish(report: Report, args: &DataArgs, out: Output) -> Map<String, Value> {
    show(&[&report], out);
    let mut object = report.json();
    if args.verify {
        object.insert("verified".into(), true.into());
        eprintln!("verified: every byte of {} is what was written", units::size(report.tally.bytes));
    }
    object
}

/// Random places: block-aligned offsets in the files of one task.
struct Places {
    random: StdRng,
    files: Vec<usize>,
    blocks: u64,
    block: u64,
}

impl Places {
    fn new(seed: u64, task: usize, plan: &Plan) -> Places {
        let mut files: Vec<_> = (task..plan.files).step_by(plan.threads).collect();
        if files.is_empty() {
            files.push(task % plan.files);
        }
        let random = StdRng::seed_from_u64(seed ^ (task as u64) << 32);
        Places { random, files, blocks: plan.file_size / plan.block as u64, block: plan.block as u64 }
    }

    fn next(&mut self) -> (usize, u64) {
        let file = self.files[self.random.random_range(0..self.files.len())];
        (file, self.random.random_range(0..self.blocks) * self.block)
    }
}

/// A bit for each block of a file.
struct Marks(Vec<AtomicU64>);

impl Marks {
    fn new(blocks: usize) -> Marks {
        Marks((0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }
    fn set(&self, block: usize) {
        self.0[block / 64].fetch_or(1 << (block % 64), Ordering::Relaxed);
    }
    fn get(&self, block: usize) -> bool {
        self.0[block / 64].load(Ordering::Relaxed) >> (block % 64) & 1 == 1
    }
}
