//! Everything in memory, nothing durable, deterministic: for the simulator and unit tests.

use crate::{Database, KvError, Tx, TxOptions};

/// A database in memory. Its operations complete at once (no await inside), so a single-threaded run with given seeds always
/// repeats. Clones share the data.
#[derive(Clone, Debug, Default)]
pub struct MemDatabase {}

impl MemDatabase {
    /// An empty database.
    pub fn new() -> MemDatabase {
        MemDatabase::default()
    }
}

impl Database for MemDatabase {
    fn begin(&self, _options: TxOptions) -> Result<Tx, KvError> {
        Err(KvError::Unavailable("not built yet".into()))
    }
}
