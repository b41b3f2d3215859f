//! `demo` and `dev`: clusters on this machine.

use std::path::PathBuf;
use std::time::Duration;

use catena_net::TransportKind;
use clap::{Args, ValueEnum};

use crate::local::store::Kind;
use crate::units::{parse_chunk_size, parse_duration, parse_size};

/// Where the cluster keeps its names and its state.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Where names and the cluster's state are kept [default: embedded].
    #[arg(long, value_enum, value_name = "KIND")]
    pub kv: Option<Kind>,
    /// FoundationDB's cluster file, for `--kv fdb` [default: $FDB_CLUSTER_FILE, else /etc/foundationdb/fdb.cluster].
    #[arg(long, value_name = "FILE")]
    pub cluster_file: Option<PathBuf>,
    /// FoundationDB's client library, if the system does not find libfdb_c.so by itself.
    #[arg(long, value_name = "FILE")]
    pub fdb_library: Option<PathBuf>,
}

/// What carries data.
#[derive(Args, Clone, Debug, Default)]
pub struct TransportArgs {
    /// What carries data between clients and storage nodes [default: tcp].
    #[arg(long, value_enum, value_name = "KIND")]
    pub transport: Option<TransportName>,
    /// RDMA device (`mlx5_0`, or with its port `mlx5_0:1`); several times, or with commas between them, for one per storage node, and
    /// one behind them for clients [default: all that are active].
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', requires = "transport")]
    pub rdma_device: Vec<String>,
}

/// A transport's name on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TransportName {
    /// TCP on the loopback interface.
    Tcp,
    /// RDMA, see `catena rdma check`.
    Rdma,
}

impl From<TransportName> for TransportKind {
    fn from(name: TransportName) -> TransportKind {
        match name {
            TransportName::Tcp => TransportKind::Tcp,
            TransportName::Rdma => TransportKind::Rdma,
        }
    }
}

/// `catena demo`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  catena demo
  catena demo --size 256MiB --json
  catena demo --nodes 5 --chunk-size 4MiB --dir /mnt/nvme --keep
  catena demo --kv fdb --cluster-file /etc/foundationdb/fdb.cluster
  catena demo --transport rdma

The cluster's directory must be on a disk, not on tmpfs: the storage services use O_DIRECT.")]
pub struct DemoArgs {
    /// Bytes to write and read back.
    #[arg(long, default_value = "1GiB", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// Storage nodes.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub nodes: u32,
    /// Copies of every chunk.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub replicas: u32,
    /// Bytes in a chunk: a power of two, 64KiB to 64MiB.
    #[arg(long, default_value = "1MiB", value_parser = parse_chunk_size, value_name = "SIZE")]
    pub chunk_size: u32,
    /// Where to make the demo's directory [default: /var/tmp, or the current directory if that is no disk].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep the directory; `catena dev --dir` can start the cluster again.
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub transport: TransportArgs,
}

/// `catena dev`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  catena dev --dir ./cluster
  catena dev --dir ./cluster --nodes 5 --disks-per-node 2 --replicas 3
  catena dev --dir ./cluster --mgmtd 3 --meta 2
  catena dev --dir ./cluster --mgmtd 3 --meta 2 --kv fdb --cluster-file /etc/foundationdb/fdb.cluster
  catena dev --dir ./cluster --transport rdma --rdma-device mlx5_0,mlx5_1
  CATENA_CLUSTER=./cluster/cluster.toml catena fs ls /

A service that dies is started again after half a second, later if it keeps dying; D/run/NAME.pid has the process id of every service
while it runs. Ctrl-C stops everything cleanly. Started again on the same directory, the files are there.")]
pub struct DevArgs {
    /// The cluster's directory, made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Storage nodes [default: 3].
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,
    /// Cluster managers, of which one is primary and the rest stand by [default: 1].
    #[arg(long, value_name = "N")]
    pub mgmtd: Option<u32>,
    /// Metadata services [default: 1]. With more than one of them or of mgmtd, a key-value service runs that they share, unless
    /// FoundationDB has the data.
    #[arg(long, value_name = "N")]
    pub meta: Option<u32>,
    /// Copies of every chunk [default: 3, or the number of nodes if that is smaller].
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// Disk directories of a storage node [default: 1].
    #[arg(long, value_name = "N")]
    pub disks_per_node: Option<u32>,
    /// Bytes in a chunk of new files: a power of two, 64KiB to 64MiB [default: 1MiB].
    #[arg(long, value_parser = parse_chunk_size, value_name = "SIZE")]
    pub chunk_size: Option<u32>,
    /// Bytes that each disk may use [default: what the file system has].
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub disk_capacity: Option<u64>,
    /// How long a service may be silent before it counts as failed: shorter notices failures sooner and forgives shorter pauses [default:
    /// 10s].
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub lease: Option<Duration>,
    /// Log level of the services: error, warn, info, debug, trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub transport: TransportArgs,
}
