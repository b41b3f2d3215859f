//! What goes over Catena's wires and what both ends must agree on.
//!
//! No I/O and no clock of its own: identities ([`ids`]), the status table with its retry classes ([`status`]), routing
//! information ([`routing`]), layout arithmetic ([`layout`]), data-plane messages ([`frame`]), checksums ([`checksum`]) and the
//! control plane's messages generated from `schema/*.proto` ([`pb`]).

pub mod checksum;
pub mod clock;
pub mod frame;
pub mod ids;
pub mod layout;
#[cfg(feature = "control")]
pub mod meta_call;
#[cfg(feature = "control")]
pub mod pb;
#[cfg(feature = "control")]
pub mod routing;
#[cfg(feature = "control")]
pub mod rpc;
pub mod status;
pub mod token;

/// Version of the control and data plane protocols. A peer with another one is refused.
pub const PROTOCOL_VERSION: u32 = 1;
