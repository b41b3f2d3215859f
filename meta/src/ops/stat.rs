//! Attributes of one place.

use catena_proto::pb;

use crate::access::Caller;
use crate::error::OpError;
use crate::op::Query;
use crate::resolve::find;
use crate::tx::Tx;

impl Query for pb::StatRequest {
    type Reply = pb::StatReply;
    const NAME: &'static str = "stat";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::StatReply, OpError> {
        let (id, inode) = find(tx, caller, self.at.as_ref(), self.follow).await?;
        Ok(pb::StatReply { inode: Some(tx.wire(id, &inode).await?) })
    }
}
