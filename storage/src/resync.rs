//! The predecessor's side of a resync: it walks its own chunks and the target's dump side by side and sends what differs (R15, R18).
//!
//! One driver a target, for as long as its chain version stands. A new version ends it; the next predecessor, or this one again, walks
//! anew, and chunks that are complete in the session are passed over without a look at their contents (R19).

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use catena_craq::{ChunkSummary, Decision, DumpEntry, Forward, decide};
use catena_net::{Call, Reply, Segment};
use catena_proto::frame::{self, MAX_ITEMS};
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::AbortHandle;
use catena_rt::time::{Instant, sleep, sleep_until};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::{info, warn};
use zerocopy::IntoBytes;

use crate::disk::{At, Listed};
use crate::metrics::ResyncMetrics;
use crate::node::Node;
use crate::payload::Payload;
use crate::peers::Lane;
use crate::ship::{Shipped, Unshipped, ship};
use crate::target::Target;
use crate::wire::{self, BaseHead, Decided, DumpRange, DumpReply, Dumped, SyncHead, TagEntry, Verdict, Word};

/// Chunks looked at together.
const PAGE: usize = 256;
/// Bases under way at once.
const WINDOW: usize = 8;
/// How long one resync call may take: a base waits for the target's memory and disk.
const DEADLINE: Duration = Duration::from_secs(20);
/// Before something refused is tried again.
const PAUSE: Duration = Duration::from_millis(20);
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// A running walk; dropping it ends it.
pub(crate) struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A full forward that was asked for.
pub(crate) struct Full {
    pub to: TargetId,
    pub place: usize,
    pub chain_version: ChainVersion,
    pub chunk: ChunkId,
    pub id: VersionId,
    pub tag: Option<Tag>,
    pub full: bool,
    pub first: bool,
    pub durable: ChunkVersion,
}

/// Reads a chunk as of a pending version and sends it to the syncing successor.
pub(crate) fn send_full(target: Arc<Target>, node: Arc<Node>, full: Full) {
    catena_rt::spawn(async move {
        let (to, chain_version, chunk) = (full.to, full.chain_version, full.chunk);
        let sent = ship_full(&target, &node, full).await;
        target.full_is_over(&node, chunk);
        if let Some(answered) = sent {
            target.forward_answered(&node, to, chain_version, chunk, answered).await;
        }
    });
}

/// The successor's verdict if it was asked, or what stands for one; `None` if there is nothing to send.
async fn ship_full(target: &Arc<Target>, node: &Arc<Node>, full: Full) -> Option<Option<Verdict>> {
    let Full { to, place, chain_version, chunk, id, tag, full, first, durable } = full;
    let shipped = match ship(target, node, to, chunk, At::Version(id)).await {
        Ok(shipped) => shipped,
        // Committed and overtaken: the tail, which is the successor, has it. Or not durable yet: the next tick asks again.
        Err(Unshipped::Gone) => return None,
        Err(Unshipped::Unreadable(error)) => {
            target.disk.read_failed(node, target, chunk, &error);
            return None;
        }
        Err(Unshipped::Refused(status)) => return Some(Some(Verdict::new(status, false))),
    };
    let payload = Payload::whole(&shipped);
    let forward = Forward { chunk, id, tag, payload, full, first, durable };
    Some(target.send_forward(node, to, place, chain_version, forward).await)
}

/// Begins to bring the syncing successor up to date.
pub(crate) fn drive(
    target: &Arc<Target>,
    node: &Arc<Node>,
    to: TargetId,
    cv: ChainVersion,
    joined_at: ChainVersion,
) -> Driver {
    let walk = Walk {
        gauges: node.metrics.resync(to.0),
        target: target.clone(),
        node: node.clone(),
        to,
        chain_version: cv,
        joined_at,
        sent_chunks: 0,
        sent_bytes: 0,
    };
    Driver(catena_rt::spawn(walk.run()).abort_handle())
}

struct Walk {
    target: Arc<Target>,
    node: Arc<Node>,
    to: TargetId,
    chain_version: ChainVersion,
    joined_at: ChainVersion,
    gauges: ResyncMetrics,
    sent_chunks: u64,
    sent_bytes: u64,
}

/// Why a walk does not go on.
enum Stop {
    /// The chain has changed: adoption begins another walk.
    Over,
    /// Something did not work now: from the beginning, after a pause.
    Again(Status),
}

