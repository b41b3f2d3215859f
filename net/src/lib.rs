//! The data plane's transport: one trait, several backends.
//!
//! A [`Call`] is a small message with bulk data by reference. The server *pulls* what the caller offers ([`Call::data`]) and *pushes*
//! into what the caller made room for ([`Call::into`]). Both lie in buffers of the process's registered pool, are owned by the call
//! while it is under way, and come back with its end, so one shape serves every backend:
//!
//! | | [`tcp`] | [`mem`] | `rdma` (verbs) |
//! |---|---|---|---|
//! | request, reply | a frame | a delivery | the next bytes of a stream of frames, in SENDs into posted RECVs |
//! | segment table | (length, alignment) | the buffers themselves | (length, alignment, address, rkey), from the pool's region |
//! | [`Incoming::take_data`] | data followed the frame, received straight into its final buffer | a copy | RDMA READ into a buffer of the service's class, before the handler begins |
//! | [`Responder::send`] with data | data follows the reply's frame, received straight into the caller's buffer | a copy | RDMA WRITE into the caller's buffer, then SEND on the same queue pair, which keeps the order |
//! | credits | granted in the handshake, one a call, back with its reply | the same | the same, and one for each posted RECV |
//! | completion | readiness of the socket wakes the reader, which wakes the caller | a timer | a completion queue's event wakes a poller, which wakes the caller |
//! | forwarding | the same `Buf` is handed to the next connection | the same | the next replica READs from the buffer that the previous READ filled |
//!
//! # What holds on every backend
//! - A call ends once: with a reply, or an error that says whether the request may have reached the server ([`NetError::sent`]).
//! - *No late reply lands in a buffer that has a new owner.* A call that was dropped or ran out of time leaves its buffers to the
//!   connection. TCP gives them up at once, because only its own reader writes into them; RDMA keeps them until the server's reply (which
//!   always comes, also for a cancelled request) or until the queue pair is destroyed.
//! - The credit of a call that was given up comes back when the server has answered it, so requests in a server stay bounded.
//! - A server answers every request once; a handler that panics or forgets is answered for with [`Status::Internal`].
//! - A garbled message closes its connection and nothing else.
//! - Requests begin at the server in the order sent, with two exceptions: small ones without bulk data may pass those with it, and a
//!   request that waits for a buffer lets others pass. Speed may rest on that order, correctness may not.
//!
//! [`Status::Internal`]: catena_proto::status::Status::Internal

mod call;
mod calls;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod frame;
mod handshake;
mod listener;
pub mod mem;
#[cfg(feature = "rdma")]
pub mod rdma;
mod requests;
mod service;
mod shake;
mod stats;
pub mod tcp;
mod transport;

pub use call::{Call, Reply, Segment};
pub use config::{Fallback, Kind as TransportKind, OpenError, TransportConfig};
pub use error::NetError;
pub use handshake::{Identity, PeerId};
pub use service::{Incoming, ReplySink, Responder, Service};
pub use stats::{ConnectionStats, ListenerStats, MethodStats, PeerStats};
pub use transport::{Connection, Listener, Transport};

/// Limits on one message. A call beyond them is refused before it is sent; a peer that sends one is cut off.
pub mod limits {
    /// Bytes of a message's body.
    pub const BODY: usize = 1 << 20;
    /// Segments of bulk data each way.
    pub const SEGMENTS: usize = 1024;
    /// Bytes of bulk data each way.
    pub const BULK: usize = 16 << 20;
    /// Requests in flight on one connection, unless configured otherwise.
    pub const CREDITS: u32 = 256;
}
