//! The command line: every command, option and example, and nothing that acts.

pub mod admin;
pub mod bench;
pub mod fs;
pub mod kv;
pub mod local;
pub mod rdma;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Catena, a distributed file system for AI clusters.
#[derive(Parser, Debug)]
#[command(
    name = "catena",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Examples:
  catena demo                              see it work: a cluster, a file, three identical replicas
  catena dev --dir ./cluster               a cluster on this machine that keeps its files
  export CATENA_CLUSTER=./cluster/cluster.toml
  catena fs put model.bin /models/
  catena fs ls -l /models
  catena admin nodes

Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 no answer, 5 denied, 6 exists, 7 full, 8 corrupt, 130 interrupted."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The last line of stdout is one JSON object (or array); everything for people goes to stderr.
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Which cluster client commands are about.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// More log lines on stderr; repeat for more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a throw-away cluster, write and read a file, verify all replicas, clean up.
    Demo(local::DemoArgs),
    /// Run a cluster of child processes on this machine, in the foreground; its files persist in a directory.
    Dev(local::DevArgs),
    /// RDMA devices.
    #[command(subcommand, after_help = RDMA)]
    Rdma(rdma::RdmaCommand),
    /// Run one service.
    #[command(subcommand, after_help = SERVE)]
    Serve(ServeCommand),
    /// Print and check configuration files.
    #[command(subcommand, after_help = CONFIG)]
    Config(ConfigCommand),
    /// Files and directories.
    #[command(subcommand, after_help = FS)]
    Fs(fs::FsCommand),
    /// What the cluster manager knows: nodes, targets, chains, tables.
    #[command(subcommand, after_help = ADMIN)]
    Admin(admin::AdminCommand),
    /// Measure a running cluster.
    #[command(subcommand, after_help = BENCH)]
    Bench(bench::BenchCommand),
}

impl Command {
    /// Its name in error messages: `fs get`.
    pub fn name(&self) -> String {
        let (group, name) = match self {
            Command::Demo(_) => return "demo".into(),
            Command::Rdma(rdma::RdmaCommand::Check(_)) => ("rdma", "check"),
            Command::Dev(_) => return "dev".into(),
            Command::Serve(ServeCommand::Mgmtd(_)) => ("serve", "mgmtd"),
            Command::Serve(ServeCommand::Kv(_)) => ("serve", "kv"),
            Command::Serve(ServeCommand::Meta(_)) => ("serve", "meta"),
            Command::Serve(ServeCommand::Storage(_)) => ("serve", "storage"),
            Command::Config(ConfigCommand::Example { .. }) => ("config", "example"),
            Command::Config(ConfigCommand::Check { .. }) => ("config", "check"),
            Command::Fs(command) => ("fs", command.name()),
            Command::Admin(command) => ("admin", command.name()),
            Command::Bench(command) => ("bench", command.name()),
        };
        format!("{group} {name}")
    }
}

const SERVE: &str = "Examples:
  catena config example mgmtd > mgmtd.toml     then edit it
  catena serve mgmtd --config mgmtd.toml
  catena serve storage --config storage-1.toml";
const RDMA: &str = "Examples:
  catena rdma check
  catena rdma check --peer 10.0.0.1:7600";
const CONFIG: &str = "Examples:
  catena config example storage
  catena config check storage storage-1.toml";
const FS: &str = "Paths start with `/`, the cluster's root. Examples:
  catena fs put -r dataset /data
  catena fs ls -lh /data
  catena fs cat /data/README | less
  catena fs get -r /data ./copy";
const ADMIN: &str = "Examples:
  catena admin nodes
  catena admin chains --json | tail -1 | jq .";
const BENCH: &str = "Examples:
  catena bench write --size 4GiB
  catena bench randread --block-size 4KiB --depth 64 --duration 10s --verify
  catena bench meta --files 20000 --threads 32 --json";

