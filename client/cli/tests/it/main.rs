//! The binary as its users meet it: real processes, real sockets, real disks.

mod basics;
mod cluster;
mod demo;
mod fsck;
mod run;
