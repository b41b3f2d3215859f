//! `catena fs`: files and directories.

pub mod mode;
pub mod path;
pub mod users;