impl Walk {
    async fn run(mut self) {
        let (target, to) = (self.target.id, self.to);
        info!(%target, chain = %self.target.chain, successor = %to, joined_at = self.joined_at.0, "bringing the successor up to date");
        let begun = Instant::now();
        let mut told = None;
        loop {
            match self.once().await {
                Ok(()) => {
                    let took = begun.elapsed();
                    info!(%target, chain = %self.target.chain, successor = %to, chunks = self.sent_chunks, bytes = self.sent_bytes, ?took, "the successor is up to date");
                    return;
                }
                Err(Stop::Over) => return,
                Err(Stop::Again(status)) => {
                    if told.replace(status) != Some(status) {
                        warn!(%target, successor = %to, %status, "the resync is held up; trying on");
                    }
                    sleep(LONG_PAUSE).await;
                }
            }
        }
    }

    /// One walk over all chunks, the tags, and the end.
    async fn once(&mut self) -> Result<(), Stop> {
        self.gauges.chunks.set(0);
        let mut from = ChunkId::default();
        loop {
            let (theirs, end) = self.dump(from).await?;
            let last = theirs.back().map(|entry| entry.chunk);
            let upper = match last {
                Some(last) if !end => Bound::Included(last),
                _ => Bound::Unbounded,
            };
            self.compare(from, upper, theirs).await?;
            match last.and_then(next) {
                Some(next) if !end => from = next,
                _ => break,
            }
        }
        self.tags().await?;
        // What was needed may still be on its way to being committed.
        for _ in 0..50 {
            match self.ask(wire::DONE, &[], Vec::new()).await {
                Ok(_) => return Ok(()),
                Err(Stop::Again(Status::NotYet)) => sleep(PAUSE).await,
                Err(stop) => return Err(stop),
            }
        }
        Err(Stop::Again(Status::NotYet))
    }

    fn head(&self) -> SyncHead {
        SyncHead {
            chain_version: self.chain_version.0.into(),
            from: self.target.id.0.into(),
            to: self.to.0.into(),
            joined_at: self.joined_at.0.into(),
        }
    }

    /// A call to the syncing target.
    async fn ask(&self, method: u16, body: &[u8], data: Vec<Segment>) -> Result<Reply, Stop> {
        let mut out = BytesMut::with_capacity(size_of::<SyncHead>() + body.len());
        out.put_slice(self.head().as_bytes());
        out.put_slice(body);
        let call = Call { method, body: out.freeze(), deadline: DEADLINE, data, ..Call::default() };
        match self.node.peers.call(self.to, Lane::Sync, call).await {
            Ok(reply) if reply.status == Status::Ok => Ok(reply),
            Ok(reply) if reply.status == Status::StaleRouting => Err(Stop::Over),
            Ok(reply) => Err(Stop::Again(reply.status)),
            Err(error) => Err(Stop::Again(error.status())),
        }
    }

    async fn dump(&self, from: ChunkId) -> Result<(VecDeque<DumpEntry>, bool), Stop> {
        let range =
            DumpRange { inode: from.inode.0.into(), index: from.index.into(), limit: (PAGE as u32).into() };
        let reply = loop {
            match self.ask(wire::DUMP, range.as_bytes(), Vec::new()).await {
                Err(Stop::Again(Status::NotYet)) => sleep(PAUSE).await, // it is dropping its pendings
                other => break other?,
            }
        };
        let mut body = &reply.body[..];
        let malformed = |_| Stop::Again(Status::Malformed);
        let head = frame::take_one::<DumpReply>(&mut body).map_err(malformed)?;
        let entries = frame::take_all::<Dumped>(body).map_err(malformed)?;
        Ok((entries.iter().map(Dumped::entry).collect(), head.end.get() != 0 || entries.is_empty()))
    }

