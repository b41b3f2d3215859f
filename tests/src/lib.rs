//! Whole-system tests. [`Cluster`] is a cluster in one process: the shipped services, on real sockets and real directories.

mod cluster;

pub use cluster::{Cluster, Shape, block_on};
