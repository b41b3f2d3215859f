//! catena-kv
