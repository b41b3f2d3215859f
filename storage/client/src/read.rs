//! Batched reads: grouped by node into few messages, verified on arrival, repeated at other replicas where that can help.
//!
//! A batch goes in rounds. Each round gives every open item a replica, sends one message a node (more if one would be too large), and
//! sorts the answers: done, done for good with an error, or open with that replica struck off. A replica that failed in passing is
//! struck off until every other one has been tried; one whose copy is corrupt, or whose disk failed, for the whole call.
//!
//! A node that only is silent is not waited for alone: after a while its items go to other replicas too, and the first answer counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use catena_buf::{IoBuf, PoolClass};
use catena_net::{Call, Reply};
use catena_proto::checksum;
use catena_proto::frame::{self, MAX_ITEMS, ReadItem, ReadResult, method};
use catena_proto::ids::{ChainId, ChainVersion, ChunkId, ChunkVersion, NodeId, TargetId};
use catena_proto::layout::MAX_IO;
use catena_proto::routing::{PublicState, RoutingInfo, Target};
use catena_proto::status::{RetryClass, Status};
use catena_rt::time::{Instant, timeout_at};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tracing::{debug, warn};
use zerocopy::IntoBytes;

use crate::client::{Shared, StorageClient};
use crate::error::StorageError;
use crate::metrics::add;
use crate::nodes::{Load, NoReply, Node};
use crate::write::expired;

/// Hard limit on the bulk bytes of one message.
const MAX_MESSAGE: u32 = 16 << 20;

/// One read of a batch.
#[derive(Debug)]
pub struct ReadOp {
    /// The chain that holds the chunk.
    pub chain: ChainId,
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte within the chunk.
    pub offset: u32,
    /// Bytes wanted, 1 to 4 MiB; fewer come at the chunk's end.
    pub length: u32,
    /// A buffer of at least `length` bytes to read into; none takes one from the pool. If an attempt fails the buffer may be lost to
    /// it, and another one comes back.
    pub into: Option<IoBuf>,
}

/// What was read.
#[derive(Debug)]
pub struct ReadOut {
    /// The committed version that it came from.
    pub version: ChunkVersion,
    /// The chunk's length in that version.
    pub chunk_length: u32,
    /// The bytes, from the buffer's start; shorter than asked for only at the chunk's end. Already verified.
    pub data: IoBuf,
    /// Their checksums by piece ([`checksum::pieces`]), for whoever combines them further.
    pub checksums: Vec<u32>,
}

/// An item on its way through the rounds.
struct Item {
    chain: ChainId,
    chunk: ChunkId,
    offset: u32,
    length: u32,
    into: Option<IoBuf>,
    /// Replicas that cannot answer this item any more,
    broken: Vec<TargetId>,
    /// and those that did not this time.
    tried: Vec<TargetId>,
    /// The one whose answer is waited for.
    asked: Option<TargetId>,
    last: Option<StorageError>,
    done: Option<Result<ReadOut, StorageError>>,
}

/// A target chosen for an item.
#[derive(Clone, Copy)]
struct Choice {
    item: usize,
    target: TargetId,
    version: ChainVersion,
}

/// One message of a round.
struct Message {
    id: NodeId,
    node: Arc<Node>,
    address: Box<str>,
    choices: Vec<Choice>,
    bytes: u32,
    load: Vec<Load>,
}

/// Messages under way, also those whose items have been asked elsewhere meanwhile.
type UnderWay<'a> = FuturesUnordered<BoxFuture<'a, (Message, Result<Vec<Answer>, NoReply>)>>;

/// How an item that is still open goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pace {
    /// Another replica, at once.
    Now,
    /// Newer routing information may help.
    News,
    /// The servers are busy.
    Later,
}

