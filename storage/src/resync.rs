//! The predecessor's side of a resync: it walks its own chunks and the target's dump side by side and sends what differs (R15, R18).
//!
//! One driver a target, for as long as its chain version stands. A new version ends it; the next predecessor, or this one again, walks
//! anew, and chunks that are complete in the session are passed over without a look at their contents (R19).

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use catena_craq::{ChunkSummary, Decision, DumpEntry, decide};
use catena_net::{Call, Reply, Segment};
use catena_proto::frame::{self, MAX_ITEMS, ResyncState};
use catena_proto::ids::*;
use catena_proto::status::Status;
use catena_rt::AbortHandle;
use catena_rt::time::{Instant, sleep};
use futures_util::StreamExt;
use futures_util::future::try_join;
use futures_util::stream::{self, FuturesUnordered};
use tokio::sync::mpsc;
use tracing::{info, warn};
use zerocopy::IntoBytes;

use crate::disk::{At, Listed};
use crate::node::Node;
use crate::peers::Lane;
use crate::progress::Progress;
use crate::ship::{Haste, Shipped, Unshipped, ship};
use crate::target::Target;
use crate::wire::{self, BaseHead, Decided, DumpRange, DumpReply, Dumped, SyncHead, TagEntry, Verdict, Word};

/// Chunks looked at together.
const PAGE: usize = 256;
/// Bases of one chain under way at once. Their bytes are bounded for the whole node, in `ship`.
const WINDOW: usize = 16;
/// Checksums looked up at once: each may take a trip to the disk.
const LOOKUPS: usize = 16;
/// How long one resync call may take: a base waits for the target's memory and disk.
const DEADLINE: Duration = Duration::from_secs(20);
/// Before something refused is tried again.
const PAUSE: Duration = Duration::from_millis(20);
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// A running walk; dropping it ends it.
pub(crate) struct Driver(AbortHandle, Arc<Progress>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
        self.1.break_off();
    }
}

/// Begins to bring the syncing successor up to date.
pub(crate) fn drive(
    target: &Arc<Target>,
    node: &Arc<Node>,
    to: TargetId,
    cv: ChainVersion,
    joined_at: ChainVersion,
) -> Driver {
    let gauges = || node.metrics.resync(to.0);
    let progress = node.sessions.of(target.chain, target.id, to, joined_at, gauges);
    let walk = Walk {
        progress: progress.clone(),
        target: target.clone(),
        node: node.clone(),
        to,
        chain_version: cv,
        joined_at,
    };
    Driver(catena_rt::spawn(walk.run()).abort_handle(), progress)
}

struct Walk {
    target: Arc<Target>,
    node: Arc<Node>,
    to: TargetId,
    chain_version: ChainVersion,
    joined_at: ChainVersion,
    progress: Arc<Progress>,
}

/// Why a walk does not go on.
enum Stop {
    /// The chain has changed: adoption begins another walk.
    Over,
    /// Something did not work now: from the beginning, after a pause.
    Again(Status),
}

impl Walk {
    async fn run(self) {
        let (target, to) = (self.target.id, self.to);
        info!(%target, chain = %self.target.chain, successor = %to, joined_at = self.joined_at.0, "bringing the successor up to date");
        let begun = Instant::now();
        let mut told = None;
        loop {
            match self.once().await {
                Ok(()) => {
                    let (took, (chunks, bytes)) = (begun.elapsed(), self.progress.sums());
                    self.progress.set(ResyncState::Done);
                    info!(%target, chain = %self.target.chain, successor = %to, chunks, bytes, ?took, "the successor is up to date");
                    return;
                }
                Err(Stop::Over) => return self.progress.break_off(),
                Err(Stop::Again(status)) => {
                    self.progress.set(ResyncState::HeldUp);
                    if told.replace(status) != Some(status) {
                        warn!(%target, successor = %to, %status, "the resync is held up; trying on");
                    }
                    sleep(LONG_PAUSE).await;
                }
            }
        }
    }

