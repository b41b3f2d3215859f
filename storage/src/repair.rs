//! Damaged chunks and their repair: the good bytes come from another serving replica of the chain, as any client would read them, and are
//! written anew beside the bad ones.
//!
//! *Why it is safe.* The other replica answers at this replica's chain version and under its own lease (R1, R10), with the version that is
//! committed; its identity, length and checksum are compared with what is committed here. The engine takes the bytes only if the same
//! version is still committed and nothing newer is staged on it. So a repair changes no version and no length: it makes this replica's
//! copy of a committed version what that version is. Nothing is answered from a bad block meanwhile; reads go to another replica.
//!
//! *Why not offline and resync.* That would heal it too, at the price of a replica out of the chain and a walk over all its chunks for
//! one bad block. It stays what happens when a bad block stands in the way of a write: a version that cannot be staged takes the target
//! offline (R8), its dump then shows the chunk as unreadable, and the first base overwrites it (R16).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::PoolClass;
use catena_craq::Role;
use catena_engine::{EngineError, Op, Spool};
use catena_net::Call;
use catena_proto::checksum::{BLOCK, combine, crc32c};
use catena_proto::frame::{self, ChunkEntry, ChunksRequest, ReadItem, ReadResult, method};
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::time::{Instant, timeout};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};
use zerocopy::IntoBytes;

use crate::disk::{Disk, is_gone};
use crate::node::Node;
use crate::peers::Lane;
use crate::request;
use crate::target::Target;

/// Bytes of one read from another replica.
const PART: u32 = 1 << 20;
/// How long another replica may take for one answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between attempts: the first, and the most. A chunk that nobody can help with now may be helped when a replica is back.
const SOON: Duration = Duration::from_millis(200);
const LATE: Duration = Duration::from_secs(60);
/// Most damaged chunks that are kept in mind; the next pass finds the others.
const MOST: usize = 1 << 16;
const BLOCK_U32: u32 = BLOCK as u32;
/// [`Damage::block`] of a read that failed.
pub(crate) const UNREADABLE: u32 = u32::MAX;

/// A damaged chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    /// The first bad block that was met.
    pub block: u32,
    /// Why nobody can help now, if so.
    pub hopeless: Option<&'static str>,
    attempts: u32,
    due: Instant,
}