impl StorageClient {
    /// Reads a batch; outcomes come in the order of the items. The whole batch returns when its last item is done.
    ///
    /// Data whose buffers come from the pool must fit in it all at once: read long ranges in windows.
    ///
    /// # Errors
    /// Per item: [`Status::NotFound`] if the chunk does not exist (a hole), [`Status::Invalid`] for a length of 0 or over 4 MiB,
    /// [`Status::Corrupt`] if no replica has an intact copy, [`Status::TimedOut`].
    pub async fn read(&self, items: Vec<ReadOp>, deadline: Instant) -> Vec<Result<ReadOut, StorageError>> {
        self.shared.read(items, deadline).await
    }
}

impl Item {
    fn new(op: ReadOp) -> Item {
        let ReadOp { chain, chunk, offset, length, into } = op;
        let mut item = Item {
            chain,
            chunk,
            offset,
            length,
            into,
            broken: Vec::new(),
            tried: Vec::new(),
            asked: None,
            last: None,
            done: None,
        };
        let fits = item.into.as_ref().is_none_or(|into| into.capacity() >= length as usize);
        if length == 0 || length > MAX_IO || offset.checked_add(length).is_none() || !fits {
            let what =
                format!("{length} bytes at {offset} in one read; at most {MAX_IO}, and the buffer's size");
            item.done = Some(Err(item.error(Status::Invalid, what)));
        }
        item
    }

    fn error(&self, status: Status, detail: impl Into<Box<str>>) -> StorageError {
        StorageError::new(status, self.chain, self.chunk, detail)
    }
}

impl Shared {
    async fn read(&self, ops: Vec<ReadOp>, deadline: Instant) -> Vec<Result<ReadOut, StorageError>> {
        let start = Instant::now();
        let mut items: Vec<Item> = ops.into_iter().map(Item::new).collect();
        let mut pauses = self.pauses();
        let mut first = true;
        let mut under_way = UnderWay::new();
        while items.iter().any(|item| item.done.is_none()) {
            let routing = self.routing.current();
            let (messages, mut pace) = self.assign(&mut items, &routing);
            if !messages.is_empty() {
                if !first {
                    add(&self.metrics.retries, messages.len() as u64);
                }
                first = false;
                pace = self.round(&mut items, messages, &mut under_way, deadline).await;
            }
            if items.iter().all(|item| item.done.is_some()) {
                break;
            }
            let go_on = match pace {
                Pace::Now => Instant::now() < deadline,
                Pace::Later => pauses.sleep(deadline).await,
                Pace::News => {
                    add(&self.metrics.refreshes, 1);
                    pauses.sleep_or_news(&self.routing, routing.version, deadline).await
                }
            };
            if !go_on {
                for item in items.iter_mut().filter(|item| item.done.is_none()) {
                    let error = item.last.take();
                    let error =
                        error.unwrap_or_else(|| item.error(Status::TimedOut, "no replica serves this chain"));
                    item.done = Some(Err(expired(error)));
                }
            }
        }
        self.metrics.read_latency.record(start.elapsed());
        let failed = |item: &&Item| matches!(&item.done, Some(Err(e)) if e.status != Status::NotFound);
        let failures = items.iter().filter(failed).count() as u64;
        add(&self.metrics.failures, failures);
        add(&self.metrics.reads, items.len() as u64 - failures);
        items.into_iter().map(|item| item.done.expect("the loop ends when all are done")).collect()
    }

