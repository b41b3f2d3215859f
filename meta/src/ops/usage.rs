//! What a subtree holds, a page at a time. The cursor says where the walk stands: one directory and name a level, so it is as long as
//! the tree is deep, and the service keeps nothing between pages.

use std::collections::VecDeque;

use bytes::Bytes;
use catena_kv::KeyValue;
use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;
use prost::Message;

use crate::access::{Caller, READ, SEARCH};
use crate::error::{OpError, refuse};
use crate::op::{Age, Query};
use crate::resolve::find;
use crate::schema::inode::FileType;
use crate::schema::{Dirent, Inode, decode, key};
use crate::tx::Tx;

/// Entries of a page if the caller does not say, and at most: a page must fit in a transaction's 5 seconds.
const PAGE: usize = 8192;
/// Names read at a time.
const BATCH: usize = 512;
/// Deepest tree that is walked.
const MAX_DEPTH: usize = 10_000;

#[derive(Clone, PartialEq, prost::Message)]
struct Cursor {
    #[prost(message, repeated, tag = "1")]
    levels: Vec<Level>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Level {
    #[prost(fixed64, tag = "1")]
    dir: u64,
    /// The last name that was counted.
    #[prost(bytes = "bytes", tag = "2")]
    after: Bytes,
}

impl Query for pb::UsageRequest {
    type Reply = pb::UsageReply;
    const NAME: &'static str = "usage";
    const AGE: Age = Age::Second;
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::UsageReply, OpError> {
        let mut reply = pb::UsageReply::default();
        let levels = if self.cursor.is_empty() {
            let (id, inode) = find(tx, caller, self.at.as_ref(), true).await?;
            if !inode.is_dir() {
                count(&mut reply, id, &inode);
                return Ok(reply);
            }
            caller.need(&inode, READ | SEARCH)?;
            reply.directories = 1;
            vec![Level { dir: id.0, after: Bytes::new() }]
        } else {
            match Cursor::decode(self.cursor.clone()) {
                Ok(cursor) if cursor.levels.len() <= MAX_DEPTH => cursor.levels,
                _ => return refuse(Status::Invalid, "the cursor is not one of this service's"),
            }
        };
        let limit = match self.limit as usize {
            0 => PAGE,
            limit => limit.min(PAGE),
        };
        let mut stack: Vec<Walk> = levels.into_iter().map(Walk::at).collect();
        let mut seen = 0;
        while seen < limit && !stack.is_empty() {
            // A deep walk reads little at a time, so that what is read and not yet counted stays bounded.
            let batch = (BATCH / stack.len()).max(16);
            let Some(walk) = stack.last_mut() else { break };
            if walk.ahead.is_empty() && walk.more {
                walk.read(tx, batch).await?;
            }
            let Some(item) = walk.ahead.pop_front() else {
                if !walk.more {
                    stack.pop();
                }
                continue;
            };
            seen += 1;
            walk.level.after = key::entry_name(&item.key)?;
            let entry: Dirent = decode("a directory entry", &item.value)?;
            let id = InodeId(entry.inode);
            let Some(value) = tx.peek(key::inode(id)).await? else { continue };
            let inode: Inode = decode("an inode", &value)?;
            if entry.kind != FileType::Directory as i32 {
                count(&mut reply, id, &inode);
                continue;
            }
            reply.directories += 1;
            if !caller.may(&inode, READ | SEARCH) {
                reply.unreadable += 1;
            } else if stack.len() >= MAX_DEPTH {
                return refuse(Status::Invalid, format!("more than {MAX_DEPTH} directories deep"));
            } else {
                stack.push(Walk::at(Level { dir: id.0, after: Bytes::new() }));
            }
        }
        if !stack.is_empty() {
            let levels = stack.into_iter().map(|walk| walk.level).collect();
            reply.cursor = Cursor { levels }.encode_to_vec().into();
        }
        Ok(reply)
    }
}

/// One level of the walk within a page.
struct Walk {
    level: Level,
    /// Entries behind `level.after`, read and not yet counted.
    ahead: VecDeque<KeyValue>,
    /// More follow behind those.
    more: bool,
}

impl Walk {
    fn at(level: Level) -> Walk {
        Walk { level, ahead: VecDeque::new(), more: true }
    }
    async fn read(&mut self, tx: &mut Tx<'_>, limit: usize) -> Result<(), OpError> {
        let dir = InodeId(self.level.dir);
        let mut range = key::entries(dir);
        if !self.level.after.is_empty() {
            range.begin = catena_kv::key_after(&key::entry(dir, &self.level.after));
        }
        let (items, more) = tx.range(range, limit).await?;
        self.ahead = items.into();
        self.more = more;
        Ok(())
    }
}

/// One file: with several names it is left to the caller, who meets it again under each.
fn count(reply: &mut pb::UsageReply, id: InodeId, inode: &Inode) {
    if inode.nlink > 1 {
        reply.linked.push(pb::LinkedInode { inode: id.0, bytes: inode.length });
    } else {
        reply.files += 1;
        reply.bytes += inode.length;
    }
}
