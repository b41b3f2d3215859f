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
    #[command(after_help = "Examples:\n  catena admin tables")]
    Tables,
    /// Everything that clients and services route by, with its version.
    #[command(
        after_help = "Examples:\n  catena admin routing\n  catena admin routing --json | tail -1 | jq .version"
    )]
    Routing,
    /// Clients that have a session.
    #[command(after_help = "Examples:\n  catena admin clients")]
    Clients,
}

impl AdminCommand {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            AdminCommand::Nodes => "nodes",
            AdminCommand::Targets { .. } => "targets",
            AdminCommand::Chains { .. } => "chains",
            AdminCommand::Tables => "tables",
            AdminCommand::Routing => "routing",
            AdminCommand::Clients => "clients",
        }
    }
}
