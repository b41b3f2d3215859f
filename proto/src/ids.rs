//! Identities. Every identity is a type of its own, so that a chain cannot be passed where a target is meant.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A process that takes part in the cluster: a storage, meta or mgmtd service. Chosen by the operator, unique in a cluster, never 0.
    NodeId(u32), "n"
);
id!(
    /// A replica's home on a disk. Assigned by mgmtd when a chain table is created, never reused, never 0.
    TargetId(u64), "t"
);
id!(
    /// An ordered group of targets that hold the same chunks. Never 0.
    ChainId(u32), "c"
);
id!(
    /// A chain table: the list of chains that a layout indexes. Never 0.
    TableId(u32), "table"
);
id!(
    /// Grows with every change of a chain's members or their states. 0 is "before the first".
    ChainVersion(u64), "cv"
);
id!(
    /// Position of a write in a chunk's history, contiguous from 1; 0 is "never written".
    ChunkVersion(u64), "v"
);
id!(
    /// The version of the routing information as a whole.
    RoutingVersion(u64), "r"
);
id!(
    /// An inode; also the first half of a [`ChunkId`].
    InodeId(u64), "i"
);
id!(
    /// One client process's session, random 64 bits; the key of exactly-once tags. 0 is "no tag".
    ClientId(u64), "client"
);
id!(
    /// A client's sequence space. At most one write of a channel is in flight at any time.
    ChannelId(u32), "ch"
);
id!(
    /// A write's number within its channel, from 1, growing.
    Sequence(u64), "s"
);
id!(
    /// One start of one service: random, never the same twice.
    Incarnation(u64), "inc"
);

macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            /// 32 hexadecimal digits; dashes are ignored.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(&text.replace('-', ""), 16).map(Self)
            }
        }
    };
}

wide_id!(
    /// A cluster, random, made when it is initialised. Every message's connection names it.
    ClusterId
);
wide_id!(
    /// A disk, random, made when it is formatted and kept in its superblock: an exchanged disk has another.
    DiskId
);
wide_id!(
    /// A client's mutating metadata request, random: the key of its idempotency record.
    RequestId
);

/// A chunk: the `index`-th piece of an inode's contents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ChunkId {
    /// The file.
    pub inode: InodeId,
    /// Position in the file, in chunks.
    pub index: u32,
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.inode.0, self.index)
    }
}
impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.inode.0, self.index)
    }
}

/// The identity of one version of one chunk: the chain version in which the head assigned it, and its number (rule R2).
///
/// Ordered by number first: within one unbroken history numbers alone decide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VersionId {
    /// The chunk version.
    pub version: ChunkVersion,
    /// The chain version at assignment, forwarded unchanged.
    pub assigned: ChainVersion,
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.version, self.assigned)
    }
}

/// What makes a client write unique (rule R21). `client == 0` means untagged: only for tests and resync bases.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Tag {
    /// The writing client.
    pub client: ClientId,
    /// Its channel.
    pub channel: ChannelId,
    /// The write's number in that channel.
    pub sequence: Sequence,
}
