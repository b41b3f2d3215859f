//! `catena demo`: the main job end to end, in one command, a storage node killed on the way, leaving nothing behind.

use std::path::Path;
use std::time::{Duration, Instant};

use catena_client::{Catena, LayoutChoice, OpenOptions, ReplicaReport};
use catena_proto::routing::RoutingInfo;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::args::local::DemoArgs;
use crate::cmd::bench::stats::Tally;
use crate::cmd::fs::path::Remote;
use crate::connect;
use crate::content::Content;
use crate::exit::{Exit, Failure, Result};
use crate::local::cluster::LocalCluster;
use crate::local::directory::Directory;
use crate::local::place::Place;
use crate::local::session::{storage_name, with_cluster};
use crate::local::shape::{Shape, Wish};
use crate::local::transport::LocalTransport;
use crate::output::Output;
use crate::pump::{self, Source, Stride};
use crate::resyncs;
use crate::signals::Stop;
use crate::table::Table;
use crate::{progress, units};

const FILE: &str = "/demo.bin";
/// Bytes on their way at once: enough to keep three disks busy, little enough for a laptop.
const WINDOW: usize = 64 << 20;
/// Short, because the demo waits for the dead node to be given up; long enough for a machine that is busy.
const LEASE: Duration = Duration::from_secs(2);
/// Replicas that are not all back after this long will not come back.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs `catena demo`.
pub async fn run(args: DemoArgs, out: Output) -> Result<()> {
    let mut stop = Stop::new()?;
    let wish = Wish {
        nodes: Some(args.nodes),
        replicas: Some(args.replicas),
        chunk_size: Some(args.chunk_size),
        store: args.store.clone(),
        ..Wish::default()
    };
    let shape = wish.shape()?;
    if args.size == 0 {
        return Err(Failure::usage("--size 0: there is nothing to show").hint("try --size 256MiB"));
    }
    let bytes = args.size.saturating_mul(u64::from(shape.replicas));
    let what = format!("{} with {} replicas", units::size(args.size), shape.replicas);
    let place = Place::make(args.dir.as_deref(), "demo", bytes, &what)?;
    let started = Instant::now();
    let mut made = None;
    let outcome = async {
        let mut directory = Directory::open(&place.path, &wish)?;
        made = Some(directory.cluster().clone());
        directory.lease = Some(LEASE);
        directory.set_transport(LocalTransport::wished(&args.transport)?)?;
        if !out.json {
            eprintln!("catena: a cluster in {}", place.path.display());
        }
        with_cluster(directory, &mut stop, async |cluster| show(&args, cluster, out).await).await
    };
    let outcome = outcome.await;
    let cleared = match made.filter(|_| !args.keep) {
        Some(cluster) => shape.store.clear(&cluster).await,
        None => Ok(()),
    };
    let removed = place.finish(args.keep);
    let figures = outcome.map_err(|mut failure| {
        // The logs that a hint may point to are gone.
        if !args.keep && failure.exit != Exit::Interrupted {
            failure.hint = Some("--keep keeps the cluster and its logs".into());
        }
        failure
    })?;
    cleared?;
    removed?;
    conclude(&args, &shape, &place, figures, started.elapsed(), out);
    Ok(())
}

/// What was seen.
struct Figures {
    write: Duration,
    read: Duration,
    /// The longest that a write took: the time until the dead node was given up.
    longest_write: Duration,
    failure: Option<Killed>,
    /// Operations that failed for good.
    errors: u64,
    chunks: u64,
    placement: Vec<(String, u64)>,
}

/// A node that was killed and came back.
struct Killed {
    name: String,
    written: u64,
    written_without: u64,
    started: Instant,
    /// From its start until every replica served again.
    full_strength: Duration,
    resynced_chunks: u64,
    resynced_bytes: u64,
}

