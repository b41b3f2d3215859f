//! A committed version of the store, as a fjall snapshot.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use catena_kv::KvError;
use catena_kv::local::{View, Visit};
use fjall::{Keyspace, Readable, Snapshot};

/// A committed version, readable for as long as it is held: a fjall snapshot and the version it is of.
pub struct FjallView {
    pub(crate) version: u64,
    pub(crate) snapshot: Snapshot,
    pub(crate) keyspace: Keyspace,
}

/// What fjall reports, in words.
pub(crate) fn storage_error(error: &fjall::Error) -> KvError {
    KvError::Storage(match error {
        fjall::Error::Io(error) => error.to_string(),
        other => format!("{other:?}"),
    })
}

impl View for FjallView {
    fn version(&self) -> u64 {
        self.version
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let value = self.snapshot.get(&self.keyspace, key).map_err(|error| storage_error(&error))?;
        Ok(value.map(Bytes::from))
    }

    fn scan(&self, begin: &Bytes, end: &Bytes, reverse: bool, visit: &mut Visit<'_>) -> Result<(), KvError> {
        if begin >= end {
            return Ok(());
        }
        let bounds = (Bound::Included(&begin[..]), Bound::Excluded(&end[..]));
        let mut items = self.snapshot.range::<&[u8], _>(&self.keyspace, bounds);
        while let Some(item) = if reverse { items.next_back() } else { items.next() } {
            let (key, value) = item.into_inner().map_err(|error| storage_error(&error))?;
            if let ControlFlow::Break(()) = visit(key.into(), value.into()) {
                break;
            }
        }
        Ok(())
    }
}
