//! The two traits.

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::KvError;
use crate::mutation::{AtomicOp, Versionstamped};

/// Ten bytes that order all commits: the commit version (8, big-endian) and the place within its batch (2, big-endian).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Versionstamp(pub [u8; 10]);

impl Versionstamp {
    /// From its parts.
    pub fn new(version: u64, place: u16) -> Versionstamp {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&version.to_be_bytes());
        bytes[8..].copy_from_slice(&place.to_be_bytes());
        Versionstamp(bytes)
    }
    /// The commit version.
    pub fn version(&self) -> u64 {
        self.0[..8].iter().fold(0, |version, &byte| version << 8 | u64::from(byte))
    }
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// A range to read: `begin <= key < end`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeRead {
    /// First key.
    pub begin: Bytes,
    /// First key that is not read.
    pub end: Bytes,
    /// Most items to return; 0 means as many as one batch holds.
    pub limit: usize,
    /// Stop behind the item that reaches so many bytes of keys and values; 0 means the backend's batch size.
    pub target_bytes: usize,
    /// From the end downwards.
    pub reverse: bool,
    /// Without conflict detection.
    pub snapshot: bool,
}

impl RangeRead {
    /// A whole range, forward, with conflict detection.
    pub fn new(begin: impl Into<Bytes>, end: impl Into<Bytes>) -> RangeRead {
        let (begin, end) = (begin.into(), end.into());
        RangeRead { begin, end, limit: 0, target_bytes: 0, reverse: false, snapshot: false }
    }
    /// At most so many items.
    pub fn limit(self, limit: usize) -> RangeRead {
        RangeRead { limit, ..self }
    }
    /// From the end downwards.
    pub fn reverse(self) -> RangeRead {
        RangeRead { reverse: true, ..self }
    }
    /// Without conflict detection.
    pub fn snapshot(self) -> RangeRead {
        RangeRead { snapshot: true, ..self }
    }
    /// What is left of it behind `last`, the last key that was returned.
    pub fn after(self, last: &[u8]) -> RangeRead {
        match self.reverse {
            true => RangeRead { end: Bytes::copy_from_slice(last), ..self },
            false => RangeRead { begin: crate::successor(last), ..self },
        }
    }
}

/// A batch of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeResult {
    /// In the order asked for.
    pub items: Vec<KeyValue>,
    /// The range may have more behind the last item: go on with [`RangeRead::after`].
    pub more: bool,
}

/// A database.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// Begins a transaction at the newest durable version.
    async fn begin(&self) -> Result<Box<dyn Transaction>, KvError>;
}

/// A transaction: reads one version, sees its own writes, commits all or nothing. Dropping it is cancelling it.
///
/// Mutations are buffered and never fail by themselves; [`Transaction::commit`] reports a limit that they exceeded.
#[async_trait]
pub trait Transaction: Send {
    /// The version that it reads.
    async fn read_version(&mut self) -> Result<u64, KvError>;
    /// One key. `snapshot`: another transaction's write to it is no conflict.
    async fn get(&mut self, key: &[u8], snapshot: bool) -> Result<Option<Bytes>, KvError>;
    /// A batch of a range.
    async fn get_range(&mut self, range: RangeRead) -> Result<RangeResult, KvError>;
    /// Writes a key.
    fn set(&mut self, key: &[u8], value: &[u8]);
    /// Removes a key.
    fn clear(&mut self, key: &[u8]);
    /// Removes `begin <= key < end`.
    fn clear_range(&mut self, begin: &[u8], end: &[u8]);
    /// Changes a value as of the commit, without reading it.
    fn atomic(&mut self, key: &[u8], operand: &[u8], op: AtomicOp);
    /// Writes a key or value in which the commit's versionstamp is filled in.
    fn set_versionstamped(&mut self, write: Versionstamped);
    /// Conflicts as if the range had been read.
    fn add_read_conflict(&mut self, begin: &[u8], end: &[u8]);
    /// Conflicts as if the range had been written.
    fn add_write_conflict(&mut self, begin: &[u8], end: &[u8]);
    /// Bytes so far, as the limit counts them.
    fn size(&self) -> usize;
    /// Commits durably. A read-only transaction commits without a trip, with the versionstamp of its read version.
    async fn commit(self: Box<Self>) -> Result<Versionstamp, KvError>;
}
