//! `rdma`: what this machine's RDMA can do.

use clap::{Args, Subcommand};

use crate::units::parse_size;

/// `catena rdma`.
#[derive(Subcommand, Debug)]
pub enum RdmaCommand {
    /// List devices, ports, addresses and limits, and try them: each with itself, or with another machine.
    #[command(after_help = "Examples:
  catena rdma check                                          this machine, every active port with itself
  catena rdma check --serve 10.0.0.1:7600                    on one machine, until Ctrl-C
  catena rdma check --peer 10.0.0.1:7600                     on another: is the way open, how fast is it
  catena rdma check --peer 10.0.0.1:7600 --device mlx5_1 --busy-poll-us 50 --json")]
    Check(CheckArgs),
}

/// `catena rdma check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Answer the checks of others at this address.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "peer")]
    pub serve: Option<String>,
    /// Check the way to a machine that serves checks.
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: Option<String>,
    /// Device, or device:port; several times for several [default: all that are active].
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Entry of the port's GID table [default: by address, else RoCE v2 with IPv4 first].
    #[arg(long, value_name = "N")]
    pub gid_index: Option<u8>,
    /// Entry of the port's partition table, InfiniBand [default: the first of which the port is a full member].
    #[arg(long, value_name = "N")]
    pub pkey_index: Option<u16>,
    /// Largest payload of a packet: 256, 512, 1024, 2048 or 4096 [default: the port's].
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Microseconds to look for completions before waiting for an event.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub busy_poll_us: u32,
    /// Bytes to move in each direction for the throughput.
    #[arg(long, default_value = "256MiB", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// 4 KiB round trips for the latency.
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub round_trips: u32,
    /// Calls of 1 MiB under way.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub depth: usize,
}
