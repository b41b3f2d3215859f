//! The namespace under load: creates, opens, stats, removes of empty files.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use catena_client::{Catena, FileType, OpenOptions};
use futures_util::future::try_join_all;
use serde_json::{Map, Value};

use crate::args::bench::MetaArgs;
use crate::cmd::bench::cpu::Servers;
use crate::cmd::bench::stats::{Report, Tally, Watch, show};
use crate::cmd::fs::path::Remote;
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::progress;

/// `bench meta`.
pub async fn run(
    catena: &Catena,
    directory: &Remote,
    args: &MetaArgs,
    out: Output,
) -> Result<Map<String, Value>> {
    if args.files == 0 || args.threads == 0 || args.dirs == 0 {
        return Err(Failure::usage("--files, --threads and --dirs: at least 1"));
    }
    let dirs: Vec<Remote> = (0..args.dirs).map(|n| directory.join(format!("d{n}").as_bytes())).collect();
    for dir in &dirs {
        catena.mkdir_all(dir, 0o755).await?;
    }
    let path = {
        let count = dirs.len();
        let dirs = Arc::new(dirs);
        move |n: usize| dirs[n % count].join(format!("f{n}").as_bytes())
    };
    let servers = Servers::of(&catena.routing().current());
    let mut reports = Vec::new();
    // One call: what mknod, and a mount's create, is.
    let make =
        async |catena: Catena, path: Remote| catena.mknod(&path, FileType::File, 0o644, 0).await.map(drop);
    let created = phase("create", args.files, args, catena, &servers, &path, make).await?;
    let files = created.tally.ops as usize;
    reports.push(created);
    // Two calls: the session is opened and closed.
    let open = async |catena: Catena, path: Remote| {
        OpenOptions::new().write(true).open(&catena, &path).await?.close().await
    };
    reports.push(phase("open", files, args, catena, &servers, &path, open).await?);
    let stat = async |catena: Catena, path: Remote| catena.stat(&path).await.map(drop);
    reports.push(phase("stat", files, args, catena, &servers, &path, stat).await?);
    if !args.keep {
        let remove = async |catena: Catena, path: Remote| catena.remove(&path).await;
        reports.push(phase("remove", files, args, catena, &servers, &path, remove).await?);
    }
    show(&reports.iter().collect::<Vec<_>>(), out);
    let mut all = Report { op: "meta", tally: Tally::new(), seconds: 0.0, client_cpu: 0.0, server_cpu: None };
    for report in &reports {
        all.tally.add(&report.tally);
        all.seconds += report.seconds;
        all.client_cpu += report.client_cpu;
        all.server_cpu = report.server_cpu.map(|seconds| seconds + all.server_cpu.unwrap_or(0.0));
    }
    let mut object = all.json();
    object.extend(reports.iter().map(|report| (report.op.to_owned(), Value::Object(report.json()))));
    Ok(object)
}

/// Calls `call` for files `0..files`, in order, by all tasks together.
async fn phase<F>(
    op: &'static str,
    files: usize,
    args: &MetaArgs,
    catena: &Catena,
    servers: &Servers,
    path: &(impl Fn(usize) -> Remote + Clone + Send + Sync + 'static),
    call: impl Fn(Catena, Remote) -> F + Clone + Send + Sync + 'static,
) -> Result<Report>
where
    F: Future<Output = catena_client::Result<()>> + Send,
{
    let bar = progress::things(files as u64, op);
    let next = Arc::new(AtomicUsize::new(0));
    let watch = Watch::start(servers);
    let until = args.duration.map(|time| Instant::now() + time);
    let tasks = (0..args.threads).map(|_| {
        let (catena, path, call, next, bar) =
            (catena.clone(), path.clone(), call.clone(), next.clone(), bar.clone());
        tokio::spawn(async move {
            let mut tally = Tally::new();
            loop {
                let over = until.is_some_and(|until| Instant::now() >= until);
                let n = if over { files } else { next.fetch_add(1, Ordering::Relaxed) };
                if n >= files {
                    return Ok::<_, Failure>(tally);
                }
                let start = Instant::now();
                call(catena.clone(), path(n)).await?;
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
