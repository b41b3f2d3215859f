//! `bench meta --kv`: the namespace on one store after the other, each below a throw-away cluster of its own, and beside each a bare loop
//! of transactions as large as a create's on the same store.

use std::path::Path;
use std::sync::Arc;

use catena_kv::{Database, KvError, StoreConfig};
use serde_json::{Value, json};

use crate::args::bench::MetaArgs;
use crate::args::local::StoreArgs;
use crate::cmd::bench::bare::Bare;
use crate::cmd::bench::cpu::Servers;
use crate::cmd::bench::meta::{self, drive, phases};
use crate::cmd::bench::stats::Report;
use crate::cmd::fs::path::Remote;
use crate::connect;
use crate::exit::{Exit, Failure, Result};
use crate::local::cluster::LocalCluster;
use crate::local::directory::Directory;
use crate::local::place::Place;
use crate::local::session::with_cluster;
use crate::local::shape::{Shape, Wish};
use crate::local::store::{Kind, clear};
use crate::output::Output;
use crate::signals::Stop;
use crate::table::Table;
use crate::{progress, units};

/// Room for the stores' logs and tables.
const ROOM: u64 = 512 << 20;
/// Callers at once, unless told otherwise.
const CLIENTS: [usize; 3] = [1, 8, 64];
/// The project's own bar: creates beside the bare loop in FoundationDB, with so many clients.
const BAR: f64 = 0.5;
const BAR_CLIENTS: usize = 64;

/// What one number of clients got out of one store.
struct Row {
    kind: Kind,
    clients: usize,
    phases: Vec<Report>,
    /// The better of the bare loops before and after.
    bare: Report,
}

impl Row {
    fn creates(&self) -> f64 {
        self.phases.iter().find(|report| report.op == "create").map_or(0.0, Report::per_second)
    }
    fn ratio(&self) -> f64 {
        self.creates() / self.bare.per_second().max(1e-9)
    }
    fn bar(&self) -> Option<f64> {
        (self.kind == Kind::Fdb && self.clients == BAR_CLIENTS).then_some(BAR)
    }
    fn met(&self) -> bool {
        self.bar().is_none_or(|bar| self.ratio() >= bar)
    }
}

/// Runs `bench meta --kv`.
pub async fn run(args: MetaArgs, out: Output) -> Result<()> {
    meta::check(&args)?;
    let mut stop = Stop::new()?;
    // Everything that can be wrong is found out before the first cluster is made.
    let mut kinds = args.kv.clone();
    kinds.dedup();
    let wishes: Vec<(Wish, Shape)> = kinds
        .iter()
        .map(|kind| {
            let wish = wish(&args, *kind);
            let shape = wish.shape()?;
            Ok((wish, shape))
        })
        .collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for (wish, shape) in &wishes {
        rows.extend(one(&args, wish, shape, &mut stop, out).await?);
    }
    report(&args, &rows, out);
    Ok(())
}

/// Empty files need neither copies nor many disks.
fn wish(args: &MetaArgs, kind: Kind) -> Wish {
    let fdb = kind == Kind::Fdb;
    let store = StoreArgs {
        kv: Some(kind),
        cluster_file: args.cluster_file.clone().filter(|_| fdb),
        fdb_library: args.fdb_library.clone().filter(|_| fdb),
    };
    Wish { nodes: Some(1), replicas: Some(1), meta: args.meta, store, ..Wish::default() }
}

/// Measures one store, and takes everything away again.
async fn one(args: &MetaArgs, wish: &Wish, shape: &Shape, stop: &mut Stop, out: Output) -> Result<Vec<Row>> {
    let place = Place::make(args.dir.as_deref(), "bench", ROOM, "stores and their logs")?;
    if !out.json {
        eprintln!("catena: {} in {}", shape.store.kind().name(), place.path.display());
    }
    let mut made = None;
    let mut bare = None;
    let outcome = async {
        let directory = Directory::open(&place.path, wish)?;
        let cluster = made.insert(directory.cluster().clone());
        // A prefix of its own beside the cluster's, or a directory beside its store.
        let config = shape.store.shared(Some(format!("catena/bench-{:016x}/", rand::random::<u64>())));
        let config = config.unwrap_or_else(|| StoreConfig::Embedded { path: place.path.join("bare") });
        let db = catena_kv_open::open(&config, cluster.id, &cluster.token);
        let db = bare.insert(db.map_err(|error| Failure::failed(error.to_string()))?).clone();
        with_cluster(directory, stop, async |cluster| measure(args, shape, cluster, db).await).await
    };
    let outcome = outcome.await;
    let cleared = match made.filter(|_| !args.keep) {
        Some(cluster) => shape.store.clear(&cluster).await,
        None => Ok(()),
    };
    let bare_cleared = match bare.filter(|_| shape.store.kind() == Kind::Fdb) {
        Some(db) => {
            clear(&*db).await.map_err(|error| store_failed(&error).about("clearing the bare loop's keys"))
        }
        None => Ok(()),
    };
    let removed = place.finish(args.keep);
    let rows = outcome?;
    cleared.and(bare_cleared).and(removed)?;
    Ok(rows)
}

