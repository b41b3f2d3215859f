//! Mutations of chunks: to the head of the chain, under one tag over all attempts, until committed or refused for good.

use std::sync::Arc;
use std::time::Duration;

use catena_buf::Buf;
use catena_net::{Call, Segment};
use catena_proto::checksum;
use catena_proto::frame::{self, WriteKind, WriteReply, WriteRequest, method};
use catena_proto::ids::{ChainId, ChainVersion, ChunkId, ChunkVersion, NodeId, TargetId, VersionId};
use catena_proto::layout::MAX_IO;
use catena_proto::routing::{PublicState, RoutingInfo};
use catena_proto::status::{RetryClass, Status};
use catena_rt::time::Instant;
use tracing::debug;

use crate::client::{Shared, StorageClient};
use crate::error::StorageError;
use crate::metrics::add;

/// A write to one chunk.
#[derive(Clone, Debug)]
pub struct WriteOp {
    /// The chain that holds the chunk.
    pub chain: ChainId,
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte within the chunk.
    pub offset: u32,
    /// What is written: 1 byte to 4 MiB, sent by reference.
    pub data: Buf,
    /// The checksum of every piece ([`checksum::piece_checksums`]) if the caller has them already.
    pub checksums: Option<Vec<u32>>,
    /// The file's chunk size: nothing is written beyond it.
    pub chunk_size: u32,
}

/// A committed mutation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// The version that it became.
    pub version: VersionId,
    /// The chunk's length after it.
    pub length: u32,
}

struct Mutation {
    chain: ChainId,
    chunk: ChunkId,
    kind: WriteKind,
    offset: u32,
    chunk_size: u32,
    data: Option<Buf>,
    checksums: Vec<u32>,
}

impl StorageClient {
    /// Writes `data` at byte `offset` of a chunk. Returns when it is durable on every replica of the chain.
    ///
    /// # Errors
    /// [`Status::Invalid`] for no data or a range outside the chunk, [`Status::NoSpace`], and [`Status::TimedOut`] when the deadline came
    /// first: then the write may or may not have been applied, now or soon.
    pub async fn write(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        offset: u32,
        data: Buf,
        chunk_size: u32,
        deadline: Instant,
    ) -> Result<Written, StorageError> {
        self.write_op(WriteOp { chain, chunk, offset, data, checksums: None, chunk_size }, deadline).await
    }

    /// As [`StorageClient::write`], for a caller that may have the checksums.
    pub async fn write_op(&self, op: WriteOp, deadline: Instant) -> Result<Written, StorageError> {
        let WriteOp { chain, chunk, offset, data, checksums, chunk_size } = op;
        let bad = |what: String| StorageError::new(Status::Invalid, chain, chunk, what);
        let end = u64::from(offset) + data.len() as u64;
        if data.is_empty() || data.len() > MAX_IO as usize || end > u64::from(chunk_size) {
            let (from, size) = (offset, chunk_size);
            return Err(bad(format!("bytes {from}..{end} of a chunk of {size}, at most {MAX_IO} at once")));
        }
        let count = checksum::piece_count(offset, data.len());
        let checksums = match checksums {
            Some(given) if given.len() == count => given,
            Some(given) => return Err(bad(format!("{} checksums for {count} pieces", given.len()))),
            None => checksum::piece_checksums(offset, &data),
        };
        let kind = WriteKind::Write;
        let mutation = Mutation { chain, chunk, kind, offset, chunk_size, data: Some(data), checksums };
        self.shared.mutate(mutation, deadline).await
    }

    /// Changes a chunk without data: [`WriteKind::Truncate`] sets its length, [`WriteKind::Extend`] raises it, [`WriteKind::Remove`]
    /// (whose `length` does not matter) removes it. Removing a chunk that is not there succeeds.
    pub async fn mutate(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        kind: WriteKind,
        length: u32,
        chunk_size: u32,
        deadline: Instant,
    ) -> Result<Written, StorageError> {
        if kind == WriteKind::Write || length > chunk_size {
            let what = format!("{kind:?} to length {length} of a chunk of {chunk_size}");
            return Err(StorageError::new(Status::Invalid, chain, chunk, what));
        }
        let checksums = Vec::new();
        let mutation = Mutation { chain, chunk, kind, offset: length, chunk_size, data: None, checksums };
        self.shared.mutate(mutation, deadline).await
    }
}

/// Where a mutation goes under one snapshot of routing information.
struct Head {
    target: TargetId,
    node: NodeId,
    address: Box<str>,
    version: ChainVersion,
}

fn head(routing: &RoutingInfo, chain: ChainId) -> Option<Head> {
    let target = routing.targets_in(chain, PublicState::Serving).next()?;
    Some(Head {
        target: target.id,
        node: target.node,
        address: routing.address(target)?.into(),
        version: routing.chains.get(&chain)?.version,
    })
}

impl Shared {
    async fn mutate(self: &Arc<Self>, op: Mutation, deadline: Instant) -> Result<Written, StorageError> {
        let start = Instant::now();
        let outcome = self.mutate_until(&op, deadline).await;
        match &outcome {
            Ok(_) => {
                add(&self.metrics.writes, 1);
                add(&self.metrics.write_bytes, op.data.as_ref().map_or(0, |data| data.len() as u64));
                self.metrics.write_latency.record(start.elapsed());
            }
            Err(_) => add(&self.metrics.failures, 1),
        }
        outcome
    }

