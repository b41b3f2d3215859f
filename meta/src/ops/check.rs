//! What a check of the file system reads (`catena admin fsck`): pages of inodes and of entries, in the order of the store, each page at
//! one point in time. What they say together is a suspicion; `repair` looks at one damage in one transaction.

use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::op::Query;
use crate::ops::unlink::has_sessions;
use crate::schema::{Dirent, Inode, decode, key};
use crate::tx::Tx;

/// Entries of a page if the caller does not say, and at most. A page of inodes asks for the sessions of each.
const PAGE: usize = 1024;

fn page(limit: u32) -> usize {
    match limit as usize {
        0 => PAGE,
        limit => limit.min(PAGE),
    }
}

impl Query for pb::CheckInodesRequest {
    type Reply = pb::CheckInodesReply;
    const NAME: &'static str = "check_inodes";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::CheckInodesReply, OpError> {
        caller.need_superuser()?;
        let mut reply = pb::CheckInodesReply::default();
        if !self.inodes.is_empty() {
            if self.inodes.len() > PAGE {
                return refuse(Status::Invalid, format!("more than {PAGE} inodes"));
            }
            for &id in &self.inodes {
                let value = tx.get(key::inode(InodeId(id))).await?;
                let inode = value.map(|value| decode::<Inode>("an inode", &value)).transpose()?;
                reply.inodes.push(checked(tx, InodeId(id), inode).await?);
            }
            return Ok(reply);
        }
        let mut range = key::inodes();
        if self.after != 0 {
            range.begin = key::behind_inode(InodeId(self.after));
        }
        let limit = page(self.limit);
        loop {
            let (items, more) = tx.range(range.clone(), limit).await?;
            for item in &items {
                // Beside a directory's inode stand its times and counts.
                let Some(id) = key::inode_id(&item.key) else { continue };
                if reply.inodes.len() >= limit {
                    reply.more = true;
                    return Ok(reply);
                }
                let inode = decode::<Inode>("an inode", &item.value)?;
                reply.inodes.push(checked(tx, id, Some(inode)).await?);
            }
            match items.last() {
                Some(last) if more => range.begin = catena_kv::key_after(&last.key),
                _ => return Ok(reply),
            }
        }
    }
}

async fn checked(tx: &mut Tx<'_>, id: InodeId, inode: Option<Inode>) -> Result<pb::CheckedInode, OpError> {
    let Some(inode) = inode else {
        let queued = tx.get(key::reclaim(id)).await?.is_some();
        return Ok(pb::CheckedInode { id: id.0, queued, ..Default::default() });
    };
    Ok(pb::CheckedInode {
        id: id.0,
        exists: true,
        queued: inode.is_dir() && inode.is_removed() && tx.get(key::trash(id)).await?.is_some(),
        open: inode.is_file() && has_sessions(tx, id).await?,
        truncating: inode.truncating,
        nlink: inode.nlink,
        inode: Some(inode.to_wire(id, None)),
    })
}

impl Query for pb::CheckEntriesRequest {
    type Reply = pb::CheckEntriesReply;
    const NAME: &'static str = "check_entries";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::CheckEntriesReply, OpError> {
        caller.need_superuser()?;
        let mut range = key::all_entries();
        if let Some(after) = &self.after {
            range.begin = catena_kv::key_after(&key::entry(InodeId(after.parent), &after.name));
        }
        let (items, more) = tx.range(range, page(self.limit)).await?;
        let mut reply = pb::CheckEntriesReply { entries: Vec::with_capacity(items.len()), more };
        for item in &items {
            let entry: Dirent = decode("a directory entry", &item.value)?;
            reply.entries.push(pb::CheckedEntry {
                parent: key::entry_parent(&item.key)?.0,
                name: key::entry_name(&item.key)?,
                inode: entry.inode,
                r#type: entry.kind,
            });
        }
        Ok(reply)
    }
}