/// Which cluster.
#[derive(Args, Debug, Clone)]
pub struct ClusterArgs {
    /// The cluster.toml of the cluster that `fs`, `admin` and `bench` are about.
    #[arg(long, value_name = "FILE", env = "CATENA_CLUSTER", global = true, help_heading = "Global options")]
    pub cluster: Option<PathBuf>,
    /// Give up on a call that has not been answered for this long [default: 30s; to find the cluster 5s, and 25s while
    /// its managers elect a primary].
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration, global = true,
          help_heading = "Global options")]
    pub timeout: Option<Duration>,
}

impl ClusterArgs {
    /// How long finding the cluster may take: a cluster that is down should be noticed soon.
    pub fn contact(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(5))
    }
    /// How long finding it may take while its managers say that none of them is primary yet: two leases of 10 s and a bit.
    pub fn election(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(25))
    }
    /// How long one call may take: long enough for a failed node to be replaced.
    pub fn call(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(30))
    }
}

/// The kinds of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServiceKind {
    /// The cluster manager.
    Mgmtd,
    /// The namespace.
    Meta,
    /// Chunks on disks.
    Storage,
    /// The key-value store that several mgmtd and meta share.
    Kv,
}

impl ServiceKind {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ServiceKind::Mgmtd => "mgmtd",
            ServiceKind::Meta => "meta",
            ServiceKind::Storage => "storage",
            ServiceKind::Kv => "kv",
        }
    }
}

/// `catena serve`.
#[derive(Subcommand, Debug)]
pub enum ServeCommand {
    /// Run a cluster manager.
    #[command(after_help = "Examples:\n  catena serve mgmtd --config mgmtd.toml")]
    Mgmtd(ServeArgs),
    /// Run a metadata service.
    #[command(after_help = "Examples:\n  catena serve meta --config meta.toml")]
    Meta(ServeArgs),
    /// Run a storage service.
    #[command(after_help = "Examples:\n  catena serve storage --config storage-1.toml")]
    Storage(ServeArgs),
    /// Run a key-value service: one store that several mgmtd and meta services share.
    #[command(after_help = "Examples:\n  catena serve kv --config kv.toml")]
    Kv(ServeArgs),
}

/// `catena serve KIND`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Its TOML configuration; `catena config example KIND` prints one to start from.
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Stop cleanly when stdin ends: how `catena dev` makes sure that its children do not outlive it.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// `catena config`.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Print a commented example.
    #[command(after_help = "Examples:\n  catena config example storage > storage-1.toml")]
    Example {
        /// Of which service.
        kind: ServiceKind,
    },
    /// Read a configuration file as the service would, and say what is wrong with it.
    #[command(after_help = "Examples:\n  catena config check storage storage-1.toml")]
    Check {
        /// Of which service.
        kind: ServiceKind,
        /// The file.
        file: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn walk(command: &clap::Command, path: &str, visit: &mut impl FnMut(&clap::Command, &str)) {
        visit(command, path);
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            walk(sub, &format!("{path} {}", sub.get_name()), visit);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_summary_and_examples_that_parse() {
        walk(&Cli::command(), "catena", &mut |command, path| {
            assert!(command.get_about().is_some(), "{path} has no summary");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (_, examples) =
                help.split_once("Examples:\n").unwrap_or_else(|| panic!("{path} has no examples"));
            let mut seen = 0;
            for line in examples.lines().map(str::trim).filter(|line| line.starts_with("catena ")) {
                // Up to a pipe, a redirection, or the remark two spaces further right.
                let line = line.split("  ").next().unwrap_or(line);
                let line = line.split([' ']).take_while(|word| !["|", ">", "<", "#"].contains(word));
                let words: Vec<_> = line.map(|word| word.trim_matches('\'')).collect();
                if let Err(error) = Cli::try_parse_from(&words) {
                    panic!("{path}: example `{}`: {error}", words.join(" "));
                }
                seen += 1;
            }
            assert!(seen > 0 || examples.contains("catena "), "{path}: no example runs catena");
        });
    }

    #[test]
    fn every_option_is_described() {
        walk(&Cli::command(), "catena", &mut |command, path| {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{path}: {} has no help", arg.get_id());
            }
        });
    }
}
