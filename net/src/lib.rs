//! catena-net
