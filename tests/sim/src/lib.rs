//! Deterministic simulation: whole clusters of the shipped services in one thread, under faults, with every answer checked.
//!
//! A seed decides everything: the cluster's shape, clocks' rates, what clients do, which faults happen when, how messages travel, how disks
//! lose what was not synced, and which of several ready tasks runs next. `docs/simulation.md` tells how to read a failure.

pub mod cases;
pub mod check;
pub mod cluster;
pub mod faults;
pub mod mutants;
pub mod run;
pub mod witness;
pub mod work;
