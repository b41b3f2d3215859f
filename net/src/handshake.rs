//! Who is there: protocol version, cluster, identity, and a proof of the cluster token that does not reveal it.
//!
//! Three messages. The client says who it is and sends a nonce; the server does the same, with its verdict on version and cluster and
//! its proof `HMAC-SHA256(token, "server" ++ client's message ++ server's message)`; the client proves itself likewise with "client"; the
//! server confirms with a status. Neither end serves the other before its proof was checked. Byte rulers: `docs/format-wire.md`.

use catena_proto::PROTOCOL_VERSION;
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PeerId {
    /// A client process.
    Client(ClientId),
    /// A service.
    Node(NodeId),
}

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PeerId::Client(client) => write!(f, "{client}"),
            PeerId::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// What a process says of itself on every connection.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The cluster's token.
    pub token: Token,
    /// Itself.
    pub peer: PeerId,
    /// This start of it.
    pub incarnation: Incarnation,
}

pub(crate) const MAGIC: [u8; 8] = *b"CATENA\0\x01";

/// First message of each end.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Hello {
    pub magic: [u8; 8],
    pub cluster: [u8; 16],
    pub nonce: [u8; 32],
    /// The server's proof; zero from the client.
    pub proof: [u8; 32],
    pub id: U64,
    pub incarnation: U64,
    pub version: U32,
    /// Requests that may be in flight; 0 from the client.
    pub credits: U32,
    /// The server's verdict so far.
    pub status: U16,
    /// 1: client, 2: node.
    pub kind: u8,
    /// What carries messages from here on: see [`carrier`]. The server repeats what it agrees to.
    pub carrier: u8,
    pub reserved: [u8; 4],
}

/// What carries messages once both ends know each other.
pub(crate) mod carrier {
    /// The stream itself.
    pub const STREAM: u8 = 0;
    /// A queue pair of each end; the stream stays open to tell that the other end lives.
    pub const QUEUE_PAIR: u8 = 1;
}

/// The client's proof.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Proof {
    pub proof: [u8; 32],
}

/// The server's last word.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Verdict {
    pub status: U16,
    pub reserved: [u8; 6],
}

const _: () = assert!(size_of::<Hello>() == 120 && size_of::<Proof>() == 32 && size_of::<Verdict>() == 8);

impl Hello {
    pub fn new(identity: &Identity, nonce: [u8; 32]) -> Hello {
        let (kind, id) = match identity.peer {
            PeerId::Client(client) => (1, client.0),
            PeerId::Node(node) => (2, u64::from(node.0)),
        };
        Hello {
            magic: MAGIC,
            cluster: identity.cluster.0.to_be_bytes(),
            nonce,
            proof: [0; 32],
            id: id.into(),
            incarnation: identity.incarnation.0.into(),
            version: PROTOCOL_VERSION.into(),
            credits: 0.into(),
            status: 0.into(),
            kind,
            carrier: carrier::STREAM,
            reserved: [0; 4],
        }
    }

    pub fn peer(&self) -> Option<PeerId> {
        match self.kind {
            1 => Some(PeerId::Client(ClientId(self.id.get()))),
            2 => Some(PeerId::Node(NodeId(u32::try_from(self.id.get()).ok()?))),
            _ => None,
        }
    }

    /// Can the two talk at all?
    pub fn judge(&self, identity: &Identity) -> Status {
        if self.magic != MAGIC {
            Status::Malformed
        } else if self.version.get() != PROTOCOL_VERSION {
            Status::WrongProtocol
        } else if self.cluster != identity.cluster.0.to_be_bytes() {
            Status::WrongCluster
        } else if self.peer().is_none() {
            Status::Malformed
        } else {
            Status::Ok
        }
    }
}

/// Over everything both have said: not only the nonces, also who they claim to be.
fn mac(token: &Token, role: &[u8], client: &Hello, server: &Hello) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&token.0).expect("HMAC takes keys of any length");
    mac.update(role);
    mac.update(Hello { proof: [0; 32], ..*client }.as_bytes());
    mac.update(Hello { proof: [0; 32], ..*server }.as_bytes());
    mac
}

/// A proof of knowing the token.
pub(crate) fn prove(token: &Token, role: &[u8], client: &Hello, server: &Hello) -> [u8; 32] {
    mac(token, role, client, server).finalize().into_bytes().into()
}

/// Checks one, in constant time.
pub(crate) fn proves(token: &Token, role: &[u8], client: &Hello, server: &Hello, proof: &[u8; 32]) -> bool {
    mac(token, role, client, server).verify_slice(proof).is_ok()
}

/// What a person does about a refusal.
pub(crate) fn advice(status: Status) -> &'static str {
    match status {
        Status::WrongProtocol => {
            "it speaks another protocol version: run the same release of catena on both ends"
        }
        Status::WrongCluster => "it belongs to another cluster: check the cluster file and the address",
        Status::BadToken => "the cluster token is wrong: copy `token` from the cluster file",
        Status::NoRdma => {
            "it does not offer RDMA: set transport = \"rdma\" there, or \"tcp\" (or fallback = \"tcp\") here"
        }
        Status::Malformed => "what answers there is not a catena service",
        status => status.text(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_token_role_and_what_was_said() {
        let (token, other) = (Token([1; 32]), Token([2; 32]));
        let says = |peer, nonce| {
            let (cluster, incarnation) = (ClusterId(1), Incarnation(1));
            Hello::new(&Identity { cluster, token, peer, incarnation }, [nonce; 32])
        };
        let (client, server) = (says(PeerId::Client(ClientId(5)), 3), says(PeerId::Node(NodeId(1)), 4));
        let proof = prove(&token, b"client", &client, &server);
        let server_with_proof = Hello { proof: [9; 32], ..server };
        assert!(proves(&token, b"client", &client, &server_with_proof, &proof));
        assert!(!proves(&other, b"client", &client, &server, &proof));
        assert!(!proves(&token, b"server", &client, &server, &proof));
        assert!(!proves(&token, b"client", &says(PeerId::Client(ClientId(5)), 8), &server, &proof));
        assert!(!proves(&token, b"client", &says(PeerId::Client(ClientId(6)), 3), &server, &proof));
    }
}
