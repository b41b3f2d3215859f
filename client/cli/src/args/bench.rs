//! `bench`: what is measured and how.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::local::store::Kind;
use crate::units::{parse_chunk_size, parse_duration, parse_size};

/// `catena bench`.
#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// Sequential writes, ended by fsync.
    #[command(after_help = "Examples:
  catena bench write --size 4GiB
  catena bench write --size 1GiB --block-size 4MiB --threads 4 --depth 8 --json")]
    Write(DataArgs),
    /// Sequential reads of files that it writes first.
    #[command(after_help = "Examples:
  catena bench read --size 4GiB --block-size 4MiB --depth 8
  catena bench read --size 1GiB --verify")]
    Read(DataArgs),
    /// Random reads through the batch call, of files that it writes first.
    #[command(after_help = "Examples:
  catena bench randread --block-size 4KiB --depth 64
  catena bench randread --size 4GiB --batch 16 --depth 64 --duration 30s --verify")]
    Randread(DataArgs),
    /// Random overwrites in files that it writes first.
    #[command(after_help = "Examples:
  catena bench randwrite --block-size 4KiB --depth 32 --duration 10s")]
    Randwrite(DataArgs),
    /// Creates, opens, stats, renames and removes of empty files, and listings; with --kv on clusters of its own, one for each store.
    #[command(after_help = "Examples:
  catena bench meta --files 20000 --clients 64
  catena bench meta --files 100000 --clients 1,8,64 --json
  catena bench meta --kv embedded,fdb --cluster-file /etc/foundationdb/fdb.cluster --duration 5s")]
    Meta(MetaArgs),
    /// Filling an empty disk again, and what clients keep of their speed meanwhile; in a cluster of its own.
    #[command(after_help = "Examples:
  catena bench resync
  catena bench resync --size 8GiB --dir /mnt/nvme --json")]
    Resync(ResyncArgs),
    /// The time until everything goes on after a storage node, the primary mgmtd or a metadata service is lost; in a cluster of its own.
    #[command(after_help = "Examples:
  catena bench failover
  catena bench failover --what mgmtd,meta --json
  catena bench failover --pause --lease 10s --rounds 5")]
    Failover(FailoverArgs),
}

/// Options of `bench resync`.
#[derive(Args, Debug, Clone)]
pub struct ResyncArgs {
    /// Bytes in the file; each replica has its share of it.
    #[arg(long, default_value = "2GiB", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// Storage nodes.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub nodes: u32,
    /// Copies of every chunk.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub replicas: u32,
    /// Bytes in a chunk.
    #[arg(long, default_value = "1MiB", value_parser = parse_chunk_size, value_name = "SIZE")]
    pub chunk_size: u32,
    /// Bytes in one read or write of the clients.
    #[arg(long, visible_alias = "bs", default_value = "1MiB", value_parser = parse_size, value_name = "SIZE")]
    pub block_size: u64,
    /// Reads or writes that the clients keep in flight.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub depth: usize,
    /// Time over which the clients' own speed is taken.
    #[arg(long, default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub duration: Duration,
    /// Where to make the cluster's directory [default: /var/tmp, or the current directory if that is no disk].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep the directory.
    #[arg(long)]
    pub keep: bool,
}

/// What `bench failover` takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// The node of a chain's head: until writes go on.
    Storage,
    /// The primary: until another answers, and a chain changes.
    Mgmtd,
    /// The metadata service that a client uses: until its calls go on.
    Meta,
}

impl Loss {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Loss::Storage => "storage",
            Loss::Mgmtd => "mgmtd",
            Loss::Meta => "meta",
        }
    }
    /// What people are told.
    pub fn told(self) -> &'static str {
        match self {
            Loss::Storage => "head's node",
            Loss::Mgmtd => "primary mgmtd",
            Loss::Meta => "meta service",
        }
    }
}

