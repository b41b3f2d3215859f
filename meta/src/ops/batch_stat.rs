//! Attributes of many places at one point in time. One that fails does not spoil the others.

use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::op::Query;
use crate::resolve::{existing, find};
use crate::tx::Tx;

/// Most places of one call.
const MAX_PLACES: usize = 1024;

impl Query for pb::BatchStatRequest {
    type Reply = pb::BatchStatReply;
    const NAME: &'static str = "batch_stat";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::BatchStatReply, OpError> {
        let count = self.at.len() + self.inodes.len();
        if count > MAX_PLACES {
            return refuse(
                Status::Invalid,
                format!("{count} places in one call, at most {MAX_PLACES} are taken"),
            );
        }
        let mut results = Vec::with_capacity(count);
        for at in &self.at {
            let found = match find(tx, caller, Some(at), self.follow).await {
                Ok((id, inode)) => tx.wire(id, &inode).await,
                Err(error) => Err(error),
            };
            results.push(result(found)?);
        }
        for &id in &self.inodes {
            let found = match existing(tx, InodeId(id)).await {
                Ok(inode) => tx.wire(InodeId(id), &inode).await,
                Err(error) => Err(error),
            };
            results.push(result(found)?);
        }
        Ok(pb::BatchStatReply { results })
    }
}

fn result(found: Result<pb::Inode, OpError>) -> Result<pb::StatResult, OpError> {
    match found {
        Ok(inode) => Ok(pb::StatResult { status: Status::Ok as u32, inode: Some(inode) }),
        Err(OpError::Failed(failure)) => Ok(pb::StatResult { status: failure.status as u32, inode: None }),
        Err(error) => Err(error),
    }
}
