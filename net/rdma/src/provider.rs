//! What makes queue pairs: libibverbs ([`crate::ibv`]) and a double in software ([`crate::soft`]).
//!
//! The traits here are the verbs themselves, without judgement: their callers ([`crate::queue_pair`]) keep the states in order and the
//! memory alive. Terms are those of the InfiniBand Architecture Specification, volume 1, and of `libibverbs` (ibv_create_qp(3), ...).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::{CompletionError, VerbsError};

/// What a port is connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkLayer {
    /// Addressed by LID within a subnet; a GID is needed only between subnets.
    InfiniBand,
    /// RoCE: addressed by GID, that is, by IP address.
    Ethernet,
}

/// A global identifier: 16 bytes, on RoCE an IPv6 address or a mapped IPv4 one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// Of an IP address, as RoCE v2 makes it.
    pub fn of(address: IpAddr) -> Gid {
        Gid(match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }

    /// The IP address that it stands for on RoCE.
    pub fn ip(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.0);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    /// All zero: an empty entry of a port's table.
    pub fn is_empty(self) -> bool {
        self.0 == [0; 16]
    }

    /// fe80::/10: reaches the link and no further.
    pub fn is_link_local(self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// How packets of a GID are wrapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum GidKind {
    /// InfiniBand, or RoCE v1 (not routed).
    Native,
    /// RoCE v2: UDP over IP.
    RoceV2,
}

/// An entry of a port's GID table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GidEntry {
    /// Its place in the table.
    pub index: u8,
    /// The address.
    pub gid: Gid,
    /// How its packets are wrapped.
    pub kind: GidKind,
}

/// A port of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its number, from 1.
    pub number: u8,
    /// Whether it is up and can carry traffic.
    pub active: bool,
    /// The state's name as the driver says it: `ACTIVE`, `DOWN`, ...
    pub state: &'static str,
    /// What it is connected to.
    pub link: LinkLayer,
    /// Its local identifier, InfiniBand only.
    pub lid: u16,
    /// Largest payload of a packet that the port carries now, bytes.
    pub mtu: u16,
    /// Bits per second, as far as the driver tells.
    pub bits_per_second: u64,
    /// Its non-empty GIDs.
    pub gids: Vec<GidEntry>,
    /// InfiniBand: the entry of its partition table to use if none is asked for.
    pub pkey_index: u16,
}

/// What a device can do, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceLimits {
    /// Work requests in a queue.
    pub queue_depth: u32,
    /// Completions in a completion queue.
    pub completions: u32,
    /// RDMA READs that a queue pair may have under way,
    pub reads_out: u8,
    /// and that it answers at a time.
    pub reads_in: u8,
    /// Queue pairs,
    pub queue_pairs: u32,
    /// and memory regions.
    pub regions: u32,
}

/// A device and its ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// As `ibv_devinfo` calls it: `mlx5_0`, `rxe0`, ...
    pub name: String,
    /// The firmware's version, or empty.
    pub firmware: String,
    /// What it can do.
    pub limits: DeviceLimits,
    /// Its ports.
    pub ports: Vec<PortInfo>,
}

/// Names of registered memory: for this process's work requests, and for its peers'.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Keys {
    /// lkey.
    pub local: u32,
    /// rkey.
    pub remote: u32,
}

/// Memory that a device may use. Dropping it ends that; the memory must outlive it.
pub trait Registration: Send + Sync {
    /// Its names.
    fn keys(&self) -> Keys;
}

/// Sizes of a queue pair's queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Depths {
    /// Sends, WRITEs and READs under way.
    pub sends: u32,
    /// Posted receives.
    pub receives: u32,
    /// Bytes that should fit into a work request itself. What the device grants is [`Endpoint::inline`].
    pub inline: u32,
}

/// What the peer may do to this process's registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Nothing: it can only send.
    None,
    /// READ and WRITE, with the right key.
    ReadWrite,
}

/// Where the other end of a reliable connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    /// Its queue pair, 24 bits,
    pub number: u32,
    /// and the sequence number of its first packet, 24 bits.
    pub psn: u32,
    /// Its port: LID on InfiniBand,
    pub lid: u16,
    /// and GID.
    pub gid: Gid,
    /// RDMA READs that it has under way at most.
    pub reads: u8,
}

/// What is negotiated or configured for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The local port,
    pub port: u8,
    /// its link,
    pub link: LinkLayer,
    /// and the entry of its GID table.
    pub gid_index: u8,
    /// Largest payload of a packet, bytes: 256, 512, 1024, 2048 or 4096.
    pub mtu: u16,
    /// Routers on the way at most.
    pub hop_limit: u8,
    /// RoCE: the DSCP and ECN bits of every packet. InfiniBand: the GRH's traffic class.
    pub traffic_class: u8,
    /// InfiniBand: the service level.
    pub service_level: u8,
    /// Time-out of an acknowledgement: 4.096 us times 2 to the power of this (1 to 31).
    pub timeout: u8,
    /// Retries after that many time-outs; at most 6, because 7 never ends on some devices.
    pub retries: u8,
    /// Retries while the peer has no receive posted.
    pub rnr_retries: u8,
    /// This end's RDMA READs under way.
    pub reads: u8,
}

