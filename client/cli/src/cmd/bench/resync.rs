//! `bench resync`: how fast a replaced disk is filled again, beside a plain copy of as many bytes on the same disk, and what clients
//! keep of their speed meanwhile. In a cluster of its own, because a disk is taken from it several times.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use catena_client::{Catena, File, OpenOptions};
use catena_proto::routing::{PublicState, RoutingInfo};
use futures_util::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::args::bench::ResyncArgs;
use crate::cmd::fs::path::Remote;
use crate::connect;
use crate::content::Content;
use crate::exit::{Failure, Result};
use crate::local::cluster::LocalCluster;
use crate::local::directory::Directory;
use crate::local::place::Place;
use crate::local::session::with_cluster;
use crate::local::shape::Wish;
use crate::output::Output;
use crate::pump::{self, Source};
use crate::resyncs;
use crate::signals::Stop;
use crate::table::Table;
use crate::{progress, units};

const WINDOW: usize = 64 << 20;
const LEASE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(600);
/// Blocks of the plain copy, and how many are on their way.
const COPY_BLOCK: usize = 4 << 20;
const COPY_DEPTH: usize = 4;
/// The project's own bars.
const IDLE_BAR: f64 = 0.6;
const KEPT_BAR: f64 = 0.5;

/// Runs `bench resync`.
pub async fn run(args: ResyncArgs, out: Output) -> Result<()> {
    let mut stop = Stop::new()?;
    let wish = Wish {
        nodes: Some(args.nodes),
        replicas: Some(args.replicas),
        chunk_size: Some(args.chunk_size),
        ..Wish::default()
    };
    let shape = wish.shape()?;
    if args.replicas < 2 {
        return Err(Failure::usage("--replicas 1: there is nothing to rebuild from").hint("try --replicas 3"));
    }
    // The replicas, what the copy needs, and room for overwrites.
    let bytes = args.size.saturating_mul(u64::from(shape.replicas) + 3);
    let place =
        Place::make(args.dir.as_deref(), "bench", bytes, &format!("{} rebuilt", units::size(args.size)))?;
    let outcome = async {
        let mut directory = Directory::open(&place.path, &wish)?;
        directory.lease = Some(LEASE);
        with_cluster(directory, &mut stop, async |cluster| measure(&args, cluster, &place.path).await).await
    };
    let outcome = outcome.await;
    let removed = place.finish(args.keep);
    let figures = outcome?;
    removed?;
    report(&args, &figures, out);
    Ok(())
}

/// A rebuild that was watched from the first syncing target to full strength.
struct Rebuild {
    bytes: u64,
    chunks: u64,
    seconds: f64,
    /// Clients' bytes a second meanwhile.
    foreground: f64,
}

impl Rebuild {
    fn mib_s(&self) -> f64 {
        units::mib_s(self.bytes, self.seconds)
    }
}

/// Reads or writes beside a rebuild.
struct Beside {
    alone: f64,
    rebuild: Rebuild,
}

impl Beside {
    fn kept(&self) -> f64 {
        self.rebuild.foreground / self.alone.max(1.0)
    }
}

struct Figures {
    copy: f64,
    idle: Rebuild,
    reads: Beside,
    writes: Beside,
}

async fn measure(args: &ResyncArgs, cluster: &mut LocalCluster, place: &Path) -> Result<Figures> {
    let catena = connect::to(cluster.directory.cluster(), connect::wide(WINDOW)).await?;
    let path = Remote::new(Path::new("/bench.bin"))?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&catena, &path).await?;
    let content = Content::new(1);
    let block = args.block_size as usize;
    let bar = progress::bytes(args.size, "filling");
    let source = Source::Checked(content.clone());
    let write = |(offset, length)| pump::write_block(&file, &source, offset, length);
    pump::drive(8, pump::blocks(0..args.size, 4 << 20), write, |bytes| bar.inc(bytes)).await?;
    file.sync().await?;
    bar.finish_and_clear();

    let step = progress::step("copying as many bytes with O_DIRECT");
    let share = args.size * u64::from(args.replicas) / u64::from(args.nodes);
    let before = copy(place, share).await?;
    step.set_message("rebuilding a disk, no clients");
    let idle = rebuild(args, cluster, &catena, None).await?;
    step.set_message("copying once more");
    let copy = before.max(copy(place, share).await?);
    let mut beside = Vec::new();
    for write in [false, true] {
        let what = if write { "writing" } else { "reading" };
        let load = Load { file: file.clone(), block, depth: args.depth, size: args.size, write };
        step.set_message(format!("{what}, no rebuild"));
        let alone = load.run(Duration::from_secs(1), args.duration).await?;
        step.set_message(format!("{what} beside a rebuild"));
        let rebuild = rebuild(args, cluster, &catena, Some(&load)).await?;
        beside.push(Beside { alone, rebuild });
    }
    step.finish_and_clear();
    file.close().await?;
    catena.close().await;
    let (Some(writes), Some(reads)) = (beside.pop(), beside.pop()) else {
        return Err(Failure::failed("nothing was measured"));
    };
    Ok(Figures { copy, idle, reads, writes })
}

