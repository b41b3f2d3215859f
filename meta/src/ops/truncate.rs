//! Cutting a file: the part of it that is a transaction.
//!
//! A cut touches an inode and any number of chunks, and must survive a crash between any two of them. So it is decided first: one
//! transaction gives the inode its new length and a new epoch and records the *intent*. Then the chunks behind the end are removed and
//! the one at the end shortened (`crate::cut`), and a last transaction removes the intent and records the request's outcome. From the
//! first transaction on every reader sees the new length; until the last one nobody may settle a longer one or cut again, so bytes
//! that are still there cannot come to light. A service that dies in between leaves an intent that any other finishes.

use std::sync::Arc;

use bytes::Bytes;
use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use super::sync::{chains_for, layout_of};
use super::unlink::has_sessions;
use crate::access::{Caller, WRITE, wide, without_set_ids};
use crate::cut::Owner;
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::find;
use crate::schema::{Inode, TruncateIntent, decode, encode, key};
use crate::tx::Tx;

/// What to cut to, and who does it.
pub(crate) struct Cut {
    pub length: u64,
    /// The service's start.
    pub owner: Owner,
    /// The call whose outcome this is.
    pub call: &'static str,
    /// The caller has just opened a session of its own.
    pub own_session: bool,
}

/// A truncate.
pub(crate) struct Truncate<'a> {
    pub request: &'a pb::TruncateRequest,
    pub owner: Owner,
}

impl Mutation for Truncate<'_> {
    type Reply = pb::TruncateReply;
    const NAME: &'static str = "truncate";
    fn caller(&self) -> Option<&pb::Caller> {
        self.request.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::TruncateReply, OpError> {
        let request = self.request;
        let (id, inode) = find(tx, caller, request.at.as_ref(), true).await?;
        if inode.is_dir() {
            return Err(Status::IsDirectory.into());
        }
        if !inode.is_file() {
            return refuse(Status::Invalid, "only files have a length");
        }
        if request.session.is_empty() {
            caller.need(&inode, WRITE)?;
        } else {
            let session = wide("session id", &request.session)?;
            if tx.get(key::session(id, &session)).await?.is_none() {
                return refuse(Status::StaleHandle, "the file session has ended");
            }
        }
        let limit = layout_of(&inode)?.max_length();
        if request.length > limit {
            return refuse(
                Status::TooLarge,
                format!("length {} is beyond {limit}, the longest file with its chunk size", request.length),
            );
        }
        let cut = Cut { length: request.length, owner: self.owner, call: Self::NAME, own_session: false };
        let inode = begin(tx, caller, (id, &inode), cut).await?;
        Ok(pb::TruncateReply { inode: Some(inode.to_wire(id, None)) })
    }
}

/// Decides a cut. If chunks have to go, the outcome is deferred to [`finish`].
pub(crate) async fn begin(
    tx: &mut Tx<'_>,
    caller: &Caller,
    (id, inode): (InodeId, &Inode),
    cut: Cut,
) -> Result<Arc<Inode>, OpError> {
    let request = caller.request.map(|id| Bytes::copy_from_slice(&id.0.to_be_bytes())).unwrap_or_default();
    if inode.truncating {
        let intent = intent(tx, id).await?;
        return match intent {
            // This very request was here before: it goes on where it was, if no one else has taken over.
            Some(intent)
                if intent.request == request && !request.is_empty() && intent.owner == cut.owner.start =>
            {
                tx.defer_outcome();
                Ok(Arc::new(inode.clone()))
            }
            _ => refuse(Status::Busy, "the file is being cut already"),
        };
    }
    // Without sessions the settled length is exact. With one, someone may have written further than anyone has said.
    let (sessions, _) = tx.range(key::sessions_of(id), 2).await?;
    let unsettled = sessions.len() > usize::from(cut.own_session);
    let now = tx.now;
    let mut changed = Inode { length: cut.length, mtime: now, ctime: now, ..inode.clone() };
    if !caller.is_superuser() {
        changed.mode = without_set_ids(changed.mode);
    }
    let shorter = cut.length < inode.length;
    if !unsettled && (!shorter || inode.chains_used == 0) {
        // Nothing lies behind the end. A file made longer holds a hole there: no chunks either.
        changed.truncate_epoch += u64::from(shorter);
        return Ok(tx.put_inode(id, changed));
    }
    changed.truncate_epoch += 1;
    changed.truncating = true;
    let stripe = inode.layout.map_or(0, |layout| layout.stripe);
    let record = TruncateIntent {
        length: cut.length,
        owner: cut.owner.start,
        lease_ms: cut.owner.lease_ms,
        beat: 0,
        request,
        call: cut.call.into(),
        chains: if unsettled { stripe } else { inode.chains_used },
    };
    tx.set(key::truncate(id), encode(&record));
    tx.defer_outcome();
    Ok(tx.put_inode(id, changed))
}

/// The intent of a cut that is under way.
pub(crate) async fn intent(tx: &mut Tx<'_>, id: InodeId) -> Result<Option<TruncateIntent>, OpError> {
    match tx.get(key::truncate(id)).await? {
        Some(value) => Ok(Some(decode("the intent of a cut", &value)?)),
        None => Ok(None),
    }
}

/// Ends a cut whose chunks are gone. The inode is as the cut left it, if the file is still there.
pub(crate) async fn finish(
    tx: &mut Tx<'_>,
    id: InodeId,
    intent: &TruncateIntent,
) -> Result<Option<Arc<Inode>>, OpError> {
    tx.clear(key::truncate(id));
    let Some(inode) = tx.inode(id).await? else { return Ok(None) };
    let mut changed = Inode { truncating: false, ..(*inode).clone() };
    if !has_sessions(tx, id).await? {
        changed.chains_used = chains_for(&changed, intent.length);
    }
    Ok(Some(tx.put_inode(id, changed)))
}