    /// Compares what both have between two chunks, and sends what differs.
    async fn compare(
        &mut self,
        from: ChunkId,
        upper: Bound<ChunkId>,
        mut theirs: VecDeque<DumpEntry>,
    ) -> Result<(), Stop> {
        let mut cursor = Bound::Included(from);
        loop {
            let mine = self.target.disk.list(self.target.id, cursor, upper, PAGE);
            let full = mine.len() == PAGE;
            let until = mine.last().map(|listed| listed.chunk).filter(|_| full);
            let mut mine: VecDeque<Listed> = mine.into();
            let mut words = Vec::new();
            let mut bases = Vec::new();
            loop {
                // The smaller of both heads; theirs only as far as mine are known.
                let my = mine.front().map(|listed| listed.chunk);
                let their = theirs
                    .front()
                    .map(|entry| entry.chunk)
                    .filter(|&chunk| until.is_none_or(|until| chunk <= until));
                let chunk = match (my, their) {
                    (None, None) => break,
                    (Some(my), Some(their)) => my.min(their),
                    (Some(chunk), None) | (None, Some(chunk)) => chunk,
                };
                let listed = if my == Some(chunk) { mine.pop_front() } else { None };
                let entry = if their == Some(chunk) { theirs.pop_front() } else { None };
                self.gauges.chunks.inc();
                match self.decide(chunk, listed, entry).await {
                    Some(word @ Word { decision: Decision::Base(_), .. })
                        if !listed.is_some_and(|listed| listed.tombstone) =>
                    {
                        bases.push(word.chunk);
                    }
                    Some(word) => words.push(word),
                    None => {}
                }
            }
            bases.extend(self.send_words(&words).await?);
            self.send_bases(bases).await?;
            match until {
                Some(until) => cursor = Bound::Excluded(until),
                None => return Ok(()),
            }
        }
    }

    /// The word on one chunk.
    async fn decide(&self, chunk: ChunkId, mine: Option<Listed>, theirs: Option<DumpEntry>) -> Option<Word> {
        let summary = match mine {
            None => None,
            Some(mine) => {
                // The checksum matters only when everything else is equal.
                let alike = theirs.filter(|theirs| {
                    !theirs.complete
                        && !theirs.pending
                        && !mine.tombstone
                        && (theirs.committed, theirs.length) == (mine.committed, mine.length)
                });
                let checksum = match alike {
                    None => 0,
                    // Unreadable here: not equal, then; the base will say what is wrong.
                    Some(theirs) => {
                        self.target.disk.checksum(self.target.id, chunk).await.unwrap_or(!theirs.checksum)
                    }
                };
                Some(ChunkSummary {
                    committed: mine.committed,
                    length: mine.length,
                    checksum,
                    tombstone: mine.tombstone,
                    last_staged: self.last_staged(chunk),
                })
            }
        };
        let (decision, need) = decide(summary.as_ref(), theirs.as_ref())?;
        Some(Word { chunk, decision, need })
    }

    fn last_staged(&self, chunk: ChunkId) -> ChunkVersion {
        self.target.state().replica.last_staged(chunk, &self.target.store()).version
    }

    /// Sends words without contents. Chunks that changed since they were dumped come back: they need a base.
    async fn send_words(&mut self, words: &[Word]) -> Result<Vec<ChunkId>, Stop> {
        let mut bases = Vec::new();
        let mut waiting: Vec<Word> = words.to_vec();
        while !waiting.is_empty() {
            let items: Vec<Decided> = waiting.iter().map(Decided::new).collect();
            let reply = self.ask(wire::DECIDE, items.as_bytes(), Vec::new()).await?;
            let verdicts =
                frame::take_all::<Verdict>(&reply.body).map_err(|_| Stop::Again(Status::Malformed))?;
            if verdicts.len() != waiting.len() {
                return Err(Stop::Again(Status::Malformed));
            }
            let mut again = Vec::new();
            for (word, verdict) in waiting.iter().zip(verdicts) {
                match verdict.status() {
                    Status::Ok => {}
                    Status::Gap => bases.push(word.chunk),
                    Status::NotYet => again.push(*word),
                    Status::StaleRouting => return Err(Stop::Over),
                    status => return Err(Stop::Again(status)),
                }
            }
            if !again.is_empty() {
                sleep(PAUSE).await;
            }
            waiting = again;
        }
        Ok(bases)
    }

    /// Sends the contents of chunks, several at once.
    async fn send_bases(&mut self, chunks: Vec<ChunkId>) -> Result<(), Stop> {
        let mut chunks = chunks.into_iter();
        let mut under_way = FuturesUnordered::new();
        let (mut sent_chunks, mut sent_bytes) = (0, 0);
        let this = &*self;
        loop {
            while under_way.len() < WINDOW
                && let Some(chunk) = chunks.next()
            {
                under_way.push(this.send_base(chunk));
            }
            match under_way.next().await {
                None => break,
                Some(sent) => {
                    sent_chunks += 1;
                    sent_bytes += sent?;
                }
            }
        }
        drop(under_way);
        self.sent_chunks += sent_chunks;
        self.sent_bytes += sent_bytes;
        self.gauges.sent.set(self.sent_chunks as i64);
        self.gauges.bytes.set(self.sent_bytes as i64);
        Ok(())
    }

