//! `bench failover`: how long a chain stands still when the node of its head is lost, for writes and for reads. In a cluster of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use catena_client::{File, LayoutChoice, OpenOptions};
use catena_proto::ids::NodeId;
use catena_proto::routing::{PublicState, RoutingInfo};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::args::bench::FailoverArgs;
use crate::cmd::fs::path::Remote;
use crate::connect;
use crate::content::Content;
use crate::exit::{Exit, Failure, Result};
use crate::local::cluster::LocalCluster;
use crate::local::directory::Directory;
use crate::local::place::Place;
use crate::local::session::{storage_name, with_cluster};
use crate::local::shape::Wish;
use crate::output::Output;
use crate::pump::{self, Source};
use crate::signals::Stop;
use crate::table::Table;
use crate::{progress, units};

/// One chunk of this size is written and read.
const CHUNK: u64 = 1 << 20;
const BLOCK: usize = 4096;
const ROOM: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
/// Of undisturbed work before a loss, and after writes go again.
const CALM: Duration = Duration::from_secs(1);
/// The project's own bar: writes are accepted again within two leases.
const BAR: f64 = 2.0;

/// Runs `bench failover`.
pub async fn run(args: FailoverArgs, out: Output) -> Result<()> {
    let mut stop = Stop::new()?;
    let wish = Wish { nodes: Some(args.nodes), replicas: Some(args.replicas), ..Wish::default() };
    let shape = wish.shape()?;
    if args.replicas < 2 {
        return Err(Failure::usage("--replicas 1: nobody takes over").hint("try --replicas 3"));
    }
    let place = Place::make(
        args.dir.as_deref(),
        "bench",
        ROOM * u64::from(shape.nodes),
        "a few chunks and the stores",
    )?;
    let outcome = async {
        let mut directory = Directory::open(&place.path, &wish)?;
        directory.lease = Some(args.lease);
        with_cluster(directory, &mut stop, async |cluster| measure(&args, cluster).await).await
    };
    let outcome = outcome.await;
    let removed = place.finish(args.keep);
    let rounds = outcome?;
    removed?;
    report(&args, &rounds, out)
}

/// What one loss cost.
struct Round {
    lost: NodeId,
    /// From the loss until a write that began after it was acknowledged.
    writes_after: Duration,
    /// The longest read that was under way since the loss.
    longest_read: Duration,
    reads: u64,
}

async fn measure(args: &FailoverArgs, cluster: &mut LocalCluster) -> Result<Vec<Round>> {
    let catena = connect::to(cluster.directory.cluster(), connect::wide(0)).await?;
    let path = Remote::new(Path::new("/bench.bin"))?;
    let layout = LayoutChoice { stripe: Some(1), chunk_size: Some(CHUNK as u32), ..LayoutChoice::default() };
    let options = OpenOptions::new().read(true).write(true).create_new(true).layout(layout);
    let file = options.open(&catena, &path).await?;
    let source = Source::Checked(Content::new(1));
    pump::write_block(&file, &source, 0, CHUNK as usize).await?;
    let chain = *file.chains().first().ok_or_else(|| Failure::failed("the file has no chain"))?;
    let worker = Worker::start(&file);
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        let step = progress::step(format!("round {round} of {}", args.rounds));
        tokio::time::sleep(CALM).await;
        let head =
            catena.routing().current().targets_in(chain, PublicState::Serving).next().map(|head| head.node);
        let lost = head.ok_or_else(|| Failure::failed(format!("{chain} has no head")))?;
        let name = storage_name(lost);
        worker.longest_read.store(0, Relaxed);
        let (reads, at) = (worker.reads.load(Relaxed), Instant::now());
        if args.pause {
            cluster.freeze(&name, true)?;
        } else {
            cluster.kill(&name).await?;
        }
        let mut written = worker.written.clone();
        let first =
            timeout(PATIENCE, written.wait_for(|last| last.is_some_and(|(began, _)| began > at))).await;
        let first =
            first.map_err(|_| Failure::new(Exit::Unreachable, "writes do not go on after the loss"))?;
        let first = first.map_err(|_| Failure::failed("the writer has ended"))?;
        let writes_after = first.map_or(Duration::ZERO, |(_, acknowledged)| acknowledged - at);
        drop(first);
        tokio::time::sleep(CALM).await;
        let longest_read = Duration::from_nanos(worker.longest_read.load(Relaxed));
        rounds.push(Round { lost, writes_after, longest_read, reads: worker.reads.load(Relaxed) - reads });
        step.set_message(format!("round {round}: waiting for full strength"));
        if args.pause {
            // Not before it was given up: what comes back is a node that others have gone on without.
            cluster.freeze(&name, false)?;
        } else {
            cluster.start_again(&name)?;
        }
        let whole = |routing: &RoutingInfo| {
            routing.targets.values().all(|target| target.state == PublicState::Serving)
        };
        // A paused node's lease may still stand, and nobody have noticed yet.
        tokio::time::sleep(CALM).await;
        cluster.wait("full strength", PATIENCE, whole).await?;
        step.finish_and_clear();
    }
    worker.end().await?;
    file.close().await?;
    catena.close().await;
    Ok(rounds)
}

