//! A target's disk: what is durable survives, commit marks do not.

use catena_craq::{ReadAt, Restored, Store, TagRecord};
use catena_proto::ids::*;

use super::{CHUNK, Pay, Tags, Violation};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    pub id: VersionId,
    pub tag: Option<Tag>,
    pub pay: Pay,
    pub durable: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct DiskStore {
    /// What stands whatever happens.
    base: VersionId,
    contents: Vec<u8>,
    tags: Tags,
    /// Versions behind it, contiguous; the first `committed` of them are marked as committed, in memory only.
    log: Vec<Entry>,
    committed: usize,
}

impl DiskStore {
    pub fn stage(&mut self, entry: Entry, rebase: bool) {
        if rebase {
            let keep = self.tags();
            self.merge_tags(&keep);
            self.base =
                VersionId { version: ChunkVersion(entry.id.version.0 - 1), assigned: ChainVersion(0) };
            (self.contents, self.log, self.committed) = (Vec::new(), Vec::new(), 0);
        }
        self.log.push(entry);
    }

    pub fn set_durable(&mut self, id: VersionId) {
        if let Some(entry) = self.log.iter_mut().find(|entry| entry.id == id) {
            entry.durable = true;
        }
    }

    pub fn commit(&mut self, id: VersionId) -> Result<(), Violation> {
        let place = self
            .log
            .iter()
            .position(|entry| entry.id == id)
            .ok_or(format!("assertion: commit of {id:?}, not staged"))?;
        if self.log[..=place].iter().any(|entry| !entry.durable) {
            return Err(format!("assertion: {id:?} is committed and not durable"));
        }
        self.committed = self.committed.max(place + 1);
        Ok(())
    }

    pub fn install(&mut self, id: VersionId, contents: Vec<u8>) {
        let keep = self.tags();
        self.merge_tags(&keep);
        (self.base, self.contents, self.log, self.committed) = (id, contents, Vec::new(), 0);
    }

    pub fn drop_pendings(&mut self) {
        self.log.truncate(self.committed);
    }

    pub fn power_loss(&mut self) {
        let durable = self.log.iter().take_while(|entry| entry.durable).count();
        self.log.truncate(durable);
        self.committed = 0;
    }

    pub fn pendings(&self) -> Vec<Restored> {
        self.log[self.committed..]
            .iter()
            .map(|entry| Restored { chunk: CHUNK, id: entry.id, tag: entry.tag })
            .collect()
    }

    pub fn exists(&self) -> bool {
        self.base.version > ChunkVersion(0) || !self.log.is_empty()
    }

    pub fn committed_id(&self) -> VersionId {
        self.log[..self.committed].last().map_or(self.base, |entry| entry.id)
    }

    pub fn committed_contents(&self) -> Vec<u8> {
        self.contents(ReadAt::Committed(VersionId::default()))
    }

    pub fn contents(&self, at: ReadAt) -> Vec<u8> {
        let upto = match at {
            ReadAt::Committed(_) => self.committed,
            ReadAt::Pending(id) => {
                self.log.iter().position(|entry| entry.id == id).map_or(0, |place| place + 1)
            }
        };
        self.log[..upto].iter().fold(self.contents.clone(), |mut contents, entry| match &entry.pay {
            Pay::Delta(write) => {
                contents.push(*write);
                contents
            }
            Pay::Full(all) => all.clone(),
        })
    }

    /// Tags of committed writes.
    pub fn tags(&self) -> Vec<(Tag, VersionId)> {
        let old = self
            .tags
            .iter()
            .map(|(&(client, channel), &(sequence, id))| (Tag { client, channel, sequence }, id));
        old.chain(self.log[..self.committed].iter().filter_map(|entry| Some((entry.tag?, entry.id))))
            .collect()
    }

    pub fn merge_tags(&mut self, tags: &[(Tag, VersionId)]) {
        for (tag, id) in tags {
            let known = self.tags.entry((tag.client, tag.channel)).or_insert((tag.sequence, *id));
            if known.0 < tag.sequence {
                *known = (tag.sequence, *id);
            }
        }
    }
}

impl Store for DiskStore {
    fn committed(&self, _: ChunkId) -> VersionId {
        self.committed_id()
    }
    fn tag(&self, client: ClientId, channel: ChannelId) -> Option<TagRecord> {
        let tags = self.tags();
        let known = tags.iter().filter(|(tag, _)| (tag.client, tag.channel) == (client, channel));
        let (tag, version) = known.max_by_key(|(tag, _)| tag.sequence)?;
        Some(TagRecord { sequence: tag.sequence, chunk: CHUNK, version: *version, length: 0 })
    }
}
