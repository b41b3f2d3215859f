//! How fast metadata is on this machine: a metadata service in this process, driven through gRPC on loopback.
//!
//! `cargo run --release -p catena-meta --example meta_bench -- [--store embedded|mem] [--callers 64] [--files 50000] [--channels 4]
//! [--directories 1] [--path DIR] [--phases create,readdir]`
//!
//! Client and server share the machine's cores, as they do on one machine in production; the chunk store is in memory, so this is the
//! metadata path alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use catena_kv::{Database, MemDatabase};
use catena_meta::{Config, EXAMPLE, Env, MemChunks, start_with};
use catena_meta_client::{Credentials, MetaClient, OpenFlags, Options, Place, Servers, Settle};
use catena_mgmtd_client::RoutingWatch;
use catena_proto::clock::{Clock, Monotonic, Timestamp};
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{Chain, RoutingInfo, Table};
use catena_proto::rpc::ClientAuth;
use catena_rt::time::Instant;
use hdrhistogram::Histogram;

struct SystemClock(Instant);

impl Clock for SystemClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.0.elapsed())
    }
    fn wall(&self) -> Timestamp {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(now.as_nanos() as i64)
    }
}

struct Arguments {
    store: String,
    callers: u64,
    files: u64,
    channels: usize,
    directories: u64,
    path: Option<PathBuf>,
    phases: Option<String>,
}

fn arguments() -> Arguments {
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    let mut words = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        given.insert(name.trim_start_matches("--").to_owned(), value);
    }
    let number =
        |name: &str, default| given.get(name).map_or(default, |text| text.parse().expect("a number"));
    Arguments {
        store: given.get("store").cloned().unwrap_or_else(|| "embedded".into()),
        callers: number("callers", 64),
        files: number("files", 50_000),
        channels: number("channels", 4) as usize,
        directories: number("directories", 1),
        path: given.get("path").map(PathBuf::from),
        phases: given.get("phases").cloned(),
    }
}

fn routing() -> RoutingInfo {
    let chains: Vec<ChainId> = (1..=12).map(ChainId).collect();
    let chain = |&id: &ChainId| (id, Chain { id, version: ChainVersion(1), targets: vec![] });
    RoutingInfo {
        version: RoutingVersion(1),
        chains: chains.iter().map(chain).collect(),
        tables: [((TableId(1), 1), Table { id: TableId(1), version: 1, replicas: 3, chains })].into(),
        ..Default::default()
    }
}

/// Runs `callers` loops until `count` calls are done, and prints what came of it.
async fn measure<F, Fut>(name: &str, callers: u64, count: u64, call: F)
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    if count == 0 {
        return;
    }
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let cpu = cpu_seconds();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (next, call) = (next.clone(), call.clone());
            tokio::spawn(async move {
                let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("a histogram");
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= count {
                        return times;
                    }
                    let start = Instant::now();
                    call(nth).await;
                    times.saturating_record(start.elapsed().as_micros() as u64);
                }
            })
        })
        .collect();
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("a histogram");
    for task in tasks {
        times.add(task.await.expect("a caller")).expect("same bounds");
    }
    let took = start.elapsed().as_secs_f64();
    println!(
        "{name:<24} {:>9.0} /s   p50 {:>6} us   p99 {:>6} us   {:>5.1} us CPU a call",
        count as f64 / took,
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.99),
        (cpu_seconds() - cpu) / count as f64 * 1e6,
    );
}

/// User and system time of this process, seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |nth: usize| fields.get(nth).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// Memory of this process, store and client included.
fn resident_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) / 256
}

