//! `admin`: what mgmtd knows.

use clap::Subcommand;

use super::kv::KvCommand;

/// `catena admin`.
#[derive(Subcommand, Debug)]
pub enum AdminCommand {
    /// Services and their disks.
    #[command(after_help = "Examples:\n  catena admin nodes\n  catena admin nodes --json")]
    Nodes,
    /// Targets: replicas' homes on disks, and their states.
    #[command(after_help = "Examples:\n  catena admin targets\n  catena admin targets --node 11")]
    Targets {
        /// Only those of this node.
        #[arg(long)]
        node: Option<u32>,
        /// Only those of this chain.
        #[arg(long)]
        chain: Option<u32>,
    },
    /// Chains: which targets hold the same chunks, in order, and whether they serve.
    #[command(after_help = "Examples:\n  catena admin chains\n  catena admin chains --degraded")]
    Chains {
        /// Only chains with a target that does not serve.
        #[arg(long)]
        degraded: bool,
    },
    /// What an operator decides about one chain.
    #[command(after_help = "Examples:\n  catena admin chain recover 7 --target 21 --accept-data-loss")]
    Chain {
        /// What.
        #[command(subcommand)]
        command: ChainCommand,
    },
    /// Chain tables, which layouts refer to.
    #[command(
        after_help = "Examples:\n  catena admin tables\n  catena admin tables create --replicas 3 --min-nodes 5"
    )]
    Tables {
        /// What else than listing.
        #[command(subcommand)]
        command: Option<TablesCommand>,
    },
    /// Everything that clients and services route by, with its version.
    #[command(
        after_help = "Examples:\n  catena admin routing\n  catena admin routing --json | tail -1 | jq .version"
    )]
    Routing,
    /// Background verification of stored data: how it stands, now, or an end of it.
    #[command(
        after_help = "Examples:\n  catena admin scrub status\n  catena admin scrub start --node 11 --rate 200MiB\n  catena admin scrub stop"
    )]
    Scrub {
        /// What.
        #[command(subcommand)]
        command: ScrubCommand,
    },
    /// Replicas that are being brought up to date: how far, how fast, how long it will take.
    #[command(after_help = "Examples:
  catena admin resync
  catena admin resync --all
  watch -n 1 catena admin resync

A target that is waiting has its turn when the one before it in its chain is done.")]
    Resync {
        /// Also the last finished session of every target that serves.
        #[arg(long)]
        all: bool,
    },
    /// The stores of mgmtd and meta: how they are, all of it into a file, and back.
    #[command(after_help = super::kv::KV)]
    Kv {
        /// What.
        #[command(subcommand)]
        command: KvCommand,
    },
    /// Clients that have a session.
    #[command(after_help = "Examples:\n  catena admin clients")]
    Clients,
    /// Check the whole file system, or what is below a path, while it is in use; repair what is safe to repair.
    #[command(after_help = FSCK)]
    Fsck(FsckArgs),
}

const FSCK: &str = "Checks names and inodes against each other, lengths against chunks, and the replicas of every chunk against each other.
With a path: the files below it, without a search for what no path leads to (orphaned chunks, unreachable inodes).
Repair removes names without inodes and chunks without files, settles lengths and link counts, and moves what no name leads to
to /lost+found. It never chooses between replicas that differ. Needs the superuser's rights.
Exit status: 0 nothing is left to repair, 1 something is (or the check could not be finished).
Examples:
  catena admin fsck
  catena admin fsck --repair
  catena admin fsck /models --json | tail -1 | jq .left";

/// `catena admin fsck`.
#[derive(clap::Args, Debug)]
pub struct FsckArgs {
    /// Only what is at and below this path.
    pub path: Option<String>,
    /// Repair what is safe to repair.
    #[arg(long)]
    pub repair: bool,
    /// Compare only versions and lengths of replicas: checksums may have to be read from disk.
    #[arg(long)]
    pub quick: bool,
    /// How long an orphaned chunk must have been seen before it is removed.
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration, default_value = "10s")]
    pub grace: std::time::Duration,
}

