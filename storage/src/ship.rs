//! Part chunks on their way to a syncing target. What fits into one buffer travels with its message; a longer chunk goes ahead in parts,
//! straight to the target's disk, and the message names the transfer. So neither end ever holds more than a part in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf, PoolStats};
use catena_engine::{EngineError, Op, Spool};
use catena_net::{Call, Segment};
use catena_proto::checksum;
use catena_proto::frame;
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::time::Instant;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::disk::{At, Part, is_gone};
use crate::node::Node;
use crate::peers::Lane;
use crate::request::{self, MAX_IO};
use crate::target::Target;
use crate::wire::{self, SpoolHead};

/// What memory under way is counted in.
const UNIT: u32 = 64 << 10;
/// Transfers that may be under way to this node.
const TRANSFERS: usize = 64;
/// A transfer that nobody went on with for so long is given up.
const IDLE: Duration = Duration::from_secs(60);
/// How long one part may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// How often a snapshot is begun anew because its version was overtaken.
const ATTEMPTS: usize = 8;

/// A chunk's contents as of one version, ready for the message that gives them their meaning.
pub(crate) struct Shipped {
    pub version: VersionId,
    pub length: u32,
    pub tombstone: bool,
    /// The contents, if they fit into one message;
    pub data: Option<Buf>,
    pub crcs: Vec<u32>,
    /// otherwise what names them at the receiver.
    pub transfer: u64,
    /// Memory held while `data` is under way.
    _memory: OwnedSemaphorePermit,
}

/// Why contents were not shipped.
pub(crate) enum Unshipped {
    /// The version is there no more.
    Gone,
    /// They cannot be read here.
    Unreadable(EngineError),
    /// The receiver did not take a part.
    Refused(Status),
}

/// The sending node's bounds, and the receiving node's transfers under way.
pub(crate) struct Shipping {
    /// A permit for every [`UNIT`] in memory: what is read here waits for the receiver's memory while it holds some of this node's, so it may
    /// never be all of it.
    memory: [Arc<Semaphore>; 2],
    next: AtomicU64,
    arriving: Mutex<BTreeMap<(TargetId, u64), Arriving>>,
}

struct Arriving {
    to: TargetId,
    length: u32,
    spool: Spool,
    used: Instant,
}

impl Shipping {
    /// Of the memory for local reads an eighth may be under way for rebuilds and as much for clients, who must not queue behind those.
    pub fn new(pool: &PoolStats) -> Shipping {
        let local = pool.classes[catena_buf::PoolClass::Local as usize].total;
        let units = (local / 8).max(MAX_IO as usize) / UNIT as usize;
        Shipping {
            memory: [(); 2].map(|()| Arc::new(Semaphore::new(units))),
            next: AtomicU64::new(1),
            arriving: Mutex::default(),
        }
    }

    /// Contents that have arrived in parts, as an operation.
    pub fn arrived(&self, from: TargetId, to: TargetId, transfer: u64, length: u32) -> Result<Op, Status> {
        let mut arriving = self.arriving.lock();
        let found =
            arriving.get_mut(&(from, transfer)).filter(|known| known.to == to && known.length == length);
        // Given up meanwhile, or never begun: the sender ships anew.
        let found = found.ok_or(Status::Damaged)?;
        found.used = Instant::now();
        Ok(Op::Spooled(found.spool.clone()))
    }

    /// They have been put to use.
    pub fn finished(&self, from: TargetId, transfer: u64) {
        self.arriving.lock().remove(&(from, transfer));
    }

    /// Gives up transfers that nobody goes on with.
    pub fn expire(&self) {
        let now = Instant::now();
        self.arriving.lock().retain(|_, arriving| now.duration_since(arriving.used) < IDLE);
    }
}

/// Whether contents are on their way for a client or for a rebuild.
#[derive(Clone, Copy)]
pub(crate) enum Haste {
    /// A client waits for them.
    Now,
    /// Beside what clients do.
    Beside,
}

