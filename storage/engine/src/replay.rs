//! Replaying records onto the state that a checkpoint gave: the same changes that memory went through when they were written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use catena_proto::ids::{ChunkId, TargetId, VersionId};
use zerocopy::FromBytes;

use crate::alloc::Run;
use crate::format::checkpoint::{Page, PageKind, RawEntry};
use crate::format::record::{Body, Images, RawTag, Record, Stage, get};
use crate::format::take_words;
use crate::index::{Block, Entry, Image, Overlay, Parked, Parts, Pending, Progress, Target};
use crate::op::{MAX_TARGET_STATE, TagEntry};
use crate::state::State;

/// Up to which record a checkpoint's pages of one target say everything.
#[derive(Default)]
struct Known {
    target: u64,
    /// Last chunk of each page, and its record.
    pages: Vec<(ChunkId, u64)>,
    /// For chunks behind the last of them.
    rest: u64,
    tags: u64,
    /// Entries on their way into the index: a map that is built at once is half the size.
    entries: Vec<(ChunkId, Entry)>,
    /// What is active among them.
    active: Vec<Record>,
}

impl Known {
    fn chunk(&self, chunk: ChunkId) -> u64 {
        let page = self.pages.partition_point(|(last, _)| *last < chunk);
        self.pages.get(page).map_or(self.rest, |(_, rsn)| *rsn)
    }
}

/// A state that is being rebuilt.
pub struct Replay {
    pub state: State,
    known: BTreeMap<TargetId, Known>,
    /// Runs of parked blocks: one owner each.
    parked: BTreeMap<Run, Weak<Parked>>,
}

impl Replay {
    pub fn new(state: State) -> Replay {
        Replay { state, known: BTreeMap::new(), parked: BTreeMap::new() }
    }

    /// Takes a page of the checkpoint. `None`: it makes no sense.
    pub fn page(&mut self, page: &Page, payload: &[u8]) -> Option<()> {
        let known = self.known.entry(page.target).or_default();
        let mut bytes = payload;
        match page.kind {
            PageKind::Target => {
                let len = take_words(&mut bytes, 1)?[0] as usize;
                let state = bytes.get(..len.min(MAX_TARGET_STATE + 1))?.to_vec();
                known.target = page.rsn;
                self.state.targets.insert(page.target, Target { state, ..Target::default() });
            }
            PageKind::Chunks | PageKind::LastChunks => {
                for _ in 0..page.count {
                    let (raw, rest) = RawEntry::ref_from_prefix(bytes).ok()?;
                    bytes = rest;
                    known.entries.push(raw.decode()?);
                }
                while !bytes.is_empty() {
                    known.active.push(get(&mut bytes)?);
                }
                if page.kind == PageKind::Chunks {
                    let last = known.entries.last()?.0;
                    known.pages.push((last, page.rsn));
                } else {
                    known.rest = page.rsn;
                    let entries = std::mem::take(&mut known.entries);
                    let active = std::mem::take(&mut known.active);
                    self.state.targets.get_mut(&page.target)?.chunks = entries.into_iter().collect();
                    for record in active {
                        self.chunk_record(record, 0, false);
                    }
                }
            }
            PageKind::Tags => {
                known.tags = page.rsn;
                let target = self.state.targets.get_mut(&page.target)?;
                for _ in 0..page.count {
                    let (raw, rest) = RawTag::ref_from_prefix(bytes).ok()?;
                    bytes = rest;
                    target.remember(TagEntry::from(raw));
                }
            }
        }
        Some(())
    }

    /// Applies a record of the log.
    pub fn record(&mut self, record: Record, rsn: u64) {
        let target_id = record.target;
        let none = Known::default();
        let known = self.known.get(&target_id).unwrap_or(&none);
        let (of_target, of_tags, of_chunk) = (known.target, known.tags, known.chunk(record.chunk));
        match record.body {
            Body::TargetCreate if rsn > of_target => {
                self.state.targets.entry(target_id).or_default();
            }
            Body::TargetRemove if rsn > of_target => {
                self.state.targets.remove(&target_id);
                self.known.remove(&target_id);
            }
            Body::TargetState(bytes) if rsn > of_target => {
                if let Some(target) = self.state.targets.get_mut(&target_id) {
                    target.state = bytes;
                }
            }
            Body::Tags(tags) if rsn > of_tags => {
                if let Some(target) = self.state.targets.get_mut(&target_id) {
                    tags.into_iter().for_each(|tag| target.remember(tag));
                }
            }
            Body::ForgetClient(client) if rsn > of_tags => {
                if let Some(target) = self.state.targets.get_mut(&target_id) {
                    target.tags.retain(|(of, _), _| *of != client);
                }
            }
            Body::Stage(_)
            | Body::Commit
            | Body::Drop
            | Body::Applied
            | Body::Overlay { .. }
            | Body::Forget
                if rsn > of_chunk =>
            {
                self.chunk_record(record, rsn, rsn > of_tags);
            }
            _ => {}
        }
    }

