//! `catena admin kv`: the stores below mgmtd and meta.

mod ids;
mod moving;
mod status;
mod stores;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use catena_kv::{Database, Isolation, KvError, Retry, StoreConfig, TxOptions};
use catena_kv_archive::{
    Archive, ArchiveError, BackupError, BackupOptions, BackupReport, Flaw, Phase, Progress, ReadError,
    RestoreError, RestoreOptions, Source, Tally, Target, backup, restore,
};
use catena_mgmtd::record;
use catena_proto::ids::ClusterId;
use catena_proto::routing::wide_id;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::args::ClusterArgs;
use crate::args::kv::{BackupArgs, KvCommand, RestoreArgs};
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::table::Table;
use crate::{progress, units};

use stores::{Place, Stores};

/// How long one transaction of a backup or restore is tried: a store that is started anew meanwhile is back by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `catena admin kv`.
pub async fn run(command: KvCommand, cluster: &ClusterArgs, out: Output) -> Result<()> {
    match command {
        KvCommand::Status(args) => status::run(&args, cluster.contact(), out).await,
        KvCommand::Backup(args) => save(args, cluster, out).await,
        KvCommand::Restore(args) => bring_back(args, cluster, out).await,
        KvCommand::Move(args) => moving::run(args, cluster, out).await,
    }
}

async fn save(args: BackupArgs, cluster: &ClusterArgs, out: Output) -> Result<()> {
    let mut stores = Stores::find(&args.stores)?;
    stores.for_reading()?;
    let made = save_to(&stores, &args.out, args.stopped, cluster).await?;
    if made.left_out > 0 {
        eprintln!(
            "catena: admin kv backup: {} records were left out: they lie in the store of a service that does not use them",
            units::count(made.left_out)
        );
    }
    for (whose, named) in [("mgmtd", &b"MGMT"[..]), ("meta", b"CONF")] {
        if !made.tally.kinds.keys().any(|kind| kind.0 == named) {
            eprintln!(
                "catena: admin kv backup: nothing of {whose}'s was found; if that is not so, name its configuration too"
            );
        }
    }
    if out.json {
        out.object(json!({
            "ok": true, "file": args.out, "length": made.length, "cluster": stores.cluster.to_string(),
            "read_version": made.read_version, "records": made.tally.records, "bytes": made.tally.bytes,
            "left_out": made.left_out, "kinds": kinds_json(&made.tally),
        }));
    } else {
        out.say(format_args!(
            "{}: {} records of cluster {}, {}",
            args.out.display(),
            units::count(made.tally.records),
            stores.cluster,
            units::size(made.length)
        ));
    }
    Ok(())
}

/// Everything in `stores` into the file `out`.
async fn save_to(stores: &Stores, out: &Path, stopped: bool, cluster: &ClusterArgs) -> Result<BackupReport> {
    let opened = open_all(stores, false)?;
    for (place, db) in &opened {
        check_owner(stores, place, &**db).await?;
    }
    let sources: Vec<_> = opened
        .iter()
        .map(|(place, db)| Source {
            db: &**db,
            name: &place.name,
            keys: place.keys(),
            exclusive: place.exclusive(),
        })
        .collect();
    let options = BackupOptions {
        cluster: stores.cluster,
        made: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        release: env!("CARGO_PKG_VERSION").into(),
        stopped,
        patience: cluster.timeout.unwrap_or(PATIENCE),
        seed: rand::random(),
    };
    let bar = Bar::default();
    let made = backup(&sources, out, &options, &|progress| bar.show(progress)).await;
    bar.end();
    made.map_err(backup_failure)
}

