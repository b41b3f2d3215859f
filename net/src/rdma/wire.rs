//! What RDMA adds to the wire: where segments are, the head of a packet, and the terms of a queue pair. Byte rulers: `docs/format-wire.md`.

use catena_verbs::{Gid, LinkLayer, PeerAddress, Remote};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::Row;

/// A segment, and where it is in its owner's registered memory. In a reply the place is zero: the data is there already.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Place {
    len: U32,
    align: U16,
    reserved: U16,
    key: U32,
    reserved_too: U32,
    address: U64,
}

impl Place {
    pub fn new(len: usize, align: usize, remote: Option<Remote>) -> Place {
        let Remote { address, key } = remote.unwrap_or(Remote { address: 0, key: 0 });
        Place {
            len: (len as u32).into(),
            align: (align as u16).into(),
            key: key.into(),
            address: address.into(),
            ..Place::default()
        }
    }

    /// Byte `at` of it.
    pub fn remote(&self, at: usize) -> Remote {
        Remote { address: self.address.get().wrapping_add(at as u64), key: self.key.get() }
    }
}

impl Row for Place {
    fn len(&self) -> usize {
        self.len.get() as usize
    }
    fn align(&self) -> usize {
        self.align.get().into()
    }
}

/// In front of every packet, that is, of every SEND. Behind it: the next bytes of the stream of frames.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Packet {
    /// Receives that its sender has posted again since its last packet.
    pub credits: U16,
    pub flags: U16,
    pub reserved: U32,
}

/// Bits of [`Packet::flags`].
pub(super) mod flag {
    /// Brings only credits (or is a ping): it took none.
    pub const FREE: u16 = 1;
    /// Client to server, first: is the way open?
    pub const PING: u16 = 2;
    /// Server to client: it is.
    pub const PONG: u16 = 4;
}

/// What each end says of its queue pair, over the stream, behind the handshake. A reason of `reason_len` bytes follows if the server refuses.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Terms {
    pub gid: [u8; 16],
    pub number: U32,
    pub psn: U32,
    pub lid: U16,
    /// Largest payload of a packet.
    pub mtu: U16,
    /// Messages that may be on their way to it.
    pub receives: U16,
    /// The server's verdict, a status.
    pub status: U16,
    pub reason_len: U16,
    /// 1: InfiniBand, 2: Ethernet.
    pub link: u8,
    /// READs that it answers at a time.
    pub reads_in: u8,
    /// READs that it has under way.
    pub reads_out: u8,
    /// Which of its ports, counted from 0: the server takes the same one of its own if addresses do not tell.
    pub rail: u8,
    pub reserved: [u8; 26],
}

const _: () = assert!(size_of::<Place>() == 24 && size_of::<Packet>() == 8 && size_of::<Terms>() == 64);

pub(super) fn link_code(link: LinkLayer) -> u8 {
    match link {
        LinkLayer::InfiniBand => 1,
        LinkLayer::Ethernet => 2,
    }
}

impl Terms {
    /// Where its sender is, for this end's queue pair. What it asks of READs is bounded by what this end answers.
    pub fn peer(&self, reads_in: u8) -> PeerAddress {
        PeerAddress {
            number: self.number.get() & 0xff_ffff,
            psn: self.psn.get() & 0xff_ffff,
            lid: self.lid.get(),
            gid: Gid(self.gid),
            reads: self.reads_out.min(reads_in),
        }
    }
}
