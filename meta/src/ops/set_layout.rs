//! What files made below a directory from now on get.

use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::layout;
use crate::op::Mutation;
use crate::resolve::find;
use crate::schema::Inode;
use crate::tx::Tx;

impl Mutation for pb::SetLayoutRequest {
    type Reply = pb::InodeReply;
    const NAME: &'static str = "set_layout";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::InodeReply, OpError> {
        let (id, old) = find(tx, caller, self.at.as_ref(), true).await?;
        caller.need_owner(&old)?;
        if !old.is_dir() {
            return refuse(
                Status::NotDirectory,
                "layouts are set on directories; a file keeps the one that it was made with",
            );
        }
        let said = self.layout.unwrap_or_default();
        let said = layout::for_directory(&tx.cx.routing.current(), &said)?;
        let layout = (said != pb::Layout::default()).then_some(said);
        let inode = tx.put_inode(id, Inode { layout, ctime: tx.now, ..(*old).clone() });
        Ok(pb::InodeReply { inode: Some(tx.wire(id, &inode).await?) })
    }
}
