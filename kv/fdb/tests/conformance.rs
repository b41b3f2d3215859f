//! A real FoundationDB against the conformance suite.

use std::sync::Arc;

use catena_kv::conformance::Backend;

fn backend() -> Backend {
    let fdb = catena_kv_testing::foundationdb().expect("CATENA_TEST_FDB names no cluster file; run ci/fdb");
    Backend { database: Arc::new(fdb), virtual_time: false, keep: Box::new(()) }
}

catena_kv::conformance_suite!(backend);
