//! `admin kv`: the stores below mgmtd and meta.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::args::local::StoreArgs;

/// Of the group.
pub const KV: &str = "Examples:
  catena admin kv status --dir ./cluster
  catena admin kv backup --config mgmtd.toml --config meta.toml --out cluster.backup
  catena admin kv restore --config mgmtd.toml --config meta.toml --in cluster.backup
  catena admin kv move --dir ./cluster --kv fdb --cluster-file /etc/foundationdb/fdb.cluster";

const STATUS: &str = "Writes one key, and removes it again.
Examples:
  catena admin kv status --config meta.toml
  catena admin kv status --dir ./cluster --json | tail -1 | jq .";

const BACKUP: &str = "Everything is read at one version of the store, while the cluster runs. That works for what can be read within five seconds.
For more, stop all mgmtd and meta services and add --stopped. Embedded stores belong to one process, so their cluster has to be stopped.
Examples:
  catena admin kv backup --config mgmtd.toml --config meta.toml --out cluster.backup
  catena admin kv backup --dir ./cluster --out cluster.backup";

const RESTORE: &str = "Stop all mgmtd and meta services first. The file is checked as a whole before anything is written. What belongs to mgmtd goes into the
store that mgmtd's configuration names, the rest into meta's; they may be other kinds of stores than the backup is of.
Until a restore has finished, mgmtd and meta refuse to start; run it again with --replace if it was interrupted.
Examples:
  catena admin kv restore --config mgmtd.toml --config meta.toml --in cluster.backup
  catena admin kv restore --dir ./cluster --in cluster.backup --replace";

const MOVE: &str = "The cluster must be stopped; chunks stay where they are. What the cluster had before is left as it is, so that nothing depends on the
first start with the new store: remove it when you are sure. To move back, add --replace.
A cluster of services with configurations of their own is moved with backup, a changed [store] table, and restore.
Examples:
  catena admin kv move --dir ./cluster --kv fdb --cluster-file /etc/foundationdb/fdb.cluster
  catena admin kv move --dir ./cluster --kv embedded --replace";

/// `catena admin kv`.
#[derive(Subcommand, Debug)]
pub enum KvCommand {
    /// Whether a store answers, how fast, whose it is and what is in it.
    #[command(after_help = STATUS)]
    Status(StoresArgs),
    /// Write everything that mgmtd and meta keep into one file.
    #[command(after_help = BACKUP)]
    Backup(BackupArgs),
    /// Fill empty stores from such a file.
    #[command(after_help = RESTORE)]
    Restore(RestoreArgs),
    /// Move the stores of a `catena dev` directory to another kind of store.
    #[command(after_help = MOVE)]
    Move(MoveArgs),
}

/// Which stores.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct StoresArgs {
    /// The configuration of a mgmtd, meta or kv service; once for each store.
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// The directory of a `catena dev`, which has all of them.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `catena admin kv backup`.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// Which stores.
    #[command(flatten)]
    pub stores: StoresArgs,
    /// The file to make; it must not exist.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// All mgmtd and meta services are stopped: read for as long as it takes, twice, and compare.
    #[arg(long)]
    pub stopped: bool,
}

/// `catena admin kv restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// Which stores.
    #[command(flatten)]
    pub stores: StoresArgs,
    /// The file to take.
    #[arg(long = "in", value_name = "FILE")]
    pub input: PathBuf,
    /// Remove what is in the stores.
    #[arg(long)]
    pub replace: bool,
}

/// `catena admin kv move`.
#[derive(Args, Debug)]
pub struct MoveArgs {
    /// The directory of a `catena dev`.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Where to.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Remove what is in the stores it is moved to.
    #[arg(long)]
    pub replace: bool,
}

impl KvCommand {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            KvCommand::Status(_) => "kv status",
            KvCommand::Backup(_) => "kv backup",
            KvCommand::Restore(_) => "kv restore",
            KvCommand::Move(_) => "kv move",
        }
    }
}
