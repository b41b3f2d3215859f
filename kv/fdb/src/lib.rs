//! FoundationDB as a [`catena_kv::Database`].
