//! chmod, chown, utimensat.

use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::{Caller, MODE_BITS, SETGID, WRITE, without_set_ids};
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::find;
use crate::schema::{DirTimes, Inode, key};
use crate::tx::Tx;

impl Mutation for pb::SetAttrRequest {
    type Reply = pb::InodeReply;
    const NAME: &'static str = "set_attr";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::InodeReply, OpError> {
        let (id, old) = find(tx, caller, self.at.as_ref(), self.follow).await?;
        let mut inode = (*old).clone();
        if self.uid.is_some() || self.gid.is_some() {
            chown(&mut inode, caller, self.uid, self.gid)?;
        }
        if let Some(mode) = self.mode {
            chmod(&mut inode, caller, mode)?;
        }
        if self.touches_atime() || self.touches_mtime() {
            self.set_times(tx, caller, &mut inode)?;
        } else if self.uid.is_none() && self.gid.is_none() && self.mode.is_none() {
            return Ok(pb::InodeReply { inode: Some(tx.wire(id, &old).await?) });
        }
        inode.ctime = tx.now;
        if inode.is_dir() && self.touches_mtime() {
            // A directory's times lie beside its inode once an entry has changed.
            let times = DirTimes { mtime: inode.mtime, ctime: tx.now };
            tx.set(key::dir_times(id), times.encode());
        }
        let inode = tx.put_inode(id, inode);
        Ok(pb::InodeReply { inode: Some(tx.wire(id, &inode).await?) })
    }
}

trait Times {
    fn touches_atime(&self) -> bool;
    fn touches_mtime(&self) -> bool;
    fn set_times(&self, tx: &Tx<'_>, caller: &Caller, inode: &mut Inode) -> Result<(), OpError>;
}

impl Times for pb::SetAttrRequest {
    fn touches_atime(&self) -> bool {
        self.atime_now || self.atime.is_some()
    }
    fn touches_mtime(&self) -> bool {
        self.mtime_now || self.mtime.is_some()
    }

    /// Both times to now takes write permission, as `touch` of a file that one may write; anything else takes ownership.
    fn set_times(&self, tx: &Tx<'_>, caller: &Caller, inode: &mut Inode) -> Result<(), OpError> {
        let both_now = self.atime_now && self.mtime_now;
        if !caller.owns(inode) {
            match both_now {
                true => caller.need(inode, WRITE)?,
                false => return Err(Status::NotPermitted.into()),
            }
        }
        if self.touches_atime() {
            inode.atime = if self.atime_now { tx.now } else { self.atime.unwrap_or(tx.now) };
        }
        if self.touches_mtime() {
            inode.mtime = if self.mtime_now { tx.now } else { self.mtime.unwrap_or(tx.now) };
        }
        Ok(())
    }
}

/// Only the superuser gives files away; an owner passes them between his groups.
fn chown(inode: &mut Inode, caller: &Caller, uid: Option<u32>, gid: Option<u32>) -> Result<(), OpError> {
    if !caller.is_superuser() {
        let keeps_owner = caller.uid == inode.uid && uid.is_none_or(|uid| uid == inode.uid);
        let group_allowed = gid.is_none_or(|gid| gid == inode.gid || caller.in_group(gid));
        if !keeps_owner || !group_allowed {
            return refuse(
                Status::NotPermitted,
                "only the superuser changes the owner, and only the owner the group, to one of his own",
            );
        }
    }
    inode.uid = uid.unwrap_or(inode.uid);
    inode.gid = gid.unwrap_or(inode.gid);
    if !inode.is_dir() {
        inode.mode = without_set_ids(inode.mode);
    }
    Ok(())
}

fn chmod(inode: &mut Inode, caller: &Caller, mode: u32) -> Result<(), OpError> {
    caller.need_owner(inode)?;
    if inode.is_symlink() {
        return refuse(Status::Unsupported, "the mode of a symbolic link is never asked and cannot be set");
    }
    if mode & !MODE_BITS != 0 {
        return refuse(Status::Invalid, format!("the mode {mode:#o} has bits beyond 0o7777"));
    }
    inode.mode = mode;
    if !caller.is_superuser() && !caller.in_group(inode.gid) {
        inode.mode &= !SETGID;
    }
    Ok(())
}
