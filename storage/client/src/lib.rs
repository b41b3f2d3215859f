//! catena-storage-client
