//! Counting names: what all inodes of a part of the file system say of themselves, against what all entries say of them. Pure.
//!
//! Both are read page by page while others work, so what comes out are suspicions for the metadata service to look at.

use std::collections::BTreeMap;

use catena_proto::pb;

const ROOT: u64 = 1;

/// Which share of the inodes is counted: memory is bounded by counting a large file system in several goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub nth: u64,
    pub of: u64,
}

impl Part {
    pub fn has(self, inode: u64) -> bool {
        // Fibonacci hashing: ids come in strides.
        (inode.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % self.of == self.nth
    }
}

struct Counted {
    nlink: u32,
    ctime: i64,
    directory: bool,
    parent: u64,
    names: u32,
    /// The first name that contradicts a directory's own word.
    elsewhere: Option<Box<pb::CheckedEntry>>,
}

/// Something to look at.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Suspicion {
    /// An entry whose inode was not seen.
    Dangling(pb::CheckedEntry),
    /// An entry whose directory was not seen.
    Lost(pb::CheckedEntry),
    /// A directory at another place than it says.
    Parent(pb::CheckedEntry, pb::CheckedInode),
    /// An inode without names.
    Unreachable(pb::CheckedInode),
    /// A file with another number of names than it says: with so many.
    Nlink(pb::CheckedInode, u32),
    /// An inode that has lost its names.
    Forgotten(pb::CheckedInode),
}

/// The inodes of one part, and the names found so far.
pub(super) struct Census {
    part: Part,
    inodes: BTreeMap<u64, Counted>,
}

impl Census {
    pub fn new(part: Part) -> Census {
        Census { part, inodes: BTreeMap::new() }
    }

    /// An inode. All come before all entries.
    pub fn inode(&mut self, seen: &pb::CheckedInode) -> Option<Suspicion> {
        let inode = seen.inode.as_ref().filter(|_| self.part.has(seen.id))?;
        if seen.nlink == 0 {
            return (!seen.open && !seen.queued).then(|| Suspicion::Forgotten(seen.clone()));
        }
        let counted = Counted {
            nlink: seen.nlink,
            ctime: inode.ctime,
            directory: inode.r#type() == pb::FileType::Directory,
            parent: inode.parent,
            names: 0,
            elsewhere: None,
        };
        self.inodes.insert(seen.id, counted);
        None
    }

    /// An entry.
    pub fn entry(&mut self, entry: &pb::CheckedEntry) -> Option<Suspicion> {
        let homeless = self.part.has(entry.parent) && !self.inodes.contains_key(&entry.parent);
        let lost = || homeless.then(|| Suspicion::Lost(entry.clone()));
        if !self.part.has(entry.inode) {
            return lost();
        }
        let Some(counted) = self.inodes.get_mut(&entry.inode) else {
            return Some(Suspicion::Dangling(entry.clone()));
        };
        counted.names = counted.names.saturating_add(1);
        if !homeless && counted.directory && counted.parent != entry.parent {
            counted.elsewhere.get_or_insert_with(|| Box::new(entry.clone()));
        }
        lost()
    }

    /// What does not add up.
    pub fn verdicts(self) -> impl Iterator<Item = Suspicion> {
        self.inodes.into_iter().filter(|&(id, _)| id != ROOT).filter_map(|(id, counted)| {
            let inode = pb::Inode { id, ctime: counted.ctime, ..Default::default() };
            let seen = pb::CheckedInode {
                id,
                exists: true,
                nlink: counted.nlink,
                inode: Some(inode),
                ..Default::default()
            };
            match (counted.names, counted.elsewhere) {
                (0, _) => Some(Suspicion::Unreachable(seen)),
                (1, Some(entry)) => Some(Suspicion::Parent(*entry, seen)),
                (names, _) if !counted.directory && names != counted.nlink => {
                    Some(Suspicion::Nlink(seen, names))
                }
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Part = Part { nth: 0, of: 1 };

    fn seen(id: u64, directory: bool, nlink: u32, parent: u64) -> pb::CheckedInode {
        let kind = if directory { pb::FileType::Directory } else { pb::FileType::File };
        let inode = pb::Inode { id, r#type: kind as i32, parent, ctime: 5, ..Default::default() };
        pb::CheckedInode { id, exists: true, nlink, inode: Some(inode), ..Default::default() }
    }

    fn entry(parent: u64, name: &'static str, inode: u64) -> pb::CheckedEntry {
        pb::CheckedEntry { parent, name: name.into(), inode, r#type: 0 }
    }

    /// Inodes (id, directory, nlink, parent) and entries (parent, name, inode), and the names of what is suspected.
    fn suspected(inodes: &[(u64, bool, u32, u64)], entries: &[(u64, &'static str, u64)]) -> Vec<String> {
        let mut census = Census::new(ALL);
        let mut found = Vec::new();
        found.extend(census.inode(&seen(1, true, 1, 1)));
        found.extend(
            inodes.iter().filter_map(|&(id, dir, nlink, parent)| census.inode(&seen(id, dir, nlink, parent))),
        );
        found.extend(
            entries.iter().filter_map(|&(parent, name, inode)| census.entry(&entry(parent, name, inode))),
        );
        found.extend(census.verdicts());
        let text = |suspicion: &Suspicion| match suspicion {
            Suspicion::Dangling(entry) => format!("dangling {}", entry.inode),
            Suspicion::Lost(entry) => format!("lost {}", entry.inode),
            Suspicion::Parent(entry, seen) => format!("parent {} is {}", seen.id, entry.parent),
            Suspicion::Unreachable(seen) => format!("unreachable {}", seen.id),
            Suspicion::Nlink(seen, names) => format!("nlink {} is {names}", seen.id),
            Suspicion::Forgotten(seen) => format!("forgotten {}", seen.id),
        };
        found.iter().map(text).collect()
    }

    #[test]
    fn what_does_not_add_up_is_suspected_and_nothing_else() {
        let dir = (10, true, 1, 1);
        let here = (1, "d", 10);
        for (inodes, entries, expected) in [
            (vec![], vec![], vec![]),
            (vec![dir, (20, false, 2, 0)], vec![here, (10, "a", 20), (1, "b", 20)], vec![]),
            (vec![dir], vec![here, (10, "gone", 20)], vec!["dangling 20"]),
            (vec![(20, false, 1, 0)], vec![(10, "a", 20)], vec!["lost 20"]),
            (vec![dir], vec![], vec!["unreachable 10"]),
            (vec![dir, (11, true, 1, 1)], vec![here, (10, "e", 11)], vec!["parent 11 is 10"]),
            (vec![(20, false, 3, 0)], vec![(1, "a", 20)], vec!["nlink 20 is 1"]),
            (vec![(20, false, 0, 0)], vec![], vec!["forgotten 20"]),
        ] {
            assert_eq!(suspected(&inodes, &entries), expected, "{inodes:?} {entries:?}");
        }
    }

    #[test]
    fn every_inode_is_in_one_part() {
        for id in 0..10_000 {
            assert_eq!((0..7).filter(|&nth| Part { nth, of: 7 }.has(id)).count(), 1);
        }
    }
}
