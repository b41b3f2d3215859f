//! The commands, one module each.

pub mod admin;
pub mod config;
pub mod dev;
