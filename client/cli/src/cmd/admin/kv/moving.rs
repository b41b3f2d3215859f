//! `catena admin kv move`: from one kind of store to another, of a `catena dev` that is stopped.

use catena_kv_archive::Archive;
use serde_json::json;

use crate::args::ClusterArgs;
use crate::args::kv::{MoveArgs, StoresArgs};
use crate::exit::{Exit, Failure, Result};
use crate::local::store::Store;
use crate::output::Output;
use crate::units;

use super::stores::Stores;
use super::{Bar, archive_failure, fill, io_failure, save_to};

/// The way of everything, in the cluster's directory.
const BETWEEN: &str = "moving.backup";

/// Runs it. The cluster's own description is changed last: whatever happens before, it starts as it was.
pub async fn run(args: MoveArgs, cluster: &ClusterArgs, out: Output) -> Result<()> {
    if args.store.kv.is_none() {
        return Err(Failure::usage("say where to: --kv embedded or --kv fdb"));
    }
    let wanted = Store::wished(&args.store)?;
    let from = Stores::find(&StoresArgs { config: Vec::new(), dir: Some(args.dir.clone()) })?;
    let names = |stores: &Stores| {
        stores.places.iter().map(|place| place.name.clone()).collect::<Vec<_>>().join(" and ")
    };
    let Some(directory) = from.directory() else {
        return Err(Failure::new(Exit::Exists, format!("the cluster in {} is running", args.dir.display()))
            .hint("stop it first"));
    };
    let to = Stores::of(directory, &wanted)?;
    if to.places.iter().any(|place| from.places.iter().any(|old| old.config == place.config)) {
        return Err(Failure::usage(format!("the cluster in {} is there already", args.dir.display())));
    }
    let between = directory.root().join(BETWEEN);
    // What an interrupted move has left; what it was made of is still where it was.
    match std::fs::remove_file(&between) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_failure(&between, error));
        }
        _ => {}
    }
    save_to(&from, &between, false, cluster).await?;
    let bar = Bar::default();
    let archive = Archive::open(&between, &|progress| bar.show(progress)).await;
    bar.end();
    let archive = archive.map_err(archive_failure)?;
    fill(&to, &archive, args.replace, cluster).await?;
    let (records, before, now) = (archive.tally().records, names(&from), names(&to));
    if let Some(mut directory) = from.into_directory() {
        directory.move_to(wanted)?;
    }
    std::fs::remove_file(&between).map_err(|error| io_failure(&between, error))?;
    if out.json {
        out.object(json!({"ok": true, "records": records, "from": before, "to": now}));
    } else {
        out.say(format_args!(
            "{} records moved to {now}; what is in {before} stays there",
            units::count(records)
        ));
    }
    Ok(())
}