    /// A replica for every open item, in messages of bounded size. The pace says how to go on if some item got none.
    fn assign(&self, items: &mut [Item], routing: &RoutingInfo) -> (Vec<Message>, Pace) {
        let limit = self.options.message_bytes.clamp(MAX_IO, MAX_MESSAGE);
        let mut messages: Vec<Message> = Vec::new();
        // The message of each node that still has room.
        let mut filling: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut pace = Pace::Now;
        for (index, item) in items.iter_mut().enumerate().filter(|(_, item)| item.done.is_none()) {
            let Some((target, node)) = self.choose(item, routing) else {
                let intact = |target: &Target| !item.broken.contains(&target.id);
                let serving = || routing.targets_in(item.chain, PublicState::Serving);
                if serving().next().is_some() && !serving().any(intact) {
                    let error = item.last.take();
                    item.done = Some(Err(error.unwrap_or_else(|| item.error(Status::Corrupt, ""))));
                } else {
                    // Everyone was asked: start over, after a pause.
                    item.tried.clear();
                    pace = Pace::News;
                }
                continue;
            };
            let version = routing.chains.get(&item.chain).map(|chain| chain.version).unwrap_or_default();
            let address = routing.address(target).unwrap_or_default();
            let room = filling.get(&target.node).copied().filter(|&at| {
                let message: &Message = &messages[at];
                message.choices.len() < MAX_ITEMS && message.bytes + item.length <= limit
            });
            let at = room.unwrap_or_else(|| {
                messages.push(Message {
                    id: target.node,
                    node: node.clone(),
                    address: address.into(),
                    choices: Vec::new(),
                    bytes: 0,
                    load: Vec::new(),
                });
                messages.len() - 1
            });
            filling.insert(target.node, at);
            let message = &mut messages[at];
            message.choices.push(Choice { item: index, target: target.id, version });
            message.bytes += item.length;
            message.load.push(node.load(u64::from(item.length)));
        }
        (messages, pace)
    }

