//! Making empty files, fifos, sockets and device nodes.

use catena_proto::pb;
use catena_proto::status::Status;

use super::make;
use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::layout;
use crate::op::Mutation;
use crate::resolve::{Links, walk};
use crate::schema::inode::FileType;
use crate::tx::Tx;

impl Mutation for pb::MknodRequest {
    type Reply = pb::InodeReply;
    const NAME: &'static str = "mknod";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::InodeReply, OpError> {
        let kind = match self.r#type() {
            kind @ (FileType::File | FileType::Fifo | FileType::Socket) => kind,
            kind @ (FileType::CharDevice | FileType::BlockDevice) if caller.is_superuser() => kind,
            FileType::CharDevice | FileType::BlockDevice => {
                return refuse(Status::NotPermitted, "only the superuser makes device nodes");
            }
            FileType::Directory => return Err(Status::NotPermitted.into()),
            FileType::Symlink | FileType::Unspecified => {
                return refuse(Status::Invalid, "mknod makes files, fifos, sockets and device nodes");
            }
        };
        let place = walk(tx, caller, self.at.as_ref(), Links::Name).await?;
        let slot = make::free_slot(place, caller, false)?;
        let mut inode = make::blank(tx, caller, &slot.parent, kind, self.mode);
        match kind {
            FileType::File => {
                let layout = layout::for_new_file(tx, (slot.dir, &slot.parent), None).await?;
                inode.layout = Some(layout.into());
            }
            FileType::CharDevice | FileType::BlockDevice => inode.rdev = self.rdev,
            _ => {}
        }
        let (id, inode) = make::put(tx, slot.dir, &slot.name, inode)?;
        Ok(make::reply(id, &inode))
    }
}
