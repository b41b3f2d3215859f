//! mgmtd as its users meet it: the service on a store, and the whole thing over gRPC with the real client.

mod clients;
mod election;
mod network;
mod parts;
mod persistence;
mod polling;
