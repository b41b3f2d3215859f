//! The kit of which the backends within one process are built. A backend brings a [`Store`]: consistent views of committed data and a
//! way to commit; everything that makes it FoundationDB's semantics is here and the same for all.
//!
//! ```text
//! LocalTransaction ── reads ──> Buffer: Overlay (own writes) over a View (one committed version)
//!        │
//!        └─ commit ─> Store::commit ─> Group::add: ConflictWindow check, then mutations in order ─> effects to write
//! ```

mod buffer;
mod group;
mod overlay;
mod spans;
mod transaction;
mod window;

use std::ops::ControlFlow;

use bytes::Bytes;

pub use buffer::{Buffer, ReadAt};
pub use group::{Commit, Effects, Group, Mutation, stamped_range};
pub use spans::{Span, Spans};
pub use transaction::LocalTransaction;
pub use window::ConflictWindow;

use crate::{BoxFuture, KvError, Versionstamp};

/// One committed version of the whole database, readable for as long as it is held.
pub trait View: Send + Sync + 'static {
    /// The version. It contains every commit up to it and none after it.
    fn version(&self) -> u64;

    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Hands the items of `begin..end` to `visit`, in order or backwards, until it breaks.
    fn scan(&self, begin: &Bytes, end: &Bytes, reverse: bool, visit: &mut Visit<'_>) -> Result<(), KvError>;
}

/// Receives the items of a [`View::scan`].
pub type Visit<'a> = dyn FnMut(Bytes, Bytes) -> ControlFlow<()> + 'a;

/// What a backend brings.
pub trait Store: Send + Sync + 'static {
    /// Its views.
    type View: View;

    /// The newest committed version. Everything acknowledged before this call is in it.
    fn view(&self) -> Result<Self::View, KvError>;

    /// Commits; see [`Group`]. Called once for each transaction that has something to commit.
    fn commit(&self, commit: Commit) -> BoxFuture<'static, Result<Versionstamp, KvError>>;
}

impl<V: View> View for std::sync::Arc<V> {
    fn version(&self) -> u64 {
        (**self).version()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        (**self).get(key)
    }

    fn scan(&self, begin: &Bytes, end: &Bytes, reverse: bool, visit: &mut Visit<'_>) -> Result<(), KvError> {
        (**self).scan(begin, end, reverse, visit)
    }
}