/// `catena admin chain`.
#[derive(Subcommand, Debug)]
pub enum ChainCommand {
    /// Serve a chain whose last targets are lost from one that was taken out before them.
    #[command(after_help = "Examples:
  catena admin targets --chain 7
  catena admin chain recover 7 --target 21 --accept-data-loss

For a chain that nobody serves because the disks of its lastsrv targets are gone for good. What was written after the named target left the
chain is lost. If such a disk may still be found, start its node with it instead: that loses nothing.")]
    Recover {
        /// The chain.
        chain: u32,
        /// The target to serve it from.
        #[arg(long, value_name = "ID")]
        target: u64,
        /// What was written since the target left the chain may be lost.
        #[arg(long)]
        accept_data_loss: bool,
    },
}

/// `catena admin tables`.
#[derive(Subcommand, Debug)]
pub enum TablesCommand {
    /// Compute a chain table over the storage nodes that are up, and make its chains and targets.
    #[command(after_help = "Examples:
  catena admin tables create --replicas 3
  catena admin tables create --replicas 3 --min-nodes 5 --targets-per-disk 8")]
    Create {
        /// Copies of every chunk, each on another node.
        #[arg(long, value_name = "N")]
        replicas: u32,
        /// Refuse while fewer storage nodes are up [default: as many as there are replicas].
        #[arg(long, value_name = "N")]
        min_nodes: Option<u32>,
        /// Targets on each disk: more spread the load after a failure more evenly [default: chosen].
        #[arg(long, value_name = "N")]
        targets_per_disk: Option<u32>,
        /// The table's number; that of a table that exists gives it a new version [default: the next free one].
        #[arg(long, value_name = "ID")]
        table: Option<u32>,
    },
}

/// `catena admin scrub`.
#[derive(Subcommand, Debug)]
pub enum ScrubCommand {
    /// Read everything now and compare it with its checksums; what is damaged comes back from another replica.
    #[command(after_help = "Examples:
  catena admin scrub start
  catena admin scrub start --node 11 --rate 200MiB
  catena admin scrub start --target 7

A pass of the same scope that is under way goes on, at the new rate. Damaged chunks that wait for their repair are tried at once.")]
    Start {
        /// Only the disks of this node.
        #[arg(long)]
        node: Option<u32>,
        /// Only this target.
        #[arg(long)]
        target: Option<u64>,
        /// Bytes a second from each disk [default: `scrub_rate` of the node's configuration].
        #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_size)]
        rate: Option<u64>,
    },
    /// How every disk's scrub stands, and what is damaged and not repaired.
    #[command(
        after_help = "Examples:\n  catena admin scrub status\n  catena admin scrub status --json | tail -1 | jq '.damaged'"
    )]
    Status {
        /// Only the disks of this node.
        #[arg(long)]
        node: Option<u32>,
    },
    /// End the passes that are under way; the next one begins by the configured interval.
    #[command(after_help = "Examples:\n  catena admin scrub stop --node 11")]
    Stop {
        /// Only the disks of this node.
        #[arg(long)]
        node: Option<u32>,
    },
}

impl AdminCommand {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            AdminCommand::Nodes => "nodes",
            AdminCommand::Targets { .. } => "targets",
            AdminCommand::Chains { .. } => "chains",
            AdminCommand::Chain { command: ChainCommand::Recover { .. } } => "chain recover",
            AdminCommand::Tables { command: None } => "tables",
            AdminCommand::Tables { command: Some(_) } => "tables create",
            AdminCommand::Routing => "routing",
            AdminCommand::Scrub { command: ScrubCommand::Start { .. } } => "scrub start",
            AdminCommand::Scrub { command: ScrubCommand::Status { .. } } => "scrub status",
            AdminCommand::Scrub { command: ScrubCommand::Stop { .. } } => "scrub stop",
            AdminCommand::Resync { .. } => "resync",
            AdminCommand::Kv { command } => command.name(),
            AdminCommand::Clients => "clients",
            AdminCommand::Fsck(_) => "fsck",
        }
    }
}
