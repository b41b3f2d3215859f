//! What a read has fetched of its version so far, as a view to put own writes over.

use std::ops::ControlFlow;

use bytes::Bytes;
use catena_kv::local::{View, Visit};
use catena_kv::{KeyValue, KvError};

/// A part of one version: one key's value, or the items of a range from its beginning on, in reading order.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    pub(crate) value: Option<Bytes>,
    pub(crate) items: Vec<KeyValue>,
}

/// Asked only for what was fetched: see [`Buffer::depends_on`](catena_kv::local::Buffer::depends_on) and
/// [`Buffer::unknown`](catena_kv::local::Buffer::unknown).
impl View for Fetched {
    fn version(&self) -> u64 {
        0 // Not asked for: the transaction knows it.
    }

    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.value.clone())
    }

    fn scan(&self, begin: &Bytes, end: &Bytes, reverse: bool, visit: &mut Visit<'_>) -> Result<(), KvError> {
        let from = match reverse {
            true => self.items.partition_point(|item| item.key >= *end),
            false => self.items.partition_point(|item| item.key < *begin),
        };
        for item in &self.items[from..] {
            let inside = if reverse { item.key >= *begin } else { item.key < *end };
            if !inside || visit(item.key.clone(), item.value.clone()) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}
