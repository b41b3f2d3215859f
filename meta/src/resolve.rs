//! From a path to an inode, or to the slot where a name is or would be.
//!
//! Every directory on the way is read in the transaction, so a mutation that commits saw one consistent path: a rename or a chmod
//! above that commits in between makes it start over.

use std::sync::Arc;

use bytes::Bytes;
use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use crate::access::{Caller, SEARCH};
use crate::error::{OpError, refuse};
use crate::schema::inode::FileType;
use crate::schema::{Dirent, Inode, ROOT};
use crate::tx::Tx;

/// Longest name, bytes.
pub const MAX_NAME: usize = 255;
/// Longest path, bytes.
pub const MAX_PATH: usize = 4096;
/// Most symbolic links on one path.
pub const MAX_SYMLINKS: usize = 40;

/// A name in a directory, there or not.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The directory,
    pub dir: InodeId,
    /// as it is.
    pub parent: Arc<Inode>,
    /// The name, checked.
    pub name: Bytes,
    /// What it stands for now.
    pub entry: Option<Dirent>,
    /// The path ended with a slash: only a directory will do.
    pub slash: bool,
}

/// How a path can end if not with a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nameless {
    /// The root directory.
    Root,
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// The path was empty: the inode itself.
    Itself,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub enum Place {
    /// To a name.
    Slot(Slot),
    /// To an inode that exists but is not named by the last component.
    Nameless(InodeId, Arc<Inode>, Nameless),
}

/// What becomes of a symbolic link in the last component. On the way they are always followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Links {
    /// It is meant itself, slash or not: calls that make, move and remove names.
    Name,
    /// It is meant itself unless a slash follows, which asks for what it leads to.
    Itself,
    /// It is followed.
    Follow,
}

/// Walks a path.
pub async fn walk(
    tx: &mut Tx<'_>,
    caller: &Caller,
    at: Option<&pb::At>,
    links_at_end: Links,
) -> Result<Place, OpError> {
    let Some(at) = at else { return refuse(Status::Invalid, "the request names no place") };
    if at.path.is_empty() {
        let id = InodeId(at.parent);
        let inode = existing(tx, id).await?;
        let how = if id == ROOT { Nameless::Root } else { Nameless::Itself };
        return Ok(Place::Nameless(id, inode, how));
    }
    check_path(&at.path)?;

    let mut here = if at.path.starts_with(b"/") { ROOT } else { InodeId(at.parent) };
    let mut slash = at.path.ends_with(b"/");
    let mut links = 0;
    // Components still to walk, the next one last.
    let mut ahead = Vec::with_capacity(8);
    push_components(&mut ahead, &at.path);
    loop {
        let Some(name) = ahead.pop() else {
            // Only slashes: the root, as a path or as the target of a link.
            let inode = existing(tx, here).await?;
            return Ok(Place::Nameless(here, inode, Nameless::Root));
        };
        let named = !matches!(&name[..], b"." | b"..") && name.len() <= MAX_NAME;
        let (dir, entry) = match named {
            true => tx.inode_and_entry(here, &name).await?,
            false => (tx.inode(here).await?, None),
        };
        let dir = dir.ok_or(OpError::Failed(Status::NotFound.into()))?;
        if !dir.is_dir() {
            return Err(Status::NotDirectory.into());
        }
        if dir.is_removed() {
            return Err(Status::NotFound.into());
        }
        caller.need(&dir, SEARCH)?;
        let last = ahead.is_empty();
        match &name[..] {
            b"." if last => return Ok(Place::Nameless(here, dir, Nameless::Dot)),
            b"." => continue,
            b".." => {
                here = InodeId(dir.parent);
                if last {
                    let inode = existing(tx, here).await?;
                    return Ok(Place::Nameless(here, inode, Nameless::DotDot));
                }
                continue;
            }
            _ => {}
        }
        if name.len() > MAX_NAME {
            return Err(Status::NameTooLong.into());
        }
        let is_link = entry.as_ref().is_some_and(|entry| entry.kind == FileType::Symlink as i32);
        let follows = match links_at_end {
            Links::Name => false,
            Links::Itself => slash,
            Links::Follow => true,
        };
        if last && !(is_link && follows) {
            return Ok(Place::Slot(Slot { dir: here, parent: dir, name, entry, slash }));
        }
        let Some(entry) = entry else { return Err(Status::NotFound.into()) };
        if !is_link {
            here = InodeId(entry.inode);
            continue;
        }
        links += 1;
        if links > MAX_SYMLINKS {
            return Err(Status::Loop.into());
        }
        let link = existing(tx, InodeId(entry.inode)).await?;
        if link.symlink.starts_with(b"/") {
            here = ROOT;
        }
        slash |= last && link.symlink.ends_with(b"/");
        push_components(&mut ahead, &link.symlink);
    }
}

