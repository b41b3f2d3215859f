//! The store under a service's tests: in memory, or a real FoundationDB if the environment names one, so that the same tests show that
//! a service does not care. `ci/fdb` runs them so.

mod patient;
pub mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::{Database, MemDatabase, Prefixed, Subspace};
use catena_kv_fdb::FdbDatabase;

pub use patient::Patient;

/// Names FoundationDB's cluster file.
pub const CLUSTER_FILE: &str = "CATENA_TEST_FDB";
/// Names its client library, if the dynamic linker does not find it.
pub const LIBRARY: &str = "CATENA_TEST_FDB_LIBRARY";
/// What every key of a test begins with.
pub const PREFIX: &str = "catena-test/";

/// FoundationDB, if the environment names one.
pub fn foundationdb() -> Option<FdbDatabase> {
    let file = PathBuf::from(std::env::var_os(CLUSTER_FILE)?);
    let library = std::env::var_os(LIBRARY).map(PathBuf::from);
    // Longer than in production: a small machine runs server and tests.
    let database = FdbDatabase::open_with(&file, library.as_deref(), Duration::from_secs(30));
    Some(database.unwrap_or_else(|error| panic!("{CLUSTER_FILE}: {error}")))
}

/// An empty store that nobody else has.
pub fn database() -> Arc<dyn Database> {
    match foundationdb() {
        None => Arc::new(MemDatabase::new()),
        Some(fdb) => {
            let space = Subspace::new(format!("{PREFIX}{:016x}/", rand::random::<u64>()));
            Arc::new(Patient::new(Arc::new(Prefixed::new(Arc::new(fdb), space))))
        }
    }
}

/// Whether [`database`] is a real one.
pub fn is_foundationdb() -> bool {
    std::env::var_os(CLUSTER_FILE).is_some()
}

/// How many rounds of `rounds` to do: a real store takes a hundred times as long for each.
pub fn rounds(rounds: u64) -> u64 {
    if is_foundationdb() { rounds.div_ceil(20) } else { rounds }
}
