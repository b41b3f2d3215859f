//! catena-craq
