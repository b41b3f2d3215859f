//! The commands, one module each.

pub mod admin;
pub mod bench;
pub mod config;
pub mod demo;
pub mod dev;
pub mod fs;
pub mod fsck;
pub mod rdma;
pub mod serve;
