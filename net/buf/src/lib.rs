//! catena-buf
