//! What can go wrong between two ends.

use catena_proto::status::Status;

/// A call or connection that failed below the service.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetError {
    /// Nobody listens there, or the way is closed.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The address cannot be used.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: String,
        /// What the system said, and what to do.
        reason: String,
    },
    /// The peer is not one of ours, or does not take us for one.
    #[error("{address} refused the connection: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// A status of the handshake.
        status: Status,
        /// What to do.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection to {peer} broke: {reason}")]
    Disconnected {
        /// With whom.
        peer: String,
        /// Why.
        reason: String,
        /// The request may have been carried out.
        sent: bool,
    },
    /// The deadline passed.
    #[error("no answer from {peer} within the deadline{}", if *.sent { "" } else { "; the request was not sent, all credits are in use" })]
    TimedOut {
        /// From whom.
        peer: String,
        /// The request may have been, or may yet be, carried out.
        sent: bool,
    },
    /// The call goes beyond [`crate::limits`] or contradicts itself.
    #[error("the request cannot be sent: {0}")]
    Invalid(String),
}

impl NetError {
    /// The status that stands for it.
    pub fn status(&self) -> Status {
        match self {
            NetError::Connect { .. } | NetError::Disconnected { .. } => Status::Disconnected,
            NetError::Listen { .. } | NetError::Invalid(_) => Status::Invalid,
            NetError::Refused { status, .. } => *status,
            NetError::TimedOut { .. } => Status::TimedOut,
        }
    }

    /// Whether the request may have reached the server, so that only the server knows if it was carried out.
    pub fn sent(&self) -> bool {
        matches!(self, NetError::Disconnected { sent: true, .. } | NetError::TimedOut { sent: true, .. })
    }
}
