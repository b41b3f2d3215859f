//! `catena admin kv status`.

use std::time::{Duration, Instant};

use catena_kv::reserved::{PROBE, RESTORE_UNFINISHED};
use catena_kv::{Database, FdbConfig, Jitter, KvError, Retry, StoreConfig, TxOptions, transact};
use catena_kv_archive::{Census, Keys, census};
use catena_kv_fdb::FdbDatabase;
use catena_proto::ids::ClusterId;
use serde_json::{Value, json};

use crate::args::kv::StoresArgs;
use crate::exit::{Exit, Failure, Failures, Result};
use crate::output::Output;
use crate::table::Table;
use crate::units;

use super::stores::{Place, Stores};
use super::{kinds_json, kinds_table, owners, store_failure};

/// Counting ends after this time...
const COUNTING: Duration = Duration::from_secs(5);
/// ...or so many records.
const COUNTED: u64 = 5_000_000;

/// What was found out about a store.
struct Found {
    owners: Vec<ClusterId>,
    version: u64,
    read: Duration,
    write: Duration,
    census: Census,
    /// What the backend says of itself.
    own: Vec<(&'static str, String)>,
}

/// Runs it. Every store is looked at; the first failure decides how the command ends.
pub async fn run(args: &StoresArgs, patience: Duration, out: Output) -> Result<()> {
    let mut stores = Stores::find(args)?;
    // One service's configuration is enough to ask for that service's store.
    let _ = stores.for_reading();
    let mut failures = Failures::of("admin kv status");
    let mut rows = Vec::new();
    for place in &stores.places {
        let outcome = async { look(place, &*stores.open(place, false)?, patience).await }.await;
        let Some(found) = failures.check(outcome) else { continue };
        rows.push(row(place, &found));
        if !out.json {
            show(place, &found, out);
        }
        if let Some(theirs) = found.owners.iter().find(|owner| **owner != stores.cluster) {
            let message = format!(
                "{} belongs to cluster {theirs}, the configuration says {}",
                place.name, stores.cluster
            );
            failures.note(Failure::new(Exit::Denied, message).hint("correct `cluster` or `store`"));
        }
        if found.census.half_restored {
            failures.note(Failure::failed(format!("{}: {RESTORE_UNFINISHED}", place.name)));
        }
    }
    if out.json {
        out.object(Value::Array(rows));
        return failures.end().map_err(Failure::told);
    }
    failures.end()
}

async fn look(place: &Place, db: &dyn Database, patience: Duration) -> Result<Found> {
    let failed = |error: KvError| store_failure(&place.name, &error);
    let in_time = tokio::time::timeout(patience, async {
        let begun = Instant::now();
        let version = db.begin(TxOptions::default())?.read_version().await?;
        Ok((version, begun.elapsed()))
    });
    let (version, read) = in_time.await.unwrap_or(Err(KvError::TimedOut)).map_err(failed)?;
    let owners =
        tokio::time::timeout(patience, owners(db)).await.unwrap_or(Err(KvError::TimedOut)).map_err(failed)?;
    let write = probe(db, patience).await.map_err(failed)?;
    let census = census(db, COUNTING, COUNTED, rand::random()).await.map_err(failed)?;
    Ok(Found { owners, version, read, write, census, own: own_words(&place.config).await })
}

/// How long a small write takes. What it writes means nothing, and is removed.
async fn probe(db: &dyn Database, patience: Duration) -> Result<Duration, KvError> {
    let retry = Retry::default().within(patience).idempotent();
    let jitter = Jitter::new(rand::random());
    let begun = Instant::now();
    transact(db, retry, &jitter, |tx| async move { tx.set(PROBE, b"catena admin kv status") }).await?;
    let took = begun.elapsed();
    transact(db, retry, &jitter, |tx| async move { tx.clear(PROBE) }).await?;
    Ok(took)
}

/// What a backend has to say of itself besides; nothing where its directory or address is all there is.
async fn own_words(config: &StoreConfig) -> Vec<(&'static str, String)> {
    match config {
        StoreConfig::Fdb(fdb) => {
            let mut words = vec![("cluster file", fdb.cluster_file.display().to_string())];
            words.extend(fdb.prefix.as_ref().map(|prefix| ("prefix", prefix.escape_debug().to_string())));
            words.extend(foundationdb(fdb).await);
            words
        }
        StoreConfig::Embedded { .. } | StoreConfig::Remote { .. } | StoreConfig::Mem => Vec::new(),
    }
}

/// What FoundationDB says of its cluster. It answers here, so if it does not say how it is, that is all there is to say.
async fn foundationdb(config: &FdbConfig) -> Vec<(&'static str, String)> {
    let health = match FdbDatabase::open(config) {
        Ok(fdb) => fdb.health().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let health = match health {
        Ok(health) => health,
        Err(error) => return vec![("FoundationDB", format!("does not say how it is: {error}"))],
    };
    let (reachable, coordinators) = health.coordinators;
    let mut words = vec![
        ("FoundationDB", format!("{}, {} processes", health.version, health.processes)),
        ("configured", format!("{} {}", health.redundancy, health.engine)),
        ("coordinators", format!("{reachable} of {coordinators} answer")),
        ("data", format!("{}, {} in the whole database", health.data, units::size(health.bytes))),
        ("tolerates", format!("the loss of {} machines", health.failures_tolerated)),
    ];
    words.extend(health.messages.into_iter().map(|message| ("it complains", message)));
    words
}

fn whose(place: &Place) -> &'static str {
    match place.keys() {
        Keys::All => "mgmtd and meta",
        Keys::Mgmtd => "mgmtd",
        Keys::Meta => "meta",
    }
}

fn backend(config: &StoreConfig) -> &'static str {
    match config {
        StoreConfig::Embedded { .. } => "embedded",
        StoreConfig::Remote { .. } => "remote",
        StoreConfig::Fdb(_) => "fdb",
        StoreConfig::Mem => "mem",
    }
}

