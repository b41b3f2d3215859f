//! Which of a cluster's records belong into a store.

use bytes::Bytes;
use catena_kv::reserved::{PROBE, RESTORE_MARKER};
use catena_kv::{USER_KEY_END, prefix_end};

/// What mgmtd's keys begin with. All others are meta's.
const MGMTD: &[u8] = b"MGMT";

/// The records that a store is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// One store for everything.
    All,
    /// A store of mgmtd alone.
    Mgmtd,
    /// A store of meta alone.
    Meta,
}

impl Keys {
    /// Whether a record with this key belongs into it.
    pub fn holds(self, key: &[u8]) -> bool {
        match self {
            Keys::All => true,
            Keys::Mgmtd => key.starts_with(MGMTD),
            Keys::Meta => !key.starts_with(MGMTD),
        }
    }

    /// The ranges of keys that do not belong into it.
    pub(crate) fn outside(self) -> Vec<(Bytes, Bytes)> {
        let mgmtd = (Bytes::from_static(MGMTD), prefix_end(MGMTD));
        match self {
            Keys::All => vec![],
            Keys::Meta => vec![mgmtd],
            Keys::Mgmtd => vec![(Bytes::new(), mgmtd.0), (mgmtd.1, Bytes::from_static(USER_KEY_END))],
        }
    }
}

/// Whether a key is one of the tools' own, which no file has.
pub(crate) fn of_tools(key: &[u8]) -> bool {
    key == RESTORE_MARKER || key == PROBE
}