/// Reads a chunk as of a version and ships what does not fit into one message.
pub(crate) async fn ship(
    target: &Target,
    node: &Node,
    to: TargetId,
    chunk: ChunkId,
    at: At,
    haste: Haste,
) -> Result<Shipped, Unshipped> {
    let unread = |error: EngineError| {
        if is_gone(&error) { Unshipped::Gone } else { Unshipped::Unreadable(error) }
    };
    for _ in 0..ATTEMPTS {
        let bytes = target.disk.committed_length(target.id, chunk).clamp(1, MAX_IO);
        let memory = node.shipping.memory[haste as usize].clone();
        let memory = memory.acquire_many_owned(bytes.div_ceil(UNIT)).await;
        let Ok(memory) = memory else { return Err(Unshipped::Refused(Status::ShuttingDown)) };
        let Part { version, length, tombstone, data, crcs } =
            target.disk.part(target.id, chunk, at, 0).await.map_err(unread)?;
        if length <= MAX_IO {
            return Ok(Shipped { version, length, tombstone, data, crcs, transfer: 0, _memory: memory });
        }
        let transfer = node.shipping.next.fetch_add(1, Ordering::Relaxed);
        let (mut data, mut crcs, mut offset) = (data, crcs, 0);
        loop {
            let Some(part) = data.take().filter(|part| !part.is_empty()) else {
                return Err(Unshipped::Gone);
            };
            let size = part.len() as u32;
            send_part(target, node, to, transfer, length, offset, part, &crcs)
                .await
                .map_err(Unshipped::Refused)?;
            offset += size;
            if offset >= length {
                let crcs = Vec::new();
                return Ok(Shipped {
                    version,
                    length,
                    tombstone,
                    data: None,
                    crcs,
                    transfer,
                    _memory: memory,
                });
            }
            match target.disk.part(target.id, chunk, At::Version(version), offset).await {
                Ok(next) => (data, crcs) = (next.data, next.crcs),
                // Overtaken while it was being read. A named version is gone for good; the committed one is another now.
                Err(error) if is_gone(&error) && at == At::Committed => break,
                Err(error) => return Err(unread(error)),
            }
        }
    }
    Err(Unshipped::Refused(Status::Busy))
}

#[allow(clippy::too_many_arguments)]
async fn send_part(
    target: &Target,
    node: &Node,
    to: TargetId,
    transfer: u64,
    length: u32,
    offset: u32,
    data: Buf,
    crcs: &[u32],
) -> Result<(), Status> {
    let head = SpoolHead {
        from: target.id.0.into(),
        to: to.0.into(),
        transfer: transfer.into(),
        length: length.into(),
        offset: offset.into(),
        crc_count: (crcs.len() as u32).into(),
        reserved: 0.into(),
    };
    let body = frame::body(&head, crcs);
    let data = vec![Segment { data, align: 0 }];
    let call = Call { method: wire::SPOOL, body, deadline: DEADLINE, data, ..Call::default() };
    match node.peers.call(to, Lane::Sync, call).await {
        Ok(reply) if reply.status == Status::Ok => Ok(()),
        Ok(reply) => Err(reply.status),
        Err(error) => Err(error.status()),
    }
}

/// Takes a part of contents that somebody ships to a target of this node.
pub(crate) async fn receive_part(
    node: &Arc<Node>,
    mut body: &[u8],
    data: Vec<IoBuf>,
) -> Result<Bytes, Status> {
    let malformed = |_| Status::Malformed;
    let head = frame::take_one::<SpoolHead>(&mut body).map_err(malformed)?;
    let crcs = frame::take_checksums(&mut body, head.crc_count.get() as usize).map_err(malformed)?;
    let (from, to) = (TargetId(head.from.get()), TargetId(head.to.get()));
    let (length, offset) = (head.length.get(), head.offset.get());
    let [data]: [IoBuf; 1] = data.try_into().map_err(|_| Status::Malformed)?;
    let end = u64::from(offset) + data.len() as u64;
    if length > *request::CHUNK_SIZES.end()
        || !(offset as usize).is_multiple_of(checksum::BLOCK)
        || end > u64::from(length)
        || (!data.len().is_multiple_of(checksum::BLOCK) && end != u64::from(length))
    {
        return Err(Status::Malformed);
    }
    if !request::verify(0, &data, &crcs) {
        return Err(Status::Damaged);
    }
    let target = node.target(to).ok_or(Status::NotYet)?;
    let key = (from, head.transfer.get());
    let known = node.shipping.arriving.lock().get_mut(&key).map(|arriving| {
        arriving.used = Instant::now();
        (arriving.to, arriving.length, arriving.spool.clone())
    });
    let spool = match known {
        Some((known_to, known_length, spool)) if (known_to, known_length) == (to, length) => spool,
        Some(_) => return Err(Status::Malformed),
        None if offset != 0 => return Err(Status::Damaged),
        None => {
            if node.shipping.arriving.lock().len() >= TRANSFERS {
                return Err(Status::Busy);
            }
            let spool = target.disk.engine().spool(length).await.map_err(|error| error.status())?;
            let arriving = Arriving { to, length, spool: spool.clone(), used: Instant::now() };
            node.shipping.arriving.lock().insert(key, arriving);
            spool
        }
    };
    let written = target.disk.engine().spool_write(&spool, offset, data.freeze(), &crcs).await;
    written.map_err(|error| error.status())?;
    Ok(Bytes::new())
}
