//! The memory backend against the conformance suite.

use std::sync::Arc;

use catena_kv::MemDatabase;
use catena_kv::conformance::Backend;

fn backend() -> Backend {
    Backend { database: Arc::new(MemDatabase::new()), virtual_time: true, keep: Box::new(()) }
}

catena_kv::conformance_suite!(backend);
