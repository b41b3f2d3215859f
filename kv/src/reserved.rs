//! Keys of the tools that look after a store. They stand beside those of mgmtd and meta, which never write them.

use crate::{Isolation, KvError, Tx};

/// Present from the first to the last transaction of a restore; its value is the run's own. What else the store holds is then
/// neither the old state nor the new one, so mgmtd and meta refuse it.
pub const RESTORE_MARKER: &[u8] = b"RSTR";
/// Written and removed again to see whether the store takes writes. One that was left behind means nothing.
pub const PROBE: &[u8] = b"PROB";

/// What a service says of a store with the marker.
pub const RESTORE_UNFINISHED: &str =
    "a restore into it did not finish: run `catena admin kv restore` again, with --replace";

/// Whether a restore was begun and not finished. The transaction conflicts with a restore that begins meanwhile.
pub async fn restore_unfinished(tx: &Tx) -> Result<bool, KvError> {
    Ok(tx.get(RESTORE_MARKER, Isolation::Serializable).await?.is_some())
}
