//! One page of a directory, in order of names. Each page is a transaction of its own: a name that is there throughout appears exactly
//! once, one that comes or goes meanwhile may appear or not.

use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::{Caller, READ, SEARCH};
use crate::error::{OpError, refuse};
use crate::op::Query;
use crate::resolve::{MAX_NAME, find};
use crate::schema::inode::FileType;
use crate::schema::{Dirent, decode, key};
use crate::tx::Tx;

/// Entries of a page if the caller does not say.
const DEFAULT_PAGE: usize = 1000;
/// Most entries of a page.
const MAX_PAGE: usize = 4096;
/// A page ends behind the entry that reaches this: symbolic links make attributes long.
const PAGE_BYTES: usize = 1 << 20;
/// Bytes of an entry with attributes, without name and link.
const ENTRY_BYTES: usize = 160;

impl Query for pb::ReaddirRequest {
    type Reply = pb::ReaddirReply;
    const NAME: &'static str = "readdir";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::ReaddirReply, OpError> {
        let (id, dir) = find(tx, caller, self.at.as_ref(), true).await?;
        if !dir.is_dir() {
            return Err(Status::NotDirectory.into());
        }
        caller.need(&dir, if self.attributes { READ | SEARCH } else { READ })?;
        if self.after.len() > MAX_NAME {
            return refuse(Status::NameTooLong, "`after` is longer than any name");
        }
        let limit = match self.limit as usize {
            0 => DEFAULT_PAGE,
            limit => limit.min(MAX_PAGE),
        };
        let mut reply = pb::ReaddirReply { inode: id.0, parent: dir.parent, ..Default::default() };
        let mut range = key::entries(id);
        if !self.after.is_empty() {
            range.begin = catena_kv::key_after(&key::entry(id, &self.after));
        }
        let mut bytes = 0;
        loop {
            let (items, more) = tx.range(range.clone(), limit - reply.entries.len()).await?;
            reply.more = more;
            for item in &items {
                let name = key::entry_name(&item.key)?;
                let entry: Dirent = decode("a directory entry", &item.value)?;
                let mut found =
                    pb::DirEntry { name, inode: entry.inode, r#type: entry.kind, attributes: None };
                if self.attributes {
                    found.attributes = attributes(tx, &entry).await?;
                }
                let link = found.attributes.as_ref().map_or(0, |inode| inode.symlink.len());
                bytes += ENTRY_BYTES + found.name.len() + link;
                reply.entries.push(found);
                if bytes >= PAGE_BYTES {
                    reply.more |= items.last().is_some_and(|last| last.key != item.key);
                    return Ok(reply);
                }
            }
            match items.last() {
                Some(last) if more && reply.entries.len() < limit => {
                    range.begin = catena_kv::key_after(&last.key)
                }
                _ => return Ok(reply),
            }
        }
    }
}

/// Attributes of an entry, read past the transaction's memory: a page of thousands would only fill it.
async fn attributes(tx: &mut Tx<'_>, entry: &Dirent) -> Result<Option<pb::Inode>, OpError> {
    let id = InodeId(entry.inode);
    let Some(value) = tx.peek(key::inode(id)).await? else { return Ok(None) };
    let inode = decode("an inode", &value)?;
    match entry.kind == FileType::Directory as i32 {
        true => Ok(Some(tx.wire(id, &inode).await?)),
        false => Ok(Some(inode.to_wire(id, None))),
    }
}