fn row(place: &Place, found: &Found) -> Value {
    let tally = &found.census.tally;
    let own = found.own.iter().map(|(key, value)| (key.replace(' ', "_"), Value::from(value.as_str())));
    json!({
        "store": place.name, "backend": backend(&place.config), "for": whose(place),
        "cluster": found.owners.first().map(ToString::to_string), "read_version": found.version,
        "read_version_ms": units::round3(found.read.as_secs_f64() * 1e3),
        "write_ms": units::round3(found.write.as_secs_f64() * 1e3),
        "half_restored": found.census.half_restored, "complete": found.census.complete,
        "records": tally.records, "bytes": tally.bytes, "kinds": kinds_json(tally),
        "backend_status": own.collect::<serde_json::Map<_, _>>(),
    })
}

fn show(place: &Place, found: &Found, out: Output) {
    let tally = &found.census.tally;
    let at_least = if found.census.complete { "" } else { "at least " };
    let mut table = Table::new(&["", ""]);
    let mut line = |name: &str, value: String| table.row([name.into(), value]);
    line("store", place.name.clone());
    line("for", whose(place).into());
    let cluster = found.owners.first().map_or("none yet".into(), ToString::to_string);
    line("cluster", cluster);
    line("read version", format!("{} in {}", found.version, units::duration(found.read)));
    line("write", format!("{}, durable", units::duration(found.write)));
    line(
        "holds",
        format!("{at_least}{} records, {at_least}{}", units::count(tally.records), units::size(tally.bytes)),
    );
    for (name, value) in &found.own {
        line(name, value.clone());
    }
    out.table(&table, "");
    let kinds = kinds_table(tally, at_least);
    if !kinds.is_empty() {
        out.say("");
        out.table(&kinds, "");
    }
    out.say("");
}
