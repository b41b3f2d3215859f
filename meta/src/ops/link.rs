//! Hard links.

use catena_proto::pb;
use catena_proto::status::Status;

use super::make;
use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::{Links, find, walk};
use crate::schema::{Inode, MAX_LINKS};
use crate::tx::Tx;

impl Mutation for pb::LinkRequest {
    type Reply = pb::InodeReply;
    const NAME: &'static str = "link";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::InodeReply, OpError> {
        let (id, inode) = find(tx, caller, self.from.as_ref(), self.follow).await?;
        let place = walk(tx, caller, self.to.as_ref(), Links::Name).await?;
        let slot = make::free_slot(place, caller, false)?;
        if inode.is_dir() {
            return refuse(Status::NotPermitted, "a directory has only one name");
        }
        if inode.is_removed() {
            return refuse(Status::NotFound, "the file has no name any more and gets none again");
        }
        if inode.nlink >= MAX_LINKS {
            return Err(Status::TooManyLinks.into());
        }
        tx.put_entry(slot.dir, &slot.name, id, inode.kind);
        tx.touch_dir(slot.dir);
        let linked = Inode { nlink: inode.nlink + 1, ctime: tx.now, ..(*inode).clone() };
        let linked = tx.put_inode(id, linked);
        Ok(make::reply(id, &linked))
    }
}
