//! How everything else in the cluster speaks with the cluster manager (mgmtd).
//!
//! * [`MgmtdClient`]: typed calls that find the primary by themselves and keep to a deadline.
//! * [`RoutingWatch`]: the newest routing information, pushed by long poll; reading it costs one atomic load.
//! * [`Heartbeats`]: a service's registration and heartbeats, and the [`Lease`] that says whether it may still answer.
//! * [`ClientSession`]: a client's session, kept alive while the value lives.
//!
//! The calls go through the [`MgmtdApi`] trait: gRPC ([`GrpcMgmtd`]) in real clusters, plain function calls in tests and the simulator.

mod api;
mod calls;
mod grpc;
mod heartbeat;
mod lease;
mod session;
mod watch;

pub use api::MgmtdApi;
pub use calls::{CallOptions, MgmtdClient};
pub use grpc::GrpcMgmtd;
pub use heartbeat::{HeartbeatOptions, Heartbeats, Report, Reporter};
pub use lease::{Lease, TargetLease};
pub use session::ClientSession;
pub use watch::{RoutingSetter, RoutingWatch, WatchOptions};
