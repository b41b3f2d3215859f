//! The C functions of FoundationDB's client library (`fdb_c.h`, API version 730), loaded at run time by [`load`], under the names and with
//! the signatures that the `foundationdb` crate expects of `foundationdb-sys`.
//!
//! A program that is linked against this starts on any machine. Whoever wants FoundationDB calls [`load`] first; a function that is
//! called without that aborts the process, because there is nothing that it could mean.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, unsafe_code, missing_docs)]

mod library;
mod options;
mod versions;

use std::os::raw::{c_char, c_double, c_int, c_void};

pub use library::{LoadError, load};
pub use options::*;

/// The API version whose signatures these are.
pub const FDB_API_VERSION: u32 = 730;

pub type fdb_error_t = c_int;
pub type fdb_bool_t = c_int;
pub type FDBNetworkOption = u32;
pub type FDBDatabaseOption = u32;
pub type FDBTransactionOption = u32;
pub type FDBStreamingMode = i32;
pub type FDBMutationType = u32;
pub type FDBConflictRangeType = u32;
pub type FDBErrorPredicate = u32;

macro_rules! opaque {
    ($($name:ident)*) => {
        $(#[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            private: [u8; 0],
        })*
    };
}
opaque! { FDB_future FDB_cluster FDB_database FDB_tenant FDB_transaction }
pub type FDBFuture = FDB_future;
pub type FDBCluster = FDB_cluster;
pub type FDBDatabase = FDB_database;
pub type FDBTenant = FDB_tenant;
pub type FDBTransaction = FDB_transaction;

pub type FDBCallback = Option<unsafe extern "C" fn(future: *mut FDBFuture, callback_parameter: *mut c_void)>;

// The header packs these to 4 bytes.
#[repr(C, packed(4))]
#[derive(Debug, Clone, Copy)]
pub struct FDBKey {
    pub key: *const u8,
    pub key_length: c_int,
}

