//! A transaction with the schema's words: typed reads with a memory, typed writes, counters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_kv::{Atomic, Database, Isolation, KeyValue, KvError, RangeQuery, TxOptions};
use catena_proto::ids::InodeId;
use catena_proto::pb;
use futures_util::future::try_join_all;

use crate::context::Context;
use crate::error::OpError;
use crate::schema::codec::integer;
use crate::schema::key::{Counter, KeyRange};
use crate::schema::{DirTimes, Dirent, Inode, decode, encode, key};

/// What a transaction is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Only reads: all see one point in time, none can conflict.
    Query,
    /// Reads and writes: what was read still holds when the writes are committed.
    Mutation,
}

/// One attempt at an operation.
pub struct Tx<'a> {
    kv: catena_kv::Tx,
    /// Time, randomness, routing.
    pub cx: &'a Context,
    /// The operation's time, the same everywhere in it.
    pub now: i64,
    purpose: Purpose,
    /// Inodes read or written, as this transaction sees them.
    inodes: BTreeMap<InodeId, Option<Arc<Inode>>>,
    wrote: bool,
    deferred: bool,
    queued: bool,
    /// The first write that the store refused.
    refused: Option<KvError>,
}

impl<'a> Tx<'a> {
    /// Begins a transaction, which may read from a state as old as `staleness`.
    pub fn begin(
        db: &dyn Database,
        cx: &'a Context,
        purpose: Purpose,
        staleness: Option<Duration>,
    ) -> Result<Tx<'a>, KvError> {
        let kv = db.begin(TxOptions { staleness })?;
        Ok(Tx {
            kv,
            cx,
            now: cx.now(),
            purpose,
            inodes: BTreeMap::new(),
            wrote: false,
            deferred: false,
            queued: false,
            refused: None,
        })
    }

    /// Whether anything would be committed.
    pub fn wrote(&self) -> bool {
        self.wrote
    }

    /// Says that the outcome is not decided by this transaction: it is recorded by a later one.
    pub fn defer_outcome(&mut self) {
        self.deferred = true;
    }

    /// Whether [`Tx::defer_outcome`] was called.
    pub fn outcome_deferred(&self) -> bool {
        self.deferred
    }

    /// Puts a record into a background queue.
    pub fn enqueue(&mut self, key: Bytes, record: Bytes) {
        self.queued = true;
        self.set(key, record);
    }

    /// Whether [`Tx::enqueue`] was called.
    pub fn queued(&self) -> bool {
        self.queued
    }

    fn isolation(&self) -> Isolation {
        match self.purpose {
            Purpose::Query => Isolation::Snapshot,
            Purpose::Mutation => Isolation::Serializable,
        }
    }

    /// Keeps a refusal for the commit, so that writing needs no error handling.
    fn note(&mut self, done: Result<(), KvError>) {
        if let Err(error) = done {
            self.refused.get_or_insert(error);
        }
    }

    /// A value, protected against change until the commit.
    pub async fn get(&mut self, key: Bytes) -> Result<Option<Bytes>, OpError> {
        Ok(self.kv.get(&key, self.isolation()).await?)
    }

    /// Several values at once, each as [`get`](Tx::get) reads it: one round trip to a store that is elsewhere.
    pub async fn get_all<const N: usize>(&mut self, keys: [Bytes; N]) -> Result<[Option<Bytes>; N], OpError> {
        let isolation = self.isolation();
        let reads = keys.iter().map(|key| self.kv.get(key, isolation));
        let values = try_join_all(reads).await?;
        // As many as there are keys.
        Ok(values.try_into().unwrap_or_else(|_| unreachable!("{N} values")))
    }

    /// A value that may change before the commit: for what only informs the caller.
    pub async fn peek(&mut self, key: Bytes) -> Result<Option<Bytes>, OpError> {
        Ok(self.kv.get(&key, Isolation::Snapshot).await?)
    }

    /// Up to `limit` pairs of a range in order, and whether there are more. A page may be shorter than `limit` though more follow.
    pub async fn range(&mut self, range: KeyRange, limit: usize) -> Result<(Vec<KeyValue>, bool), OpError> {
        let isolation = self.isolation();
        let read = RangeQuery { limit, isolation, ..RangeQuery::new(range.begin, range.end) };
        let page = self.kv.get_range(read).await?;
        Ok((page.items, page.more))
    }

    /// Sets a value.
    pub fn set(&mut self, key: Bytes, value: Bytes) {
        self.wrote = true;
        let done = self.kv.set(&key, &value);
        self.note(done);
    }

    /// Removes a key.
    pub fn clear(&mut self, key: Bytes) {
        self.wrote = true;
        let done = self.kv.clear(&key);
        self.note(done);
    }

    /// Removes a range of keys.
    pub fn clear_range(&mut self, range: KeyRange) {
        self.wrote = true;
        let done = self.kv.clear_range(&range.begin, &range.end);
        self.note(done);
    }

    /// Adds to an integer without reading it: transactions that add do not conflict.
    pub fn add(&mut self, key: Bytes, delta: i64) {
        if delta != 0 {
            self.wrote = true;
            let done = self.kv.atomic(&key, Atomic::Add, &delta.to_le_bytes());
            self.note(done);
        }
    }

    /// Counts.
    pub fn count(&mut self, counter: Counter, delta: i64) {
        if delta != 0 {
            let shard = self.cx.counter_shard();
            self.add(key::counter(counter, shard), delta);
        }
    }

    /// An inode.
    pub async fn inode(&mut self, id: InodeId) -> Result<Option<Arc<Inode>>, OpError> {
        if let Some(known) = self.inodes.get(&id) {
            return Ok(known.clone());
        }
        let value = self.get(key::inode(id)).await?;
        let inode = match value {
            Some(value) => Some(Arc::new(decode::<Inode>("an inode", &value)?)),
            None => None,
        };
        self.inodes.insert(id, inode.clone());
        Ok(inode)
    }

    /// Writes an inode.
    pub fn put_inode(&mut self, id: InodeId, inode: Inode) -> Arc<Inode> {
        self.set(key::inode(id), encode(&inode));
        let inode = Arc::new(inode);
        self.inodes.insert(id, Some(inode.clone()));
        inode
    }

    /// Removes an inode and what is kept beside it.
    pub fn clear_inode(&mut self, id: InodeId, inode: &Inode) {
        self.clear(key::inode(id));
        if inode.is_dir() {
            self.clear(key::dir_times(id));
            self.clear(key::dir_children(id));
        }
        if inode.has_xattrs {
            self.clear_range(key::xattrs(id));
        }
        self.inodes.insert(id, None);
    }

    /// A name in a directory.
    pub async fn entry(&mut self, dir: InodeId, name: &[u8]) -> Result<Option<Dirent>, OpError> {
        match self.get(key::entry(dir, name)).await? {
            Some(value) => Ok(Some(decode("a directory entry", &value)?)),
            None => Ok(None),
        }
    }

    /// A directory, which may be none, and a name in it: both at once.
    pub async fn inode_and_entry(
        &mut self,
        dir: InodeId,
        name: &[u8],
    ) -> Result<(Option<Arc<Inode>>, Option<Dirent>), OpError> {
        if let Some(known) = self.inodes.get(&dir).cloned() {
            return Ok((known, self.entry(dir, name).await?));
        }
        let [inode, entry] = self.get_all([key::inode(dir), key::entry(dir, name)]).await?;
        let inode = inode.map(|value| decode::<Inode>("an inode", &value)).transpose()?.map(Arc::new);
        self.inodes.insert(dir, inode.clone());
        let entry = entry.map(|value| decode("a directory entry", &value)).transpose()?;
        Ok((inode, entry))
    }

    /// Gives an inode a name.
    pub fn put_entry(&mut self, dir: InodeId, name: &[u8], inode: InodeId, kind: i32) {
        self.set(key::entry(dir, name), encode(&Dirent { inode: inode.0, kind }));
    }

    /// The entries of a directory changed now.
    ///
    /// A blind write: creations in one directory do not conflict. Of two at once the one that commits last leaves its time, so the time
    /// may step back by the difference of two services' clocks; but it *changes* with every change, which a maximum would not ensure,
    /// and a caller that compares times to notice changes relies on that.
    pub fn touch_dir(&mut self, dir: InodeId) {
        let times = DirTimes { mtime: self.now, ctime: self.now };
        self.set(key::dir_times(dir), times.encode());
    }

    /// A new inode id.
    pub fn new_id(&mut self) -> Result<InodeId, OpError> {
        self.cx.take_id().ok_or(OpError::NeedIds)
    }

    /// An inode for the wire. What is kept beside a directory's inode may be newer than the transaction's other reads.
    pub async fn wire(&mut self, id: InodeId, inode: &Inode) -> Result<pb::Inode, OpError> {
        if !inode.is_dir() {
            return Ok(inode.to_wire(id, None));
        }
        let times = self.peek(key::dir_times(id)).await?;
        let times = times.map(|value| DirTimes::decode(&value)).transpose()?;
        let children = self.peek(key::dir_children(id)).await?;
        let children = integer("a count of directories", children.as_deref())?;
        Ok(inode.to_wire(id, Some((times, children))))
    }

    /// Commits.
    pub async fn commit(self) -> Result<(), KvError> {
        match self.refused {
            Some(error) => Err(error),
            None => self.kv.commit().await.map(drop),
        }
    }
}
