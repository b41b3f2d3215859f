//! Looking at one damage in one transaction, and repairing it in the same.
//!
//! A check reads the store page by page while others change it, so what it found is a suspicion. Here everything that the damage
//! consists of is read again, serialisably. What takes more than one transaction to see (that an inode has no name, or so many) rests
//! on this: whatever gives or takes a name of an inode sets its ctime, so an inode that is as it was *before* all entries were read has
//! had the same names all the time.

use std::sync::Arc;

use bytes::Bytes;
use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;
use pb::RepairKind;

use super::make;
use super::sync::{Observed, chains_for};
use super::unlink::{drop_link, has_sessions, retire, trash};
use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::op::Mutation;
use crate::resolve::existing;
use crate::schema::inode::FileType;
use crate::schema::{Inode, ROOT, key};
use crate::tx::Tx;

/// Where inodes without a name get one.
const LOST: &[u8] = b"lost+found";

/// A look, or a repair, with what the chains said of the file's length.
pub(crate) struct Repair<'a> {
    pub request: &'a pb::RepairRequest,
    pub observed: Option<Observed>,
}

impl Mutation for Repair<'_> {
    type Reply = pb::RepairReply;
    const NAME: &'static str = "repair";
    fn caller(&self) -> Option<&pb::Caller> {
        self.request.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::RepairReply, OpError> {
        caller.need_superuser()?;
        let request = self.request;
        let mut length = 0;
        let holds = match (request.kind(), &request.entry, &request.seen) {
            (RepairKind::DanglingEntry, Some(entry), _) => self.dangling(tx, entry).await?,
            (RepairKind::LostEntry, Some(entry), _) => self.lost(tx, caller, entry).await?,
            (RepairKind::WrongParent, Some(entry), Some(seen)) => self.parent(tx, entry, seen).await?,
            (RepairKind::Unreachable, _, Some(seen)) => self.unreachable(tx, caller, seen).await?,
            (RepairKind::WrongNlink, _, Some(seen)) => self.nlink(tx, seen).await?,
            (RepairKind::Forgotten, _, Some(seen)) => self.forgotten(tx, seen).await?,
            (RepairKind::WrongLength, _, Some(seen)) => {
                let Some(observed) = self.observed else { return Err(OpError::Observe) };
                length = observed.length;
                self.length(tx, seen, observed).await?
            }
            _ => return refuse(Status::Invalid, "the request does not say what to repair"),
        };
        Ok(pb::RepairReply { holds, length })
    }
}

/// Whether an entry stands as it was seen.
async fn stands(tx: &mut Tx<'_>, entry: &pb::CheckedEntry) -> Result<bool, OpError> {
    let found = tx.entry(InodeId(entry.parent), &entry.name).await?;
    Ok(found.is_some_and(|found| found.inode == entry.inode))
}

/// An inode, if its names are those that it had when it was seen.
async fn unchanged(tx: &mut Tx<'_>, seen: &pb::CheckedInode) -> Result<Option<Arc<Inode>>, OpError> {
    let ctime = seen.inode.as_ref().map(|inode| inode.ctime);
    let found = tx.inode(InodeId(seen.id)).await?;
    Ok(found.filter(|inode| inode.nlink == seen.nlink && Some(inode.ctime) == ctime))
}

/// Takes an entry away, whatever it names.
fn drop_entry(tx: &mut Tx<'_>, entry: &pb::CheckedEntry, parent: bool) {
    let dir = InodeId(entry.parent);
    tx.clear(key::entry(dir, &entry.name));
    if parent {
        tx.touch_dir(dir);
        if entry.r#type == FileType::Directory as i32 {
            tx.add(key::dir_children(dir), -1);
        }
    }
}

