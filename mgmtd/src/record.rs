//! What mgmtd keeps in the key-value store: keys, and values with a format byte in front.
//!
//! ```text
//! MGMT C                              the cluster that the store belongs to
//! MGMT L                              the primary's lease; every transaction that changes anything reads it
//! MGMT M <node u32>                   a mgmtd that runs, primary or stand-by
//! MGMT V                              routing version, u64 big-endian
//! MGMT I                              the next target and chain id; ids are never used again
//! MGMT N <node u32>                   a service as last registered
//! MGMT D <disk u128>                  a disk: which node has it, since when it is known
//! MGMT T <target u64>                 a target
//! MGMT H <chain u32>                  a chain
//! MGMT B <table u32> <version u32> <part u32>   a chain table, in parts of 16384 chains
//! MGMT R <request u128>               the table that a CreateTable request made
//! MGMT S <client u64>                 a client's session
//! ```
//! Numbers in keys are big-endian. A value is one format byte (1) and a protobuf message, so fields can be added.

use bytes::Bytes;
use catena_proto::ids::{ChainId, ClientId, DiskId, NodeId, TableId, TargetId};
use prost::Message;

/// Everything begins with this.
pub const PREFIX: &[u8] = b"MGMT";
/// Format of values.
const FORMAT: u8 = 1;
/// Chains in one part of a table: 16384 varints stay below the store's 100 kB.
pub const TABLE_PART: usize = 16_384;

/// The cluster that a store belongs to.
#[derive(Clone, PartialEq, Message)]
pub struct ClusterRecord {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
}

/// Who is primary. It renews the record regularly; a challenger takes over when it has stood unchanged for the lease time on the
/// challenger's own clock, or at once when it was given up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeaseRecord {
    /// The primary's node id.
    #[prost(uint32, tag = "1")]
    pub holder: u32,
    /// The start of that process.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Goes up by one with every primary.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// Goes up with every renewal within a term.
    #[prost(uint64, tag = "4")]
    pub beat: u64,
    /// Where to send those who ask a stand-by.
    #[prost(string, tag = "5")]
    pub address: String,
    /// The lease time T by which the holder acts, milliseconds: a challenger with a shorter one waits as long all the same.
    #[prost(uint64, tag = "6")]
    pub lease_ms: u64,
    /// The lease that the holder gives to clients' sessions, milliseconds.
    #[prost(uint64, tag = "7")]
    pub client_lease_ms: u64,
    /// The holder has stopped cleanly and answers nothing any more.
    #[prost(bool, tag = "8")]
    pub released: bool,
}

/// A mgmtd that runs. Each writes its own, the primary shows them to everyone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MemberRecord {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// This start of it.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Goes up while it runs.
    #[prost(uint64, tag = "3")]
    pub beat: u64,
    /// gRPC, host:port.
    #[prost(string, tag = "4")]
    pub address: String,
    /// HTTP, host:port.
    #[prost(string, tag = "5")]
    pub metrics: String,
    /// For people.
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

/// The next ids.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct IdsRecord {
    /// Next target.
    #[prost(uint64, tag = "1")]
    pub target: u64,
    /// Next chain.
    #[prost(uint32, tag = "2")]
    pub chain: u32,
}

/// A disk that was seen.
#[derive(Clone, PartialEq, Message)]
pub struct DiskRecord {
    /// The node that has it.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The start of that node in which it was first seen.
    #[prost(uint64, tag = "2")]
    pub first_incarnation: u64,
    /// Where it is mounted.
    #[prost(string, tag = "3")]
    pub path: String,
}

/// The table that a request made.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct RequestRecord {
    /// The table.
    #[prost(uint32, tag = "1")]
    pub table: u32,
    /// Its version.
    #[prost(uint32, tag = "2")]
    pub version: u32,
    /// What was reported about it.
    #[prost(double, tag = "3")]
    pub recovery_balance: f64,
}

