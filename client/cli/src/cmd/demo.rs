//! `catena demo`: the main job end to end, in one command, leaving nothing behind.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use catena_client::{Catena, LayoutChoice, OpenOptions};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::args::local::DemoArgs;
use crate::cmd::fs::path::Remote;
use crate::connect;
use crate::content::Content;
use crate::exit::{Exit, Failure, Result};
use crate::local::cluster::LocalCluster;
use crate::local::directory::Directory;
use crate::local::shape::{Shape, Wish};
use crate::output::Output;
use crate::pump::{self, Source, Stride};
use crate::signals::Stop;
use crate::supervise::{Event, last_words};
use crate::table::Table;
use crate::{progress, units};

const FILE: &str = "/demo.bin";
/// Bytes on their way at once: enough to keep three disks busy, little enough for a laptop.
const WINDOW: usize = 64 << 20;
/// Room that stores, logs and rounding take besides the replicas.
const SLACK: u64 = 512 << 20;

/// Runs `catena demo`.
pub async fn run(args: DemoArgs, out: Output) -> Result<()> {
    let mut stop = Stop::new()?;
    let wish = Wish {
        nodes: Some(args.nodes),
        replicas: Some(args.replicas),
        chunk_size: Some(args.chunk_size),
        ..Wish::default()
    };
    let shape = wish.shape()?;
    if args.size == 0 {
        return Err(Failure::usage("--size 0: there is nothing to show").hint("try --size 256MiB"));
    }
    let place = Place::make(&args, &shape)?;
    let started = Instant::now();
    let outcome = measured(&args, &place, &wish, &mut stop, out).await;
    let removed = place.finish(args.keep);
    let figures = outcome.map_err(|mut failure| {
        // The logs that a hint may point to are gone.
        if !args.keep && failure.exit != Exit::Interrupted {
            failure.hint = Some("--keep keeps the cluster and its logs".into());
        }
        failure
    })?;
    removed?;
    conclude(&args, &shape, &place, figures, started.elapsed(), out);
    Ok(())
}

/// Starts the cluster, does everything, stops the cluster, whatever happens.
async fn measured(
    args: &DemoArgs,
    place: &Place,
    wish: &Wish,
    stop: &mut Stop,
    out: Output,
) -> Result<Figures> {
    let directory = Directory::open(&place.path, wish)?;
    if !out.json {
        eprintln!("catena: a cluster in {}", place.path.display());
    }
    let mut cluster = LocalCluster::start(directory, "info", stop.wait()).await?;
    let outcome = tokio::select! {
        outcome = show(args, &cluster.directory, out) => outcome,
        failure = lost(&mut cluster.events) => Err(failure),
        () = stop.wait() => Err(Failure::interrupted()),
    };
    tokio::select! {
        _ = cluster.stop() => {}
        () = stop.wait() => return Err(Failure::interrupted()),
    }
    outcome
}