    /// Sends one chunk as it is committed now; returns the bytes.
    async fn send_base(&self, chunk: ChunkId) -> Result<u64, Stop> {
        loop {
            let (target, node) = (&self.target, &self.node);
            let shipped = match ship(target, node, self.to, chunk, At::Committed).await {
                Ok(shipped) => shipped,
                // Gone since it was listed, without a trace: absent.
                Err(Unshipped::Gone) => return self.send_word(chunk, Decision::Absent).await,
                Err(Unshipped::Unreadable(error)) => {
                    return Err(Stop::Again(target.disk.read_failed(node, target, chunk, &error)));
                }
                Err(Unshipped::Refused(Status::StaleRouting)) => return Err(Stop::Over),
                Err(Unshipped::Refused(status)) => return Err(Stop::Again(status)),
            };
            if shipped.tombstone {
                return self.send_word(chunk, Decision::Base(shipped.version)).await;
            }
            if shipped.transfer == 0 {
                node.throttle.take(u64::from(shipped.length)).await;
            }
            match self.base(chunk, &shipped).await {
                Ok(()) => return Ok(u64::from(shipped.length)),
                Err(Stop::Again(Status::NotYet | Status::Damaged)) => sleep(PAUSE).await,
                Err(stop) => return Err(stop),
            }
        }
    }

    async fn send_word(&self, chunk: ChunkId, decision: Decision) -> Result<u64, Stop> {
        let word = Decided::new(&Word { chunk, decision, need: self.last_staged(chunk) });
        let reply = self.ask(wire::DECIDE, word.as_bytes(), Vec::new()).await?;
        verdict(&reply.body).map(|()| 0)
    }

    async fn base(&self, chunk: ChunkId, shipped: &Shipped) -> Result<(), Stop> {
        // Taken after the snapshot, so never below it (R15).
        let need = self.last_staged(chunk).max(shipped.version.version);
        let head = BaseHead {
            inode: chunk.inode.0.into(),
            version: shipped.version.version.0.into(),
            assigned: shipped.version.assigned.0.into(),
            need: need.0.into(),
            transfer: shipped.transfer.into(),
            index: chunk.index.into(),
            length: shipped.length.into(),
            crc_count: (shipped.crcs.len() as u32).into(),
            reserved: 0.into(),
        };
        let body = frame::body(&head, &shipped.crcs);
        let data = shipped.data.iter().map(|data| Segment { data: data.clone(), align: 0 }).collect();
        let reply = self.ask(wire::BASE, &body, data).await?;
        verdict(&reply.body)
    }

    /// The tags of all committed writes, also of chunks that were kept or are gone (R21).
    async fn tags(&self) -> Result<(), Stop> {
        let mut from = None;
        loop {
            let page = self.target.disk.tags(self.target.id, from, MAX_ITEMS);
            let Some(last) = page.last() else { return Ok(()) };
            let after = (last.client, last.channel);
            let entries: Vec<TagEntry> = page.iter().map(TagEntry::new).collect();
            self.ask(wire::TAGS, entries.as_bytes(), Vec::new()).await?;
            from = Some(after);
        }
    }
}

fn verdict(body: &Bytes) -> Result<(), Stop> {
    let verdict = frame::take_one::<Verdict>(&mut &body[..]).map_err(|_| Stop::Again(Status::Malformed))?;
    match verdict.status() {
        Status::Ok => Ok(()),
        Status::StaleRouting => Err(Stop::Over),
        status => Err(Stop::Again(status)),
    }
}

/// The chunk behind `chunk` in order.
fn next(chunk: ChunkId) -> Option<ChunkId> {
    match chunk.index.checked_add(1) {
        Some(index) => Some(ChunkId { index, ..chunk }),
        None => Some(ChunkId { inode: InodeId(chunk.inode.0.checked_add(1)?), index: 0 }),
    }
}

/// A byte budget that refills with time: what resync may send.
pub(crate) struct Throttle {
    rate: u64,
    ready_at: parking_lot::Mutex<Option<Instant>>,
}

impl Throttle {
    /// `rate` bytes a second; 0: no limit.
    pub fn new(rate: u64) -> Throttle {
        Throttle { rate, ready_at: Default::default() }
    }

    /// Waits until `bytes` may go.
    pub async fn take(&self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let start = {
            let mut ready_at = self.ready_at.lock();
            let start = ready_at.unwrap_or_else(Instant::now).max(Instant::now());
            *ready_at = Some(start + cost);
            start
        };
        sleep_until(start).await;
    }
}
