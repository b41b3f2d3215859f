//! catena-mgmtd
