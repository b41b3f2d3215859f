//! A cluster's state out of its key-value stores into one file, and from a file into stores: from any backend to any backend.
//!
//! - [`backup`] writes everything that a store holds, as of one version of it.
//! - [`Archive`] is such a file, checked from its first to its last byte.
//! - [`restore`] fills empty stores from one. A marker ([`catena_kv::reserved`]) stands in them until all of it is there, so that no
//!   service starts on a half of it.
//! - [`census`] counts what a store holds, within a time.
//! - `format.rs` and `docs/format-backup.md` have the file's bytes.
//!
//! Nothing here knows what the records mean, but which of them are mgmtd's ([`Keys`]): mgmtd and meta may have a store each.

mod archive;
mod backup;
mod census;
pub mod format;
mod keys;
mod progress;
mod read;
mod restore;
mod scan;
mod tally;
mod write;

pub use archive::{Archive, ArchiveError};
pub use backup::{BackupError, BackupOptions, BackupReport, Source, backup};
pub use census::{Census, census};
pub use format::{Flaw, Header};
pub use keys::Keys;
pub use progress::{Phase, Progress, Tell};
pub use read::{ReadError, Reader};
pub use restore::{RestoreError, RestoreOptions, Target, restore};
pub use tally::{Count, Kind, Tally};
pub use write::Writer;
