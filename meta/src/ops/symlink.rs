//! Making symbolic links.

use catena_proto::pb;
use catena_proto::status::Status;

use super::make;
use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::{Links, check_path, walk};
use crate::schema::Inode;
use crate::schema::inode::FileType;
use crate::tx::Tx;

impl Mutation for pb::SymlinkRequest {
    type Reply = pb::InodeReply;
    const NAME: &'static str = "symlink";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::InodeReply, OpError> {
        if self.target.is_empty() {
            return refuse(Status::NotFound, "a symbolic link cannot be empty");
        }
        check_path(&self.target)?;
        let place = walk(tx, caller, self.at.as_ref(), Links::Name).await?;
        let slot = make::free_slot(place, caller, false)?;
        // The mode of a link is never asked: its target's is.
        let blank = make::blank(tx, caller, &slot.parent, FileType::Symlink, 0o777);
        let inode = Inode { symlink: self.target.clone(), ..blank };
        let (id, inode) = make::put(tx, slot.dir, &slot.name, inode)?;
        Ok(make::reply(id, &inode))
    }
}