fn store_failed(error: &KvError) -> Failure {
    let exit = if error.retryable() { Exit::Unreachable } else { Exit::Failed };
    Failure::new(exit, format!("the store: {error}"))
}

async fn measure(
    args: &MetaArgs,
    shape: &Shape,
    cluster: &mut LocalCluster,
    db: Arc<dyn Database>,
) -> Result<Vec<Row>> {
    let kind = shape.store.kind();
    let file = cluster.directory.cluster().clone();
    let client = async || connect::to(&file, connect::wide(0)).await;
    let first = client().await?;
    let mut catenas = connect::for_other_metas(&first, &client).await?;
    catenas.push(first);
    let bare = Bare::prepare(db, args.dirs, shape.chunk_size).await.map_err(|error| store_failed(&error))?;
    let bare = Arc::new(bare);
    let counts = if args.clients.is_empty() { CLIENTS.to_vec() } else { args.clients.clone() };
    let root = Remote::new(Path::new("/"))?;
    let mut rows = Vec::new();
    for clients in counts {
        let step = progress::step(format!("{}, {clients} clients", kind.name()));
        let before = bare_loop(args, &bare, clients).await?;
        let phases = phases(&catenas, &root, args, clients).await?;
        let after = bare_loop(args, &bare, clients).await?;
        step.finish_and_clear();
        // The better one counts: what disturbs it would flatter meta.
        let bare = if before.per_second() > after.per_second() { before } else { after };
        rows.push(Row { kind, clients, phases, bare });
    }
    for catena in catenas {
        catena.close().await;
    }
    Ok(rows)
}

async fn bare_loop(args: &MetaArgs, bare: &Arc<Bare>, clients: usize) -> Result<Report> {
    let bare = bare.clone();
    let call = move |_, _| {
        let bare = bare.clone();
        async move { bare.create().await.map_err(|error| store_failed(&error)) }
    };
    drive("bare", args.files, clients, args, &Servers::default(), call).await
}

fn report(args: &MetaArgs, rows: &[Row], out: Output) {
    let mut table = Table::new(&["KV", ">CLIENTS", "PHASE", ">CALLS/S", ">MEDIAN", ">P99"]);
    for row in rows {
        for report in row.phases.iter().chain([&row.bare]) {
            table.row([
                row.kind.name().into(),
                row.clients.to_string(),
                report.op.into(),
                units::count(report.per_second() as u64),
                units::duration(report.latency(0.5)),
                units::duration(report.latency(0.99)),
            ]);
        }
    }
    out.table(&table, "");
    let mut table = Table::new(&["KV", ">CLIENTS", ">CREATES/S", ">BARE/S", ">RATIO", ">BAR", ""]);
    for row in rows {
        let verdict = if row.met() { "met" } else { "missed" };
        table.row([
            row.kind.name().into(),
            row.clients.to_string(),
            units::count(row.creates() as u64),
            units::count(row.bare.per_second() as u64),
            format!("{:.2}", row.ratio()),
            row.bar().map_or("-".into(), |bar| bar.to_string()),
            if row.bar().is_some() { verdict.into() } else { String::new() },
        ]);
    }
    out.say("");
    out.table(&table, "");
    out.say(format_args!(
        "\n{} files in {} directories, {} metadata services; a readdir lists a whole directory. bare: transactions of a create's shape and\nsize on the store itself, before and after, the better counts. Clients, services and bare loop share this machine.",
        units::count(args.files as u64),
        args.dirs,
        args.meta.unwrap_or(1),
    ));
    if out.json {
        let rows: Vec<Value> = rows.iter().map(object).collect();
        let met = rows.iter().all(|row| row["met"] != false);
        out.object(json!({
            "op": "meta", "files": args.files, "dirs": args.dirs, "meta": args.meta.unwrap_or(1), "rows": rows, "met": met,
        }));
    }
}

fn object(row: &Row) -> Value {
    let mut object = json!({
        "kv": row.kind.name(), "clients": row.clients, "bare": row.bare.json(),
        "create_ratio": units::round3(row.ratio()), "bar": row.bar(), "met": row.met(),
    });
    for report in &row.phases {
        object[report.op] = Value::Object(report.json());
    }
    object
}
