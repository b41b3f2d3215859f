//! catena-engine
