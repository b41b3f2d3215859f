//! Clusters on this machine, for `dev`, `demo` and some benchmarks: what they look like ([`shape`]), where they live ([`directory`],
//! [`place`]), on which ports ([`ports`]), how they start and stop ([`cluster`]), and one piece of work with one ([`session`]).

pub mod cluster;
pub mod directory;
pub mod place;
pub mod ports;
pub mod session;
pub mod shape;