    /// The better of two random replicas that may answer `item`: a node that answers before one that did not, then the one with fewer
    /// bytes under way.
    fn choose<'a>(&self, item: &Item, routing: &'a RoutingInfo) -> Option<(&'a Target, Arc<Node>)> {
        let mut candidates: [Option<(&Target, Arc<Node>)>; 8] = Default::default();
        let mut count = 0;
        for target in routing.targets_in(item.chain, PublicState::Serving) {
            let struck = item.broken.contains(&target.id) || item.tried.contains(&target.id);
            if !struck && routing.address(target).is_some() && count < candidates.len() {
                candidates[count] = Some((target, self.nodes.get(target.node)));
                count += 1;
            }
        }
        let (mut one, mut other) = match count {
            0 => return None,
            1 => return candidates[0].take(),
            n => (self.random.below(n), self.random.below(n - 1)),
        };
        if other >= one {
            other += 1;
        }
        let cost = |at: usize| {
            candidates[at].as_ref().map(|(_, node)| (self.nodes.suspect(node), node.outstanding()))
        };
        if cost(other) < cost(one) {
            std::mem::swap(&mut one, &mut other);
        }
        candidates[one].take()
    }

    /// Sends the messages of a round side by side and sorts answers until no item waits for one any more.
    async fn round<'a>(
        &'a self,
        items: &mut [Item],
        messages: Vec<Message>,
        under_way: &mut UnderWay<'a>,
        deadline: Instant,
    ) -> Pace {
        for mut message in messages {
            let mut wanted = Vec::with_capacity(message.choices.len());
            for choice in &message.choices {
                let item = &mut items[choice.item];
                item.asked = Some(choice.target);
                let (chain, chunk) = (item.chain, item.chunk);
                let (offset, length, into) = (item.offset, item.length, item.into.take());
                wanted.push(Wanted { chain, chunk, offset, length, into, version: choice.version });
            }
            under_way.push(Box::pin(async move {
                let reply = self.send(&mut message, wanted, deadline).await;
                (message, reply)
            }));
        }
        let mut pace = Pace::Now;
        let hedge_at = Instant::now() + self.options.read_hedge;
        let mut hedged = false;
        while items.iter().any(|item| item.done.is_none() && item.asked.is_some()) {
            let answered = if hedged {
                under_way.next().await
            } else {
                match timeout_at(hedge_at, under_way.next()).await {
                    Ok(answered) => answered,
                    Err(_) => {
                        hedged = true;
                        self.hedge(items);
                        continue;
                    }
                }
            };
            let Some((message, reply)) = answered else { break };
            let mut answers = reply.map(Vec::into_iter);
            for choice in &message.choices {
                let answer = match &mut answers {
                    Ok(answers) => answers.next().unwrap_or_else(|| Err((Status::Malformed, Box::default()))),
                    Err(none) => Err((none.status, none.detail.clone())),
                };
                let item = &mut items[choice.item];
                let awaited = item.asked == Some(choice.target);
                if awaited {
                    item.asked = None;
                }
                // A late answer is as good as any; a late failure has been counted when the item was asked elsewhere.
                if item.done.is_none() && (awaited || answer.is_ok()) {
                    pace = pace.max(self.sort(item, choice.target, message.id, answer));
                }
            }
        }
        pace
    }

    /// Items that wait for a silent node may be asked elsewhere, if somebody is there who is not silent too. The node is suspect from
    /// now on, until it answers.
    fn hedge(&self, items: &mut [Item]) {
        let routing = self.routing.current();
        for item in items.iter_mut().filter(|item| item.done.is_none()) {
            let Some(asked) = item.asked else { continue };
            let elsewhere = routing.targets_in(item.chain, PublicState::Serving).any(|target| {
                target.id != asked
                    && !item.broken.contains(&target.id)
                    && !item.tried.contains(&target.id)
                    && routing.address(target).is_some()
                    && !self.nodes.suspect(&self.nodes.get(target.node))
            });
            if elsewhere {
                if let Some(target) = routing.targets.get(&asked) {
                    self.nodes.accuse(&self.nodes.get(target.node));
                }
                debug!(chain = %item.chain, chunk = %item.chunk, silent = %asked, "a replica is silent; asking another too");
                item.tried.push(asked);
                item.asked = None;
            }
        }
    }

    /// What one answer means for its item.
    fn sort(&self, item: &mut Item, target: TargetId, node: NodeId, answer: Answer) -> Pace {
        let (status, detail) = match answer {
            Ok(out) => {
                item.done = Some(Ok(out));
                return Pace::Now;
            }
            Err(answer) => answer,
        };
        let error = item.error(status, detail).at(target, node);
        let class = match status {
            // This attempt's time, not ours.
            Status::TimedOut => RetryClass::Retry,
            // What one replica cannot explain another may just answer.
            Status::Malformed | Status::Internal => RetryClass::Elsewhere,
            status => status.class(),
        };
        match class {
            RetryClass::Done | RetryClass::GiveUp => {
                item.done = Some(Err(error));
                return Pace::Now;
            }
            RetryClass::Elsewhere => {
                if status == Status::Corrupt {
                    add(&self.metrics.corrupt, 1);
                }
                warn!(%error, "a replica cannot answer a read; asking another");
                item.broken.push(target);
            }
            RetryClass::Retry | RetryClass::Refresh | RetryClass::BackOff => {
                debug!(%error, ?class, "a read was not answered; asking another replica");
                item.tried.push(target);
            }
        }
        item.last = Some(error);
        match class {
            RetryClass::BackOff => Pace::Later,
            _ => Pace::Now,
        }
    }

    /// One message and its reply, taken apart and verified.
    async fn send(
        &self,
        message: &mut Message,
        wanted: Vec<Wanted>,
        deadline: Instant,
    ) -> Result<Vec<Answer>, NoReply> {
        let (wanted, into) = self.buffers(wanted, deadline).await?;
        let mut body = BytesMut::with_capacity(wanted.len() * size_of::<ReadItem>());
        for want in &wanted {
            let item = ReadItem {
                chain_version: want.version.0.into(),
                inode: want.chunk.inode.0.into(),
                chain: want.chain.0.into(),
                index: want.chunk.index.into(),
                offset: want.offset.into(),
                length: want.length.into(),
            };
            body.put_slice(item.as_bytes());
        }
        let mut call = Call::new(method::READ, body.freeze(), Duration::ZERO);
        call.into = into;
        let until = deadline.min(Instant::now() + self.options.read_attempt);
        add(&self.metrics.read_messages, 1);
        let reply = self.nodes.call(&message.node, &message.address, call, until, &self.metrics).await;
        message.load.clear();
        let reply = reply.inspect_err(|_| self.nodes.accuse(&message.node))?;
        if reply.status != Status::Ok {
            let detail = String::from_utf8_lossy(&reply.body).into();
            return Err(NoReply { status: reply.status, detail, sent: true });
        }
        self.take_apart(&wanted, reply).map_err(|what| {
            warn!(node = %message.id, what, "a reply to a read makes no sense");
            NoReply { status: Status::Malformed, detail: what.into(), sent: true }
        })
    }

    /// A buffer of its length for every item: all that are missing at once, so that no two messages wait for each other's halves.
    async fn buffers(
        &self,
        mut wanted: Vec<Wanted>,
        deadline: Instant,
    ) -> Result<(Vec<Wanted>, Vec<IoBuf>), NoReply> {
        let failed = |status, detail: String| NoReply { status, detail: detail.into(), sent: false };
        let missing: Vec<usize> =
            wanted.iter().filter(|want| want.into.is_none()).map(|want| want.length as usize).collect();
        let mut fresh = Vec::new();
        if !missing.is_empty() {
            let pool = self.nodes.transport().pool();
            let waited = timeout_at(deadline, pool.alloc_many(&missing, PoolClass::Client)).await;
            let granted = waited.map_err(|_| {
                let what = "no buffers came free in time: the pool is too small, or its buffers are held";
                failed(Status::TimedOut, what.into())
            })?;
            fresh = granted.map_err(|error| failed(Status::Invalid, error.to_string()))?;
        }
        let mut fresh = fresh.into_iter();
        let into = wanted.iter_mut().filter_map(|want| {
            let mut buf = want.into.take().or_else(|| fresh.next())?;
            buf.set_len(want.length as usize);
            Some(buf)
        });
        let into = into.collect();
        Ok((wanted, into))
    }

    fn take_apart(&self, wanted: &[Wanted], reply: Reply) -> Result<Vec<Answer>, &'static str> {
        let mut body = &reply.body[..];
        let results = frame::take::<ReadResult>(&mut body, wanted.len()).map_err(|malformed| malformed.0)?;
        if reply.data.len() != wanted.len() {
            return Err("not one data segment an item");
        }
        let mut answers = Vec::with_capacity(wanted.len());
        let mut bytes = 0;
        for ((want, result), data) in wanted.iter().zip(results).zip(reply.data) {
            let count = result.crc_count.get() as usize;
            let checksums = frame::take_checksums(&mut body, count).map_err(|malformed| malformed.0)?;
            if result.status() != Status::Ok {
                answers.push(Err((result.status(), Box::default())));
                continue;
            }
            let length = result.length.get();
            if length > want.length || data.len() != length as usize {
                return Err("a data segment is not as long as its result says");
            }
            bytes += u64::from(length);
            answers.push(match verify(want.offset, &data, &checksums) {
                Ok(()) => Ok(ReadOut {
                    version: ChunkVersion(result.version.get()),
                    chunk_length: result.chunk_length.get(),
                    data,
                    checksums,
                }),
                Err(what) => Err((Status::Corrupt, what)),
            });
        }
        self.metrics.read_bytes.fetch_add(bytes, Relaxed);
        Ok(answers)
    }
}

type Answer = Result<ReadOut, (Status, Box<str>)>;

/// An item as its message sees it.
struct Wanted {
    chain: ChainId,
    chunk: ChunkId,
    offset: u32,
    length: u32,
    into: Option<IoBuf>,
    version: ChainVersion,
}

/// Compares every piece with its checksum.
fn verify(offset: u32, data: &[u8], checksums: &[u32]) -> Result<(), Box<str>> {
    if checksums.len() != checksum::piece_count(offset, data.len()) {
        return Err("not one checksum a piece".into());
    }
    for ((at, size), &expected) in checksum::pieces(offset, data.len()).zip(checksums) {
        let found = checksum::crc32c(&data[at..at + size]);
        if found != expected {
            let at = offset as usize + at;
            let what =
                format!("checksum of {size} bytes at {at} is {found:08x}, {expected:08x} was announced");
            return Err(what.into());
        }
    }
    Ok(())
}
