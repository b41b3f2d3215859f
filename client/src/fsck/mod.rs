//! Checking a file system, live, and repairing what is safe.
//!
//! *Names.* All inodes are read, then all entries, page by page; what does not add up (`census`) is a suspicion, and the metadata service
//! looks at each in one transaction, in the same that repairs it. *Lengths.* The chains say how far a closed file reaches. *Chunks.* Each
//! chain is read from all its serving replicas side by side (`copies`); what differs is looked at again, and counts only if it stands
//! still. A chunk whose inode does not exist is an orphan if it is still there *after* the inode was looked for: ids are never used again
//! and an inode is there before its first chunk, so what is missing then stays missing; and a file whose chunks are being removed is
//! known by its queue entry.
//!
//! What cannot be known: a hole is legitimate everywhere, so that a chunk that *no* replica has looks like one.
//!
//! Memory is bounded: inodes are counted in parts of [`FsckOptions::inodes_at_once`], everything else is a page.

mod census;
mod chunks;
mod copies;
mod finding;

use std::time::Duration;

use catena_meta_client::{Call, Credentials};
use catena_proto::ids::{ChainId, InodeId};
use catena_proto::pb::{self, RepairKind};
use catena_proto::routing::PublicState;
use catena_proto::status::Status;
use futures_util::{StreamExt, stream};

use self::census::{Census, Part, Suspicion};
use crate::attributes::AsPlace;
use crate::connect::Catena;
use crate::error::{Error, Result};

pub use finding::{Finding, FindingKind};

/// Inodes or entries of a page.
const PAGE: u32 = 1024;
/// Files whose chains are asked at once.
const PARALLEL: usize = 16;

/// How a check is done.
#[derive(Clone, Copy, Debug)]
pub struct FsckOptions {
    /// Repair what is safe to repair.
    pub repair: bool,
    /// Compare checksums of replicas too, which their nodes may have to read from disk.
    pub checksums: bool,
    /// How long an orphaned chunk must have been seen before it is removed. Default 10 s.
    pub grace: Duration,
    /// Inodes that are counted together: some 100 bytes of memory each. Default 4 million.
    pub inodes_at_once: u64,
}

impl Default for FsckOptions {
    fn default() -> FsckOptions {
        FsckOptions {
            repair: false,
            checksums: true,
            grace: Duration::from_secs(10),
            inodes_at_once: 4 << 20,
        }
    }
}

/// What was looked at, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// Inodes.
    pub inodes: u64,
    /// Names in directories.
    pub entries: u64,
    /// Chunks.
    pub chunks: u64,
    /// Damages found.
    pub findings: u64,
    /// Those that were repaired.
    pub repaired: u64,
}

impl FsckReport {
    /// Damages that are still there.
    pub fn left(&self) -> u64 {
        self.findings - self.repaired
    }
}

/// A check under way.
struct Fsck<'a, F> {
    catena: &'a Catena,
    who: Credentials,
    options: FsckOptions,
    report: FsckReport,
    tell: F,
}

impl Catena {
    /// Checks the whole file system. `tell` hears of each finding as it is made.
    ///
    /// # Errors
    /// [`Status::NotPermitted`] for others than the superuser; whatever keeps the services from answering.
    pub async fn fsck(&self, options: FsckOptions, tell: impl FnMut(&Finding)) -> Result<FsckReport> {
        let mut fsck = Fsck::new(self, options, tell);
        fsck.names().await?;
        fsck.chunks().await?;
        Ok(fsck.report)
    }

    /// Checks the files at and below a place: their lengths and chunks, and names without inodes.
    ///
    /// # Errors
    /// As [`Catena::fsck`], and [`Status::NotFound`].
    pub async fn fsck_below(
        &self,
        at: impl AsPlace,
        options: FsckOptions,
        tell: impl FnMut(&Finding),
    ) -> Result<FsckReport> {
        let mut fsck = Fsck::new(self, options, tell);
        fsck.below(at).await?;
        Ok(fsck.report)
    }
}

