//! Background removal: the chunks of removed files, and directories that were cut off with everything below them.
//!
//! The queues are in the store, so a crash loses nothing: a record goes in the transaction that says its work is done. Several services
//! may work on one queue. They may do the same work twice, which is harmless: ids are never used again, so a chunk of a removed file
//! can only be removed, and counters change in the transaction that removes the record, which only one of them commits.

use std::sync::Arc;

use catena_kv::KeyValue;
use catena_proto::ids::{ChainId, ChunkId, InodeId};
use catena_proto::layout::Layout;
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::Instant;
use futures_util::{StreamExt, stream};

use crate::chunks::Extent;
use crate::error::{OpError, refuse};
use crate::ops::unlink::{drop_link, retire_dir, trash};
use crate::pace::Pace;
use crate::run::{failure, transact};
use crate::schema::key::{self, Counter, KeyRange, SHARDS};
use crate::schema::{Dirent, Reclaim, decode};
use crate::service::{CHUNK_DEADLINE, Service};

/// Records read at a time.
const PAGE: usize = 256;
/// Files whose records go in one transaction.
const BATCH: usize = 64;
/// Names of a removed directory taken in one transaction.
const NAMES: usize = 512;
/// Chunks listed at a time.
const CHUNKS: u32 = 512;

/// Bounds on this service's background work.
pub(crate) struct Paces {
    pub chunks: Pace,
    pub entries: Pace,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files whose chunks are gone.
    pub files: u64,
    /// Their lengths, summed.
    pub bytes: u64,
    /// Names taken from removed directories.
    pub entries: u64,
    /// Files or directories that could not be finished and stay in the queue.
    pub failed: u64,
}

impl Progress {
    fn add(&mut self, other: Progress) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.entries += other.entries;
        self.failed += other.failed;
    }
    /// Whether anything moved.
    pub fn any(&self) -> bool {
        self.files + self.entries > 0
    }
}

impl Service {
    /// Does what there is to do in both queues.
    pub async fn reclaim(&self) -> Result<Progress, Failure> {
        let mut done = Progress::default();
        // Several services begin at different shards.
        let first = self.run.cx.counter_shard();
        let shards = || (0..SHARDS).map(|turn| (first + turn) % SHARDS);
        // Directories first, for as long as they bring others to light; their files come after them.
        loop {
            let mut round = Progress::default();
            for shard in shards() {
                round.add(self.reclaim_trash(shard).await.map_err(|error| failure(&error))?);
            }
            done.add(round);
            if !round.any() {
                break;
            }
        }
        for shard in shards() {
            done.add(self.reclaim_files(shard).await.map_err(|error| failure(&error))?);
        }
        Ok(done)
    }

    async fn page(&self, range: &KeyRange) -> Result<(Vec<KeyValue>, bool), OpError> {
        transact!(self.run, |tx| { tx.range(range.clone(), PAGE).await })
    }

    async fn reclaim_files(&self, shard: u8) -> Result<Progress, OpError> {
        let mut done = Progress::default();
        let mut range = key::reclaims(shard);
        loop {
            let (items, more) = self.page(&range).await?;
            let Some(last) = items.last() else { return Ok(done) };
            range.begin = catena_kv::key_after(&last.key);

            let work = items.into_iter().map(|item: KeyValue| async move {
                let id = key::queued_inode(&item.key)?;
                let record: Reclaim = decode("a removed file", &item.value)?;
                Ok((id, self.remove_chunks(id, &record).await))
            });
            let mut work = stream::iter(work).buffer_unordered(self.parallel);
            let mut finished = Vec::new();
            while let Some(outcome) = work.next().await {
                let outcome: Result<_, OpError> = outcome;
                match outcome? {
                    (id, Ok(())) => finished.push(id),
                    (id, Err(failure)) => {
                        done.failed += 1;
                        self.run.metrics.reclaim_failures.inc();
                        tracing::debug!(inode = id.0, %failure, "a removed file's chunks have to wait");
                    }
                }
            }
            drop(work);
            for batch in finished.chunks(BATCH) {
                done.add(self.forget_files(batch).await?);
            }
            if !more {
                return Ok(done);
            }
        }
    }

    /// Removes all chunks of a removed file.
    async fn remove_chunks(&self, id: InodeId, record: &Reclaim) -> Result<(), Failure> {
        let layout = record.layout.unwrap_or_default();
        let layout = Layout::try_from(layout).map_err(|error| {
            Failure::new(Status::Internal, format!("the layout of removed file {}: {error}", id.0))
        })?;
        let chains = self.chains(&layout)?;
        for &chain in chains.iter().take(record.chains as usize) {
            self.remove_chunks_in(chain, id, &layout).await?;
        }
        Ok(())
    }

