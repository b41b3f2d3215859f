//! What a primary knows of a service by hearing from it. None of it is recorded: a heartbeat that says nothing new writes nothing.

use std::collections::BTreeMap;

use catena_proto::clock::Monotonic;
use catena_proto::ids::{ChainVersion, Incarnation, TargetId};
use catena_proto::pb;
use catena_proto::routing::LocalState;

/// A service as last heard of.
#[derive(Clone, Debug)]
pub struct Presence {
    /// When this primary last heard from it.
    pub heard: Option<Monotonic>,
    /// When its lease runs out, on this mgmtd's clock: T after its last heartbeat arrived. The service itself counts T/2 from when it
    /// sent it, so it has always stopped long before.
    pub until: Monotonic,
    /// The newest heartbeat's number.
    pub sequence: u64,
    /// What it said of its targets.
    pub reports: BTreeMap<TargetId, TargetNews>,
    /// Its disks, with the newest figures.
    pub disks: Vec<pb::Disk>,
    /// A later start of the service that has shown to have its disks (so this one is gone), and is not let in before all targets are
    /// out of their chains.
    pub successor: Option<Incarnation>,
}

/// What a service last said of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetNews {
    /// Its state.
    pub local: LocalState,
    /// The chain version that it had adopted when it said so.
    pub known: ChainVersion,
    /// The session it is about.
    pub joined_at: ChainVersion,
    /// Bytes.
    pub used: u64,
    /// Chunks.
    pub chunks: u64,
}

impl Presence {
    /// Never heard from by this primary, and not failed before `until`.
    pub fn granted(until: Monotonic) -> Presence {
        Presence {
            heard: None,
            until,
            sequence: 0,
            reports: BTreeMap::new(),
            disks: Vec::new(),
            successor: None,
        }
    }
}