impl<'a, F: FnMut(&Finding)> Fsck<'a, F> {
    fn new(catena: &'a Catena, options: FsckOptions, tell: F) -> Fsck<'a, F> {
        Fsck { catena, who: catena.credentials().clone(), options, report: FsckReport::default(), tell }
    }

    async fn call<C: Call>(&self, call: C) -> Result<C::Reply> {
        Ok(self.catena.meta().call(&self.who, call).await?)
    }

    fn found(&mut self, finding: &Finding) {
        self.report.findings += 1;
        self.report.repaired += u64::from(finding.repaired);
        (self.tell)(finding);
    }

    async fn names(&mut self) -> Result<()> {
        let statfs = self.call(pb::StatfsRequest::default()).await?;
        let of = (statfs.files + statfs.directories) / self.options.inodes_at_once.max(1) + 1;
        for nth in 0..of {
            let part = Part { nth, of };
            let mut census = Census::new(part);
            self.count_inodes(part, &mut census).await?;
            self.count_entries(nth == 0, &mut census).await?;
            for suspicion in census.verdicts() {
                self.look(suspicion).await?;
            }
        }
        Ok(())
    }

    async fn count_inodes(&mut self, part: Part, census: &mut Census) -> Result<()> {
        let mut after = 0;
        loop {
            let page = pb::CheckInodesRequest { after, limit: PAGE, ..Default::default() };
            let page = self.call(page).await?;
            let mine: Vec<_> = page.inodes.iter().filter(|seen| part.has(seen.id)).collect();
            self.report.inodes += mine.len() as u64;
            for seen in &mine {
                if let Some(suspicion) = census.inode(seen) {
                    self.look(suspicion).await?;
                }
            }
            self.lengths(&mine).await?;
            match page.inodes.last() {
                Some(last) if page.more => after = last.id,
                _ => return Ok(()),
            }
        }
    }

    async fn count_entries(&mut self, first: bool, census: &mut Census) -> Result<()> {
        let mut after = None;
        loop {
            let page = pb::CheckEntriesRequest { after: after.take(), limit: PAGE, ..Default::default() };
            let page = self.call(page).await?;
            self.report.entries += if first { page.entries.len() as u64 } else { 0 };
            let suspicions: Vec<_> = page.entries.iter().filter_map(|entry| census.entry(entry)).collect();
            // Most were made while this was going on.
            let named = suspicions.iter().filter_map(|suspicion| match suspicion {
                Suspicion::Dangling(entry) => Some(entry.inode),
                Suspicion::Lost(entry) => Some(entry.parent),
                _ => None,
            });
            let exist = self.exist(named.collect()).await?;
            for suspicion in suspicions {
                let made = match &suspicion {
                    Suspicion::Dangling(entry) => exist.contains(&entry.inode),
                    Suspicion::Lost(entry) => exist.contains(&entry.parent),
                    _ => false,
                };
                if !made {
                    self.look(suspicion).await?;
                }
            }
            match page.entries.last() {
                Some(last) if page.more => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// Which of these inodes exist.
    async fn exist(&self, inodes: Vec<u64>) -> Result<std::collections::BTreeSet<u64>> {
        if inodes.is_empty() {
            return Ok(Default::default());
        }
        let looked = self.call(pb::CheckInodesRequest { inodes, ..Default::default() }).await?;
        Ok(looked.inodes.iter().filter(|seen| seen.exists).map(|seen| seen.id).collect())
    }

    /// Lets the metadata service look at a suspicion, and repair it.
    async fn look(&mut self, suspicion: Suspicion) -> Result<()> {
        let lost_child = |entry: &pb::CheckedEntry| format!("directory {} does not exist", entry.parent);
        let (kind, finding, entry, seen, names) = match suspicion {
            Suspicion::Dangling(entry) => {
                let detail = "the name's inode does not exist".into();
                let finding = Finding::of_entry(FindingKind::DanglingEntry, &entry, detail);
                (RepairKind::DanglingEntry, finding, Some(entry), None, 0)
            }
            Suspicion::Lost(entry) => {
                let finding = Finding::of_entry(FindingKind::LostEntry, &entry, lost_child(&entry));
                (RepairKind::LostEntry, finding, Some(entry), None, 0)
            }
            Suspicion::Parent(entry, seen) => {
                let detail = format!("the directory does not say that it is in {}", entry.parent);
                let finding = Finding::of_entry(FindingKind::WrongParent, &entry, detail);
                (RepairKind::WrongParent, finding, Some(entry), Some(seen), 0)
            }
            Suspicion::Unreachable(seen) => {
                let detail = format!("it counts {} names and has none", seen.nlink);
                let finding = Finding::of_inode(FindingKind::Unreachable, seen.id, detail);
                (RepairKind::Unreachable, finding, None, Some(seen), 0)
            }
            Suspicion::Nlink(seen, names) => {
                let detail = format!("it counts {} names and has {names}", seen.nlink);
                let finding = Finding::of_inode(FindingKind::WrongNlink, seen.id, detail);
                (RepairKind::WrongNlink, finding, None, Some(seen), names)
            }
            Suspicion::Forgotten(seen) => {
                let detail = "it has no names, nobody has it open, and nobody removes it".into();
                let finding = Finding::of_inode(FindingKind::Forgotten, seen.id, detail);
                (RepairKind::Forgotten, finding, None, Some(seen), 0)
            }
        };
        let apply = self.options.repair;
        let request =
            pb::RepairRequest { kind: kind as i32, entry, seen, names, apply, ..Default::default() };
        if self.call(request).await?.holds {
            self.found(&Finding { repaired: apply, ..finding });
        }
        Ok(())
    }

    /// Compares the lengths of closed files with what their chains hold.
    async fn lengths(&mut self, inodes: &[&pb::CheckedInode]) -> Result<()> {
        let catena = self.catena;
        let closed = inodes.iter().filter(|seen| !seen.open && !seen.truncating && seen.nlink > 0);
        let asked = closed.filter_map(|seen| Some((*seen, seen.inode.as_ref()?.layout?))).map(
            |(seen, layout)| async move {
                let length = seen.inode.as_ref().map_or(0, |inode| inode.length);
                (seen, reaches(catena, seen.id, layout).await.is_some_and(|end| end > length))
            },
        );
        let suspects: Vec<_> = stream::iter(asked)
            .buffered(PARALLEL)
            .filter(|(_, longer)| std::future::ready(*longer))
            .map(|(seen, _)| seen)
            .collect()
            .await;
        for seen in suspects {
            let apply = self.options.repair;
            let kind = RepairKind::WrongLength as i32;
            let request = pb::RepairRequest { kind, seen: Some(seen.clone()), apply, ..Default::default() };
            let looked = match self.call(request).await {
                // It was removed meanwhile, or a chain does not serve, which is a finding of its own.
                Err(error) if matches!(error.status(), Status::NotFound | Status::Busy) => continue,
                looked => looked?,
            };
            if looked.holds {
                let length = seen.inode.as_ref().map_or(0, |inode| inode.length);
                let detail = format!("its length is {length}, its chunks reach to {}", looked.length);
                let finding = Finding::of_inode(FindingKind::WrongLength, seen.id, detail);
                self.found(&Finding { repaired: apply, ..finding });
            }
        }
        Ok(())
    }

    async fn below(&mut self, at: impl AsPlace) -> Result<()> {
        let top = self.catena.stat(at).await?;
        let mut ahead = vec![top.inode];
        while let Some(inode) = ahead.pop() {
            let looked = pb::CheckInodesRequest { inodes: vec![inode.0], ..Default::default() };
            let looked = self.call(looked).await?;
            let Some(seen) = looked.inodes.first().filter(|seen| seen.exists) else { continue };
            self.report.inodes += 1;
            let Some(wire) = &seen.inode else { continue };
            match wire.r#type() {
                pb::FileType::File => {
                    self.lengths(&[seen]).await?;
                    if let Some(layout) = wire.layout {
                        self.chunks_of(inode, layout).await?;
                    }
                }
                pb::FileType::Directory => self.entries_of(inode, &mut ahead).await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn entries_of(&mut self, dir: InodeId, ahead: &mut Vec<InodeId>) -> Result<()> {
        let mut after = bytes::Bytes::new();
        loop {
            let at = Some(pb::At { parent: dir.0, path: bytes::Bytes::new() });
            let page = pb::ReaddirRequest { at, after, limit: PAGE, ..Default::default() };
            let page = match self.call(page).await {
                Err(error) if error.status() == Status::NotFound => return Ok(()),
                page => page?,
            };
            self.report.entries += page.entries.len() as u64;
            let exist = self.exist(page.entries.iter().map(|entry| entry.inode).collect()).await?;
            for entry in &page.entries {
                if exist.contains(&entry.inode) {
                    ahead.push(InodeId(entry.inode));
                    continue;
                }
                let entry = pb::CheckedEntry {
                    parent: dir.0,
                    name: entry.name.clone(),
                    inode: entry.inode,
                    r#type: entry.r#type,
                };
                self.look(Suspicion::Dangling(entry)).await?;
            }
            match page.entries.last() {
                Some(last) if page.more => after = last.name.clone(),
                _ => return Ok(()),
            }
        }
    }
}

/// How far a file's chunks reach; nothing if a chain does not say.
async fn reaches(catena: &Catena, inode: u64, layout: pb::Layout) -> Option<u64> {
    let layout = catena_proto::layout::Layout::try_from(layout).ok()?;
    let routing = catena.routing().current();
    let chains = routing.chains_of(&layout)?;
    // A chain that does not serve is found as such: no file waits for it, for there may be millions.
    let serves = |chain: &ChainId| routing.targets_in(*chain, PublicState::Serving).next().is_some();
    if !chains.iter().all(serves) {
        return None;
    }
    let mut end = 0;
    for chain in chains {
        // One that stops serving just now must not hold up the others for long either.
        let deadline = catena_rt::time::Instant::now() + Duration::from_secs(5);
        let last = catena.storage().last_chunk(chain, InodeId(inode), deadline).await.ok()?;
        let Some(last) = last else { continue };
        end = end
            .max(u64::from(last.index.get()) * u64::from(layout.chunk_size) + u64::from(last.length.get()));
    }
    Some(end)
}

fn storage_error(error: &catena_storage_client::StorageError) -> Error {
    Error::from_storage("fsck", "(chunks)", error)
}