impl Repair<'_> {
    async fn dangling(&self, tx: &mut Tx<'_>, entry: &pb::CheckedEntry) -> Result<bool, OpError> {
        if !stands(tx, entry).await? || tx.inode(InodeId(entry.inode)).await?.is_some() {
            return Ok(false);
        }
        if self.request.apply {
            let parent = tx.inode(InodeId(entry.parent)).await?.is_some();
            drop_entry(tx, entry, parent);
        }
        Ok(true)
    }

    async fn lost(
        &self,
        tx: &mut Tx<'_>,
        caller: &Caller,
        entry: &pb::CheckedEntry,
    ) -> Result<bool, OpError> {
        let id = InodeId(entry.inode);
        if !stands(tx, entry).await? || tx.inode(InodeId(entry.parent)).await?.is_some() {
            return Ok(false);
        }
        let Some(inode) = tx.inode(id).await? else { return Ok(false) };
        if self.request.apply {
            drop_entry(tx, entry, false);
            match inode.is_dir() || inode.nlink <= 1 {
                true => adopt(tx, caller, id, &inode).await?,
                // It has other names.
                false => drop_link(tx, id, &inode).await?,
            }
        }
        Ok(true)
    }

    /// `seen` had one name, this one, while all entries were read.
    async fn parent(
        &self,
        tx: &mut Tx<'_>,
        entry: &pb::CheckedEntry,
        seen: &pb::CheckedInode,
    ) -> Result<bool, OpError> {
        let Some(inode) = unchanged(tx, seen).await? else { return Ok(false) };
        let wrong = inode.is_dir() && !inode.is_removed() && inode.parent != entry.parent;
        if !wrong || seen.id != entry.inode || !stands(tx, entry).await? {
            return Ok(false);
        }
        if self.request.apply {
            let now = tx.now;
            tx.put_inode(InodeId(seen.id), Inode { parent: entry.parent, ctime: now, ..(*inode).clone() });
        }
        Ok(true)
    }

    async fn unreachable(
        &self,
        tx: &mut Tx<'_>,
        caller: &Caller,
        seen: &pb::CheckedInode,
    ) -> Result<bool, OpError> {
        let Some(inode) = unchanged(tx, seen).await? else { return Ok(false) };
        if inode.is_removed() || seen.id == ROOT.0 {
            return Ok(false);
        }
        if self.request.apply {
            adopt(tx, caller, InodeId(seen.id), &inode).await?;
        }
        Ok(true)
    }

    async fn nlink(&self, tx: &mut Tx<'_>, seen: &pb::CheckedInode) -> Result<bool, OpError> {
        let Some(inode) = unchanged(tx, seen).await? else { return Ok(false) };
        let names = self.request.names;
        if inode.is_dir() || inode.is_removed() || names == 0 || inode.nlink == names {
            return Ok(false);
        }
        if self.request.apply {
            let now = tx.now;
            tx.put_inode(InodeId(seen.id), Inode { nlink: names, ctime: now, ..(*inode).clone() });
        }
        Ok(true)
    }

    async fn forgotten(&self, tx: &mut Tx<'_>, seen: &pb::CheckedInode) -> Result<bool, OpError> {
        let id = InodeId(seen.id);
        let Some(inode) = tx.inode(id).await?.filter(|inode| inode.is_removed()) else { return Ok(false) };
        let kept = match inode.is_dir() {
            true => tx.get(key::trash(id)).await?.is_some(),
            false => has_sessions(tx, id).await?,
        };
        if !kept && self.request.apply {
            match inode.is_dir() {
                true => trash(tx, id, &inode),
                false => retire(tx, id, &inode, inode.layout.map_or(0, |layout| layout.stripe)),
            }
        }
        Ok(!kept)
    }

    async fn length(
        &self,
        tx: &mut Tx<'_>,
        seen: &pb::CheckedInode,
        observed: Observed,
    ) -> Result<bool, OpError> {
        let id = InodeId(seen.id);
        let Some(inode) = tx.inode(id).await? else { return Ok(false) };
        // Someone who has it open settles it himself.
        if inode.truncating || inode.is_removed() || has_sessions(tx, id).await? {
            return Ok(false);
        }
        if inode.truncate_epoch != observed.epoch {
            return Err(OpError::Observe);
        }
        if observed.length <= inode.length {
            return Ok(false);
        }
        if self.request.apply {
            let (now, length) = (tx.now, observed.length);
            let chains_used = inode.chains_used.max(chains_for(&inode, length));
            tx.put_inode(id, Inode { length, chains_used, mtime: now, ctime: now, ..(*inode).clone() });
        }
        Ok(true)
    }
}

/// Gives an inode its only name, in /lost+found.
async fn adopt(tx: &mut Tx<'_>, caller: &Caller, id: InodeId, inode: &Inode) -> Result<(), OpError> {
    let dir = lost_and_found(tx, caller).await?;
    let name = format!("#{}", id.0);
    tx.put_entry(dir, name.as_bytes(), id, inode.kind);
    tx.touch_dir(dir);
    let parent = if inode.is_dir() { dir.0 } else { 0 };
    if inode.is_dir() {
        tx.add(key::dir_children(dir), 1);
    }
    let now = tx.now;
    tx.put_inode(id, Inode { nlink: 1, parent, ctime: now, ..inode.clone() });
    Ok(())
}

async fn lost_and_found(tx: &mut Tx<'_>, caller: &Caller) -> Result<InodeId, OpError> {
    if let Some(entry) = tx.entry(ROOT, LOST).await? {
        let id = InodeId(entry.inode);
        return match existing(tx, id).await?.is_dir() {
            true => Ok(id),
            false => {
                refuse(Status::NotDirectory, "/lost+found is not a directory: rename it, then repair again")
            }
        };
    }
    let root = existing(tx, ROOT).await?;
    let blank = make::blank(tx, caller, &root, FileType::Directory, 0o700);
    let (id, _) = make::put(tx, ROOT, &Bytes::from_static(LOST), blank)?;
    Ok(id)
}
