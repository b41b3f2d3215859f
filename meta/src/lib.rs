//! catena-meta