async fn show(args: &DemoArgs, cluster: &mut LocalCluster, out: Output) -> Result<Figures> {
    let block = args.chunk_size.min(4 << 20) as usize;
    let depth = (WINDOW / 2 / block).clamp(4, 64);
    let catena = connect::to(cluster.directory.cluster(), connect::wide(WINDOW)).await?;
    let content = Content::new(rand::random());
    let path = Remote::new(Path::new(FILE))?;

    let layout = LayoutChoice { chunk_size: Some(args.chunk_size), ..LayoutChoice::default() };
    let options = OpenOptions::new().write(true).create_new(true).layout(layout);
    let bar = progress::bytes(args.size, "writing");
    let start = Instant::now();
    let file = options.open(&catena, &path).await?;
    let source = Source::Checked(content.clone());
    let (written, seen) = watch::channel(0);
    let writing = async {
        let tally = spread(args.size, depth, |range, depth| {
            let (file, source, bar, written) = (file.clone(), source.clone(), bar.clone(), written.clone());
            async move {
                let write = |(offset, length)| pump::write_block(&file, &source, offset, length);
                let count = |bytes| {
                    bar.inc(bytes);
                    written.send_modify(|written| *written += bytes);
                };
                pump::drive(depth, pump::strided(range, block), write, count).await
            }
        })
        .await?;
        file.close().await?;
        Ok((tally, start.elapsed()))
    };
    let say = |line: String| {
        if !out.json {
            eprintln!("catena: {line}");
        }
    };
    let breaking = kill_and_restart(args, cluster, seen, |line| bar.suspend(|| say(line)));
    let ((tally, write), mut failure) = tokio::try_join!(writing, breaking)?;
    bar.finish_and_clear();

    if let Some(killed) = &mut failure {
        let step = progress::step(format!("waiting for {} to have everything again", killed.name));
        let routing = cluster.full_strength(PATIENCE).await?;
        killed.full_strength = killed.started.elapsed();
        step.finish_and_clear();
        // The replicas that are compared are those that serve now.
        catena.routing().at_least(routing.version).await;
        let (sessions, _) = resyncs::sessions(&catena, Duration::from_secs(5)).await;
        // Only what was killed has been brought up to date in this cluster's life.
        killed.resynced_chunks = sessions.values().map(|session| session.sent).sum();
        killed.resynced_bytes = sessions.values().map(|session| session.bytes).sum();
    }

    let bar = progress::bytes(args.size, "reading");
    let start = Instant::now();
    let file = catena.open(&path).await?;
    spread(args.size, depth, |range, depth| {
        let (file, content, bar) = (file.clone(), content.clone(), bar.clone());
        async move {
            let read = |(offset, length)| pump::read_block(&file, Some(&content), offset, length);
            pump::drive(depth, pump::strided(range, block), read, |bytes| bar.inc(bytes)).await
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
    let report = at_full_strength(args, cluster, &catena, &file, |line| {
        step.suspend(|| say(line));
    })
    .await?;
    let (chunks, placement) = replicas(args, &catena, &report)?;
    step.finish_and_clear();
    let errors = catena.storage().metrics().failures;
    catena.close().await;
    if !out.json {
        eprintln!("catena: verified; stopping the cluster");
    }
    Ok(Figures { write, read, longest_write: tally.longest(), failure, errors, chunks, placement })
}

/// Kills a storage node when a third is written, and starts it again when two thirds are. Without a second replica nothing could be
/// written meanwhile, and nothing is killed.
async fn kill_and_restart(
    args: &DemoArgs,
    cluster: &mut LocalCluster,
    mut written: watch::Receiver<u64>,
    say: impl Fn(String),
) -> Result<Option<Killed>> {
    let Some(name) = victim(&cluster.routing).filter(|_| args.replicas > 1) else { return Ok(None) };
    let mut reached = async |bytes: u64| match written.wait_for(|written| *written >= bytes).await {
        Ok(written) => *written,
        // The writers have failed, which is told elsewhere.
        Err(_) => std::future::pending().await,
    };
    let before = reached(args.size / 3).await;
    let pid = cluster.kill(&name).await?;
    say(format!("kill -9 {name} (process {pid}) after {}; writing goes on", units::size(before)));
    let after = reached(args.size / 3 * 2).await;
    cluster.start_again(&name)?;
    say(format!("{name} starts again; {} were written without it", units::size(after - before)));
    let started = Instant::now();
    Ok(Some(Killed {
        name,
        written: before,
        written_without: after - before,
        started,
        full_strength: Duration::ZERO,
        resynced_chunks: 0,
        resynced_bytes: 0,
    }))
}

/// The node of the first chain's head: the loss of a head is the one that writers notice.
fn victim(routing: &RoutingInfo) -> Option<String> {
    let chain = routing.chains.values().next()?;
    Some(storage_name(routing.targets.get(chain.targets.first()?)?.node))
}

/// Several tasks, where there are several processors: making and checking contents takes about as much time as sending them.
async fn spread<F>(size: u64, depth: usize, task: impl Fn(Stride, usize) -> F) -> Result<Tally>
where
    F: Future<Output = Result<Tally>> + Send + 'static,
{
    let tasks = std::thread::available_parallelism().map_or(1, |n| n.get()).min(4) as u64;
    let depth = (depth / tasks as usize).max(1);
    let mut set = tokio::task::JoinSet::new();
    for first in 0..tasks {
        set.spawn(task(Stride { first, step: tasks, end: size }, depth));
    }
    let mut all = Tally::new();
    while let Some(outcome) = set.join_next().await {
        all.add(&outcome.map_err(|error| Failure::failed(error.to_string()))??);
    }
    Ok(all)
}

/// Compares all replicas of all chunks, and again if one was not there: on a machine that is busy enough a node can lose its lease, and
/// has everything again a moment later.
async fn at_full_strength(
    args: &DemoArgs,
    cluster: &LocalCluster,
    catena: &Catena,
    file: &catena_client::File,
    say: impl Fn(String),
) -> Result<ReplicaReport> {
    let mut attempts = 3;
    loop {
        let report = file.compare_replicas().await?;
        attempts -= 1;
        if report.fewest >= args.replicas as usize || attempts == 0 {
            return Ok(report);
        }
        say(format!("a chain has {} replicas; waiting for all and comparing again", report.fewest));
        let routing = cluster.full_strength(PATIENCE).await?;
        catena.routing().at_least(routing.version).await;
    }
}

/// What the comparison has to have found. Returns how many chunks there are, and how many copies each node has.
fn replicas(args: &DemoArgs, catena: &Catena, report: &ReplicaReport) -> Result<(u64, Vec<(String, u64)>)> {
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
        let killed = figures.failure.as_ref();
        put("killed", killed.map(|killed| killed.name.clone()).into());
        put("errors_seen_by_client", figures.errors.into());
        put("resynced_chunks", killed.map(|killed| killed.resynced_chunks).into());
        put("full_strength_s", killed.map(|killed| units::round3(killed.full_strength.as_secs_f64())).into());
        put("longest_write_s", units::round3(figures.longest_write.as_secs_f64()).into());
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
    if let Some(killed) = &figures.failure {
        row(
            "failure",
            format!(
                "{} killed after {}; {} more written without it, the longest write took {}; {} errors",
                killed.name,
                units::size(killed.written),
                units::size(killed.written_without),
                units::duration(figures.longest_write),
                figures.errors
            ),
        );
        row(
            "repair",
            format!(
                "{} chunks, {} brought over; full strength {} after its start",
                units::count(killed.resynced_chunks),
                units::size(killed.resynced_bytes),
                units::duration(killed.full_strength)
            ),
        );
    }
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
