//! The embedded backend against the conformance suite.

mod common;

use std::sync::Arc;

use catena_kv::conformance::Backend;
use catena_kv_embedded::{EmbeddedDatabase, Options};

fn backend() -> Backend {
    let directory = common::directory();
    let database = EmbeddedDatabase::open(directory.path(), Options::default()).expect("a new store");
    Backend { database: Arc::new(database), virtual_time: true, keep: Box::new(directory) }
}

catena_kv::conformance_suite!(backend);
