//! catena-storage
