//! Values other than inodes.

use bytes::Bytes;
use catena_proto::pb;

/// What a name stands for. The type is repeated here so that listing a directory needs no inodes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dirent {
    /// The inode.
    #[prost(fixed64, tag = "1")]
    pub inode: u64,
    /// A `FileType`.
    #[prost(enumeration = "pb::FileType", tag = "2")]
    pub kind: i32,
}

/// A file that is open for writing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Session {
    /// The client process; when that is dead, so is the session.
    #[prost(fixed64, tag = "1")]
    pub client: u64,
    /// When it was opened, for people.
    #[prost(sfixed64, tag = "2")]
    pub opened: i64,
}

/// The recorded outcome of a mutating request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Outcome {
    /// The call's name: one request id names one call.
    #[prost(string, tag = "1")]
    pub call: String,
    /// The encoded reply.
    #[prost(bytes = "bytes", tag = "2")]
    pub reply: Bytes,
    /// Of a request that was refused: a `Status`; 0 if it was carried out.
    #[prost(uint32, tag = "3")]
    pub refused: u32,
    /// The refusal's words.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// A removed file whose chunks are to be removed. No session is left.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reclaim {
    /// Where its chunks are.
    #[prost(message, optional, tag = "1")]
    pub layout: Option<pb::Layout>,
    /// How many of the stripe's chains to look at.
    #[prost(uint32, tag = "2")]
    pub chains: u32,
    /// Its length, for the counter.
    #[prost(uint64, tag = "3")]
    pub length: u64,
}

/// A directory in the trash. What is below it hangs on its own entries.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TrashedDir {
    /// When it was removed, for people.
    #[prost(sfixed64, tag = "1")]
    pub removed: i64,
}

/// A cut that was decided and may not have reached all chunks. The inode already has its new length and epoch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TruncateIntent {
    /// The new length: everything behind it goes.
    #[prost(uint64, tag = "1")]
    pub length: u64,
    /// Who carries it out: random, one for each service start.
    #[prost(fixed64, tag = "2")]
    pub owner: u64,
    /// Grows while the owner is at work and when someone takes over.
    #[prost(uint64, tag = "3")]
    pub beat: u64,
    /// The request that wants it (16 bytes): its outcome is recorded when the cut is done.
    #[prost(bytes = "bytes", tag = "4")]
    pub request: Bytes,
    /// The request's call.
    #[prost(string, tag = "5")]
    pub call: String,
    /// How many of the stripe's chains to look at.
    #[prost(uint32, tag = "6")]
    pub chains: u32,
    /// How long the owner works after it wrote its name or beat, milliseconds. 0, from before this was written: 5,000.
    #[prost(uint32, tag = "7")]
    pub lease_ms: u32,
}
