//! Where a file's chunks are, and whether their replicas agree.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use catena_proto::frame::{ChunkEntry, MAX_ITEMS};
use catena_proto::ids::{ChainId, ChainVersion, ChunkId, DiskId, NodeId, TargetId, VersionId};
use catena_proto::routing::PublicState;
use catena_proto::status::Status;
use catena_storage_client::Replica;

use crate::checksum::{Manifest, same};
use crate::error::{Error, Result};
use crate::file::File;

/// One replica's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetPlace {
    /// The target.
    pub target: TargetId,
    /// The node that has it.
    pub node: NodeId,
    /// The disk.
    pub disk: DiskId,
    /// What it may do at the moment.
    pub state: PublicState,
    /// The node's data address; empty if it is not known.
    pub address: String,
}

/// One chunk's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkPlace {
    /// Position in the file, in chunks.
    pub index: u32,
    /// First byte in the file.
    pub offset: u64,
    /// The chain.
    pub chain: ChainId,
    /// Its version.
    pub version: ChainVersion,
    /// Its targets, in chain order: the first serving one is the head.
    pub targets: Vec<TargetPlace>,
}

/// A chunk as one replica has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredChunk {
    /// Position in the file, in chunks.
    pub index: u32,
    /// Bytes.
    pub length: u32,
    /// The committed version.
    pub version: VersionId,
    /// CRC32C of the contents, zero-padded to whole blocks of 4 KiB; 0 if not asked for.
    pub checksum: u32,
}

/// How a file's replicas compare.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplicaReport {
    /// Chunks that any replica has.
    pub chunks: u64,
    /// Bytes of them, each counted once.
    pub bytes: u64,
    /// Fewest replicas that any chain serves now,
    pub fewest: usize,
    /// and most.
    pub most: usize,
    /// Chunk copies on each node.
    pub copies: BTreeMap<NodeId, u64>,
    /// Chunks whose replicas differ in version, length or checksum, at most 1000 of them.
    pub differing: Vec<u32>,
}

impl From<ChunkEntry> for StoredChunk {
    fn from(entry: ChunkEntry) -> StoredChunk {
        StoredChunk {
            index: entry.index.get(),
            length: entry.length.get(),
            version: entry.committed(),
            checksum: entry.checksum.get(),
        }
    }
}

impl File {
    /// Where the chunks with these indices are, whether they exist or not. Asks nobody.
    pub fn locate(&self, indices: RangeInclusive<u32>) -> Vec<ChunkPlace> {
        let routing = self.catena().routing().current();
        let place = |index: u32| {
            let (chain, _) = self.chunk(index);
            let known = routing.chains.get(&chain);
            let target = |target: &catena_proto::routing::Target| TargetPlace {
                target: target.id,
                node: target.node,
                disk: target.disk,
                state: target.state,
                address: routing.address(target).unwrap_or_default().into(),
            };
            ChunkPlace {
                index,
                offset: u64::from(index) * u64::from(self.layout().chunk_size),
                chain,
                version: known.map(|chain| chain.version).unwrap_or_default(),
                targets: known
                    .into_iter()
                    .flat_map(|chain| &chain.targets)
                    .filter_map(|id| Some(target(routing.targets.get(id)?)))
                    .collect(),
            }
        };
        indices.map(place).collect()
    }

    /// The index of the chunk that holds the last of `length` bytes; none if there are none.
    pub fn last_chunk(&self, length: u64) -> Option<u32> {
        let index = length.checked_sub(1)? / u64::from(self.layout().chunk_size);
        u32::try_from(index).ok()
    }

    /// The chunks that are stored, in order; holes are not among them. `checksums` costs the servers some work.
    pub async fn stored_chunks(&self, checksums: bool) -> Result<Vec<StoredChunk>> {
        let mut all = Vec::new();
        for chain in self.own_chains() {
            let mut from = Some(0);
            while let Some(index) = from {
                let page = self.page(chain, index, Replica::Any, checksums).await?;
                from = next(&page);
                all.extend(page);
            }
        }
        all.sort_unstable_by_key(|chunk| chunk.index);
        Ok(all)
    }