    async fn mutate_until(&self, op: &Mutation, deadline: Instant) -> Result<Written, StorageError> {
        let (chain, chunk) = (op.chain, op.chunk);
        let Some(lease) = self.channels.acquire(deadline).await else {
            return Err(StorageError::new(Status::TimedOut, chain, chunk, "no free write channel in time"));
        };
        let mut pauses = self.pauses();
        // Whether an attempt may have reached a target without our knowing what became of it.
        let mut adrift = false;
        let mut last: Option<StorageError> = None;
        loop {
            let routing = self.routing.current();
            let Some(head) = head(&routing, chain) else {
                let known = routing.chains.contains_key(&chain);
                let what = if known {
                    "no replica serves; see `catena admin chains`"
                } else {
                    "no such chain in the routing information"
                };
                add(&self.metrics.refreshes, 1);
                if self.routing.newer_than(routing.version, deadline).await.is_some() {
                    continue;
                }
                let error = last.unwrap_or_else(|| StorageError::new(Status::TimedOut, chain, chunk, what));
                return Err(expired(error));
            };
            let attempt = self.attempt(op, &lease, &head, &routing, deadline).await;
            let error = match attempt {
                Ok(written) => {
                    lease.settled();
                    return Ok(written);
                }
                Err((error, sent)) => {
                    adrift |= sent;
                    error.at(head.target, head.node)
                }
            };
            let class = match error.status {
                // The server means this attempt's time, not ours.
                Status::TimedOut => RetryClass::Retry,
                // Its targets leave their chains at once: another head will answer.
                Status::DiskFailed => RetryClass::Refresh,
                status => status.class(),
            };
            debug!(%error, ?class, "a mutation was not answered with success");
            let go_on = match class {
                RetryClass::Done | RetryClass::GiveUp | RetryClass::Elsewhere => {
                    if !adrift {
                        lease.settled();
                    }
                    return Err(error);
                }
                RetryClass::BackOff => pauses.sleep(deadline).await,
                RetryClass::Retry | RetryClass::Refresh => {
                    add(&self.metrics.refreshes, u64::from(class == RetryClass::Refresh));
                    pauses.sleep_or_news(&self.routing, routing.version, deadline).await
                }
            };
            if !go_on {
                return Err(expired(error));
            }
            add(&self.metrics.retries, 1);
            last = Some(error);
        }
    }

    /// One message to the head. An error says whether the mutation may have been carried out all the same.
    async fn attempt(
        &self,
        op: &Mutation,
        lease: &crate::channels::Lease,
        head: &Head,
        routing: &RoutingInfo,
        deadline: Instant,
    ) -> Result<Written, (StorageError, bool)> {
        let fail = |status, detail: &str, sent| (StorageError::new(status, op.chain, op.chunk, detail), sent);
        let (channel, sequence) = lease.place();
        let length = op.data.as_ref().map_or(0, |data| data.len() as u32);
        let request = WriteRequest {
            chain_version: head.version.0.into(),
            inode: op.chunk.inode.0.into(),
            client: self.client.0.into(),
            sequence: sequence.0.into(),
            channel: channel.0.into(),
            chain: op.chain.0.into(),
            index: op.chunk.index.into(),
            offset: op.offset.into(),
            length: length.into(),
            chunk_size: op.chunk_size.into(),
            crc_count: (op.checksums.len() as u32).into(),
            kind: op.kind as u8,
            reserved: [0; 3],
        };
        let align = (op.offset as usize % checksum::BLOCK) as u16;
        let mut call = Call::new(method::WRITE, frame::body(&request, &op.checksums), Duration::ZERO);
        call.data = op.data.iter().map(|data| Segment { data: data.clone(), align }).collect();
        let node = self.nodes.get(head.node);
        let until = deadline.min(Instant::now() + self.options.write_attempt);
        let sending = self.nodes.call(&node, &head.address, call, until, &self.metrics);
        let reply = tokio::select! {
            biased;
            reply = sending => reply,
            // The head that was asked may hang for ever; the new one answers a repeated tag.
            () = self.head_moves(op.chain, head.target, routing) => {
                return Err(fail(Status::NotHead, "the chain has a new head", true));
            }
        };
        match reply {
            Ok(reply) if reply.status == Status::Ok => {
                match frame::take_one::<WriteReply>(&mut &reply.body[..]) {
                    Ok(answer) => Ok(Written {
                        version: VersionId {
                            version: ChunkVersion(answer.version.get()),
                            assigned: ChainVersion(answer.assigned.get()),
                        },
                        length: answer.length.get(),
                    }),
                    Err(error) => Err(fail(Status::Malformed, &error.to_string(), true)),
                }
            }
            // An expired attempt may still be under way in the chain; every other answer is a refusal.
            Ok(reply) => {
                let detail = String::from_utf8_lossy(&reply.body);
                Err(fail(reply.status, &detail, reply.status == Status::TimedOut))
            }
            Err(none) => {
                self.nodes.accuse(&node);
                Err(fail(none.status, &none.detail, none.sent))
            }
        }
    }

    /// Returns once routing information names another head for `chain` than `target`.
    async fn head_moves(&self, chain: ChainId, target: TargetId, routing: &RoutingInfo) {
        let mut version = routing.version;
        loop {
            let news = self.routing.changed(version).await;
            version = news.version;
            let now = news.targets_in(chain, PublicState::Serving).next();
            if now.is_some_and(|head| head.id != target) {
                return;
            }
        }
    }
}

/// The error of an operation whose time is over: the last reason becomes its detail.
pub(crate) fn expired(error: StorageError) -> StorageError {
    if error.status == Status::TimedOut {
        return error;
    }
    let detail = match &*error.detail {
        "" => format!("last answer: {}", error.status),
        detail => format!("last answer: {}, {detail}", error.status),
    };
    StorageError { status: Status::TimedOut, detail: detail.into(), ..error }
}