async fn bring_back(args: RestoreArgs, cluster: &ClusterArgs, out: Output) -> Result<()> {
    let stores = Stores::find(&args.stores)?;
    let bar = Bar::default();
    let archive = Archive::open(&args.input, &|progress| bar.show(progress)).await;
    bar.end();
    let archive = archive.map_err(archive_failure)?;
    if archive.header().cluster != stores.cluster {
        let (ours, theirs) = (stores.cluster, archive.header().cluster);
        return Err(restore_failure(RestoreError::OtherCluster { ours, theirs }));
    }
    fill(&stores, &archive, args.replace, cluster).await?;
    for (place, db) in &open_all(&stores, false)? {
        let retry = Retry::default().within(cluster.timeout.unwrap_or(PATIENCE));
        let passed = ids::pass_over(&**db, place.keys(), retry).await;
        passed.map_err(|error| {
            store_failure(&place.name, &error)
                .hint("run the restore again, with --replace, before anything is started")
        })?;
    }
    let names: Vec<_> = stores.places.iter().map(|place| place.name.as_str()).collect();
    let tally = archive.tally();
    if out.json {
        out.object(json!({
            "ok": true, "cluster": stores.cluster.to_string(), "records": tally.records, "bytes": tally.bytes,
            "made": archive.header().made, "stores": names, "kinds": kinds_json(tally),
        }));
    } else {
        let made =
            units::date(i64::try_from(archive.header().made).unwrap_or(0).saturating_mul(1_000_000_000));
        out.say(format_args!(
            "{} records of cluster {} as of {made} are in {}",
            units::count(tally.records),
            stores.cluster,
            names.join(" and ")
        ));
    }
    Ok(())
}

/// Everything of `archive` into `stores`.
async fn fill(stores: &Stores, archive: &Archive, replace: bool, cluster: &ClusterArgs) -> Result<()> {
    let bar = Bar::default();
    let opened = open_all(stores, true)?;
    for (place, db) in &opened {
        check_owner(stores, place, &**db).await?;
    }
    let targets: Vec<_> = opened
        .iter()
        .map(|(place, db)| Target {
            db: &**db,
            name: &place.name,
            keys: place.keys(),
            clears_at_once: matches!(place.config, StoreConfig::Fdb(_)),
        })
        .collect();
    let options = RestoreOptions {
        cluster: stores.cluster,
        replace,
        run: rand::random(),
        patience: cluster.timeout.unwrap_or(PATIENCE),
    };
    let done = restore(archive, &targets, &options, &|progress| bar.show(progress)).await;
    bar.end();
    done.map_err(restore_failure)?;
    Ok(())
}

fn open_all(stores: &Stores, make: bool) -> Result<Vec<(&Place, Arc<dyn Database>)>> {
    stores.places.iter().map(|place| Ok((place, stores.open(place, make)?))).collect()
}

/// A store that another cluster has written is neither saved as this one's nor overwritten.
async fn check_owner(stores: &Stores, place: &Place, db: &dyn Database) -> Result<()> {
    for theirs in owners(db).await.map_err(|error| store_failure(&place.name, &error))? {
        if theirs != stores.cluster {
            let message = format!(
                "{} belongs to cluster {theirs}, the configuration says {}",
                place.name, stores.cluster
            );
            return Err(Failure::new(Exit::Denied, message).hint("correct `cluster` or `store`"));
        }
    }
    Ok(())
}

/// The clusters that mgmtd and meta have noted in a store.
async fn owners(db: &dyn Database) -> Result<Vec<ClusterId>, KvError> {
    let read = async || {
        let tx = db.begin(TxOptions::default())?;
        let key = record::keys::cluster();
        let mgmtd = tx.get(&key, Isolation::Snapshot).await?;
        let mgmtd = mgmtd.and_then(|value| record::decode::<record::ClusterRecord>(&key, &value).ok());
        let meta = tx.get(&catena_meta::schema::key::cluster(), Isolation::Snapshot).await?;
        let ids = [mgmtd.and_then(|found| wide_id(&found.cluster)), meta.and_then(|found| wide_id(&found))];
        let mut owners: Vec<_> = ids.into_iter().flatten().map(ClusterId).collect();
        owners.dedup();
        Ok(owners)
    };
    // It is the first that is asked of a store; a hiccup of a shared one is no reason to end.
    match read().await {
        Err(error @ KvError::Unavailable(_)) => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            read().await.map_err(|_| error)
        }
        outcome => outcome,
    }
}

