//! Carrying out a cut: removing the chunks behind a file's new end (see `ops::truncate` for the transactions around it).
//!
//! Only one service may be at it. A chunk removed too late, by a service that was stopped for a while, could be one that a client has
//! written since. So the intent names its owner, and the owner works only for a `LEASE` after the transaction in which it last wrote
//! its name or beat into the intent, on its own monotonic clock, and then has to beat again; another service takes over only after
//! it has seen the intent unchanged for twice that time on *its* clock. No clocks are compared. The intent says how long the lease is: it
//! follows the cluster's, so that a file is cut again as soon as anything else is served again after a loss, and services that have
//! learned different ones agree all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use catena_proto::clock::Monotonic;
use catena_proto::ids::{ChainId, ChunkId, InodeId, RequestId};
use catena_proto::layout::Layout;
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::Instant;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;

use crate::chunks::Extent;
use crate::error::{OpError, refuse};
use crate::ops::sync::layout_of;
use crate::ops::truncate;
use crate::run::{self, Memory, failure, recall, remember, transact};
use crate::schema::{TruncateIntent, encode, key};
use crate::service::Service;

/// How long the owner works between two beats, at most and at least. Half of the cluster's lease is between them.
const LONGEST: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_secs(1);
/// Chunks listed at a time.
const PAGE: u32 = 512;
/// Chunk calls at once for one file.
const PARALLEL: usize = 16;

/// Who carries out a cut.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    /// Random, one for each service start.
    pub start: u64,
    /// How long it works between two beats.
    pub lease_ms: u32,
}

/// How long the owner of an intent works between two beats.
fn lease(intent: &TruncateIntent) -> Duration {
    match intent.lease_ms {
        0 => LONGEST,
        ms => Duration::from_millis(ms.into()),
    }
}

/// The cuts that this process knows of.
pub(crate) struct Cuts {
    /// The lease of those that it begins or takes over.
    lease: Mutex<Duration>,
    running: Mutex<BTreeSet<InodeId>>,
    /// Foreign intents: owner and beat, and since when they stand like that.
    watched: Mutex<BTreeMap<InodeId, (u64, u64, Monotonic)>>,
}

impl Default for Cuts {
    fn default() -> Cuts {
        Cuts { lease: Mutex::new(LONGEST), running: Mutex::default(), watched: Mutex::default() }
    }
}

/// Takes an inode off the running list, whatever happens.
struct Running {
    service: Arc<Service>,
    id: InodeId,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.service.cuts.running.lock().remove(&self.id);
    }
}

impl Service {
    /// The cluster's lease, as mgmtd told it: cuts that are left behind are taken over as soon.
    pub fn follow_lease(&self, cluster: Duration) {
        *self.cuts.lease.lock() = (cluster / 2).clamp(SHORTEST, LONGEST);
    }

    /// This start of this service, as the owner of cuts.
    pub(crate) fn as_owner(&self) -> Owner {
        let lease_ms = self.cuts.lease.lock().as_millis() as u32;
        Owner { start: self.owner, lease_ms }
    }

    /// How often to look for cuts that are left behind.
    pub(crate) fn cuts_interval(&self) -> Duration {
        *self.cuts.lease.lock() / 4
    }

    /// Carries out a cut whose intent this service owns, and returns the inode afterwards. `fresh`: when the transaction that wrote
    /// the intent began, if it was this call's. Goes on by itself if the caller goes away.
    pub(crate) async fn cut(
        self: &Arc<Self>,
        id: InodeId,
        fresh: Option<Monotonic>,
    ) -> Result<pb::Inode, Failure> {
        if !self.cuts.running.lock().insert(id) {
            return Err(Failure::new(Status::Busy, "the file is being cut already"));
        }
        let running = Running { service: self.clone(), id };
        let task = catena_rt::spawn(async move { running.service.carry_out(id, fresh).await });
        match task.await {
            Ok(done) => done.map_err(|error| failure(&error)),
            Err(error) => {
                Err(Failure::new(Status::ShuttingDown, format!("the cut was interrupted: {error}")))
            }
        }
    }