/// A client's session.
#[derive(Clone, PartialEq, Message)]
pub struct SessionRecord {
    /// For people.
    #[prost(string, tag = "1")]
    pub description: String,
}

/// A value that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "record {key} of the mgmtd store cannot be read ({what}); it may have been written by a newer release"
)]
pub struct BadRecord {
    /// The key, escaped.
    pub key: String,
    /// What is wrong.
    pub what: String,
}

/// A value for the store.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + message.encoded_len());
    value.push(FORMAT);
    message.encode(&mut value).expect("a Vec grows as needed");
    value
}

/// A value from the store.
pub fn decode<M: Message + Default>(key: &[u8], value: &Bytes) -> Result<M, BadRecord> {
    let bad = |what: String| BadRecord { key: key.escape_ascii().to_string(), what };
    match value.first() {
        Some(&FORMAT) => M::decode(value.slice(1..)).map_err(|error| bad(error.to_string())),
        Some(format) => Err(bad(format!("format {format}, expected {FORMAT}"))),
        None => Err(bad("empty".into())),
    }
}

fn key<const N: usize>(kind: u8, id: [u8; N]) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX.len() + 1 + N);
    key.extend_from_slice(PREFIX);
    key.push(kind);
    key.extend_from_slice(&id);
    key
}

#[allow(missing_docs)] // the module's table says what they are
pub mod keys {
    use super::*;

    pub fn cluster() -> Vec<u8> {
        key(b'C', [])
    }
    pub fn lease() -> Vec<u8> {
        key(b'L', [])
    }
    pub fn members() -> Vec<u8> {
        key(b'M', [])
    }
    pub fn member(id: NodeId) -> Vec<u8> {
        key(b'M', id.0.to_be_bytes())
    }
    pub fn version() -> Vec<u8> {
        key(b'V', [])
    }
    pub fn ids() -> Vec<u8> {
        key(b'I', [])
    }
    pub fn node(id: NodeId) -> Vec<u8> {
        key(b'N', id.0.to_be_bytes())
    }
    pub fn disk(id: DiskId) -> Vec<u8> {
        key(b'D', id.0.to_be_bytes())
    }
    pub fn target(id: TargetId) -> Vec<u8> {
        key(b'T', id.0.to_be_bytes())
    }
    pub fn chain(id: ChainId) -> Vec<u8> {
        key(b'H', id.0.to_be_bytes())
    }
    pub fn table(id: TableId, version: u32, part: u32) -> Vec<u8> {
        let mut tail = [0; 12];
        tail[..4].copy_from_slice(&id.0.to_be_bytes());
        tail[4..8].copy_from_slice(&version.to_be_bytes());
        tail[8..].copy_from_slice(&part.to_be_bytes());
        key(b'B', tail)
    }
    pub fn request(id: u128) -> Vec<u8> {
        key(b'R', id.to_be_bytes())
    }
    pub fn session(id: ClientId) -> Vec<u8> {
        key(b'S', id.0.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_format_and_refuse_another() {
        let record = LeaseRecord { holder: 3, incarnation: 9, term: 2, ..Default::default() };
        let value = Bytes::from(encode(&record));
        assert_eq!(decode::<LeaseRecord>(b"k", &value), Ok(record));
        let mut newer = value.to_vec();
        newer[0] = 2;
        let error = decode::<LeaseRecord>(&keys::lease(), &newer.into()).unwrap_err();
        assert!(
            error.to_string().contains("record MGMTL") && error.to_string().contains("format 2"),
            "{error}"
        );
        assert!(decode::<LeaseRecord>(b"k", &Bytes::new()).is_err());
    }

    #[test]
    fn keys_order_as_numbers() {
        assert!(keys::target(TargetId(255)) < keys::target(TargetId(256)));
        assert!(keys::table(TableId(1), 1, 9) < keys::table(TableId(1), 2, 0));
    }
}
