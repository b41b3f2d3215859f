//! Moving a name: replace, no-replace, exchange.
//!
//! A directory must not end up below itself, or its whole subtree would be cut off. So before a directory gets another parent, the way
//! from the new parent up to the root is read, inode by inode, and must not meet it. Two renames at once cannot deceive each other:
//! each writes the parent pointer of the directory that it moves and has read those on its way up, so if one moves a directory that
//! the other's way went through, the second to commit conflicts, starts over, and sees the new way.
//!
//! Creations below a directory that is renamed do conflict with the rename, because its inode carries the parent pointer. Names of
//! files move without touching any directory's inode.

use std::sync::Arc;

use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;
use pb::RenameMode;

use super::make::may_make;
use super::unlink::{drop_link, retire_dir};
use crate::access::{Caller, WRITE};
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::{Links, Place, Slot, existing, occupant, walk};
use crate::schema::{Inode, ROOT, key};
use crate::tx::Tx;

/// Directories on the way to the root. A path of 4096 bytes has at most 2048 components; deeper trees are made step by step.
const MAX_DEPTH: usize = 10_000;

impl Mutation for pb::RenameRequest {
    type Reply = pb::RenameReply;
    const NAME: &'static str = "rename";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::RenameReply, OpError> {
        let mode =
            RenameMode::try_from(self.mode).or_else(|_| refuse(Status::Invalid, "unknown rename mode"))?;
        let from = slot(walk(tx, caller, self.from.as_ref(), Links::Name).await?)?;
        let to = slot(walk(tx, caller, self.to.as_ref(), Links::Name).await?)?;
        let (id, inode) = occupant(tx, &from).await?;
        let other = match &to.entry {
            Some(_) => Some(occupant(tx, &to).await?),
            None => None,
        };
        match (mode, &other) {
            (RenameMode::Noreplace, Some(_)) => return Err(Status::Exists.into()),
            (RenameMode::Exchange, None) => return Err(Status::NotFound.into()),
            _ => {}
        }
        // A path with a slash at its end names a directory, on either side.
        if (from.slash || to.slash) && !inode.is_dir() {
            return Err(Status::NotDirectory.into());
        }
        caller.need_unlink(&from.parent, &inode)?;
        match &other {
            Some((_, other)) => caller.need_unlink(&to.parent, other)?,
            None => may_make(caller, &to.parent)?,
        }
        if to.parent.is_removed() {
            return Err(Status::NotFound.into());
        }
        // Two names of one file: nothing to do, says POSIX. So with one name and itself.
        if other.as_ref().is_some_and(|(other, _)| *other == id) {
            return Ok(pb::RenameReply { inode: Some(tx.wire(id, &inode).await?) });
        }
        let inode = match (mode, other) {
            (RenameMode::Exchange, Some((other_id, other))) => {
                if to.slash && !other.is_dir() {
                    return Err(Status::NotDirectory.into());
                }
                check_move(tx, caller, (id, &inode), &from, &to).await?;
                check_move(tx, caller, (other_id, &other), &to, &from).await?;
                place(tx, (other_id, &other), &from);
                count_children(tx, &from, &inode, -1);
                count_children(tx, &from, &other, 1);
                count_children(tx, &to, &other, -1);
                count_children(tx, &to, &inode, 1);
                place(tx, (id, &inode), &to)
            }
            (_, other) => {
                check_move(tx, caller, (id, &inode), &from, &to).await?;
                if let Some((other_id, other)) = other {
                    replace(tx, &inode, (other_id, &other), &from, &to).await?;
                }
                tx.clear(key::entry(from.dir, &from.name));
                count_children(tx, &from, &inode, -1);
                count_children(tx, &to, &inode, 1);
                place(tx, (id, &inode), &to)
            }
        };
        tx.touch_dir(from.dir);
        if to.dir != from.dir {
            tx.touch_dir(to.dir);
        }
        Ok(pb::RenameReply { inode: Some(tx.wire(id, &inode).await?) })
    }
}

/// The name that a path of a rename ends with.
fn slot(place: Place) -> Result<Slot, OpError> {
    match place {
        Place::Slot(slot) => Ok(slot),
        Place::Nameless(..) => refuse(Status::Invalid, "`.`, `..` and the root cannot be renamed"),
    }
}

/// Takes the place of what the new name stood for.
async fn replace(
    tx: &mut Tx<'_>,
    inode: &Inode,
    (other_id, other): (InodeId, &Inode),
    from: &Slot,
    to: &Slot,
) -> Result<(), OpError> {
    match (inode.is_dir(), other.is_dir()) {
        (true, false) => return Err(Status::NotDirectory.into()),
        (false, true) => return Err(Status::IsDirectory.into()),
        (false, false) => return drop_link(tx, other_id, other).await,
        (true, true) => {}
    }
    // This also keeps a directory from replacing one above itself.
    let (entries, _) = tx.range(key::entries(other_id), 1).await?;
    if !entries.is_empty() || other_id == from.dir {
        return Err(Status::NotEmpty.into());
    }
    retire_dir(tx, other_id, other);
    tx.add(key::dir_children(to.dir), -1);
    Ok(())
}

/// Whether `inode` may move to another directory, for what it is.
async fn check_move(
    tx: &mut Tx<'_>,
    caller: &Caller,
    (id, inode): (InodeId, &Inode),
    from: &Slot,
    to: &Slot,
) -> Result<(), OpError> {
    if !inode.is_dir() || from.dir == to.dir {
        return Ok(());
    }
    // Its `..` changes.
    caller.need(inode, WRITE)?;
    let mut here = to.dir;
    for _ in 0..MAX_DEPTH {
        if here == id {
            return refuse(Status::Invalid, "a directory cannot be moved below itself");
        }
        if here == ROOT {
            return Ok(());
        }
        here = match existing(tx, here).await?.parent {
            0 => return refuse(Status::NotFound, "the new directory was removed"),
            parent => InodeId(parent),
        };
    }
    refuse(Status::Invalid, format!("the new place is more than {MAX_DEPTH} directories deep"))
}

/// Puts an inode under a name. The names are the directory's; the inode changes its ctime and, if a directory, its parent.
fn place(tx: &mut Tx<'_>, (id, inode): (InodeId, &Inode), slot: &Slot) -> Arc<Inode> {
    tx.put_entry(slot.dir, &slot.name, id, inode.kind);
    let parent = if inode.is_dir() { slot.dir.0 } else { inode.parent };
    let now = tx.now;
    tx.put_inode(id, Inode { ctime: now, parent, ..inode.clone() })
}

/// Counts a directory that comes or goes.
fn count_children(tx: &mut Tx<'_>, slot: &Slot, inode: &Inode, change: i64) {
    if inode.is_dir() {
        tx.add(key::dir_children(slot.dir), change);
    }
}