    async fn carry_out(&self, id: InodeId, fresh: Option<Monotonic>) -> Result<pb::Inode, OpError> {
        let mut held_since = fresh;
        loop {
            let since = match held_since.take() {
                Some(since) => since,
                None => {
                    let since = self.run.cx.clock.monotonic();
                    self.beat(id).await?;
                    since
                }
            };
            let found = transact!(self.run, |tx| {
                let intent = truncate::intent(tx, id).await?;
                let inode = tx.inode(id).await?;
                Ok((intent, inode))
            })?;
            let (Some(intent), Some(inode)) = found else { return self.gone(id).await };
            if intent.owner != self.owner {
                return refuse(Status::Busy, "another service has taken over the cut");
            }
            let layout = layout_of(&inode)?;
            if self.remove_behind(id, &layout, &intent, since).await? {
                return self.finish_cut(id, &intent).await;
            }
        }
    }

    /// Says that the owner is still at work.
    async fn beat(&self, id: InodeId) -> Result<(), OpError> {
        let ours = transact!(self.run, |tx| {
            match truncate::intent(tx, id).await? {
                Some(intent) if intent.owner == self.owner => {
                    let next = TruncateIntent { beat: intent.beat + 1, ..intent };
                    tx.set(key::truncate(id), encode(&next));
                    Ok(true)
                }
                Some(_) => refuse(Status::Busy, "another service has taken over the cut"),
                None => Ok(false),
            }
        })?;
        if ours { Ok(()) } else { self.gone(id).await }
    }

    /// The intent is gone: with the file, or because another service has finished. Then the request's outcome is recorded, and whoever
    /// sends the request again finds it.
    async fn gone<T>(&self, id: InodeId) -> Result<T, OpError> {
        match transact!(self.run, |tx| { tx.inode(id).await })? {
            Some(_) => {
                refuse(Status::Busy, "another service has finished the cut; ask again for its outcome")
            }
            None => refuse(Status::NotFound, "the file was removed while it was cut"),
        }
    }

    /// Removes what lies behind the end, for as long as the lease lasts. True if nothing is left.
    async fn remove_behind(
        &self,
        id: InodeId,
        layout: &Layout,
        intent: &TruncateIntent,
        since: Monotonic,
    ) -> Result<bool, OpError> {
        let chains = self.chains(layout)?;
        let lease = lease(intent);
        // The last part of a lease is not used for starting anything.
        let end = since + (lease - lease / 5);
        let deadline =
            Instant::now() + Duration::ZERO.max((since + lease).since(self.run.cx.clock.monotonic()));
        let expired = AtomicBool::new(false);
        let still_ours = || {
            let ours = self.run.cx.clock.monotonic() < end;
            if !ours {
                expired.store(true, Ordering::Relaxed);
            }
            ours
        };
        let size = u64::from(layout.chunk_size);
        let boundary = (intent.length / size) as u32;
        let rest = (intent.length % size) as u32;

        let work = chains.into_iter().take(intent.chains as usize).map(|chain| {
            let still_ours = &still_ours;
            async move {
                let mut from = boundary;
                while still_ours() {
                    let page = self.chunks.list(chain, id, from, PAGE, deadline).await?;
                    let Some(last) = page.last().copied() else { return Ok(()) };
                    for extent in &page {
                        if !still_ours() {
                            return Ok(());
                        }
                        self.cut_chunk(chain, id, *extent, (boundary, rest), layout, deadline).await?;
                    }
                    match last.index.checked_add(1) {
                        Some(next) if page.len() == PAGE as usize => from = next,
                        _ => return Ok(()),
                    }
                }
                Ok(())
            }
        });
        let mut work = stream::iter(work).buffer_unordered(PARALLEL);
        while let Some(done) = work.next().await {
            let done: Result<(), Failure> = done;
            done?;
        }
        drop(work);
        Ok(!expired.load(Ordering::Relaxed))
    }

    async fn cut_chunk(
        &self,
        chain: ChainId,
        inode: InodeId,
        extent: Extent,
        (boundary, rest): (u32, u32),
        layout: &Layout,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let chunk = ChunkId { inode, index: extent.index };
        if extent.index == boundary && rest > 0 {
            if extent.length > rest {
                self.chunks.cut(chain, chunk, rest, layout.chunk_size, deadline).await?;
            }
            return Ok(());
        }
        self.chunks.remove(chain, chunk, layout.chunk_size, deadline).await?;
        self.run.metrics.removed_chunks.inc();
        Ok(())
    }

