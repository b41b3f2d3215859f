//! catena-kv-embedded
