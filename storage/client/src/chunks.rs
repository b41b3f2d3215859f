//! Questions about chunks: which a chain holds, how long they are, and their checksums.

use std::ops::RangeInclusive;
use std::time::Duration;

use catena_net::Call;
use catena_proto::frame::{self, ChunkEntry, ChunksRequest, MAX_ITEMS, method};
use catena_proto::ids::{ChainId, ChunkId, InodeId, TargetId};
use catena_proto::routing::{PublicState, RoutingInfo, Target};
use catena_proto::status::{RetryClass, Status};
use catena_rt::time::Instant;
use tracing::debug;
use zerocopy::IntoBytes;

use crate::client::{Shared, StorageClient};
use crate::error::StorageError;
use crate::metrics::add;
use crate::write::expired;

/// Which replica answers a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replica {
    /// Any that serves: its answer holds for the chain.
    Any,
    /// This one, whatever its state: for verification and repair tools.
    Target(TargetId),
}

struct Question {
    method: u16,
    chain: ChainId,
    inodes: RangeInclusive<InodeId>,
    from_index: u32,
    limit: u32,
    checksums: bool,
    replica: Replica,
}

impl StorageClient {
    /// The last chunk of `inode` that `chain` holds, if it holds any.
    pub async fn last_chunk(
        &self,
        chain: ChainId,
        inode: InodeId,
        deadline: Instant,
    ) -> Result<Option<ChunkEntry>, StorageError> {
        let question = Question {
            method: method::LAST_CHUNK,
            chain,
            inodes: inode..=inode,
            from_index: 0,
            limit: 1,
            checksums: false,
            replica: Replica::Any,
        };
        Ok(self.shared.ask(question, deadline).await?.pop())
    }

    /// Up to `limit` (at most 1024) chunks of `inodes` in `chain`, in order, from `from` on. To go on, ask again from behind the last one;
    /// fewer than `limit` means that there are no more.
    #[allow(clippy::too_many_arguments)] // a question with this many sides
    pub async fn list_chunks(
        &self,
        chain: ChainId,
        inodes: RangeInclusive<InodeId>,
        from: ChunkId,
        limit: usize,
        replica: Replica,
        checksums: bool,
        deadline: Instant,
    ) -> Result<Vec<ChunkEntry>, StorageError> {
        let (first, last) = (from.inode.max(*inodes.start()), *inodes.end());
        let question = Question {
            method: method::LIST_CHUNKS,
            chain,
            inodes: first..=last,
            from_index: if first == from.inode { from.index } else { 0 },
            limit: limit.clamp(1, MAX_ITEMS) as u32,
            checksums,
            replica,
        };
        self.shared.ask(question, deadline).await
    }
}

impl Shared {
    async fn ask(&self, question: Question, deadline: Instant) -> Result<Vec<ChunkEntry>, StorageError> {
        let chain = question.chain;
        let chunk = ChunkId { inode: *question.inodes.start(), index: question.from_index };
        let mut pauses = self.pauses();
        let mut tried: Vec<TargetId> = Vec::new();
        let mut last: Option<StorageError> = None;
        loop {
            let routing = self.routing.current();
            let Some(target) = self.whom(&question, &routing, &tried) else {
                tried.clear();
                add(&self.metrics.refreshes, 1);
                if pauses.sleep_or_news(&self.routing, routing.version, deadline).await {
                    continue;
                }
                add(&self.metrics.failures, 1);
                let nobody =
                    || StorageError::new(Status::TimedOut, chain, chunk, "no replica to ask is known");
                return Err(expired(last.unwrap_or_else(nobody)));
            };
            let error = match self.put(&question, target, &routing, deadline).await {
                Ok(entries) => return Ok(entries),
                Err((status, detail)) => {
                    StorageError::new(status, chain, chunk, detail).at(target.id, target.node)
                }
            };
            debug!(%error, "a question about chunks was not answered");
            let class = match error.status {
                Status::TimedOut | Status::Malformed => RetryClass::Retry,
                status => status.class(),
            };
            if matches!(class, RetryClass::Done | RetryClass::GiveUp) {
                add(&self.metrics.failures, 1);
                return Err(error);
            }
            add(&self.metrics.retries, 1);
            tried.push(target.id);
            last = Some(error);
        }
    }

    fn whom<'a>(
        &self,
        question: &Question,
        routing: &'a RoutingInfo,
        tried: &[TargetId],
    ) -> Option<&'a Target> {
        let askable = |target: &Target| !tried.contains(&target.id) && routing.address(target).is_some();
        match question.replica {
            Replica::Target(id) => routing.targets.get(&id).filter(|target| askable(target)),
            Replica::Any => {
                let serving: Vec<_> = routing
                    .targets_in(question.chain, PublicState::Serving)
                    .filter(|target| askable(target))
                    .collect();
                let trusted = |target: &&&Target| !self.nodes.suspect(&self.nodes.get(target.node));
                let good: Vec<_> = serving.iter().filter(trusted).copied().collect();
                let from = if good.is_empty() { serving } else { good };
                (!from.is_empty()).then(|| from[self.random.below(from.len())])
            }
        }
    }

    async fn put(
        &self,
        question: &Question,
        target: &Target,
        routing: &RoutingInfo,
        deadline: Instant,
    ) -> Result<Vec<ChunkEntry>, (Status, Box<str>)> {
        let version = match question.replica {
            Replica::Any => routing.chains.get(&question.chain).map_or(0, |chain| chain.version.0),
            Replica::Target(_) => 0,
        };
        let request = ChunksRequest {
            chain_version: version.into(),
            from_inode: question.inodes.start().0.into(),
            to_inode: question.inodes.end().0.into(),
            chain: question.chain.0.into(),
            from_index: question.from_index.into(),
            limit: question.limit.into(),
            checksums: u32::from(question.checksums).into(),
        };
        let body = bytes::Bytes::copy_from_slice(request.as_bytes());
        let call = Call::new(question.method, body, Duration::ZERO);
        let node = self.nodes.get(target.node);
        let address = routing.address(target).unwrap_or_default();
        // Checksums may have to be computed from what is on the disk: as patient as for a write.
        let until = deadline.min(Instant::now() + self.options.write_attempt);
        match self.nodes.call(&node, address, call, until, &self.metrics).await {
            Ok(reply) if reply.status == Status::Ok => match frame::take_all::<ChunkEntry>(&reply.body) {
                Ok(entries) if entries.len() <= question.limit as usize => Ok(entries.to_vec()),
                Ok(_) => Err((Status::Malformed, "more chunks than asked for".into())),
                Err(malformed) => Err((Status::Malformed, malformed.to_string().into())),
            },
            Ok(reply) => Err((reply.status, String::from_utf8_lossy(&reply.body).into())),
            Err(none) => {
                self.nodes.accuse(&node);
                Err((none.status, none.detail))
            }
        }
    }
}
