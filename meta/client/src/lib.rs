//! catena-meta-client