    /// Removes the intent and records the outcome of the request that wanted the cut.
    async fn finish_cut(&self, id: InodeId, intent: &TruncateIntent) -> Result<pb::Inode, OpError> {
        let request = <[u8; 16]>::try_from(&intent.request[..]).ok().map(u128::from_be_bytes).map(RequestId);
        transact!(self.run, |tx| {
            let memory = match request {
                Some(request) => match recall(tx, request, &intent.call, None).await {
                    Ok(memory) => Some(memory),
                    // Another attempt at it found the file under another name, or not at all. The cut is decided all the same.
                    Err(OpError::Failed(_)) => None,
                    Err(error) => return Err(error),
                },
                None => None,
            };
            let current = truncate::intent(tx, id).await?;
            match &current {
                // Ours from before a commit whose outcome was not known, or gone with the file.
                None => {
                    let Some(inode) = tx.inode(id).await? else {
                        return refuse(Status::NotFound, "the file was removed while it was cut");
                    };
                    return Ok(inode.to_wire(id, None));
                }
                // The owner alone is not enough: this may be a later cut of the same file.
                Some(current) if current != intent => {
                    return refuse(Status::Busy, "another service has taken over the cut");
                }
                Some(_) => {}
            }
            let Some(inode) = truncate::finish(tx, id, intent).await? else {
                return refuse(Status::NotFound, "the file was removed while it was cut");
            };
            let inode = inode.to_wire(id, None);
            if let Some(Memory::New(record)) = memory {
                match intent.call.as_str() {
                    "open" => {
                        let reply = pb::OpenReply { inode: Some(inode.clone()), created: false };
                        remember(tx, record, &intent.call, &reply);
                    }
                    _ => {
                        let reply = pb::TruncateReply { inode: Some(inode.clone()) };
                        remember(tx, record, &intent.call, &reply);
                    }
                }
            }
            Ok(inode)
        })
    }

    /// Looks for cuts that nobody finishes, and finishes them.
    pub(crate) async fn resume_cuts(self: &Arc<Self>) -> Result<(), OpError> {
        let now = self.run.cx.clock.monotonic();
        let mut range = key::truncates();
        let mut present = BTreeSet::new();
        loop {
            let begin = range.clone();
            let (items, more) = transact!(self.run, |tx| { tx.range(begin.clone(), 0).await })?;
            for item in &items {
                let id = key::queued_inode(&item.key)?;
                present.insert(id);
                let intent: TruncateIntent = crate::schema::decode("the intent of a cut", &item.value)?;
                if self.cuts.running.lock().contains(&id) {
                    continue;
                }
                if intent.owner == self.owner || self.abandoned(id, &intent, now) {
                    // A long cut must not hold up the others.
                    let service = self.clone();
                    catena_rt::spawn(async move { service.take_over(id, &intent).await });
                }
            }
            match items.last() {
                Some(last) if more => range.begin = catena_kv::key_after(&last.key),
                _ => break,
            }
        }
        self.cuts.watched.lock().retain(|id, _| present.contains(id));
        Ok(())
    }

    /// Whether another service's intent has stood still for long enough.
    fn abandoned(&self, id: InodeId, intent: &TruncateIntent, now: Monotonic) -> bool {
        let mut watched = self.cuts.watched.lock();
        let (owner, beat, since) = watched.entry(id).or_insert((intent.owner, intent.beat, now));
        if (*owner, *beat) != (intent.owner, intent.beat) {
            (*owner, *beat, *since) = (intent.owner, intent.beat, now);
        }
        now.since(*since) >= 2 * lease(intent)
    }

    async fn take_over(self: &Arc<Self>, id: InodeId, seen: &TruncateIntent) {
        let taken = transact!(self.run, |tx| {
            match truncate::intent(tx, id).await? {
                Some(intent) if (intent.owner, intent.beat) == (seen.owner, seen.beat) => {
                    let Owner { start, lease_ms } = self.as_owner();
                    let next = TruncateIntent { owner: start, beat: intent.beat + 1, lease_ms, ..intent };
                    tx.set(key::truncate(id), encode(&next));
                    Ok(true)
                }
                // After a commit whose outcome was not known this is our own hand.
                Some(intent) => Ok(intent.owner == self.owner),
                None => Ok(false),
            }
        });
        match taken {
            Ok(true) => match self.cut(id, None).await {
                Ok(_) => {
                    self.run.metrics.resumed_cuts.inc();
                    tracing::info!(inode = id.0, length = seen.length, "finished a cut that was left behind");
                }
                Err(failure) => {
                    tracing::warn!(inode = id.0, %failure, "a cut that was left behind has to wait")
                }
            },
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(inode = id.0, error = %run::failure(&error), "cannot take over a cut")
            }
        }
    }
}