    /// A record about one chunk. `tags`: what it commits enters the tag table.
    fn chunk_record(&mut self, record: Record, rsn: u64, tags: bool) {
        let Record { target, chunk, version, body } = record;
        if !self.state.targets.contains_key(&target) {
            return;
        }
        match body {
            Body::Stage(stage) => self.stage(target, chunk, version, *stage, rsn),
            Body::Commit => {
                if let Some(at) = self.position(target, chunk, |id| id == version) {
                    if tags {
                        self.state.remember(target, chunk, 0, at + 1);
                    }
                    self.state.fold(target, chunk, version);
                }
            }
            Body::Drop => {
                if let Some(at) = self.position(target, chunk, |id| id == version) {
                    self.state.drop_from(target, chunk, at);
                }
            }
            Body::Applied => {
                let State { targets, sums, .. } = &mut self.state;
                let Some(target) = targets.get_mut(&target) else { return };
                let run = target.chunks.get(&chunk).and_then(Entry::run);
                if let (Some(run), Some(active)) = (run, target.active.get_mut(&chunk)) {
                    active.overlays.retain(|&block, overlay| {
                        let applied = overlay.origin <= version.version.0;
                        if applied {
                            sums.put(run.start + block, &[overlay.crc]);
                        }
                        !applied
                    });
                }
                self.state.tidy(record.target, chunk);
            }
            Body::Overlay { first, crcs, images, skip } => {
                let overlays = self.overlays(images, &crcs, skip, version.version.0);
                let Some(of) = self.state.targets.get_mut(&target) else { return };
                of.active.entry(chunk).or_default().overlays.extend((first..).zip(overlays));
                self.state.unapplied.insert((target, chunk));
            }
            Body::Forget => self.state.forget(target, chunk),
            _ => {}
        }
    }

    fn position(&self, target: TargetId, chunk: ChunkId, is: impl Fn(VersionId) -> bool) -> Option<usize> {
        let active = self.state.targets.get(&target)?.active.get(&chunk)?;
        active.pendings.iter().position(|pending| is(pending.id))
    }

    fn overlays(&mut self, images: Images, crcs: &[u32], skip: u32, origin: u64) -> Vec<Overlay> {
        let images: Vec<Image> = match images {
            Images::Here(images) => {
                let gauge = &self.state.overlay_bytes;
                images.into_iter().map(|bytes| Image::Memory(Block::new(bytes, gauge))).collect()
            }
            Images::Parked(run) => {
                let known = self.parked.get(&run).and_then(Weak::upgrade);
                let parked = known.unwrap_or_else(|| {
                    let parked = Arc::new(Parked { run, inbox: self.state.inbox.clone() });
                    self.parked.insert(run, Arc::downgrade(&parked));
                    parked
                });
                let blocks = (run.start + skip..).take(crcs.len());
                blocks.map(|block| Image::Parked(block, parked.clone())).collect()
            }
        };
        images.into_iter().zip(crcs).map(|(image, &crc)| Overlay { image, crc, origin }).collect()
    }

    fn stage(&mut self, target: TargetId, chunk: ChunkId, id: VersionId, stage: Stage, rsn: u64) {
        let over = self.overlays(stage.images, &stage.over, 0, id.version.0);
        let ticket = self.state.tickets + 1;
        self.state.tickets = ticket;
        let Some(of) = self.state.targets.get_mut(&target) else { return };
        of.chunks.entry(chunk).or_default();
        of.active.entry(chunk).or_default().pendings.push_back(Pending {
            id,
            tag: stage.tag,
            op: stage.op,
            rebase: stage.rebase,
            renews: false,
            committed: stage.committed,
            progress: Progress::Logged(rsn),
            ticket,
            parts: Parts {
                length: stage.length,
                written: stage.written,
                run: stage.run,
                new_run: stage.new_run,
                tombstone: stage.op == crate::format::record::OpKind::Remove,
                place_first: stage.place_first,
                place: stage.place,
                over_first: stage.over_first,
                over,
                resum: stage.resum,
            },
        });
        if stage.committed {
            self.state.fold(target, chunk, id);
        }
    }

    /// Every run that something has.
    pub fn used(&self) -> Vec<Run> {
        let mut all = Vec::new();
        for target in self.state.targets.values() {
            all.extend(target.chunks.values().filter_map(Entry::run));
            for (chunk, active) in &target.active {
                let base = target.chunks.get(chunk).and_then(Entry::run);
                let mut runs = BTreeSet::new();
                runs.extend(active.pendings.iter().filter_map(|pending| pending.parts.run));
                let over = active.pendings.iter().flat_map(|pending| &pending.parts.over);
                for overlay in active.overlays.values().chain(over) {
                    if let Image::Parked(_, parked) = &overlay.image {
                        runs.insert(parked.run);
                    }
                }
                all.extend(runs.into_iter().filter(|run| Some(*run) != base));
            }
        }
        all
    }

    /// The state, without what only the replay needed and chunks that nothing is left of.
    pub fn finish(mut self) -> State {
        for target in self.state.targets.values_mut() {
            let active = &target.active;
            target.chunks.retain(|chunk, entry| entry.exists() || active.contains_key(chunk));
        }
        self.state
    }
}
