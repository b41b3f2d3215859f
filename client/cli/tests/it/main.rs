//! The binary as its users meet it: real processes, real sockets, real disks.

mod basics;
mod bench;
mod cluster;
mod demo;
mod fsck;
mod kv;
mod run;
