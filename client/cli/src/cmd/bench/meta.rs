//! The namespace under load: creates, opens, stats, renames and removes of empty files, and listings of their directories.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use catena_client::{Catena, FileType, OpenOptions, RenameMode};
use futures_util::future::try_join_all;
use serde_json::{Map, Value};

use crate::args::bench::MetaArgs;
use crate::cmd::bench::cpu::Servers;
use crate::cmd::bench::stats::{Report, Tally, Watch, show};
use crate::cmd::fs::path::Remote;
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::progress;

/// How often each directory is listed.
const LISTINGS: usize = 16;
/// Callers on a running cluster unless told otherwise.
const CLIENTS: usize = 64;

/// `bench meta` on a running cluster: an object for each number of clients.
pub async fn run(
    catenas: &[Catena],
    directory: &Remote,
    args: &MetaArgs,
    out: Output,
) -> Result<Vec<Map<String, Value>>> {
    check(args)?;
    let counts = if args.clients.is_empty() { vec![CLIENTS] } else { args.clients.clone() };
    let mut objects = Vec::new();
    for &clients in &counts {
        let reports = phases(catenas, directory, args, clients).await?;
        if counts.len() > 1 {
            out.say(format_args!("{clients} clients"));
        }
        show(&reports.iter().collect::<Vec<_>>(), out);
        let mut all =
            Report { op: "meta", tally: Tally::new(), seconds: 0.0, client_cpu: 0.0, server_cpu: None };
        for report in &reports {
            all.tally.add(&report.tally);
            all.seconds += report.seconds;
            all.client_cpu += report.client_cpu;
            all.server_cpu = report.server_cpu.map(|seconds| seconds + all.server_cpu.unwrap_or(0.0));
        }
        let mut object = all.json();
        object.insert("clients".into(), clients.into());
        object.extend(reports.iter().map(|report| (report.op.to_owned(), Value::Object(report.json()))));
        objects.push(object);
    }
    Ok(objects)
}

/// Refuses what cannot be measured.
pub fn check(args: &MetaArgs) -> Result<()> {
    match args.files == 0 || args.dirs == 0 || args.clients.contains(&0) {
        true => Err(Failure::usage("--files, --clients and --dirs: at least 1")),
        false => Ok(()),
    }
}

/// Where the files are: spread over directories, each moved to the next directory by the rename phase.
#[derive(Clone)]
struct Paths {
    dirs: Arc<Vec<Remote>>,
}

impl Paths {
    fn before(&self, n: usize) -> Remote {
        self.dirs[n % self.dirs.len()].join(format!("f{n}").as_bytes())
    }
    fn after(&self, n: usize) -> Remote {
        self.dirs[(n + 1) % self.dirs.len()].join(format!("r{n}").as_bytes())
    }
}

