//! The engine from outside: on real directories and on the simulated disk.

mod behave;
mod common;
mod crash;
mod dir;
mod model;
mod renew;
mod workload;