#[tokio::main]
async fn main() {
    let arguments = arguments();
    let directory = tempfile::tempdir().expect("a directory");
    let path = arguments.path.clone().unwrap_or_else(|| directory.path().join("meta"));
    let db: Arc<dyn Database> = match arguments.store.as_str() {
        "mem" => Arc::new(MemDatabase::new()),
        _ => {
            Arc::new(catena_kv_embedded::EmbeddedDatabase::open(&path, Default::default()).expect("a store"))
        }
    };
    let mut config: Config = toml::from_str(EXAMPLE).expect("the example");
    config.listen = "127.0.0.1:0".into();
    let env = Env { clock: Arc::new(SystemClock(Instant::now())), seed: 1 };
    let (_setter, watch) = RoutingWatch::manual(routing());
    let auth = ClientAuth::new(config.cluster, &config.token);
    let running =
        start_with(config, env, db, Arc::new(MemChunks::new()), watch, None).await.expect("a service");

    let options = Options { channels: arguments.channels, ..Options::default() };
    let servers = Servers::Fixed(vec![running.control_address().to_string()]);
    let meta = MetaClient::new(servers, auth, ClientId(7), options);
    let who = Credentials::root();
    let mut directories = Vec::new();
    for nth in 0..arguments.directories {
        let made = meta.mkdir(&who, &Place::path(format!("/d{nth}")), 0o755, false, None).await;
        directories.push(InodeId(made.expect("mkdir").id));
    }
    let directories = Arc::new(directories);
    let place = {
        let directories = directories.clone();
        move |prefix: &str, nth: u64| {
            let directory = directories[(nth % directories.len() as u64) as usize];
            Place::below(directory, format!("{prefix}{nth}"))
        }
    };
    println!(
        "store {}, {} callers, {} files in {} directories, {} channels, {} cores",
        arguments.store,
        arguments.callers,
        arguments.files,
        arguments.directories,
        arguments.channels,
        std::thread::available_parallelism().map_or(0, |cores| cores.get()),
    );
    let (callers, files) = (arguments.callers, arguments.files);
    let phases = arguments.phases.clone();
    let wanted = |name: &str| phases.as_ref().is_none_or(|list| list.split(',').any(|phase| phase == name));
    let phase = |name: &str, count: u64| if wanted(name) { count } else { 0 };

    let shared = (meta.clone(), who.clone(), place.clone());
    measure("create (open, no close)", callers, phase("create", files), move |nth| {
        let (meta, who, place) = shared.clone();
        async move {
            let flags = OpenFlags { write: false, create: true, exclusive: true, ..OpenFlags::default() };
            meta.open(&who, &place("f", nth), flags, 0o644, None).await.expect("open");
        }
    })
    .await;
    let shared = (meta.clone(), who.clone(), place.clone());
    measure("create, write, close", callers, phase("write", files / 2), move |nth| {
        let (meta, who, place) = shared.clone();
        async move {
            let flags = OpenFlags { write: true, create: true, ..OpenFlags::default() };
            let open = meta.open(&who, &place("w", nth), flags, 0o644, None).await.expect("open");
            let settle =
                Settle { close: true, wrote: true, high_water: 100, acknowledged: true, ..Settle::default() };
            let session = open.session.expect("a session");
            meta.sync(&who, InodeId(open.inode.id), session, settle).await.expect("close");
        }
    })
    .await;
    let shared = (meta.clone(), who.clone(), place.clone());
    measure("stat by directory, name", callers, phase("stat", files * 2), move |nth| {
        let (meta, who, place) = shared.clone();
        async move {
            meta.stat(&who, &place("f", nth % files), false).await.expect("stat");
        }
    })
    .await;
    let count = directories.len() as u64;
    let shared = (meta.clone(), who.clone());
    measure("stat by path", callers, phase("stat", files * 2), move |nth| {
        let (meta, who) = shared.clone();
        async move {
            let nth = nth % files;
            let path = format!("/d{}/f{nth}", nth % count);
            meta.stat(&who, &Place::path(path), false).await.expect("stat");
        }
    })
    .await;
    let shared = (meta.clone(), who.clone(), place.clone());
    measure("batch stat of 64", callers, phase("batch", files / 16), move |nth| {
        let (meta, who, place) = shared.clone();
        async move {
            let places: Vec<Place> = (0..64).map(|more| place("f", (nth * 64 + more) % files)).collect();
            meta.batch_stat(&who, &places, false).await.expect("batch stat");
        }
    })
    .await;
    let shared = (meta.clone(), who.clone(), place.clone());
    measure("rename", callers, phase("rename", files / 2), move |nth| {
        let (meta, who, place) = shared.clone();
        async move {
            let mode = pb::RenameMode::Replace;
            meta.rename(&who, &place("f", nth), &place("r", nth), mode).await.expect("rename");
        }
    })
    .await;

    let before = resident_mib();
    let start = Instant::now();
    let (mut after, mut entries) = (Bytes::new(), 0_u64);
    loop {
        let page = meta.readdir(&who, &Place::inode(directories[0]), after, 0, true).await.expect("readdir");
        entries += page.entries.len() as u64;
        match page.entries.last() {
            Some(last) if page.more => after = last.name.clone(),
            _ => break,
        }
    }
    println!(
        "{:<24} {:>9.0} entries/s with attributes, {entries} entries, memory {before} MiB before, {} MiB after",
        "readdir",
        entries as f64 / start.elapsed().as_secs_f64(),
        resident_mib(),
    );

    let shared = (meta.clone(), who.clone(), place.clone());
    measure("remove", callers, phase("remove", files / 2), move |nth| {
        let (meta, who, place) = shared.clone();
        async move { meta.unlink(&who, &place("r", nth)).await.expect("remove") }
    })
    .await;
    if !wanted("tree") {
        running.stop().await;
        return;
    }
    let start = Instant::now();
    meta.remove_all(&who, &Place::path("/d0")).await.expect("remove_all");
    println!("{:<24} returned after {:?}", "remove the tree", start.elapsed());
    loop {
        let left = meta.statfs(&who).await.expect("statfs");
        if left.files == 0 || arguments.directories > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{:<24} after {:?}", "and it was reclaimed", start.elapsed());
    running.stop().await;
}