impl Damage {
    /// The change needs the bad block's old bytes, which a chunk of `length` bytes has: it leaves some of them beside its own.
    pub fn stands_in_the_way(&self, op: &Op, length: u32) -> bool {
        let (start, end) = match op {
            Op::Write { offset, data, .. } => (*offset, *offset + data.len() as u32),
            Op::Truncate { length: to } if *to < length => (*to, length),
            _ => return false,
        };
        // What lies between the chunk's end and the data is written with it.
        let before = Some(start.min(length)).filter(|at| !at.is_multiple_of(BLOCK_U32));
        let behind = Some(end).filter(|&at| at < length && !at.is_multiple_of(BLOCK_U32));
        let mut cut = before.into_iter().chain(behind).map(|at| at / BLOCK_U32);
        cut.any(|block| self.block == block || self.block == UNREADABLE)
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// Written anew from another replica.
    Repaired,
    /// Overwritten, removed, or readable after all.
    Healed,
    /// Not now.
    Later(&'static str),
    /// Nobody can help, as things are.
    Hopeless(&'static str),
}

/// The damaged chunks of a node.
#[derive(Default)]
pub(crate) struct Repairs {
    damages: Mutex<BTreeMap<(TargetId, ChunkId), Damage>>,
    wake: Notify,
}

/// The pause before the next attempt.
fn backoff(attempts: u32, hopeless: bool) -> Duration {
    if hopeless { LATE } else { (SOON * 2_u32.saturating_pow(attempts.min(16))).min(LATE) }
}

impl Repairs {
    /// A chunk was found to be damaged. Repair begins at once; a chunk that is known already keeps its turn.
    pub fn report(&self, node: &Node, disk: &Disk, target: TargetId, chunk: ChunkId, found: &EngineError) {
        let block = match found {
            EngineError::Corrupt { block, .. } => *block,
            _ => UNREADABLE,
        };
        {
            let mut damages = self.damages.lock();
            if damages.contains_key(&(target, chunk)) || damages.len() >= MOST {
                return;
            }
            let damage = Damage { block, hopeless: None, attempts: 0, due: Instant::now() };
            damages.insert((target, chunk), damage);
        }
        disk.metrics.scrub_found.inc();
        warn!(node = %node.id, disk = disk.path(), %target, %chunk, %found, "damaged data found; it will be fetched from another replica");
        self.wake.notify_one();
    }

    /// What is known of a chunk's damage.
    pub fn damage(&self, target: TargetId, chunk: ChunkId) -> Option<Damage> {
        let damages = self.damages.lock();
        if damages.is_empty() { None } else { damages.get(&(target, chunk)).copied() }
    }

    /// All of them.
    pub fn all(&self) -> Vec<(TargetId, ChunkId, Damage)> {
        self.damages.lock().iter().map(|(&(target, chunk), &damage)| (target, chunk, damage)).collect()
    }

    /// Every damaged chunk has its turn now.
    pub fn hurry(&self) {
        let now = Instant::now();
        self.damages.lock().values_mut().for_each(|damage| damage.due = now);
        self.wake.notify_one();
    }

    fn next(&self) -> Option<(TargetId, ChunkId, Damage)> {
        let damages = self.damages.lock();
        let next = damages.iter().min_by_key(|(_, damage)| damage.due);
        next.map(|(&(target, chunk), &damage)| (target, chunk, damage))
    }

    /// Notes how an attempt ended; true if it is now hopeless and was not.
    fn settle(&self, target: TargetId, chunk: ChunkId, outcome: Outcome) -> bool {
        let mut damages = self.damages.lock();
        let hopeless = match outcome {
            Outcome::Repaired | Outcome::Healed => {
                damages.remove(&(target, chunk));
                return false;
            }
            Outcome::Later(_) => None,
            Outcome::Hopeless(why) => Some(why),
        };
        let Some(damage) = damages.get_mut(&(target, chunk)) else { return false };
        damage.due = Instant::now() + backoff(damage.attempts, hopeless.is_some());
        damage.attempts += 1;
        let new = hopeless.is_some() && damage.hopeless.is_none();
        // Once nobody could help it stays so until somebody has.
        damage.hopeless = hopeless.or(damage.hopeless);
        new
    }
}

/// Repairs what is reported, one chunk after the other: a node whose disk is dying must not drown its neighbours in questions.
pub(crate) async fn repair_all(node: Arc<Node>) {
    loop {
        let woken = node.repairs.wake.notified();
        match node.repairs.next() {
            None => woken.await,
            Some((_, _, damage)) if damage.due > Instant::now() => {
                let _ = timeout(damage.due.saturating_duration_since(Instant::now()), woken).await;
            }
            Some((target, chunk, damage)) => {
                let outcome = attempt(&node, target, chunk).await;
                let new = node.repairs.settle(target, chunk, outcome);
                tell(&node, target, chunk, &damage, outcome, new);
            }
        }
        gauge(&node);
    }
}

/// Unrepaired chunks of each disk.
fn gauge(node: &Node) {
    let all = node.repairs.all();
    for disk in node.disks() {
        let on_disk =
            |target: TargetId| node.target(target).is_some_and(|target| Arc::ptr_eq(&target.disk, disk));
        let hopeless = all.iter().filter(|(target, _, damage)| damage.hopeless.is_some() && on_disk(*target));
        disk.metrics.scrub_unrepaired.set(hopeless.count() as i64);
    }
}

fn tell(node: &Node, target: TargetId, chunk: ChunkId, damage: &Damage, outcome: Outcome, new: bool) {
    let target = node.target(target);
    let (disk, chain) = match &target {
        Some(target) => (target.disk.path(), target.chain),
        None => ("", ChainId(0)),
    };
    let target = target.as_ref().map_or(TargetId(0), |target| target.id);
    match outcome {
        Outcome::Repaired => {
            info!(node = %node.id, disk, %chain, %target, %chunk, "damaged data was repaired from another replica");
        }
        Outcome::Healed => {
            info!(node = %node.id, disk, %chain, %target, %chunk, "damaged data is gone: overwritten, removed, or readable after all");
        }
        Outcome::Later(why) => debug!(%target, %chunk, why, "a repair has to wait"),
        Outcome::Hopeless(why) if new => {
            error!(node = %node.id, disk, %chain, %target, %chunk, block = damage.block, why, "damaged data cannot be repaired; reads of it fail until another replica is back, or until it is overwritten or removed");
        }
        Outcome::Hopeless(_) => {}
    }
}

/// What another replica did for a chunk.
enum Offer {
    /// Its contents, on this disk.
    Contents(Spool),
    /// It has another version: one of both is behind, for a moment.
    Differs,
    /// It has no good copy either.
    Bad,
    /// No answer that says anything.
    None,
}

async fn attempt(node: &Arc<Node>, id: TargetId, chunk: ChunkId) -> Outcome {
    let Some(target) = node.target(id) else { return Outcome::Later("the target is not known yet") };
    let disk = target.disk.clone();
    if disk.has_failed() {
        // All of it will come from elsewhere.
        return Outcome::Healed;
    }
    let Some(meta) = disk.engine().committed(id, chunk).filter(|meta| !meta.tombstone) else {
        return Outcome::Healed;
    };
    match disk.engine().verify(id, chunk).await {
        Ok(_) => return Outcome::Healed,
        Err(EngineError::Corrupt { .. } | EngineError::ReadFailed { .. }) => {}
        Err(error) if is_gone(&error) => return Outcome::Healed,
        Err(_) => return Outcome::Later("the disk is busy"),
    }
    let (chain_version, others) = {
        let state = target.state();
        if state.outage.is_some() || !matches!(state.replica.role(), Role::Serving(_)) {
            return Outcome::Later("the target does not serve");
        }
        let view = state.replica.view();
        let serving = |other: &TargetId| *other != id && matches!(view.role(*other), Role::Serving(_));
        (view.version, view.path.iter().copied().filter(serving).collect::<Vec<_>>())
    };
    if others.is_empty() {
        return Outcome::Hopeless("no other replica of the chain serves");
    }
    let mut bad = 0;
    for &other in &others {
        let offer = match fetch(node, &target, other, chain_version, chunk, meta).await {
            Ok(offer) => offer,
            Err(EngineError::NoSpace { .. }) => return Outcome::Hopeless("the disk is full"),
            Err(_) if disk.has_failed() => {
                node.disk_failed(&disk);
                return Outcome::Healed;
            }
            Err(error) => {
                warn!(node = %node.id, disk = disk.path(), target = %id, %chunk, %error, "a repair cannot write to its disk");
                return Outcome::Later("the disk did not take the contents");
            }
        };
        match offer {
            Offer::Contents(spool) => {
                return install(node, &target, chain_version, chunk, meta.version, spool).await;
            }
            Offer::Bad => bad += 1,
            Offer::Differs | Offer::None => {}
        }
    }
    if bad == others.len() {
        Outcome::Hopeless("every other replica's copy is damaged too")
    } else {
        Outcome::Later("no other replica answered with this version")
    }
}

/// Fetches a version's contents from another replica onto this disk, verified piece by piece and as a whole. An error is this disk's.
async fn fetch(
    node: &Arc<Node>,
    target: &Target,
    other: TargetId,
    chain_version: ChainVersion,
    chunk: ChunkId,
    meta: catena_engine::Meta,
) -> Result<Offer, EngineError> {
    let ask = async |method, body: Bytes, into| {
        let call = Call { method, body, deadline: DEADLINE, into, ..Call::default() };
        node.peers.call(other, Lane::Sync, call).await.ok().filter(|reply| reply.status == Status::Ok)
    };
    // What the other has committed, its identity and whole checksum included.
    let question = ChunksRequest {
        chain_version: chain_version.0.into(),
        from_inode: chunk.inode.0.into(),
        to_inode: chunk.inode.0.into(),
        chain: target.chain.0.into(),
        from_index: chunk.index.into(),
        limit: 1.into(),
        checksums: 1.into(),
    };
    let body = Bytes::copy_from_slice(question.as_bytes());
    let Some(reply) = ask(method::LIST_CHUNKS, body, Vec::new()).await else { return Ok(Offer::None) };
    let theirs = match frame::take_all::<ChunkEntry>(&reply.body) {
        Ok([entry]) if entry.chunk() == chunk => *entry,
        Ok(_) => return Ok(Offer::Differs),
        Err(_) => return Ok(Offer::None),
    };
    if (theirs.committed(), theirs.length.get()) != (meta.version, meta.length) {
        return Ok(Offer::Differs);
    }
    let spool = target.disk.engine().spool(meta.length).await?;
    let (mut offset, mut whole) = (0, 0);
    while offset < meta.length {
        let len = PART.min(meta.length - offset);
        node.throttle.take(u64::from(len)).await;
        let item = ReadItem {
            chain_version: chain_version.0.into(),
            inode: chunk.inode.0.into(),
            chain: target.chain.0.into(),
            index: chunk.index.into(),
            offset: offset.into(),
            length: len.into(),
        };
        let mut room = node.peers.pool().alloc(len as usize, PoolClass::Local).await?;
        room.set_len(len as usize);
        let body = Bytes::copy_from_slice(item.as_bytes());
        let Some(reply) = ask(method::READ, body, vec![room]).await else { return Ok(Offer::None) };
        let mut rest = &reply.body[..];
        let Ok(result) = frame::take_one::<ReadResult>(&mut rest).copied() else { return Ok(Offer::None) };
        match result.status() {
            Status::Ok => {}
            Status::Corrupt | Status::DiskFailed => return Ok(Offer::Bad),
            _ => return Ok(Offer::None),
        }
        let Ok(crcs) = frame::take_checksums(&mut rest, result.crc_count.get() as usize) else {
            return Ok(Offer::None);
        };
        if (ChunkVersion(result.version.get()), result.chunk_length.get(), result.length.get())
            != (meta.version.version, meta.length, len)
        {
            return Ok(Offer::Differs);
        }
        let Some(data) = reply.data.into_iter().next().filter(|data| data.len() == len as usize) else {
            return Ok(Offer::None);
        };
        if !request::verify(offset, &data, &crcs) {
            return Ok(Offer::None);
        }
        whole = combine_blocks(whole, &data, &crcs);
        target.disk.engine().spool_write(&spool, offset, data.freeze(), &crcs).await?;
        offset += len;
    }
    if whole != theirs.checksum.get() {
        warn!(node = %node.id, disk = target.disk.path(), target = %target.id, %other, %chunk, "another replica's contents do not match its checksum of the whole; not taken");
        return Ok(Offer::Bad);
    }
    Ok(Offer::Contents(spool))
}

/// The checksum of contents, zero-padded to whole blocks, with one part more.
fn combine_blocks(before: u32, data: &[u8], crcs: &[u32]) -> u32 {
    let blocks = data.chunks(BLOCK).zip(crcs);
    blocks.fold(before, |all, (block, &crc)| {
        let crc = if block.len() == BLOCK {
            crc
        } else {
            let mut padded = [0; BLOCK];
            padded[..block.len()].copy_from_slice(block);
            crc32c(&padded)
        };
        combine(all, crc, BLOCK)
    })
}

/// Puts the contents in the place of the damaged ones.
async fn install(
    node: &Arc<Node>,
    target: &Arc<Target>,
    chain_version: ChainVersion,
    chunk: ChunkId,
    version: VersionId,
    spool: Spool,
) -> Outcome {
    {
        let mut state = target.state();
        let serves = matches!(state.replica.role(), Role::Serving(_)) && state.outage.is_none();
        if !serves || state.replica.view().version != chain_version {
            return Outcome::Later("the chain changed");
        }
        // A resync session that begins meanwhile waits for it, as for every write to the store.
        state.staging += 1;
    }
    // Finished even if the service ends: a write to the store that is given up half-way fails the disk.
    let (renewing, at) = (target.clone(), Op::Spooled(spool));
    let renewed = catena_rt::spawn(async move {
        let renewed = renewing.disk.engine().renew(renewing.id, chunk, version, at).await;
        renewing.state().staging -= 1;
        renewed
    });
    let disk = &target.disk;
    match renewed.await {
        Ok(Ok(_)) => match disk.engine().verify(target.id, chunk).await {
            Ok(_) => {
                disk.metrics.scrub_repaired.inc();
                Outcome::Repaired
            }
            Err(error) => {
                error!(node = %node.id, disk = disk.path(), target = %target.id, %chunk, %error, "data was damaged again as soon as it was repaired; the disk should be replaced");
                Outcome::Later("it was damaged again")
            }
        },
        Ok(Err(EngineError::NoSuchVersion { .. } | EngineError::Busy { .. })) => {
            Outcome::Later("the chunk is being written")
        }
        Ok(Err(error)) => {
            error!(node = %node.id, disk = disk.path(), target = %target.id, %chunk, %error, "a repair could not be written");
            if disk.has_failed() {
                node.disk_failed(disk);
            }
            Outcome::Later("the disk did not take the contents")
        }
        Err(_) => Outcome::Later("the service ends"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_buf::Buf;
    use catena_proto::checksum::piece_checksums;

    const KEY: (TargetId, ChunkId) = (TargetId(1), ChunkId { inode: InodeId(2), index: 3 });

    #[test]
    fn attempts_become_rare_and_never_stop() {
        let pauses: Vec<u64> = (0..12).map(|n| backoff(n, false).as_millis() as u64).collect();
        assert_eq!(pauses[..4], [200, 400, 800, 1600]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(backoff(u32::MAX, false), LATE);
        assert_eq!(backoff(0, true), LATE);
    }

    #[tokio::test]
    async fn what_nobody_could_help_with_stays_reported_until_it_is_repaired() {
        let repairs = Repairs::default();
        let damage = Damage { block: 7, hopeless: None, attempts: 0, due: Instant::now() };
        repairs.damages.lock().insert(KEY, damage);
        assert!(!repairs.settle(KEY.0, KEY.1, Outcome::Later("x")));
        assert!(repairs.settle(KEY.0, KEY.1, Outcome::Hopeless("alone")), "told once");
        assert!(!repairs.settle(KEY.0, KEY.1, Outcome::Hopeless("alone")));
        assert!(!repairs.settle(KEY.0, KEY.1, Outcome::Later("busy")));
        assert_eq!(repairs.damage(KEY.0, KEY.1).and_then(|damage| damage.hopeless), Some("alone"));
        assert!(repairs.next().unwrap().2.due > Instant::now());
        repairs.hurry();
        assert!(repairs.next().unwrap().2.due <= Instant::now());
        repairs.settle(KEY.0, KEY.1, Outcome::Repaired);
        assert_eq!((repairs.damage(KEY.0, KEY.1), repairs.all().len()), (None, 0));
    }

    #[test]
    fn only_what_leaves_bytes_of_the_bad_block_has_to_wait() {
        let write = |offset: u32, len: usize| Op::Write {
            offset,
            data: Buf::from_vec(vec![0; len]),
            crcs: Vec::new(),
            chunk_size: 1 << 20,
        };
        let damage = |block| Damage { block, hopeless: None, attempts: 0, due: Instant::now() };
        let length = 3 * 4096 + 100;
        let waits = |block, op: Op| damage(block).stands_in_the_way(&op, length);
        assert!(waits(1, write(4097, 10)) && waits(1, write(4096, 10)) && waits(1, write(0, 5000)));
        assert!(!waits(1, write(4096, 4096)) && !waits(1, write(0, 3 * 4096)) && !waits(1, write(8192, 10)));
        // The last block ends where the chunk ends.
        assert!(waits(3, write(3 * 4096, 99)) && !waits(3, write(3 * 4096, 100)));
        assert!(waits(3, write(length, 10)), "an append shares the last block");
        assert!(waits(1, Op::Truncate { length: 5000 }) && !waits(1, Op::Truncate { length: 4096 }));
        assert!(!waits(1, Op::Truncate { length: 100 }) && !waits(1, Op::Extend { length: 100_000 }));
        assert!(!waits(1, Op::Remove));
        assert!(waits(UNREADABLE, write(1, 10)) && !waits(UNREADABLE, write(0, 4096)));
    }

    #[test]
    fn parts_combine_to_the_checksum_of_the_padded_whole() {
        let data: Vec<u8> = (0..3 * 4096 + 77).map(|at| (at * 7 / 3) as u8).collect();
        let (front, back) = data.split_at(8192);
        let whole = combine_blocks(0, front, &piece_checksums(0, front));
        let whole = combine_blocks(whole, back, &piece_checksums(8192, back));
        let mut padded = data.clone();
        padded.resize(4 * 4096, 0);
        assert_eq!(whole, crc32c(&padded));
    }
}