/// Takes the last node's disk away, gives it an empty one, and watches it being filled.
async fn rebuild(
    args: &ResyncArgs,
    cluster: &mut LocalCluster,
    catena: &Catena,
    load: Option<&Load>,
) -> Result<Rebuild> {
    let name = format!("storage-{}", args.nodes);
    let disk = cluster.directory.root().join(format!("{name}/disk-1"));
    let exchange = |error| Failure::io(disk.display(), error);
    cluster.kill(&name).await?;
    std::fs::remove_dir_all(&disk).map_err(exchange)?;
    std::fs::create_dir(&disk).map_err(exchange)?;
    let serving = |routing: &RoutingInfo, state| routing.targets.values().any(|target| target.state == state);
    let out_of_it = |routing: &RoutingInfo| {
        let gone = |target: &catena_proto::routing::Target| target.state != PublicState::Serving;
        routing.targets.values().filter(|target| target.node.0 == args.nodes).all(gone)
    };
    cluster.wait("the node to be given up", PATIENCE, out_of_it).await?;
    cluster.start_again(&name)?;
    let running = load.map(Load::start);
    cluster.wait("the rebuild to begin", PATIENCE, |routing| serving(routing, PublicState::Syncing)).await?;
    let begun = Instant::now();
    let moved = || running.as_ref().map_or(0, |running| running.bytes.load(Relaxed));
    let before = moved();
    cluster.full_strength(PATIENCE).await?;
    let (seconds, moved) = (begun.elapsed().as_secs_f64(), moved() - before);
    if let Some(running) = running {
        running.end().await?;
    }
    let (sessions, silent) = resyncs::sessions(catena, Duration::from_secs(5)).await;
    if let Some(silent) = silent.first() {
        return Err(Failure::failed(silent.clone()));
    }
    let (bytes, chunks) = sessions
        .values()
        .fold((0, 0), |(bytes, chunks), session| (bytes + session.bytes, chunks + session.sent));
    Ok(Rebuild { bytes, chunks, seconds, foreground: moved as f64 / seconds })
}

/// Clients at work: reads or overwrites of blocks at random.
#[derive(Clone)]
struct Load {
    file: File,
    block: usize,
    depth: usize,
    size: u64,
    write: bool,
}