    /// One walk over all chunks, the tags, and the end.
    async fn once(&self) -> Result<(), Stop> {
        self.progress.walk(self.target.disk.count(self.target.id) as u64);
        // Contents are on their way while the next pages are compared.
        let (bases, to_send) = mpsc::channel(PAGE);
        try_join(self.walk(bases), self.send_bases(to_send)).await?;
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

    /// Goes over both sides' chunks, page by page; what has to be sent goes to `bases`.
    async fn walk(&self, bases: mpsc::Sender<ChunkId>) -> Result<(), Stop> {
        let mut from = ChunkId::default();
        loop {
            let (theirs, end) = self.dump(from).await?;
            let last = theirs.back().map(|entry| entry.chunk);
            let upper = match last {
                Some(last) if !end => Bound::Included(last),
                _ => Bound::Unbounded,
            };
            self.compare(from, upper, theirs, &bases).await?;
            match last.and_then(next) {
                Some(next) if !end => from = next,
                _ => return Ok(()),
            }
        }
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

    /// Compares what both have between two chunks: words go out at once, what needs a base goes to `bases`.
    async fn compare(
        &self,
        from: ChunkId,
        upper: Bound<ChunkId>,
        mut theirs: VecDeque<DumpEntry>,
        bases: &mpsc::Sender<ChunkId>,
    ) -> Result<(), Stop> {
        let mut cursor = Bound::Included(from);
        loop {
            let mine = self.target.disk.list(self.target.id, cursor, upper, PAGE);
            let full = mine.len() == PAGE;
            let until = mine.last().map(|listed| listed.chunk).filter(|_| full);
            let pairs = merge(mine.into(), &mut theirs, until);
            let decisions = stream::iter(pairs).map(|Pair { chunk, mine, theirs }| async move {
                (self.decide(chunk, mine, theirs).await, mine.is_some_and(|mine| mine.tombstone))
            });
            let decisions: Vec<_> = decisions.buffered(LOOKUPS).collect().await;
            let mut words = Vec::new();
            let mut unlike = Vec::new();
            for (word, tombstone) in decisions {
                self.progress.compared();
                match word {
                    Some(Word { chunk, decision: Decision::Base(_), .. }) if !tombstone => unlike.push(chunk),
                    Some(word) => {
                        match word.decision {
                            Decision::Keep(_) => self.progress.kept(),
                            Decision::Base(_) | Decision::Absent => self.progress.removed(),
                        }
                        words.push(word);
                    }
                    None => self.progress.kept(),
                }
            }
            unlike.extend(self.send_words(&words).await?);
            for chunk in unlike {
                // Closed only when sending has failed, which ends the walk.
                bases.send(chunk).await.map_err(|_| Stop::Over)?;
            }
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
    async fn send_words(&self, words: &[Word]) -> Result<Vec<ChunkId>, Stop> {
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

    /// Sends the contents of the chunks that come, several at once.
    async fn send_bases(&self, mut chunks: mpsc::Receiver<ChunkId>) -> Result<(), Stop> {
        let mut under_way = FuturesUnordered::new();
        let mut more = true;
        while more || !under_way.is_empty() {
            tokio::select! {
                biased;
                Some(sent) = under_way.next(), if !under_way.is_empty() => sent?,
                chunk = chunks.recv(), if more && under_way.len() < WINDOW => match chunk {
                    Some(chunk) => under_way.push(self.send_base(chunk)),
                    None => more = false,
                },
            }
        }
        Ok(())
    }

    /// Sends one chunk as it is committed now.
    async fn send_base(&self, chunk: ChunkId) -> Result<(), Stop> {
        loop {
            let (target, node) = (&self.target, &self.node);
            // Before anything is read: what waits here holds no memory.
            let expected = target.disk.committed_length(target.id, chunk);
            node.throttle.take(u64::from(expected)).await;
            let shipped = match ship(target, node, self.to, chunk, At::Committed, Haste::Beside).await {
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
            match self.base(chunk, &shipped).await {
                Ok(()) => {
                    self.progress.sent(u64::from(shipped.length));
                    return Ok(());
                }
                Err(Stop::Again(Status::NotYet | Status::Damaged)) => sleep(PAUSE).await,
                Err(stop) => return Err(stop),
            }
        }
    }

    async fn send_word(&self, chunk: ChunkId, decision: Decision) -> Result<(), Stop> {
        self.progress.removed();
        let word = Decided::new(&Word { chunk, decision, need: self.last_staged(chunk) });
        let reply = self.ask(wire::DECIDE, word.as_bytes(), Vec::new()).await?;
        verdict(&reply.body)
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

/// A chunk that one side or both have.
struct Pair {
    chunk: ChunkId,
    mine: Option<Listed>,
    theirs: Option<DumpEntry>,
}

/// Puts both sides' chunks side by side, in order; theirs only as far as mine are known.
fn merge(mut mine: VecDeque<Listed>, theirs: &mut VecDeque<DumpEntry>, until: Option<ChunkId>) -> Vec<Pair> {
    let mut pairs = Vec::with_capacity(mine.len());
    loop {
        let my = mine.front().map(|listed| listed.chunk);
        let their = theirs.front().map(|entry| entry.chunk);
        let their = their.filter(|&chunk| until.is_none_or(|until| chunk <= until));
        let Some(chunk) = my.into_iter().chain(their).min() else { return pairs };
        let mine = if my == Some(chunk) { mine.pop_front() } else { None };
        let theirs = if their == Some(chunk) { theirs.pop_front() } else { None };
        pairs.push(Pair { chunk, mine, theirs });
    }
}

/// The chunk behind `chunk` in order.
fn next(chunk: ChunkId) -> Option<ChunkId> {
    match chunk.index.checked_add(1) {
        Some(index) => Some(ChunkId { index, ..chunk }),
        None => Some(ChunkId { inode: InodeId(chunk.inode.0.checked_add(1)?), index: 0 }),
    }
}