/// One write after the other, and beside them one read after the other.
struct Worker {
    /// When the last acknowledged write began and was acknowledged.
    written: watch::Receiver<Option<(Instant, Instant)>>,
    reads: Arc<AtomicU64>,
    longest_read: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    tasks: [tokio::task::JoinHandle<Result<()>>; 2],
}

impl Worker {
    fn start(file: &File) -> Worker {
        let (acknowledged, written) = watch::channel(None);
        let (reads, longest_read) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let done = Arc::new(AtomicBool::new(false));
        let (writer, over) = (file.clone(), done.clone());
        let writing = tokio::spawn(async move {
            let source = Source::Checked(Content::new(1));
            let mut offsets = (0..CHUNK).step_by(BLOCK).cycle();
            while !over.load(Relaxed) {
                let offset = offsets.next().unwrap_or(0);
                let began = Instant::now();
                pump::write_block(&writer, &source, offset, BLOCK).await?;
                acknowledged.send_replace(Some((began, Instant::now())));
            }
            Ok(())
        });
        let (reader, over) = (file.clone(), done.clone());
        let (counted, longest) = (reads.clone(), longest_read.clone());
        let reading = tokio::spawn(async move {
            let content = Content::new(1);
            let mut offsets = (0..CHUNK).step_by(BLOCK).cycle();
            while !over.load(Relaxed) {
                let offset = offsets.next().unwrap_or(0);
                let read = pump::read_block(&reader, Some(&content), offset, BLOCK).await?;
                longest.fetch_max(read.time.as_nanos() as u64, Relaxed);
                counted.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        Worker { written, reads, longest_read, done, tasks: [writing, reading] }
    }

    async fn end(self) -> Result<()> {
        self.done.store(true, Relaxed);
        for task in self.tasks {
            task.await.map_err(|error| Failure::failed(error.to_string()))??;
        }
        Ok(())
    }
}

fn report(args: &FailoverArgs, rounds: &[Round], out: Output) -> Result<()> {
    let longest = |of: fn(&Round) -> Duration| rounds.iter().map(of).max().unwrap_or_default();
    let (writes, reads) = (longest(|round| round.writes_after), longest(|round| round.longest_read));
    let bar = args.lease.mul_f64(BAR);
    let met = writes < bar;
    let how = if args.pause { "paused (SIGSTOP)" } else { "killed (SIGKILL)" };
    let mut table =
        Table::new(&["HEAD'S NODE", "HOW", ">WRITES AGAIN AFTER", ">LONGEST READ", ">READS MEANWHILE"]);
    for round in rounds {
        table.row([
            round.lost.to_string(),
            how.into(),
            units::duration(round.writes_after),
            units::duration(round.longest_read),
            units::count(round.reads),
        ]);
    }
    out.say(table.to_string().trim_end());
    out.say(format_args!(
        "\nlease {}: writes again after {} at most, bar {}: {}; longest read {}",
        units::duration(args.lease),
        units::duration(writes),
        units::duration(bar),
        if met { "met" } else { "missed" },
        units::duration(reads),
    ));
    if out.json {
        let seconds = |time: Duration| units::round3(time.as_secs_f64());
        let rows = rounds.iter().map(|round| {
            json!({
                "node": round.lost.0, "writes_after_s": seconds(round.writes_after),
                "longest_read_s": seconds(round.longest_read), "reads": round.reads,
            })
        });
        out.object(json!({
            "op": "failover", "how": if args.pause { "pause" } else { "kill" }, "lease_s": seconds(args.lease),
            "rounds": rows.collect::<Vec<_>>(), "writes_after_s": seconds(writes), "longest_read_s": seconds(reads),
            "bar_s": seconds(bar), "met": met,
        }));
    }
    Ok(())
}
