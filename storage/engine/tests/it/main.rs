//! The engine from outside: on real directories and on the simulated disk.

mod common;
mod crash;
mod dir;
mod model;
mod workload;