/// All phases by `clients` callers, in directories of their own below `directory`.
pub async fn phases(
    catenas: &[Catena],
    directory: &Remote,
    args: &MetaArgs,
    clients: usize,
) -> Result<Vec<Report>> {
    let any = catenas.first().ok_or_else(|| Failure::failed("no client to measure with"))?;
    let dir = |n: usize| directory.join(format!("c{clients}-d{n}").as_bytes());
    let dirs: Vec<Remote> = (0..args.dirs).map(dir).collect();
    for dir in &dirs {
        any.mkdir_all(dir, 0o755).await?;
    }
    let paths = Paths { dirs: Arc::new(dirs) };
    let servers = Servers::of(&any.routing().current());
    let load = Load { catenas, clients, args, servers };
    let mut reports = Vec::new();

    // One call: what mknod, and a mount's create, is.
    let at = paths.clone();
    let make = move |catena: Catena, n| {
        let path = at.before(n);
        async move { catena.mknod(&path, FileType::File, 0o644, 0).await.map(drop) }
    };
    let created = load.phase("create", args.files, make).await?;
    let files = created.tally.ops as usize;
    reports.push(created);
    // Two calls: the session is opened and closed.
    let at = paths.clone();
    let open = move |catena: Catena, n| {
        let path = at.before(n);
        async move { OpenOptions::new().write(true).open(&catena, &path).await?.close().await }
    };
    reports.push(load.phase("open", files, open).await?);
    let at = paths.clone();
    let stat = move |catena: Catena, n| {
        let path = at.before(n);
        async move { catena.stat(&path).await.map(drop) }
    };
    reports.push(load.phase("stat", files, stat).await?);
    let at = paths.clone();
    let rename = move |catena: Catena, n| {
        let (from, to) = (at.before(n), at.after(n));
        async move { catena.rename(&from, &to, RenameMode::Replace).await.map(drop) }
    };
    let renamed = load.phase("rename", files, rename).await?;
    let moved = renamed.tally.ops as usize;
    reports.push(renamed);
    // As many calls as the directory has pages.
    let at = paths.clone();
    let list = move |catena: Catena, n: usize| {
        let dir = at.dirs[n % at.dirs.len()].clone();
        async move {
            let mut names = catena.read_dir(&dir, false);
            while names.next().await?.is_some() {}
            Ok(())
        }
    };
    reports.push(load.phase("readdir", args.dirs * LISTINGS, list).await?);
    if !args.keep {
        let remove = move |catena: Catena, n| {
            let path = if n < moved { paths.after(n) } else { paths.before(n) };
            async move { catena.remove(&path).await }
        };
        reports.push(load.phase("remove", files, remove).await?);
    }
    Ok(reports)
}

struct Load<'a> {
    catenas: &'a [Catena],
    clients: usize,
    args: &'a MetaArgs,
    servers: Servers,
}

impl Load<'_> {
    /// Calls `call` for `0..count`, in order, by all callers together, who take turns at the clients.
    async fn phase<F>(
        &self,
        op: &'static str,
        count: usize,
        call: impl Fn(Catena, usize) -> F + Clone + Send + Sync + 'static,
    ) -> Result<Report>
    where
        F: Future<Output = catena_client::Result<()>> + Send,
    {
        let catenas: Vec<Catena> = self.catenas.to_vec();
        let call = move |caller: usize, n: usize| {
            let done = call(catenas[caller % catenas.len()].clone(), n);
            async move { done.await.map_err(Failure::from) }
        };
        drive(op, count, self.clients, self.args, &self.servers, call).await
    }
}

/// Calls `call` with the caller's number for each of `0..count`, in order, by all callers together.
pub async fn drive<F>(
    op: &'static str,
    count: usize,
    callers: usize,
    args: &MetaArgs,
    servers: &Servers,
    call: impl Fn(usize, usize) -> F + Clone + Send + Sync + 'static,
) -> Result<Report>
where
    F: Future<Output = Result<()>> + Send,
{
    let bar = progress::things(count as u64, op);
    let next = Arc::new(AtomicUsize::new(0));
    let watch = Watch::start(servers);
    let until = args.duration.map(|time| Instant::now() + time);
    let tasks = (0..callers).map(|caller| {
        let (call, next, bar) = (call.clone(), next.clone(), bar.clone());
        tokio::spawn(async move {
            let mut tally = Tally::new();
            loop {
                let over = until.is_some_and(|until| Instant::now() >= until);
                let n = if over { count } else { next.fetch_add(1, Ordering::Relaxed) };
                if n >= count {
                    return Ok::<_, Failure>(tally);
                }
                let start = Instant::now();
                call(caller, n).await?;
                tally.record(start.elapsed(), 1, 0);
                bar.inc(1);
            }
        })
    });
    let joined = tasks.map(async |task| task.await.map_err(|error| Failure::failed(error.to_string()))?);
    let mut tally = Tally::new();
    for task in try_join_all(joined).await? {
        tally.add(&task);
    }
    let report = watch.finish(op, tally);
    bar.finish_and_clear();
    Ok(report)
}
