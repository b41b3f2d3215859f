//! catena-client
