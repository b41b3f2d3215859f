//! What a check can find, and what repair does about it.

use std::fmt;

use catena_proto::ids::{ChainId, ChunkId, InodeId, NodeId, TargetId};
use catena_proto::pb;

/// Kinds of damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FindingKind {
    /// A name whose inode does not exist.
    DanglingEntry,
    /// A name in a directory that does not exist.
    LostEntry,
    /// A directory that says that it is elsewhere than where its name is.
    WrongParent,
    /// An inode that no name leads to.
    Unreachable,
    /// A file that says that it has more or fewer names than it has.
    WrongNlink,
    /// A file or directory without names that nobody removes.
    Forgotten,
    /// A file whose chunks reach behind its length, though nobody has it open.
    WrongLength,
    /// A chunk whose file does not exist, and is not being removed.
    OrphanChunk,
    /// A chunk that only some of the serving replicas have.
    MissingChunk,
    /// A chunk of which serving replicas have different contents, at rest.
    DifferingChunk,
    /// A chain of which no replica serves: nothing in it can be read or checked.
    ChainDown,
}

impl FindingKind {
    /// As scripts know it.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::DanglingEntry => "dangling-entry",
            FindingKind::LostEntry => "lost-entry",
            FindingKind::WrongParent => "wrong-parent",
            FindingKind::Unreachable => "unreachable",
            FindingKind::WrongNlink => "wrong-nlink",
            FindingKind::Forgotten => "forgotten",
            FindingKind::WrongLength => "wrong-length",
            FindingKind::OrphanChunk => "orphan-chunk",
            FindingKind::MissingChunk => "missing-chunk",
            FindingKind::DifferingChunk => "differing-chunk",
            FindingKind::ChainDown => "chain-down",
        }
    }

    /// What repair does, if it does anything.
    pub fn remedy(self) -> Option<&'static str> {
        Some(match self {
            FindingKind::DanglingEntry => "removes the name",
            FindingKind::LostEntry | FindingKind::Unreachable => "moves the inode to /lost+found",
            FindingKind::WrongParent => "tells the directory where it is",
            FindingKind::WrongNlink => "sets the number of names",
            FindingKind::Forgotten => "removes it",
            FindingKind::WrongLength => "settles the length",
            FindingKind::OrphanChunk => "removes the chunk",
            // Which replica is right is not for a check to say: the chain's own rules are.
            FindingKind::MissingChunk | FindingKind::DifferingChunk | FindingKind::ChainDown => return None,
        })
    }
}

/// One damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// The name, if it is one, as text.
    pub name: Option<String>,
    /// The directory that the name is in.
    pub parent: Option<InodeId>,
    /// The inode.
    pub inode: Option<InodeId>,
    /// The chunk's index in the file.
    pub chunk: Option<u32>,
    /// The chain.
    pub chain: Option<ChainId>,
    /// The replicas that disagree, or lack it.
    pub targets: Vec<(TargetId, NodeId)>,
    /// In words.
    pub detail: String,
    /// It is healed.
    pub repaired: bool,
}

impl Finding {
    pub(super) fn new(kind: FindingKind, detail: String) -> Finding {
        Finding {
            kind,
            name: None,
            parent: None,
            inode: None,
            chunk: None,
            chain: None,
            targets: Vec::new(),
            detail,
            repaired: false,
        }
    }
    pub(super) fn of_entry(kind: FindingKind, entry: &pb::CheckedEntry, detail: String) -> Finding {
        Finding {
            name: Some(String::from_utf8_lossy(&entry.name).into_owned()),
            parent: Some(InodeId(entry.parent)),
            inode: Some(InodeId(entry.inode)),
            ..Finding::new(kind, detail)
        }
    }
    pub(super) fn of_inode(kind: FindingKind, id: u64, detail: String) -> Finding {
        Finding { inode: Some(InodeId(id)), ..Finding::new(kind, detail) }
    }
    pub(super) fn of_chunk(kind: FindingKind, chain: ChainId, chunk: ChunkId, detail: String) -> Finding {
        Finding {
            inode: Some(chunk.inode),
            chunk: Some(chunk.index),
            chain: Some(chain),
            ..Finding::new(kind, detail)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind.name())?;
        if let (Some(name), Some(parent)) = (&self.name, self.parent) {
            write!(f, "{name} (below inode {}): ", parent.0)?;
        }
        if let Some(inode) = self.inode {
            write!(f, "inode {}", inode.0)?;
            if let Some(chunk) = self.chunk {
                write!(f, ", chunk {chunk}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.detail)?;
        match (self.repaired, self.kind.remedy()) {
            (true, _) => f.write_str(" [repaired]"),
            (false, Some(remedy)) => write!(f, " [--repair {remedy}]"),
            (false, None) => Ok(()),
        }
    }
}
