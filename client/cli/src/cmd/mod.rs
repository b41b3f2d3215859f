//! The commands, one module each.

pub mod admin;
pub mod bench;
pub mod config;
pub mod dev;
pub mod fs;