    /// Compares all serving replicas of all chunks by version, length and checksum. Chunks that are written meanwhile may show up as
    /// differing.
    pub async fn compare_replicas(&self) -> Result<ReplicaReport> {
        let mut report = ReplicaReport { fewest: usize::MAX, ..ReplicaReport::default() };
        for chain in self.own_chains() {
            let routing = self.catena().routing().current();
            let targets: Vec<_> = routing
                .targets_in(chain, PublicState::Serving)
                .map(|target| (target.id, target.node))
                .collect();
            report.fewest = report.fewest.min(targets.len());
            report.most = report.most.max(targets.len());
            self.compare_chain(chain, &targets, &mut report).await?;
        }
        report.differing.sort_unstable();
        Ok(report)
    }

    async fn compare_chain(
        &self,
        chain: ChainId,
        targets: &[(TargetId, NodeId)],
        report: &mut ReplicaReport,
    ) -> Result<()> {
        let mut from = Some(0);
        while let Some(index) = from {
            // What every replica says of each chunk. Replicas may page differently where they differ: only what lies before the
            // shortest page's end has been heard of from all.
            let mut seen: BTreeMap<u32, Vec<(NodeId, StoredChunk)>> = BTreeMap::new();
            let mut reach = u32::MAX;
            for &(target, node) in targets {
                let page = self.page(chain, index, Replica::Target(target), true).await?;
                if let Some(end) = next(&page) {
                    reach = reach.min(end - 1);
                }
                page.into_iter().for_each(|chunk| seen.entry(chunk.index).or_default().push((node, chunk)));
            }
            for (&index, copies) in seen.range(..=reach) {
                report.chunks += 1;
                report.bytes += copies.iter().map(|(_, copy)| u64::from(copy.length)).max().unwrap_or(0);
                copies.iter().for_each(|(node, _)| *report.copies.entry(*node).or_default() += 1);
                let alike = copies.len() == targets.len() && copies.iter().all(|copy| copy.1 == copies[0].1);
                if !alike && report.differing.len() < 1000 {
                    report.differing.push(index);
                }
            }
            from = (reach < u32::MAX).then(|| reach + 1);
        }
        Ok(())
    }

    /// Compares what was moved with what the replicas say they hold.
    pub(crate) async fn check_stored(&self, operation: &'static str, manifest: &Manifest) -> Result<()> {
        let mut moved = manifest.chunks(self.layout().chunk_size);
        let differs = |index: u32| {
            let what = format!(
                "chunk {index} is not stored as it was transferred: it was changed meanwhile, or damaged; try again"
            );
            self.error(operation, Status::Damaged, &what)
        };
        for chain in self.own_chains() {
            let mut from = Some(0);
            while let Some(index) = from {
                let page = self.page(chain, index, Replica::Any, true).await?;
                from = next(&page);
                for chunk in page {
                    let crc = moved.remove(&chunk.index).unwrap_or_default();
                    if !same(&crc, chunk.length, chunk.checksum) {
                        return Err(differs(chunk.index));
                    }
                }
            }
        }
        // What is not stored is a hole.
        match moved.iter().find(|(_, crc)| !same(crc, 0, 0)) {
            Some((&index, _)) => Err(differs(index)),
            None => Ok(()),
        }
    }

    fn own_chains(&self) -> Vec<ChainId> {
        let mut chains = self.chains().to_vec();
        chains.sort_unstable();
        chains.dedup();
        chains
    }

    async fn page(
        &self,
        chain: ChainId,
        index: u32,
        replica: Replica,
        checksums: bool,
    ) -> Result<Vec<StoredChunk>> {
        let inode = self.inode();
        let (from, deadline) = (ChunkId { inode, index }, self.catena().deadline());
        let storage = self.catena().storage();
        let entries =
            storage.list_chunks(chain, inode..=inode, from, MAX_ITEMS, replica, checksums, deadline).await;
        let entries = entries.map_err(|error| Error::from_storage("list chunks", self.path(), &error))?;
        Ok(entries.into_iter().map(StoredChunk::from).collect())
    }
}

/// Where the page behind this one begins, if there is one.
fn next(page: &[StoredChunk]) -> Option<u32> {
    if page.len() < MAX_ITEMS { None } else { page.last()?.index.checked_add(1) }
}
