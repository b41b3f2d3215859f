//! `catena bench`: measurements of a running cluster.

pub mod cpu;
pub mod stats;