struct Running {
    bytes: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Load {
    fn start(&self) -> Running {
        let (bytes, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (load, counted, over) = (self.clone(), bytes.clone(), done.clone());
        let task = tokio::spawn(async move {
            let lanes = (0..2).map(|lane| {
                let (load, counted, over) = (load.clone(), counted.clone(), over.clone());
                tokio::spawn(async move { load.lane(lane, &counted, &over).await })
            });
            for lane in lanes.collect::<Vec<_>>() {
                lane.await.map_err(|error| Failure::failed(error.to_string()))??;
            }
            Ok(())
        });
        Running { bytes, done, task }
    }

    async fn lane(&self, lane: u64, counted: &AtomicU64, over: &AtomicBool) -> Result<()> {
        let mut random = StdRng::seed_from_u64(lane);
        let blocks = self.size / self.block as u64;
        let next = || {
            let offset = random.random_range(0..blocks) * self.block as u64;
            (!over.load(Relaxed)).then_some((offset, self.block))
        };
        let source = Source::same(&self.file, self.block).await?;
        let one = async |(offset, length)| {
            if self.write {
                pump::write_block(&self.file, &source, offset, length).await
            } else {
                pump::read_block(&self.file, None, offset, length).await
            }
        };
        let count = |bytes| {
            counted.fetch_add(bytes, Relaxed);
        };
        pump::drive((self.depth / 2).max(1), next, one, count).await?;
        Ok(())
    }

    /// Bytes a second over `time`, after `warm` that does not count.
    async fn run(&self, warm: Duration, time: Duration) -> Result<f64> {
        let running = self.start();
        tokio::time::sleep(warm).await;
        let (begun, before) = (Instant::now(), running.bytes.load(Relaxed));
        tokio::time::sleep(time).await;
        let rate = (running.bytes.load(Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
        running.end().await?;
        Ok(rate)
    }
}

impl Running {
    async fn end(self) -> Result<()> {
        self.done.store(true, Relaxed);
        self.task.await.map_err(|error| Failure::failed(error.to_string()))?
    }
}

/// Copies a file of `bytes` on the disk of `place` as plainly as that can be done fast; MiB a second.
async fn copy(place: &Path, bytes: u64) -> Result<f64> {
    let (from, to) = (place.join("copy-from"), place.join("copy-to"));
    let bytes = bytes.next_multiple_of(COPY_BLOCK as u64);
    let open = |path: &Path, make: bool| {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).create(make).truncate(make).custom_flags(direct).open(path);
        let file = file.map_err(|error| Failure::io(path.display(), error))?;
        if make {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
                .map_err(|error| Failure::io(path.display(), error.into()))?;
        }
        Ok::<_, Failure>(Arc::new(file))
    };
    let source = open(&from, true)?;
    every_block(bytes, {
        let source = source.clone();
        move |offset, block| source.write_all_at(block, offset)
    })
    .await?;
    source.sync_all().map_err(|error| Failure::io(from.display(), error))?;
    let target = open(&to, true)?;
    let begun = Instant::now();
    every_block(bytes, {
        let target = target.clone();
        move |offset, block| {
            source.read_exact_at(block, offset)?;
            target.write_all_at(block, offset)
        }
    })
    .await?;
    target.sync_all().map_err(|error| Failure::io(to.display(), error))?;
    let seconds = begun.elapsed().as_secs_f64();
    for path in [&from, &to] {
        std::fs::remove_file(path).map_err(|error| Failure::io(path.display(), error))?;
    }
    Ok(units::mib_s(bytes, seconds))
}

/// Does something with every block of a file, several at once, each in a thread with an aligned buffer.
async fn every_block(
    bytes: u64,
    act: impl Fn(u64, &mut [u8]) -> std::io::Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let threads = (0..COPY_DEPTH).map(|first| {
        let act = act.clone();
        tokio::task::spawn_blocking(move || {
            let mut memory = vec![0x5a_u8; COPY_BLOCK + 4096];
            let skip = memory.as_ptr().align_offset(4096);
            let block = &mut memory[skip..skip + COPY_BLOCK];
            let offsets = (first as u64..bytes / COPY_BLOCK as u64).step_by(COPY_DEPTH);
            offsets.map(|at| at * COPY_BLOCK as u64).try_for_each(|offset| act(offset, block))
        })
    });
    for outcome in try_join_all(threads).await.map_err(|error| Failure::failed(error.to_string()))? {
        outcome.map_err(|error| Failure::io("the plain copy", error))?;
    }
    Ok(())
}

fn report(args: &ResyncArgs, figures: &Figures, out: Output) {
    let Figures { copy, idle, reads, writes } = figures;
    let idle_ratio = idle.mib_s() / copy.max(1.0);
    let met = idle_ratio >= IDLE_BAR && reads.kept() >= KEPT_BAR && writes.kept() >= KEPT_BAR;
    if out.json {
        let beside = |beside: &Beside| {
            json!({
                "alone_mib_s": mib(beside.alone), "beside_mib_s": mib(beside.rebuild.foreground),
                "kept": units::round3(beside.kept()), "rebuild_mib_s": units::round3(beside.rebuild.mib_s()),
                "rebuild_seconds": units::round3(beside.rebuild.seconds),
            })
        };
        out.object(json!({
            "op": "resync", "size": args.size, "chunk_size": args.chunk_size, "block_size": args.block_size,
            "bytes": idle.bytes, "chunks": idle.chunks, "seconds": units::round3(idle.seconds),
            "rebuild_mib_s": units::round3(idle.mib_s()), "copy_mib_s": units::round3(*copy),
            "idle_ratio": units::round3(idle_ratio), "reads": beside(reads), "writes": beside(writes), "met": met,
        }));
    }
    let mut table = Table::new(&["WHAT", ">REBUILD", ">BESIDE IT", ">RATIO", ">BAR", ""]);
    let verdict = |ratio: f64, bar: f64| if ratio >= bar { "met" } else { "missed" }.to_owned();
    table.row([
        "rebuild, no clients".into(),
        format!("{:.0} MiB/s", idle.mib_s()),
        format!("{copy:.0} MiB/s plain O_DIRECT copy"),
        format!("{idle_ratio:.2}"),
        IDLE_BAR.to_string(),
        verdict(idle_ratio, IDLE_BAR),
    ]);
    for (what, beside) in [("reads", reads), ("writes", writes)] {
        table.row([
            format!("{what} beside a rebuild"),
            format!("{:.0} MiB/s", beside.rebuild.mib_s()),
            format!("{:.0} of {:.0} MiB/s kept", beside.rebuild.foreground / MIB, beside.alone / MIB),
            format!("{:.2}", beside.kept()),
            KEPT_BAR.to_string(),
            verdict(beside.kept(), KEPT_BAR),
        ]);
    }
    out.say(table.to_string().trim_end());
    out.say(format_args!(
        "\n{} brought over in {} chunks, {} in {:.1} s; client and {} services share this machine and one disk",
        units::size(idle.bytes),
        units::count(idle.chunks),
        units::size(u64::from(args.chunk_size)),
        idle.seconds,
        args.nodes + 2,
    ));
}

const MIB: f64 = (1u64 << 20) as f64;

fn mib(bytes: f64) -> Value {
    units::round3(bytes / MIB).into()
}
