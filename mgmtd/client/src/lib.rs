//! catena-mgmtd-client
