//! The ten bytes that order committed transactions.

use std::fmt;

/// Length of a [`Versionstamp`], in bytes.
pub const VERSIONSTAMP_LEN: usize = 10;

/// Commit version (8 bytes, big-endian) and order within that version (2 bytes, big-endian): greater for every later commit, as
/// bytes too, also across restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versionstamp(pub [u8; VERSIONSTAMP_LEN]);

impl Versionstamp {
    /// The stamp of the `order`th transaction in commit version `version`.
    pub fn new(version: u64, order: u16) -> Versionstamp {
        let mut bytes = [0; VERSIONSTAMP_LEN];
        bytes[..8].copy_from_slice(&version.to_be_bytes());
        bytes[8..].copy_from_slice(&order.to_be_bytes());
        Versionstamp(bytes)
    }

    /// The commit version: comparable with [`Transaction::read_version`](crate::Transaction::read_version).
    pub fn version(&self) -> u64 {
        let mut version = [0; 8];
        version.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(version)
    }

    /// The order within the commit version.
    pub fn order(&self) -> u16 {
        u16::from_be_bytes([self.0[8], self.0[9]])
    }

    /// The bytes, as they are put into keys and values.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Versionstamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.version(), self.order())
    }
}