/// A service that dies ends the demo: it is restarted, but then this is no demonstration.
async fn lost(events: &mut mpsc::UnboundedReceiver<Event>) -> Failure {
    loop {
        match events.recv().await {
            Some(Event::Died { name, how, log, .. }) => {
                let message = format!("{name} {how}{}", last_words(&log));
                return Failure::failed(message);
            }
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// What was seen.
struct Figures {
    write: Duration,
    read: Duration,
    chunks: u64,
    placement: Vec<(String, u64)>,
}

async fn show(args: &DemoArgs, directory: &Directory, out: Output) -> Result<Figures> {
    let block = args.chunk_size.min(4 << 20) as usize;
    let depth = (WINDOW / 2 / block).clamp(4, 64);
    let catena = connect::to(directory.cluster(), connect::wide(WINDOW)).await?;
    let content = Content::new(rand::random());
    let path = Remote::new(Path::new(FILE))?;

    let layout = LayoutChoice { chunk_size: Some(args.chunk_size), ..LayoutChoice::default() };
    let options = OpenOptions::new().write(true).create_new(true).layout(layout);
    let bar = progress::bytes(args.size, "writing");
    let start = Instant::now();
    let file = options.open(&catena, &path).await?;
    let source = Source::Checked(content.clone());
    spread(args.size, depth, |range, depth| {
        let (file, source, bar) = (file.clone(), source.clone(), bar.clone());
        async move {
            let write = |(offset, length)| pump::write_block(&file, &source, offset, length);
            pump::drive(depth, pump::strided(range, block), write, |bytes| bar.inc(bytes)).await.map(drop)
        }
    })
    .await?;
    file.close().await?;
    let write = start.elapsed();
    bar.finish_and_clear();

    let bar = progress::bytes(args.size, "reading");
    let start = Instant::now();
    let file = catena.open(&path).await?;
    spread(args.size, depth, |range, depth| {
        let (file, content, bar) = (file.clone(), content.clone(), bar.clone());
        async move {
            let read = |(offset, length)| pump::read_block(&file, Some(&content), offset, length);
            pump::drive(depth, pump::strided(range, block), read, |bytes| bar.inc(bytes)).await.map(drop)
        }
    })
    .await?;
    let read = start.elapsed();
    bar.finish_and_clear();
    if file.known_len() != args.size {
        let message = format!("{FILE} is {} bytes long, not {}", file.known_len(), args.size);
        return Err(Failure::new(Exit::Corrupt, message));
    }

    let step = progress::step("comparing the replicas' checksums");
    let (chunks, placement) = replicas(args, &catena, &file).await?;
    step.finish_and_clear();
    catena.close().await;
    if !out.json {
        eprintln!("catena: verified; stopping the cluster");
    }
    Ok(Figures { write, read, chunks, placement })
}

/// Several tasks, where there are several processors: making and checking contents takes about as much time as sending them.
async fn spread<F>(size: u64, depth: usize, task: impl Fn(Stride, usize) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let tasks = std::thread::available_parallelism().map_or(1, |n| n.get()).min(4) as u64;
    let depth = (depth / tasks as usize).max(1);
    let mut set = tokio::task::JoinSet::new();
    for first in 0..tasks {
        set.spawn(task(Stride { first, step: tasks, end: size }, depth));
    }
    while let Some(outcome) = set.join_next().await {
        outcome.map_err(|error| Failure::failed(error.to_string()))??;
    }
    Ok(())
}

/// Compares all replicas of all chunks. Returns how many chunks there are, and how many copies each node has.
async fn replicas(
    args: &DemoArgs,
    catena: &Catena,
    file: &catena_client::File,
) -> Result<(u64, Vec<(String, u64)>)> {
    let report = file.compare_replicas().await?;
    let corrupt = |message: String| Err(Failure::new(Exit::Corrupt, message));
    if let Some(index) = report.differing.first() {
        return corrupt(format!(
            "{} chunks differ between replicas, the first is {index}",
            report.differing.len()
        ));
    }
    let chunks = args.size.div_ceil(u64::from(args.chunk_size));
    if report.chunks != chunks || report.bytes != args.size {
        return corrupt(format!(
            "{} chunks with {} bytes are stored, not {chunks} with {}",
            report.chunks, report.bytes, args.size
        ));
    }
    if report.fewest < args.replicas as usize {
        return corrupt(format!("a chain has {} serving replicas, not {}", report.fewest, args.replicas));
    }
    let routing = catena.routing().current();
    let place = |(node, copies): (&catena_proto::ids::NodeId, &u64)| {
        let address = routing.nodes.get(node).map_or("", |node| node.data_address.as_str());
        (format!("{node} {address}"), *copies)
    };
    Ok((chunks, report.copies.iter().map(place).collect()))
}

fn conclude(args: &DemoArgs, shape: &Shape, place: &Place, figures: Figures, all: Duration, out: Output) {
    let rate = |time: Duration| units::mib_s(args.size, time.as_secs_f64());
    if out.json {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        put("ok", true.into());
        put("bytes", args.size.into());
        put("replicas", args.replicas.into());
        put("verified", true.into());
        put("write_mib_s", units::round3(rate(figures.write)).into());
        put("read_mib_s", units::round3(rate(figures.read)).into());
        put("nodes", args.nodes.into());
        put("chunk_size", args.chunk_size.into());
        put("chunks", figures.chunks.into());
        put("identical_replicas", true.into());
        put("seconds", units::round3(all.as_secs_f64()).into());
        if args.keep {
            put("dir", json!(place.path));
            put("cluster", json!(place.path.join("cluster.toml")));
        }
        return out.object(Value::Object(object));
    }
    let mut table = Table::new(&[">", ""]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row(
        "file",
        format!(
            "{FILE}, {} in {} chunks of {}",
            units::size(args.size),
            units::count(figures.chunks),
            units::size(u64::from(args.chunk_size))
        ),
    );
    row(
        "write",
        format!(
            "{:.0} MiB/s, durable on {} replicas ({})",
            rate(figures.write),
            args.replicas,
            units::duration(figures.write)
        ),
    );
    row(
        "read",
        format!("{:.0} MiB/s, every byte compared ({})", rate(figures.read), units::duration(figures.read)),
    );
    row("replicas", format!("all {} of every chunk are identical", args.replicas));
    for (node, copies) in &figures.placement {
        row("", format!("{} copies on {node}", units::count(*copies)));
    }
    out.table(&table, "");
    let next = if args.keep {
        format!(
            "The cluster is kept. Start it again with\n\n    catena dev --dir {0}\n    CATENA_CLUSTER={0}/cluster.toml catena fs layout --checksums {FILE}",
            place.path.display()
        )
    } else {
        format!(
            "Nothing is left behind. Next, a cluster that stays:\n\n    catena dev --dir ./cluster --nodes {} --replicas {}\n    export CATENA_CLUSTER=./cluster/cluster.toml\n    catena fs put FILE /",
            shape.nodes, shape.replicas
        )
    };
    out.say(format_args!("\n{next}"));
}

/// The demo's directory. Whatever way the demo ends, it goes, unless it is to be kept.
struct Place {
    path: PathBuf,
    keep: std::cell::Cell<bool>,
}

/// `f_type` of tmpfs and ramfs, from statfs(2).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

impl Place {
    fn make(args: &DemoArgs, shape: &Shape) -> Result<Place> {
        let base = match &args.dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(|error| Failure::io(dir.display(), error))?;
                check_disk(dir)?;
                dir.clone()
            }
            None => {
                let candidates = [PathBuf::from("/var/tmp"), PathBuf::from(".")];
                let fits = |dir: &PathBuf| {
                    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok() && check_disk(dir).is_ok()
                };
                candidates.into_iter().find(fits).ok_or_else(|| {
                    Failure::usage(
                        "neither /var/tmp nor the current directory is a writable directory on a disk",
                    )
                    .hint("name one with --dir; tmpfs has no O_DIRECT, which the storage services use")
                })?
            }
        };
        let needed = args.size.saturating_mul(u64::from(shape.replicas)).saturating_add(SLACK);
        let stat = rustix::fs::statvfs(&base).map_err(|error| Failure::io(base.display(), error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed {
            let message = format!(
                "{} has {} free; {} with {} replicas need {}",
                base.display(),
                units::size(free),
                units::size(args.size),
                shape.replicas,
                units::size(needed)
            );
            return Err(Failure::new(Exit::NoSpace, message).hint("use a smaller --size or another --dir"));
        }
        let base = base.canonicalize().map_err(|error| Failure::io(base.display(), error))?;
        let path = base.join(format!("catena-demo-{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&path).map_err(|error| Failure::io(path.display(), error))?;
        Ok(Place { path, keep: std::cell::Cell::new(false) })
    }

    fn finish(&self, keep: bool) -> Result<()> {
        self.keep.set(true);
        if keep {
            return Ok(());
        }
        std::fs::remove_dir_all(&self.path).map_err(|error| Failure::io(self.path.display(), error))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only after a panic: every other way goes through `finish`.
        if !self.keep.get() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn check_disk(dir: &Path) -> Result<()> {
    let stat = rustix::fs::statfs(dir).map_err(|error| Failure::io(dir.display(), error.into()))?;
    if IN_MEMORY.contains(&(stat.f_type as i64)) {
        return Err(Failure::usage(format!("{} is in memory (tmpfs)", dir.display()))
            .hint("name a directory on a disk with --dir: the storage services use O_DIRECT"));
    }
    Ok(())
}
