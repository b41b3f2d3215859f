//! Putting a new inode into a slot: what all creating operations share.

use std::sync::Arc;

use bytes::Bytes;
use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::{Caller, MODE_BITS, SEARCH, SETGID, WRITE};
use crate::error::{OpError, refuse};
use crate::resolve::{Place, Slot};
use crate::schema::Inode;
use crate::schema::inode::FileType;
use crate::schema::key::Counter;
use crate::tx::Tx;

/// The free slot that a creating call names: [`Status::Exists`] if it is taken, in the order in which Linux looks.
pub(crate) fn free_slot(place: Place, caller: &Caller, directory: bool) -> Result<Slot, OpError> {
    let slot = match place {
        Place::Nameless(..) => return Err(Status::Exists.into()),
        Place::Slot(slot) if slot.entry.is_some() => return Err(Status::Exists.into()),
        Place::Slot(slot) => slot,
    };
    if slot.slash && !directory {
        return refuse(Status::NotFound, "a path with a slash at its end can only name a directory");
    }
    may_make(caller, &slot.parent)?;
    Ok(slot)
}

/// Whether the caller may make names in a directory.
pub(crate) fn may_make(caller: &Caller, dir: &Inode) -> Result<(), OpError> {
    if dir.is_removed() {
        return Err(Status::NotFound.into());
    }
    Ok(caller.need(dir, WRITE | SEARCH)?)
}

/// An inode with owner, group and mode as a new one in `parent` has them.
pub(crate) fn blank(tx: &Tx<'_>, caller: &Caller, parent: &Inode, kind: FileType, mode: u32) -> Inode {
    let mut mode = mode & MODE_BITS;
    let inherits = parent.mode & SETGID != 0;
    let gid = if inherits { parent.gid } else { caller.gid };
    if kind == FileType::Directory {
        // A set-group-id directory passes itself on.
        mode = if inherits { mode | SETGID } else { mode };
    } else if mode & SETGID != 0 && mode & 0o010 != 0 && !caller.is_superuser() && !caller.in_group(gid) {
        mode &= !SETGID;
    }
    Inode {
        kind: kind as i32,
        mode,
        uid: caller.uid,
        gid,
        nlink: 1,
        atime: tx.now,
        mtime: tx.now,
        ctime: tx.now,
        btime: tx.now,
        ..Default::default()
    }
}

/// Puts a new inode under a name.
pub(crate) fn put(
    tx: &mut Tx<'_>,
    dir: InodeId,
    name: &Bytes,
    inode: Inode,
) -> Result<(InodeId, Arc<Inode>), OpError> {
    let id = tx.new_id()?;
    let directory = inode.is_dir();
    let inode = Inode { parent: if directory { dir.0 } else { 0 }, ..inode };
    tx.put_entry(dir, name, id, inode.kind);
    tx.touch_dir(dir);
    if directory {
        tx.add(crate::schema::key::dir_children(dir), 1);
    }
    tx.count(if directory { Counter::Directories } else { Counter::Files }, 1);
    let inode = tx.put_inode(id, inode);
    Ok((id, inode))
}

/// The reply about a new inode: nothing is kept beside it yet.
pub(crate) fn reply(id: InodeId, inode: &Inode) -> pb::InodeReply {
    let beside = inode.is_dir().then_some((None, 0));
    pb::InodeReply { inode: Some(inode.to_wire(id, beside)) }
}
