//! What a symbolic link says.

use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::op::Query;
use crate::resolve::find;
use crate::tx::Tx;

impl Query for pb::ReadlinkRequest {
    type Reply = pb::ReadlinkReply;
    const NAME: &'static str = "readlink";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::ReadlinkReply, OpError> {
        let (_, inode) = find(tx, caller, self.at.as_ref(), false).await?;
        if !inode.is_symlink() {
            return refuse(Status::Invalid, "not a symbolic link");
        }
        Ok(pb::ReadlinkReply { target: inode.symlink.clone() })
    }
}