fn store_exit(error: &KvError) -> Exit {
    match error {
        KvError::Unavailable(_) | KvError::TimedOut => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

fn store_failure(name: &str, error: &KvError) -> Failure {
    Failure::new(store_exit(error), format!("{name}: {error}"))
}

fn io_failure(path: &Path, error: std::io::Error) -> Failure {
    Failure::io(path.display(), error)
}

fn backup_failure(error: BackupError) -> Failure {
    let exit = match &error {
        BackupError::Store { source, .. } => store_exit(source),
        BackupError::Exists { .. } => Exit::Exists,
        BackupError::Several => Exit::Usage,
        _ => Exit::Failed,
    };
    match error {
        BackupError::File { path, source } => io_failure(&path, source),
        error => Failure::new(exit, error.to_string()),
    }
}

fn archive_failure(error: ArchiveError) -> Failure {
    match error.source {
        ReadError::Io(source) => io_failure(&error.path, source),
        ReadError::Flaw(Flaw::Foreign | Flaw::Format(_)) => Failure::new(Exit::Usage, error.to_string()),
        ReadError::Flaw(_) => Failure::new(Exit::Corrupt, error.to_string()),
    }
}

fn restore_failure(error: RestoreError) -> Failure {
    let exit = match &error {
        RestoreError::OtherCluster { .. } => Exit::Denied,
        RestoreError::Homeless { .. } | RestoreError::Shared { .. } => Exit::Usage,
        RestoreError::NotEmpty { .. } | RestoreError::Unfinished { .. } => Exit::Exists,
        RestoreError::Store { source, .. } => store_exit(source),
        _ => Exit::Failed,
    };
    match error {
        RestoreError::Archive(error) => archive_failure(error),
        error => Failure::new(exit, error.to_string()),
    }
}

/// What a kind of key is, in the words of `docs/format-meta.md`.
fn meaning(kind: &str) -> &'static str {
    match kind {
        "MGMT" => "mgmtd: nodes, chains, tables, sessions",
        "INOD" => "inodes",
        "DENT" => "names",
        "XATR" => "extended attributes",
        "SESS" => "files open for writing",
        "IDEM" => "outcomes of requests",
        "IALO" => "inode allocator",
        "RECL" => "removed files",
        "TRSH" => "removed directories",
        "TRNC" => "files being cut",
        "CNTR" => "counters",
        "CONF" => "configuration",
        "PERI" => "copies of the period of requests",
        _ => "unknown to this release",
    }
}

fn kinds_json(tally: &Tally) -> Value {
    let kinds = tally
        .kinds
        .iter()
        .map(|(kind, count)| (kind.to_string(), json!({"records": count.records, "bytes": count.bytes})));
    Value::Object(kinds.collect())
}

fn kinds_table(tally: &Tally, at_least: &str) -> Table {
    let mut table = Table::new(&["KIND", ">RECORDS", ">SIZE", "WHAT"]);
    for (kind, count) in &tally.kinds {
        let kind = kind.to_string();
        let what = meaning(&kind).into();
        let records = format!("{at_least}{}", units::count(count.records));
        table.row([kind, records, format!("{at_least}{}", units::size(count.bytes)), what]);
    }
    table
}

/// A bar for each phase.
#[derive(Default)]
struct Bar(Mutex<Option<(Phase, ProgressBar)>>);

impl Bar {
    fn show(&self, progress: Progress) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_none_or(|(phase, _)| *phase != progress.phase) {
            let label = match progress.phase {
                Phase::Read => "reading",
                Phase::Compare => "comparing",
                Phase::Check => "checking",
                Phase::Clear => "clearing",
                Phase::Write => "writing",
                Phase::Verify => "verifying",
            };
            let bar = match progress.total {
                Some(total) => progress::bytes(total, label),
                None => progress::stream(label),
            };
            if let Some((_, before)) = shown.replace((progress.phase, bar)) {
                before.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &*shown {
            bar.set_position(progress.bytes);
        }
    }

    fn end(&self) {
        if let Some((_, bar)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}