    async fn remove_chunks_in(&self, chain: ChainId, inode: InodeId, layout: &Layout) -> Result<(), Failure> {
        let mut from = 0;
        loop {
            let deadline = Instant::now() + CHUNK_DEADLINE;
            let page = self.chunks.list(chain, inode, from, CHUNKS, deadline).await?;
            let Some(last) = page.last().copied() else { return Ok(()) };
            let full = page.len() == CHUNKS as usize;
            let removals = page.into_iter().map(|extent: Extent| async move {
                self.paces.chunks.take(1).await;
                let chunk = ChunkId { inode, index: extent.index };
                let deadline = Instant::now() + CHUNK_DEADLINE;
                self.chunks.remove(chain, chunk, layout.chunk_size, deadline).await?;
                self.run.metrics.removed_chunks.inc();
                Ok(())
            });
            let mut removals = stream::iter(removals).buffer_unordered(self.parallel);
            while let Some(removed) = removals.next().await {
                let removed: Result<(), Failure> = removed;
                removed?;
            }
            match last.index.checked_add(1) {
                Some(next) if full => from = next,
                _ => return Ok(()),
            }
        }
    }

    /// Takes finished files off the queue.
    async fn forget_files(&self, batch: &[InodeId]) -> Result<Progress, OpError> {
        let done = transact!(self.run, |tx| {
            let mut done = Progress::default();
            for &id in batch {
                // Another service may have been faster.
                let Some(value) = tx.get(key::reclaim(id)).await? else { continue };
                let record: Reclaim = decode("a removed file", &value)?;
                tx.clear(key::reclaim(id));
                done.files += 1;
                done.bytes += record.length;
            }
            tx.count(Counter::ReclaimFiles, -(done.files as i64));
            tx.count(Counter::ReclaimBytes, -(done.bytes as i64));
            Ok(done)
        })?;
        self.run.metrics.reclaimed_files.inc_by(done.files);
        Ok(done)
    }

    async fn reclaim_trash(&self, shard: u8) -> Result<Progress, OpError> {
        let mut done = Progress::default();
        let mut range = key::trashed(shard);
        loop {
            let (items, more) = self.page(&range).await?;
            let Some(last) = items.last() else { return Ok(done) };
            range.begin = catena_kv::key_after(&last.key);
            let work = items.into_iter().map(|item: KeyValue| async move {
                let id = key::queued_inode(&item.key)?;
                let mut taken = 0;
                loop {
                    self.paces.entries.take(NAMES as u32).await;
                    let (entries, empty) = transact!(self.run, |tx| { take_apart(tx, id).await })?;
                    taken += entries;
                    self.run.metrics.reclaimed_entries.inc_by(entries);
                    if empty {
                        return Ok(taken);
                    }
                }
            });
            let mut work = stream::iter(work).buffer_unordered(self.parallel);
            while let Some(taken) = work.next().await {
                let taken: Result<u64, OpError> = taken;
                done.entries += taken?;
            }
            drop(work);
            if !more {
                return Ok(done);
            }
        }
    }

    /// Reclaims whenever something was queued, and now and then what another service left.
    pub(crate) async fn reclaim_forever(self: Arc<Self>) {
        let mut waiting = 0;
        loop {
            // Not at every single removal: they come in crowds.
            catena_rt::time::sleep(self.interval.min(std::time::Duration::from_millis(20))).await;
            let interval = self.interval.min(self.cuts_interval());
            let woken = catena_rt::time::timeout(interval, self.run.queued.notified()).await;
            if let Err(error) = self.resume_cuts().await {
                tracing::warn!(error = %failure(&error), "cannot look for cuts that were left behind");
            }
            match self.reclaim().await {
                Ok(done) => {
                    if done.any() {
                        tracing::info!(
                            files = done.files,
                            bytes = done.bytes,
                            entries = done.entries,
                            waiting = done.failed,
                            "reclaimed"
                        );
                    }
                    // Said when it changes, not every second.
                    if done.failed != waiting {
                        waiting = done.failed;
                        tracing::warn!(files = waiting, "removed files wait for their chains to serve");
                    }
                    if done.failed > 0 && woken.is_ok() {
                        catena_rt::time::sleep(self.interval).await;
                    }
                }
                Err(failure) => {
                    tracing::warn!(%failure, "cannot reclaim removed files");
                    catena_rt::time::sleep(self.interval).await;
                }
            }
        }
    }
}

/// Takes some names from a directory in the trash, and the directory itself when none is left. A directory below goes to the trash in
/// its turn, so the work of one transaction does not depend on the size of the tree.
async fn take_apart(tx: &mut crate::tx::Tx<'_>, id: InodeId) -> Result<(u64, bool), OpError> {
    let Some(dir) = tx.inode(id).await? else {
        tx.clear(key::trash(id));
        return Ok((0, true));
    };
    if !dir.is_removed() {
        return refuse(Status::Internal, format!("directory {} is in the trash and in the tree", id.0));
    }
    let (items, more) = tx.range(key::entries(id), NAMES).await?;
    for item in &items {
        let entry: Dirent = decode("a directory entry", &item.value)?;
        let child = InodeId(entry.inode);
        if let Some(inode) = tx.inode(child).await? {
            match entry.kind == pb::FileType::Directory as i32 {
                true => trash(tx, child, &inode),
                false => drop_link(tx, child, &inode).await?,
            }
        }
        tx.clear(item.key.clone());
    }
    if !more {
        retire_dir(tx, id, &dir);
        tx.clear(key::trash(id));
    }
    Ok((items.len() as u64, !more))
}
