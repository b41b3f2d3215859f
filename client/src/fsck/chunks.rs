//! The chunks' side of a check: chain by chain, all serving replicas side by side.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use catena_proto::frame::{ChunkEntry, MAX_ITEMS, WriteKind};
use catena_proto::ids::{ChainId, ChunkId, InodeId, NodeId, TargetId};
use catena_proto::layout::{Layout, MAX_CHUNK_SIZE, MIN_CHUNK_SIZE};
use catena_proto::pb;
use catena_proto::routing::PublicState;
use catena_rt::time::{Instant, sleep_until};
use catena_storage_client::Replica;
use futures_util::future::try_join_all;

use super::copies::{Copies, Relation, merge, relation};
use super::{Finding, FindingKind, Fsck, storage_error};
use crate::error::Result;

/// Between two looks at copies that differ: a write that is under way is over by then.
const SETTLE: Duration = Duration::from_millis(500);
/// Orphans that wait for their grace; when there are more, those that were found first are dealt with.
const WAITING: usize = 65_536;

/// An orphan that may be removed when its time has come.
struct Orphan {
    chain: ChainId,
    chunk: ChunkId,
    length: u32,
    seen: Instant,
}

type Replicas = Vec<(TargetId, NodeId)>;

impl<F: FnMut(&Finding)> Fsck<'_, F> {
    /// All chunks of all chains.
    pub(super) async fn chunks(&mut self) -> Result<()> {
        let chains: Vec<ChainId> = self.catena.routing().current().chains.keys().copied().collect();
        let mut orphans = Vec::new();
        for chain in chains {
            self.chain(chain, InodeId(0)..=InodeId(u64::MAX), Some(&mut orphans)).await?;
        }
        self.remove(orphans).await
    }

    /// All chunks of one file.
    pub(super) async fn chunks_of(&mut self, inode: InodeId, layout: pb::Layout) -> Result<()> {
        let routing = self.catena.routing().current();
        let chains = Layout::try_from(layout).ok().and_then(|layout| routing.chains_of(&layout));
        let Some(chains) = chains else {
            let detail = "its chain table is not known: see `catena admin tables`".to_owned();
            self.found(&Finding::of_inode(FindingKind::ChainDown, inode.0, detail));
            return Ok(());
        };
        for chain in chains.into_iter().collect::<BTreeSet<_>>() {
            self.chain(chain, inode..=inode, None).await?;
        }
        Ok(())
    }

    fn serving(&self, chain: ChainId) -> Replicas {
        let routing = self.catena.routing().current();
        routing.targets_in(chain, PublicState::Serving).map(|target| (target.id, target.node)).collect()
    }

    async fn pages(
        &self,
        chain: ChainId,
        replicas: &Replicas,
        inodes: RangeInclusive<InodeId>,
        from: ChunkId,
        limit: usize,
    ) -> Result<Vec<Vec<ChunkEntry>>> {
        let (storage, checksums) = (self.catena.storage(), self.options.checksums);
        let pages = replicas.iter().map(|&(target, _)| {
            let (replica, inodes) = (Replica::Target(target), inodes.clone());
            storage.list_chunks(chain, inodes, from, limit, replica, checksums, storage.deadline())
        });
        try_join_all(pages).await.map_err(|error| storage_error(&error))
    }

    async fn chain(
        &mut self,
        chain: ChainId,
        inodes: RangeInclusive<InodeId>,
        mut orphans: Option<&mut Vec<Orphan>>,
    ) -> Result<()> {
        let mut from = Some(ChunkId { inode: *inodes.start(), index: 0 });
        while let Some(start) = from {
            let replicas = self.serving(chain);
            if replicas.is_empty() {
                let detail = format!("{chain}: no replica serves: see `catena admin chains --degraded`");
                let finding = Finding::new(FindingKind::ChainDown, detail);
                self.found(&Finding { chain: Some(chain), ..finding });
                return Ok(());
            }
            let pages =
                match self.pages(chain, &replicas, start.inode..=*inodes.end(), start, MAX_ITEMS).await {
                    // A replica was lost meanwhile: those that are left are asked.
                    Err(_) if self.serving(chain) != replicas => continue,
                    pages => pages?,
                };
            let heard = merge(&pages);
            self.report.chunks += heard.chunks.len() as u64;
            let unlike = heard.chunks.iter().filter(|(_, copies)| relation(copies) != Relation::Alike);
            for (&chunk, copies) in unlike {
                self.differ(chain, chunk, &replicas, copies).await?;
            }
            if let Some(orphans) = orphans.as_deref_mut() {
                let lengths = heard.chunks.iter().map(|(&chunk, copies)| {
                    (chunk, copies.iter().flatten().map(|copy| copy.length.get()).max().unwrap_or(0))
                });
                self.orphans(chain, lengths.collect(), orphans).await?;
                if orphans.len() >= WAITING {
                    let waiting = std::mem::take(orphans);
                    self.remove(waiting).await?;
                }
            }
            from = heard.next;
        }
        Ok(())
    }

    /// Looks again at copies that were not alike. Only what stands still counts, under the same replicas.
    async fn differ(
        &mut self,
        chain: ChainId,
        chunk: ChunkId,
        replicas: &Replicas,
        copies: &Copies,
    ) -> Result<()> {
        let mut seen = copies.clone();
        for _ in 0..4 {
            sleep_until(Instant::now() + SETTLE).await;
            if self.serving(chain) != *replicas {
                return Ok(());
            }
            let one = chunk.inode..=chunk.inode;
            let Ok(pages) = self.pages(chain, replicas, one, chunk, 1).await else { return Ok(()) };
            let first = |page: &Vec<ChunkEntry>| {
                page.first().filter(|entry| super::copies::id(entry) == chunk).copied()
            };
            let now: Copies = pages.iter().map(first).collect();
            let state = relation(&now);
            if state == Relation::Alike || now.iter().all(Option::is_none) {
                return Ok(());
            }
            if state != Relation::Moving && now == seen {
                self.found(&describe(chain, chunk, replicas, &now));
                return Ok(());
            }
            seen = now;
        }
        // It is written all the time.
        Ok(())
    }

    /// Which of these chunks have no inode, and are still there afterwards.
    async fn orphans(
        &mut self,
        chain: ChainId,
        chunks: Vec<(ChunkId, u32)>,
        orphans: &mut Vec<Orphan>,
    ) -> Result<()> {
        let inodes: BTreeSet<u64> = chunks.iter().map(|(chunk, _)| chunk.inode.0).collect();
        let gone = self.gone(inodes.into_iter().collect()).await?;
        for (chunk, length) in chunks {
            if gone.contains(&chunk.inode.0) && self.is_there(chain, chunk).await? {
                let orphan = Orphan { chain, chunk, length, seen: Instant::now() };
                match self.options.repair {
                    true => orphans.push(orphan),
                    false => self.found(&orphan.finding()),
                }
            }
        }
        Ok(())
    }

    /// Which of these inodes neither exist nor are being removed.
    async fn gone(&self, inodes: Vec<u64>) -> Result<BTreeSet<u64>> {
        let mut gone = BTreeSet::new();
        for some in inodes.chunks(1024) {
            let request = pb::CheckInodesRequest { inodes: some.to_vec(), ..Default::default() };
            let looked = self.call(request).await?;
            gone.extend(looked.inodes.iter().filter(|seen| !seen.exists && !seen.queued).map(|seen| seen.id));
        }
        Ok(gone)
    }

    async fn is_there(&self, chain: ChainId, chunk: ChunkId) -> Result<bool> {
        let storage = self.catena.storage();
        let one = chunk.inode..=chunk.inode;
        let listed = storage.list_chunks(chain, one, chunk, 1, Replica::Any, false, storage.deadline()).await;
        let listed = listed.map_err(|error| storage_error(&error))?;
        Ok(listed.first().is_some_and(|entry| super::copies::id(entry) == chunk))
    }

    /// Removes orphans that still are some when their grace is over.
    async fn remove(&mut self, orphans: Vec<Orphan>) -> Result<()> {
        let Some(last) = orphans.last() else { return Ok(()) };
        sleep_until(last.seen + self.options.grace).await;
        let inodes: BTreeSet<u64> = orphans.iter().map(|orphan| orphan.chunk.inode.0).collect();
        let gone = self.gone(inodes.into_iter().collect()).await?;
        for orphan in orphans {
            let Orphan { chain, chunk, length, .. } = orphan;
            if !gone.contains(&chunk.inode.0) || !self.is_there(chain, chunk).await? {
                continue;
            }
            let storage = self.catena.storage();
            // How large the file's chunks could grow is not known any more; at least as large as this one is.
            let size = length.next_power_of_two().clamp(MIN_CHUNK_SIZE, MAX_CHUNK_SIZE);
            let removed = storage.mutate(chain, chunk, WriteKind::Remove, 0, size, storage.deadline()).await;
            let mut finding = orphan.finding();
            match removed {
                Ok(_) => finding.repaired = true,
                Err(error) => {
                    finding.detail = format!("{}; it could not be removed: {error}", finding.detail)
                }
            }
            self.found(&finding);
        }
        Ok(())
    }
}

impl Orphan {
    fn finding(&self) -> Finding {
        let detail = format!("{} holds {} bytes of a file that does not exist", self.chain, self.length);
        Finding::of_chunk(FindingKind::OrphanChunk, self.chain, self.chunk, detail)
    }
}

fn describe(chain: ChainId, chunk: ChunkId, replicas: &Replicas, copies: &Copies) -> Finding {
    let words = replicas.iter().zip(copies).map(|((target, node), copy)| match copy {
        None => format!("{target} on {node} has none"),
        Some(copy) => format!(
            "{target} on {node} has version {}@{}, {} bytes, checksum {:08x}",
            copy.version, copy.assigned, copy.length, copy.checksum
        ),
    });
    let detail = format!("{chain}: {}", words.collect::<Vec<_>>().join("; "));
    let (kind, targets) = match relation(copies) {
        Relation::Missing => {
            let lacking = replicas.iter().zip(copies).filter(|(_, copy)| copy.is_none());
            (FindingKind::MissingChunk, lacking.map(|(replica, _)| *replica).collect())
        }
        _ => (FindingKind::DifferingChunk, replicas.clone()),
    };
    Finding { targets, ..Finding::of_chunk(kind, chain, chunk, detail) }
}