/// The inode that a path leads to.
pub async fn find(
    tx: &mut Tx<'_>,
    caller: &Caller,
    at: Option<&pb::At>,
    follow: bool,
) -> Result<(InodeId, Arc<Inode>), OpError> {
    let links = if follow { Links::Follow } else { Links::Itself };
    match walk(tx, caller, at, links).await? {
        Place::Nameless(id, inode, _) => Ok((id, inode)),
        Place::Slot(slot) => {
            let (id, inode) = occupant(tx, &slot).await?;
            match slot.slash && !inode.is_dir() {
                true => Err(Status::NotDirectory.into()),
                false => Ok((id, inode)),
            }
        }
    }
}

/// What is in a slot; [`Status::NotFound`] if nothing is.
pub async fn occupant(tx: &mut Tx<'_>, slot: &Slot) -> Result<(InodeId, Arc<Inode>), OpError> {
    let Some(entry) = &slot.entry else { return Err(Status::NotFound.into()) };
    let id = InodeId(entry.inode);
    Ok((id, existing(tx, id).await?))
}

/// An inode that must be there.
pub async fn existing(tx: &mut Tx<'_>, id: InodeId) -> Result<Arc<Inode>, OpError> {
    tx.inode(id).await?.ok_or(OpError::Failed(Status::NotFound.into()))
}

/// Refuses paths that no file system call takes.
pub fn check_path(path: &[u8]) -> Result<(), Failure> {
    if path.len() > MAX_PATH {
        return Err(Failure::new(
            Status::NameTooLong,
            format!("the path has {} bytes, at most {MAX_PATH} are taken", path.len()),
        ));
    }
    if path.contains(&0) {
        return Err(Failure::new(Status::Invalid, "the path contains a NUL byte"));
    }
    Ok(())
}

fn push_components(ahead: &mut Vec<Bytes>, path: &Bytes) {
    let mut end = path.len();
    // From the back, so that the next one is popped first.
    for (at, _) in path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/') {
        if at + 1 < end {
            ahead.push(path.slice(at + 1..end));
        }
        end = at;
    }
    if end > 0 {
        ahead.push(path.slice(..end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_what_stands_between_slashes() {
        for (path, expected) in [
            ("a/b/c", vec!["a", "b", "c"]),
            ("/a//b/", vec!["a", "b"]),
            ("///", vec![]),
            ("./..", vec![".", ".."]),
            ("a", vec!["a"]),
        ] {
            let mut ahead = Vec::new();
            push_components(&mut ahead, &Bytes::copy_from_slice(path.as_bytes()));
            ahead.reverse();
            assert_eq!(ahead, expected, "{path}");
        }
    }

    #[test]
    fn paths_that_no_call_takes_are_refused() {
        assert!(check_path(&[b'a'; MAX_PATH]).is_ok());
        assert_eq!(check_path(&[b'a'; MAX_PATH + 1]).unwrap_err().status, Status::NameTooLong);
        assert_eq!(check_path(b"a\0b").unwrap_err().status, Status::Invalid);
    }
}
