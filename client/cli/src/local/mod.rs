//! Clusters on this machine, for `dev` and `demo`: what they look like ([`shape`]), where they live ([`directory`]), on which ports
//! ([`ports`]), and how they start and stop ([`cluster`]).

pub mod cluster;
pub mod directory;
pub mod ports;
pub mod shape;
