//! Clusters on this machine, for `dev`, `demo` and some benchmarks: what they look like ([`shape`]), where they live ([`directory`],
//! [`place`]), on which ports ([`ports`]), where their names and state are ([`store`]), how they start and stop ([`cluster`]), and one piece of work with one ([`session`]).

pub mod cluster;
pub mod directory;
pub mod place;
pub mod ports;
pub mod session;
pub mod shape;
pub mod store;
pub mod transport;
