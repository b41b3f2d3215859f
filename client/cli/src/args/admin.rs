//! `admin`: what mgmtd knows.

use clap::Subcommand;

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
    /// Clients that have a session.
    #[command(after_help = "Examples:\n  catena admin clients")]
    Clients,
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

impl AdminCommand {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            AdminCommand::Nodes => "nodes",
            AdminCommand::Targets { .. } => "targets",
            AdminCommand::Chains { .. } => "chains",
            AdminCommand::Tables { command: None } => "tables",
            AdminCommand::Tables { command: Some(_) } => "tables create",
            AdminCommand::Routing => "routing",
            AdminCommand::Clients => "clients",
        }
    }
}
