//! Removing names: unlink, rmdir, and whole trees.
//!
//! rmdir stays correct beside concurrent creations, though neither writes what the other reads in passing: rmdir reads the whole
//! range of names (empty), which a creation that commits first has written into; a creation reads the directory's inode, which an
//! rmdir that commits first has removed. Whichever commits second starts over and sees the other.
//!
//! A whole tree goes in one small transaction, which cannot look at everything below. So the caller must own the directory or be the
//! superuser (a directory that is empty takes no more than rmdir asks). What is below goes whoever owns it, as if the owner had moved
//! the directory out of sight, which he may. A caller who does not own it removes entry by entry, as `rm -r` does elsewhere.

use catena_proto::pb;
use catena_proto::status::Status;

use super::unlink::{drop_link, retire_dir, trash};
use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::{Links, Nameless, Place, occupant, walk};
use crate::schema::key;
use crate::tx::Tx;

impl Mutation for pb::RemoveRequest {
    type Reply = pb::RemoveReply;
    const NAME: &'static str = "remove";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::RemoveReply, OpError> {
        let slot = match walk(tx, caller, self.at.as_ref(), Links::Name).await? {
            Place::Slot(slot) => slot,
            Place::Nameless(_, _, how) => return refuse_nameless(how, self.directory || self.recursive),
        };
        let (id, inode) = occupant(tx, &slot).await?;
        caller.need_unlink(&slot.parent, &inode)?;
        if inode.is_dir() {
            if !self.directory && !self.recursive {
                return Err(Status::IsDirectory.into());
            }
            let (entries, _) = tx.range(key::entries(id), 1).await?;
            match entries.is_empty() {
                true => retire_dir(tx, id, &inode),
                false if !self.recursive => return Err(Status::NotEmpty.into()),
                false if !caller.owns(&inode) => {
                    return refuse(
                        Status::NotPermitted,
                        "only its owner removes a directory with everything in it; remove the entries first",
                    );
                }
                false => trash(tx, id, &inode),
            }
            tx.add(key::dir_children(slot.dir), -1);
        } else {
            if slot.slash || (self.directory && !self.recursive) {
                return Err(Status::NotDirectory.into());
            }
            drop_link(tx, id, &inode).await?;
        }
        tx.clear(key::entry(slot.dir, &slot.name));
        tx.touch_dir(slot.dir);
        Ok(pb::RemoveReply { inode: id.0 })
    }
}

/// A path that ends without a name, answered as Linux does.
fn refuse_nameless(how: Nameless, directory: bool) -> Result<pb::RemoveReply, OpError> {
    match how {
        Nameless::Itself => {
            refuse(Status::Invalid, "names are removed, not inodes: say the directory and the name")
        }
        _ if !directory => Err(Status::IsDirectory.into()),
        Nameless::Root => refuse(Status::Invalid, "the root directory cannot be removed"),
        Nameless::Dot => refuse(Status::Invalid, "`.` cannot be removed"),
        Nameless::DotDot => Err(Status::NotEmpty.into()),
    }
}
