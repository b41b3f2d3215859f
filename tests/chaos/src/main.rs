//! Real processes, real disks, real kills: a `catena dev` cluster under a workload that checks every answer, while services are killed,
//! paused, and lose their disks. At the end everything acknowledged is there, all chains are at full strength, all replicas identical.
//!
//! The choice of faults and of operations follows from one seed; their timing is the machine's, so a run cannot be repeated exactly.
//! What can be, `tests/sim` does. Run it with `ci/chaos`.

mod cluster;
mod disks;
mod faults;
mod fdb;
mod journal;
mod logs;
mod model;
mod names;
mod shared;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::journal::Journal;

/// What the command line says.
struct Args {
    minutes: f64,
    seed: u64,
    catena: PathBuf,
    dir: PathBuf,
    verbose: bool,
    keep: bool,
    /// FoundationDB, if the clusters use it.
    fdb: Option<fdb::Options>,
}

const USAGE: &str =
    "usage: catena-chaos [--minutes N] [--seed S] [--catena BINARY] [--dir DIR] [--verbose] [--keep]
       [--kv embedded | --kv fdb --cluster-file FILE [--fdb-library FILE] [--fdbserver COMMAND]]";

fn args() -> Result<Args, String> {
    let mut args = Args {
        minutes: 1.0,
        seed: rand::random::<u32>().into(),
        catena: "target/release/catena".into(),
        dir: "/var/tmp".into(),
        verbose: false,
        keep: false,
        fdb: None,
    };
    let (mut kind, mut fdb) = ("embedded".to_owned(), fdb::Options::default());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--minutes" => args.minutes = value()?.parse().map_err(|_| "--minutes: not a number")?,
            "--seed" => args.seed = value()?.parse().map_err(|_| "--seed: not a number")?,
            "--catena" => args.catena = value()?.into(),
            "--dir" => args.dir = value()?.into(),
            "--verbose" => args.verbose = true,
            "--keep" => args.keep = true,
            "--kv" => kind = value()?,
            "--cluster-file" => fdb.cluster_file = value()?.into(),
            "--fdb-library" => fdb.library = Some(value()?.into()),
            "--fdbserver" => fdb.server = Some(value()?),
            _ => return Err(format!("{word}: unknown")),
        }
    }
    let named = !fdb.cluster_file.as_os_str().is_empty();
    args.fdb = match (kind.as_str(), named) {
        ("embedded", false) if fdb.library.is_none() && fdb.server.is_none() => None,
        ("embedded", _) => {
            return Err("--cluster-file, --fdb-library and --fdbserver go with --kv fdb".into());
        }
        ("fdb", true) => Some(fdb),
        ("fdb", false) => return Err("--kv fdb needs --cluster-file".into()),
        _ => return Err(format!("--kv {kind}: embedded or fdb")),
    };
    Ok(args)
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(what) => {
            eprintln!("chaos: {what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(args))
}

async fn run(args: Args) -> ExitCode {
    let journal = Arc::new(Journal::new(args.verbose));
    let mut cluster = match Cluster::start(&args.catena, &args.dir, args.fdb.clone(), &journal).await {
        Ok(cluster) => cluster,
        Err(what) => {
            eprintln!("chaos: the cluster does not start: {what}");
            return ExitCode::FAILURE;
        }
    };
    journal.say(format!("seed {}, {:.1} minutes, {}", args.seed, args.minutes, cluster.root().display()));
    let outcome = tokio::select! {
        outcome = torment(&args, &cluster, &journal) => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
    };
    cluster.stop().await;
    let keep = outcome.is_err() || args.keep;
    let outcome = match keep {
        true => outcome,
        false => cluster.forget().await,
    };
    let failed = outcome.is_err();
    if let Err(what) = &outcome {
        journal.dump();
        println!("chaos: FAILED: {what}");
        println!("chaos: the evidence is in {}; seed {}", cluster.root().display(), args.seed);
    }
    cluster.clean(failed || args.keep);
    println!("chaos: {}, {} failed", journal.sums(), u32::from(failed));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn torment(args: &Args, cluster: &Cluster, journal: &Arc<Journal>) -> Result<(), String> {
    let time = Duration::from_secs_f64(args.minutes * 60.0);
    let watcher = cluster.client().await?;
    let work = work::Work::start(cluster, args.seed, journal).await?;
    tokio::select! {
        () = faults::storage(cluster, args.seed, time, journal) => {}
        () = async {
            faults::control(cluster, &watcher, args.seed ^ 0xc0, time, journal).await;
            std::future::pending().await
        } => {}
        what = work.failed() => return Err(what),
    }
    cluster.heal(journal).await;
    journal.say("faults are over; waiting for full strength");
    work.stop().await?;
    cluster.full_strength(Duration::from_secs(180)).await?;
    journal.say("full strength; verifying");
    work.verify().await
}
