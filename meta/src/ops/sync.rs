//! Settling a file's length (fsync) and ending a session (close).
//!
//! Lengths only grow here; what shortens a file is a cut, and each cut raises the epoch. So a length that was observed in an epoch, be
//! it the writer's high-water mark or what the chains say, may be folded in with `max` as long as the epoch is still the same, and
//! must be observed again otherwise: a write from before the cut must not bring the old length back.

use catena_proto::ids::InodeId;
use catena_proto::layout::Layout;
use catena_proto::pb;
use catena_proto::status::Status;

use super::unlink::{has_sessions, retire};
use crate::access::{Caller, wide, without_set_ids};
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::existing;
use crate::schema::key::{self, Counter};
use crate::schema::{Inode, Session, decode};
use crate::tx::Tx;

/// What the chains said, and in which epoch they were asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Observed {
    pub epoch: u64,
    pub length: u64,
}

/// A sync with what was observed for it.
pub(crate) struct Settle<'a> {
    pub request: &'a pb::SyncRequest,
    pub observed: Option<Observed>,
}

impl Mutation for Settle<'_> {
    type Reply = pb::SyncReply;
    const NAME: &'static str = "sync";
    fn caller(&self) -> Option<&pb::Caller> {
        self.request.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::SyncReply, OpError> {
        let request = self.request;
        let id = InodeId(request.inode);
        let (session_key, inode) = open_file(tx, request).await?;
        let mut changed = (*inode).clone();
        if request.wrote {
            if inode.truncating {
                return refuse(Status::Busy, "the file is being cut; its length is settled afterwards");
            }
            let length = match self.observed {
                Some(observed) if observed.epoch == inode.truncate_epoch => observed.length,
                _ if trusted(request, &inode) => within(&inode, request.high_water)?,
                _ => return Err(OpError::Observe),
            };
            changed.length = inode.length.max(length);
            changed.chains_used = inode.chains_used.max(chains_for(&inode, changed.length));
            // Only those who read the time can be misled by one from the future or the past: it is the writer's to say.
            changed.mtime = if request.mtime == 0 { tx.now } else { request.mtime };
            changed.ctime = tx.now;
            if !caller.is_superuser() {
                changed.mode = without_set_ids(changed.mode);
            }
        }
        if request.close {
            tx.clear(session_key);
            tx.count(Counter::Sessions, -1);
            if changed.is_removed() && !has_sessions(tx, id).await? {
                // Writers that never settled may have used any chain of the stripe.
                let chains = changed.layout.map_or(0, |layout| layout.stripe);
                retire(tx, id, &changed, chains);
                return Ok(pb::SyncReply { inode: Some(changed.to_wire(id, None)) });
            }
        }
        let inode = if request.wrote { tx.put_inode(id, changed) } else { inode };
        Ok(pb::SyncReply { inode: Some(inode.to_wire(id, None)) })
    }
}

/// The session's key and its file; refuses a session that is not there.
pub(crate) async fn open_file(
    tx: &mut Tx<'_>,
    request: &pb::SyncRequest,
) -> Result<(bytes::Bytes, std::sync::Arc<Inode>), OpError> {
    let session = wide("session id", &request.session)?;
    let id = InodeId(request.inode);
    let session_key = key::session(id, &session);
    match tx.get(session_key.clone()).await? {
        Some(value) => decode::<Session>("a session", &value)?,
        None => return refuse(Status::StaleHandle, "the file session has ended"),
    };
    Ok((session_key, existing(tx, id).await?))
}

/// Whether the writer's own mark settles the length without asking the chains.
pub(crate) fn trusted(request: &pb::SyncRequest, inode: &Inode) -> bool {
    request.acknowledged && request.truncate_epoch == inode.truncate_epoch
}

/// A length that a file of this layout can have.
fn within(inode: &Inode, length: u64) -> Result<u64, OpError> {
    let limit = layout_of(inode)?.max_length();
    match length <= limit {
        true => Ok(length),
        false => refuse(
            Status::TooLarge,
            format!("length {length} is beyond {limit}, the longest file with its chunk size"),
        ),
    }
}

/// Ends the session of a client that is dead. `observed` is what all chains of the stripe said: nobody knows what it wrote. False if
/// the observation is out of date.
pub(crate) async fn reap(
    tx: &mut Tx<'_>,
    id: InodeId,
    session: &[u8; 16],
    observed: Observed,
) -> Result<bool, OpError> {
    let session_key = key::session(id, session);
    if tx.get(session_key.clone()).await?.is_none() {
        return Ok(true);
    }
    let Some(inode) = tx.inode(id).await? else {
        tx.clear(session_key);
        tx.count(Counter::Sessions, -1);
        return Ok(true);
    };
    if inode.truncating || inode.truncate_epoch != observed.epoch {
        return Ok(false);
    }
    tx.clear(session_key);
    tx.count(Counter::Sessions, -1);
    if inode.is_removed() {
        if !has_sessions(tx, id).await? {
            retire(tx, id, &inode, inode.layout.map_or(0, |layout| layout.stripe));
        }
    } else if observed.length > inode.length {
        let now = tx.now;
        let chains_used = inode.chains_used.max(chains_for(&inode, observed.length));
        let length = observed.length;
        tx.put_inode(id, Inode { length, chains_used, mtime: now, ctime: now, ..(*inode).clone() });
    }
    Ok(true)
}

/// How many of the stripe's chains hold chunks of a file of this length.
pub(crate) fn chains_for(inode: &Inode, length: u64) -> u32 {
    let Some(layout) = inode.layout else { return 0 };
    let chunks = length.div_ceil(u64::from(layout.chunk_size.max(1)));
    chunks.min(u64::from(layout.stripe)) as u32
}

/// A file's layout; a file without one is damaged.
pub(crate) fn layout_of(inode: &Inode) -> Result<Layout, OpError> {
    let layout = inode.layout.and_then(|layout| Layout::try_from(layout).ok());
    layout.map_or_else(|| refuse(Status::Internal, "the file's inode has no usable layout"), Ok)
}