#[repr(C, packed(4))]
#[derive(Debug, Clone, Copy)]
pub struct FDBKeyValue {
    pub key: *const u8,
    pub key_length: c_int,
    pub value: *const u8,
    pub value_length: c_int,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FDBKeySelector {
    pub key: FDBKey,
    pub orEqual: fdb_bool_t,
    pub offset: c_int,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FDBGetRangeReqAndResult {
    pub begin: FDBKeySelector,
    pub end: FDBKeySelector,
    pub data: *mut FDBKeyValue,
    pub m_size: c_int,
    pub m_capacity: c_int,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FDBMappedKeyValue {
    pub key: FDBKey,
    pub value: FDBKey,
    pub getRange: FDBGetRangeReqAndResult,
    pub buffer: [u8; 32],
}

library::declare! {
    fn fdb_get_error(code: fdb_error_t) -> *const c_char;
    fn fdb_error_predicate(predicate_test: c_int, code: fdb_error_t) -> fdb_bool_t;
    fn fdb_get_max_api_version() -> c_int;
    fn fdb_get_client_version() -> *const c_char;
    fn fdb_select_api_version_impl(runtime_version: c_int, header_version: c_int) -> fdb_error_t;

    fn fdb_network_set_option(option: FDBNetworkOption, value: *const u8, value_length: c_int) -> fdb_error_t;
    fn fdb_setup_network() -> fdb_error_t;
    fn fdb_run_network() -> fdb_error_t;
    fn fdb_stop_network() -> fdb_error_t;

    fn fdb_future_destroy(f: *mut FDBFuture);
    fn fdb_future_is_ready(f: *mut FDBFuture) -> fdb_bool_t;
    fn fdb_future_set_callback(f: *mut FDBFuture, callback: FDBCallback, callback_parameter: *mut c_void) -> fdb_error_t;
    fn fdb_future_get_error(f: *mut FDBFuture) -> fdb_error_t;
    fn fdb_future_get_int64(f: *mut FDBFuture, out: *mut i64) -> fdb_error_t;
    fn fdb_future_get_key(f: *mut FDBFuture, out_key: *mut *const u8, out_key_length: *mut c_int) -> fdb_error_t;
    fn fdb_future_get_value(f: *mut FDBFuture, out_present: *mut fdb_bool_t, out_value: *mut *const u8, out_value_length: *mut c_int) -> fdb_error_t;
    fn fdb_future_get_keyvalue_array(f: *mut FDBFuture, out_kv: *mut *const FDBKeyValue, out_count: *mut c_int, out_more: *mut fdb_bool_t) -> fdb_error_t;
    fn fdb_future_get_mappedkeyvalue_array(f: *mut FDBFuture, out_kv: *mut *const FDBMappedKeyValue, out_count: *mut c_int, out_more: *mut fdb_bool_t) -> fdb_error_t;
    fn fdb_future_get_key_array(f: *mut FDBFuture, out_key_array: *mut *const FDBKey, out_count: *mut c_int) -> fdb_error_t;
    fn fdb_future_get_string_array(f: *mut FDBFuture, out_strings: *mut *mut *const c_char, out_count: *mut c_int) -> fdb_error_t;

    fn fdb_create_database(cluster_file_path: *const c_char, out_database: *mut *mut FDBDatabase) -> fdb_error_t;
    fn fdb_database_destroy(d: *mut FDBDatabase);
    fn fdb_database_set_option(d: *mut FDBDatabase, option: FDBDatabaseOption, value: *const u8, value_length: c_int) -> fdb_error_t;
    fn fdb_database_create_transaction(d: *mut FDBDatabase, out_transaction: *mut *mut FDBTransaction) -> fdb_error_t;
    fn fdb_database_get_main_thread_busyness(d: *mut FDBDatabase) -> c_double;
    fn fdb_database_get_client_status(d: *mut FDBDatabase) -> *mut FDBFuture;

    fn fdb_transaction_destroy(tr: *mut FDBTransaction);
    fn fdb_transaction_cancel(tr: *mut FDBTransaction);
    fn fdb_transaction_reset(tr: *mut FDBTransaction);
    fn fdb_transaction_set_option(tr: *mut FDBTransaction, option: FDBTransactionOption, value: *const u8, value_length: c_int) -> fdb_error_t;
    fn fdb_transaction_set_read_version(tr: *mut FDBTransaction, version: i64);
    fn fdb_transaction_get_read_version(tr: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_get(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, snapshot: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_get_key(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, or_equal: fdb_bool_t, offset: c_int, snapshot: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_get_addresses_for_key(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int) -> *mut FDBFuture;
    fn fdb_transaction_get_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, begin_or_equal: fdb_bool_t, begin_offset: c_int, end_key_name: *const u8, end_key_name_length: c_int, end_or_equal: fdb_bool_t, end_offset: c_int, limit: c_int, target_bytes: c_int, mode: FDBStreamingMode, iteration: c_int, snapshot: fdb_bool_t, reverse: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_get_mapped_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, begin_or_equal: fdb_bool_t, begin_offset: c_int, end_key_name: *const u8, end_key_name_length: c_int, end_or_equal: fdb_bool_t, end_offset: c_int, mapper_name: *const u8, mapper_name_length: c_int, limit: c_int, target_bytes: c_int, mode: FDBStreamingMode, iteration: c_int, snapshot: fdb_bool_t, reverse: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_set(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, value: *const u8, value_length: c_int);
    fn fdb_transaction_atomic_op(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int, param: *const u8, param_length: c_int, operation_type: FDBMutationType);
    fn fdb_transaction_clear(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int);
    fn fdb_transaction_clear_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int);
    fn fdb_transaction_watch(tr: *mut FDBTransaction, key_name: *const u8, key_name_length: c_int) -> *mut FDBFuture;
    fn fdb_transaction_commit(tr: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_get_committed_version(tr: *mut FDBTransaction, out_version: *mut i64) -> fdb_error_t;
    fn fdb_transaction_get_approximate_size(tr: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_get_versionstamp(tr: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_on_error(tr: *mut FDBTransaction, code: fdb_error_t) -> *mut FDBFuture;
    fn fdb_transaction_add_conflict_range(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int, conflict_type: FDBConflictRangeType) -> fdb_error_t;
    fn fdb_transaction_get_estimated_range_size_bytes(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int) -> *mut FDBFuture;
    fn fdb_transaction_get_range_split_points(tr: *mut FDBTransaction, begin_key_name: *const u8, begin_key_name_length: c_int, end_key_name: *const u8, end_key_name_length: c_int, chunk_size: i64) -> *mut FDBFuture;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `fdb_c.h` says of their memory.
    #[test]
    fn records_have_the_library_s_layout() {
        assert_eq!(size_of::<FDBKey>(), 12);
        assert_eq!(size_of::<FDBKeyValue>(), 24);
        assert_eq!(size_of::<FDBKeySelector>(), 20);
        assert_eq!(size_of::<FDBMappedKeyValue>(), 112);
    }

    #[test]
    fn a_library_that_is_not_there_is_named_with_what_to_install() {
        let error = load(Some(std::path::Path::new("/nowhere/libfdb_c.so"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libfdb_c.so") && error.contains("foundationdb-clients"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let error = load(Some(std::path::Path::new("/etc/hostname"))).unwrap_err().to_string();
        assert!(error.contains("/etc/hostname"), "{error}");
    }
}
