//! What a version does to its chunk, shared by the stage on this disk and the forward to the successor: the bytes exist once.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use catena_buf::Buf;
use catena_engine::{Op, Reservation};
use catena_net::Segment;
use catena_proto::checksum::BLOCK;
use catena_proto::frame::{self, WriteKind};
use parking_lot::Mutex;

use crate::ship::Shipped;
use crate::wire::{ForwardHead, KIND_REPLACE};

/// A cheap handle of a change; the protocol clones it freely.
#[derive(Clone)]
pub(crate) struct Payload(Arc<Change>);

struct Change {
    op: Op,
    chunk_size: u32,
    /// Contents that were sent ahead in parts: what names them at the receiver; 0: none.
    transfer: u64,
    /// Space on this disk, from admission until the stage takes it (R8).
    reservation: Mutex<Option<Reservation>>,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.op)
    }
}

impl Payload {
    /// An admitted change. `reservation` is its space.
    pub fn new(op: Op, chunk_size: u32, reservation: Option<Reservation>) -> Payload {
        Payload(Arc::new(Change { op, chunk_size, transfer: 0, reservation: Mutex::new(reservation) }))
    }

    /// A chunk's whole contents, on their way to a successor and never staged here.
    pub fn whole(shipped: &Shipped) -> Payload {
        let op = if shipped.tombstone {
            Op::Remove
        } else {
            Op::Replace {
                length: shipped.length,
                data: shipped.data.iter().cloned().collect(),
                crcs: shipped.crcs.clone(),
            }
        };
        Payload(Arc::new(Change {
            op,
            chunk_size: 0,
            transfer: shipped.transfer,
            reservation: Mutex::default(),
        }))
    }

    /// What the engine is to do; the data is shared, not copied.
    pub fn op(&self) -> Op {
        self.0.op.clone()
    }

    /// Its contents lie on the disk only: they have to be read to be sent.
    pub fn is_spooled(&self) -> bool {
        matches!(self.0.op, Op::Spooled(_))
    }

    /// The space set aside, once.
    pub fn take_reservation(&self) -> Option<Reservation> {
        self.0.reservation.lock().take()
    }

    /// The message to the successor, and the data beside it.
    pub fn forward(&self, mut head: ForwardHead) -> (Bytes, Vec<Segment>) {
        let (kind, offset, data, crcs): (u8, u32, &[Buf], &[u32]) = match &self.0.op {
            Op::Write { offset, data, crcs, .. } => {
                (WriteKind::Write as u8, *offset, std::slice::from_ref(data), crcs)
            }
            Op::Truncate { length } => (WriteKind::Truncate as u8, *length, &[], &[]),
            Op::Extend { length } => (WriteKind::Extend as u8, *length, &[], &[]),
            Op::Remove => (WriteKind::Remove as u8, 0, &[], &[]),
            Op::Replace { length, data, crcs } => (KIND_REPLACE, *length, data, crcs),
            Op::Spooled(_) => unreachable!("spooled contents are read before they are sent"),
        };
        head.kind = kind;
        head.offset = offset.into();
        head.chunk_size = self.0.chunk_size.into();
        head.transfer = self.0.transfer.into();
        head.crc_count = (crcs.len() as u32).into();
        head.length = data.iter().map(|part| part.len() as u32).sum::<u32>().into();
        let align = if kind == WriteKind::Write as u8 { (offset as usize % BLOCK) as u16 } else { 0 };
        let segments = data.iter().map(|data| Segment { data: data.clone(), align }).collect();
        (frame::body(&head, crcs), segments)
    }
}
