//! Opening files, and making them.
//!
//! A call that neither writes, makes nor cuts is a query: no record, no commit. One that cuts has a second part outside the
//! transaction, see `truncate`.

use std::sync::Arc;

use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use super::{make, truncate};
use crate::access::{Caller, READ, WRITE, wide};
use crate::cut::Owner;
use crate::error::{OpError, refuse};
use crate::layout;
use crate::op::{Mutation, Query};
use crate::resolve::{Links, Nameless, Place, Slot, occupant, walk};
use crate::schema::inode::FileType;
use crate::schema::key::{self, Counter};
use crate::schema::{Inode, Session, encode};
use crate::tx::Tx;

/// Whether an open can change anything.
pub(crate) fn mutates(request: &pb::OpenRequest) -> bool {
    request.write || request.create || request.truncate
}

fn links(follow: bool) -> Links {
    if follow { Links::Follow } else { Links::Itself }
}

/// An open that only reads.
pub(crate) struct OpenToRead<'a>(pub &'a pb::OpenRequest);

/// An open that may make, cut, or open for writing.
pub(crate) struct OpenToWrite<'a> {
    /// The request.
    pub request: &'a pb::OpenRequest,
    /// This service's start, as the owner of a cut.
    pub owner: Owner,
}

impl Query for OpenToRead<'_> {
    type Reply = pb::OpenReply;
    const NAME: &'static str = "open";
    fn caller(&self) -> Option<&pb::Caller> {
        self.0.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::OpenReply, OpError> {
        let place = walk(tx, caller, self.0.at.as_ref(), links(!self.0.no_follow)).await?;
        let (id, inode) = match place {
            Place::Nameless(id, inode, _) => (id, inode),
            Place::Slot(slot) => there(tx, &slot).await?,
        };
        check(self.0, caller, &inode)?;
        Ok(pb::OpenReply { inode: Some(tx.wire(id, &inode).await?), created: false })
    }
}

impl Mutation for OpenToWrite<'_> {
    type Reply = pb::OpenReply;
    const NAME: &'static str = "open";
    fn caller(&self) -> Option<&pb::Caller> {
        self.request.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::OpenReply, OpError> {
        let request = self.request;
        let session = if request.write { Some(wide("session id", &request.session)?) } else { None };
        if request.create && request.directory {
            return refuse(Status::Invalid, "open makes files, mkdir directories");
        }
        let follow = !(request.no_follow || request.create && request.exclusive);
        let (id, inode, created) = match walk(tx, caller, request.at.as_ref(), links(follow)).await? {
            Place::Slot(slot) if slot.entry.is_none() && request.create => {
                let (id, inode) = create(tx, caller, request, &slot).await?;
                (id, inode, true)
            }
            Place::Slot(slot) => {
                let (id, inode) = there(tx, &slot).await?;
                if request.create && request.exclusive {
                    return Err(Status::Exists.into());
                }
                (id, inode, false)
            }
            Place::Nameless(_, _, how) if request.create && request.exclusive => {
                return match how {
                    Nameless::Itself => refuse(Status::Invalid, "an inode cannot be made exclusively"),
                    _ => Err(Status::Exists.into()),
                };
            }
            Place::Nameless(id, inode, _) => (id, inode, false),
        };
        // Who makes a file may open it in any way, whatever mode it gave it.
        if !created {
            check(request, caller, &inode)?;
        }
        if let (Some(session), true) = (session, inode.is_file()) {
            let value = encode(&Session { client: caller.client.0, opened: tx.now });
            tx.set(key::session(id, &session), value);
            tx.count(Counter::Sessions, 1);
        }
        let inode = match request.truncate && inode.is_file() && !created {
            true => {
                let cut = truncate::Cut {
                    length: 0,
                    owner: self.owner,
                    call: <Self as Mutation>::NAME,
                    own_session: session.is_some(),
                };
                truncate::begin(tx, caller, (id, &inode), cut).await?
            }
            false => inode,
        };
        Ok(pb::OpenReply { inode: Some(tx.wire(id, &inode).await?), created })
    }
}

/// What is in a slot, for a caller who wants it to be there.
async fn there(tx: &mut Tx<'_>, slot: &Slot) -> Result<(InodeId, Arc<Inode>), OpError> {
    let (id, inode) = occupant(tx, slot).await?;
    match slot.slash && !inode.is_dir() {
        true => Err(Status::NotDirectory.into()),
        false => Ok((id, inode)),
    }
}

/// Whether an inode that is there may be opened like this.
fn check(request: &pb::OpenRequest, caller: &Caller, inode: &Inode) -> Result<(), OpError> {
    if inode.is_symlink() {
        return refuse(Status::Loop, "the last component is a symbolic link");
    }
    if request.directory && !inode.is_dir() {
        return Err(Status::NotDirectory.into());
    }
    if inode.is_dir() && (request.write || request.create || request.truncate) {
        return Err(Status::IsDirectory.into());
    }
    let want =
        if request.read { READ } else { 0 } | if request.write || request.truncate { WRITE } else { 0 };
    Ok(caller.need(inode, want)?)
}

async fn create(
    tx: &mut Tx<'_>,
    caller: &Caller,
    request: &pb::OpenRequest,
    slot: &Slot,
) -> Result<(InodeId, Arc<Inode>), OpError> {
    if slot.slash {
        return Err(Status::IsDirectory.into());
    }
    make::may_make(caller, &slot.parent)?;
    let layout = layout::for_new_file(tx, (slot.dir, &slot.parent), request.layout.as_ref()).await?;
    let blank = make::blank(tx, caller, &slot.parent, FileType::File, request.mode);
    make::put(tx, slot.dir, &slot.name, Inode { layout: Some(layout.into()), ..blank })
}
