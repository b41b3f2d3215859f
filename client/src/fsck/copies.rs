//! Comparing the copies of a chain's chunks, a page from every replica at a time. Pure.

use std::collections::BTreeMap;

use catena_proto::frame::{ChunkEntry, MAX_ITEMS};
use catena_proto::ids::{ChunkId, InodeId};

/// Every replica's copy of one chunk, in the order of the replicas.
pub(super) type Copies = Vec<Option<ChunkEntry>>;

/// Chunks of which every replica has been heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub chunks: BTreeMap<ChunkId, Copies>,
    /// Where the next pages begin, if there are any.
    pub next: Option<ChunkId>,
}

pub(super) fn id(entry: &ChunkEntry) -> ChunkId {
    ChunkId { inode: InodeId(entry.inode.get()), index: entry.index.get() }
}

fn after(chunk: ChunkId) -> Option<ChunkId> {
    match chunk.index.checked_add(1) {
        Some(index) => Some(ChunkId { index, ..chunk }),
        None => Some(ChunkId { inode: InodeId(chunk.inode.0.checked_add(1)?), index: 0 }),
    }
}

/// Puts the replicas' pages together. Where they differ they page differently: only what lies before the end of the shortest full page
/// has been heard of from all.
pub(super) fn merge(pages: &[Vec<ChunkEntry>]) -> Heard {
    let full = pages.iter().filter(|page| page.len() >= MAX_ITEMS);
    let reach = full.filter_map(|page| page.last().map(id)).min();
    let mut heard = Heard::default();
    for (replica, page) in pages.iter().enumerate() {
        for entry in page.iter().filter(|entry| reach.is_none_or(|reach| id(entry) <= reach)) {
            let copies = heard.chunks.entry(id(entry)).or_insert_with(|| vec![None; pages.len()]);
            copies[replica] = Some(*entry);
        }
    }
    heard.next = reach.and_then(after);
    heard
}

/// How copies relate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Relation {
    Alike,
    /// Some replicas have none.
    Missing,
    /// Versions, lengths or checksums differ.
    Differing,
    /// A write is under way: nothing can be said.
    Moving,
}

pub(super) fn relation(copies: &[Option<ChunkEntry>]) -> Relation {
    let there = || copies.iter().flatten();
    if there().any(|copy| copy.pending.get() > 0) {
        return Relation::Moving;
    }
    if there().count() < copies.len() {
        return Relation::Missing;
    }
    let mut others = there();
    let Some(first) = others.next() else { return Relation::Alike };
    if others.all(|other| other == first) { Relation::Alike } else { Relation::Differing }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(index: u32, version: u64, pending: u32) -> ChunkEntry {
        ChunkEntry {
            inode: 5.into(),
            version: version.into(),
            assigned: 1.into(),
            index: index.into(),
            length: 7.into(),
            checksum: 9.into(),
            pending: pending.into(),
        }
    }

    #[test]
    fn copies_are_compared_at_rest() {
        let (one, two, busy) = (Some(copy(0, 1, 0)), Some(copy(0, 2, 0)), Some(copy(0, 1, 1)));
        for (copies, expected) in [
            (vec![one, one, one], Relation::Alike),
            (vec![one], Relation::Alike),
            (vec![one, None, one], Relation::Missing),
            (vec![one, two], Relation::Differing),
            (vec![one, busy], Relation::Moving),
            (vec![None, busy], Relation::Moving),
        ] {
            assert_eq!(relation(&copies), expected, "{copies:?}");
        }
    }

    #[test]
    fn replicas_that_page_differently_are_compared_where_both_were_heard() {
        let page = |indices: std::ops::Range<u32>| indices.map(|index| copy(index, 1, 0)).collect::<Vec<_>>();
        let full = MAX_ITEMS as u32;
        let heard = merge(&[page(0..full), page(1..full + 1)]);
        assert_eq!(heard.chunks.len() as u32, full, "up to the end of the first page");
        assert_eq!(heard.next.map(|next| next.index), Some(full));
        let lacks: Vec<_> =
            heard.chunks.iter().filter(|(_, copies)| relation(copies) == Relation::Missing).collect();
        assert_eq!(lacks.len(), 1);
        assert_eq!(lacks[0].0.index, 0);
        let heard = merge(&[page(0..3), page(0..2)]);
        assert_eq!((heard.chunks.len(), heard.next), (3, None));
    }
}