/// Bytes of registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    /// Of the first one.
    pub address: u64,
    /// How many.
    pub len: u32,
    /// Their lkey.
    pub key: u32,
}

/// Bytes in the peer's registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Of the first one, in the peer's address space.
    pub address: u64,
    /// Their rkey.
    pub key: u32,
}

/// What a work request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// To the peer's next receive.
    Send,
    /// From here into the peer's memory.
    Write(Remote),
    /// From the peer's memory to here.
    Read(Remote),
}

/// A request for the send queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// Comes back in its completion; the highest bit is free.
    pub id: u64,
    /// What to do.
    pub op: Op,
    /// With what.
    pub local: Local,
    /// Makes a completion of its own. Without, only an error does.
    pub signalled: bool,
    /// The bytes are taken when it is posted; at most [`Endpoint::inline`].
    pub inline: bool,
}

/// A request for the receive queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receive {
    /// Comes back in its completion with [`RECEIVED`] set.
    pub id: u64,
    /// Where to.
    pub local: Local,
}

/// Bit of a completion's id: it is a receive's. Needed because a failed completion says nothing but its id and status.
pub const RECEIVED: u64 = 1 << 63;

/// Something ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Of the request, with [`RECEIVED`] for a receive.
    pub id: u64,
    /// Received bytes, or how it failed. Of a request of the send queue the number means nothing.
    pub result: Result<u32, CompletionError>,
}

/// Finds and opens devices.
pub trait Provider: Send + Sync {
    /// All devices of this machine.
    fn devices(&self) -> Result<Vec<DeviceInfo>, VerbsError>;
    /// One of them.
    fn open(&self, name: &str) -> Result<Arc<dyn Device>, VerbsError>;
}

/// An open device, with one protection domain.
pub trait Device: Send + Sync {
    /// What it is and how its ports are now. [`VerbsError::Lost`] if it has failed.
    fn info(&self) -> Result<DeviceInfo, VerbsError>;

    /// Whether it has failed for good and has to be opened again.
    fn lost(&self) -> bool;

    /// Registers memory, for the process's own work and, with a key, for its peers'.
    ///
    /// # Safety
    /// The memory stays mapped until the registration is dropped, and what is in it may change at any time by what peers do who were
    /// given the key.
    unsafe fn register(&self, address: usize, length: usize) -> Result<Box<dyn Registration>, VerbsError>;

    /// A queue pair of type RC in state RESET, with a completion queue and event channel of its own. Must be called within a tokio
    /// runtime.
    fn endpoint(&self, depths: Depths) -> Result<Box<dyn Endpoint>, VerbsError>;
}

/// A queue pair with its completion queue. Dropping it destroys both: when that has returned, the device neither reads nor writes any
/// memory on its behalf, and nothing that the peer sends to it reaches memory any more.
pub trait Endpoint: Send + Sync {
    /// Its number.
    fn number(&self) -> u32;
    /// Bytes that fit into a work request.
    fn inline(&self) -> usize;
    /// RESET to INIT. `pkey`: an entry of the port's partition table, 0 on Ethernet.
    fn init(&self, port: u8, pkey: u16, access: Access) -> Result<(), VerbsError>;
    /// INIT to RTR.
    fn ready_to_receive(&self, path: &Path, peer: &PeerAddress) -> Result<(), VerbsError>;
    /// RTR to RTS, `psn` being this end's first.
    fn ready_to_send(&self, path: &Path, psn: u32) -> Result<(), VerbsError>;
    /// Posts receives, in order.
    ///
    /// # Safety
    /// Their memory is registered and belongs to the device until their completions or the endpoint's end.
    unsafe fn post_receives(&self, receives: &[Receive]) -> Result<(), VerbsError>;

    /// Posts work, in order, with one doorbell.
    ///
    /// # Safety
    /// Its memory is registered and stays as it is (READ: belongs to the device) until its completion, a later one's, or the endpoint's
    /// end. Of inline work, until this returns.
    unsafe fn post(&self, works: &[Work]) -> Result<(), VerbsError>;

    /// Appends what has ended, at most so many. [`VerbsError::Lost`] once the device is lost: not all of them make completions of what
    /// was under way then.
    fn poll(&self, completions: &mut Vec<Completion>, at_most: usize) -> Result<(), VerbsError>;

    /// The next completion makes an event. One that came before this call may not: poll after it.
    fn arm(&self) -> Result<(), VerbsError>;

    /// Waits for an event; only the last caller's waker is kept. Consumes the events there are. [`VerbsError::Lost`] once the device is
    /// lost.
    fn poll_event(&self, context: &mut Context<'_>) -> Poll<Result<(), VerbsError>>;
}
