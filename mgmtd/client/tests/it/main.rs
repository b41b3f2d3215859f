//! The client against a mgmtd that does as it is told. Time is tokio's paused clock: nothing here waits.

mod fake;
mod grpc;
mod heartbeats;
mod primary;
mod routing;