/// Options of `bench failover`.
#[derive(Args, Debug, Clone)]
pub struct FailoverArgs {
    /// What is lost, one after the other.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "storage,mgmtd,meta",
        value_name = "WHAT"
    )]
    pub what: Vec<Loss>,
    /// Losses of each kind.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub rounds: u32,
    /// How long a service may be silent before it counts as failed.
    #[arg(long, default_value = "2s", value_parser = parse_duration, value_name = "TIME")]
    pub lease: Duration,
    /// Stop the process where it is (SIGSTOP) instead of killing it: its connections stay open and silent.
    #[arg(long)]
    pub pause: bool,
    /// Storage nodes; with one more than there are copies, the loss of mgmtd does not touch the chain that is written to.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub nodes: u32,
    /// Copies of every chunk.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub replicas: u32,
    /// Where to make the cluster's directory [default: /var/tmp, or the current directory if that is no disk].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep the directory.
    #[arg(long)]
    pub keep: bool,
}

/// Options of the data benchmarks.
#[derive(Args, Debug, Clone)]
pub struct DataArgs {
    /// Bytes in all files together.
    #[arg(long, default_value = "1GiB", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// Bytes in one read or write [default: 4MiB in order, 4KiB at random].
    #[arg(long, visible_alias = "bs", value_parser = parse_size, value_name = "SIZE")]
    pub block_size: Option<u64>,
    /// Reads or writes that each thread keeps in flight [default: 8 in order, 64 at random].
    #[arg(long, value_name = "N")]
    pub depth: Option<usize>,
    /// Tasks that each work on a file of their own.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub threads: usize,
    /// Files; threads go round them [default: one for each thread].
    #[arg(long, value_name = "N")]
    pub files: Option<usize>,
    /// Stop after this time; random benchmarks go on until then [default: 10s at random, none in order].
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Reads of one batch call.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub batch: usize,
    /// Check every byte that is read (writes are read back once at the end).
    #[arg(long)]
    pub verify: bool,
    /// Bytes in a chunk of the files it makes [default: the directory's].
    #[arg(long, value_parser = parse_chunk_size, value_name = "SIZE")]
    pub chunk_size: Option<u32>,
    /// Chains that a file goes round [default: the directory's].
    #[arg(long, value_name = "N")]
    pub stripe: Option<u32>,
    /// Seed of the offsets and contents.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Directory of the benchmark's files.
    #[arg(long, default_value = "/.bench")]
    pub path: String,
    /// Leave the files; a later run with the same size and seed reads them without writing again.
    #[arg(long)]
    pub keep: bool,
}

/// Options of `bench meta`.
#[derive(Args, Debug, Clone)]
pub struct MetaArgs {
    /// Files to create, stat, rename and remove, for each number of clients.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub files: usize,
    /// Clients that call at once, one number after the other; they are spread over the metadata services [default: 64; with --kv
    /// 1,8,64].
    #[arg(long, visible_alias = "threads", value_delimiter = ',', value_name = "N,...")]
    pub clients: Vec<usize>,
    /// Directories that the files are spread over.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub dirs: usize,
    /// Stop each phase after this time.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Directory of the benchmark's files.
    #[arg(long, default_value = "/.bench")]
    pub path: String,
    /// Leave the files (skips the remove phase); with --kv the cluster's directory.
    #[arg(long)]
    pub keep: bool,
    /// Measure throw-away clusters on these stores, one after the other, each beside a bare loop of equal transactions on the same store.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,...", conflicts_with = "path")]
    pub kv: Vec<Kind>,
    /// FoundationDB's cluster file, for `--kv fdb` [default: $FDB_CLUSTER_FILE, else /etc/foundationdb/fdb.cluster].
    #[arg(long, value_name = "FILE", requires = "kv")]
    pub cluster_file: Option<PathBuf>,
    /// FoundationDB's client library, if the system does not find libfdb_c.so by itself.
    #[arg(long, value_name = "FILE", requires = "kv")]
    pub fdb_library: Option<PathBuf>,
    /// Metadata services of each cluster [default: 1].
    #[arg(long, value_name = "N", requires = "kv")]
    pub meta: Option<u32>,
    /// Where to make the clusters' directories [default: /var/tmp, or the current directory if that is no disk].
    #[arg(long, value_name = "DIR", requires = "kv")]
    pub dir: Option<PathBuf>,
}

impl BenchCommand {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            BenchCommand::Write(_) => "write",
            BenchCommand::Read(_) => "read",
            BenchCommand::Randread(_) => "randread",
            BenchCommand::Randwrite(_) => "randwrite",
            BenchCommand::Meta(_) => "meta",
            BenchCommand::Resync(_) => "resync",
            BenchCommand::Failover(_) => "failover",
        }
    }
}
