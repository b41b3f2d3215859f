//! A transaction on a remote store: own writes and conflict ranges here, reads and the commit there.

use std::sync::Arc;

use bytes::Bytes;
use catena_kv::local::{Buffer, Commit};
use catena_kv::{
    Atomic, BoxFuture, Isolation, KeyValue, KvError, RangeQuery, RangeResult, Transaction, Versionstamp,
    key_after,
};
use catena_proto::pb::{KvRangeReply, KvRangeRequest};
use catena_rt::time::Instant;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::database::{At, Client};
use crate::fetched::Fetched;
use crate::wire;

/// A [`Transaction`] on a remote store. Its first read also takes its read version: one round trip for both. A read sees the own writes
/// made before it returned.
pub(crate) struct RemoteTransaction {
    client: Arc<Client>,
    // Never held across an await.
    buffer: Mutex<Buffer>,
    at: OnceCell<At>,
}

impl RemoteTransaction {
    pub(crate) fn new(client: Arc<Client>) -> RemoteTransaction {
        RemoteTransaction { client, buffer: Mutex::new(Buffer::default()), at: OnceCell::new() }
    }

    /// Fails if the read version is known and too old to be read at.
    fn check_age(&self) -> Result<(), KvError> {
        self.at.get().map_or(Ok(()), |at| at.read.check_age(Instant::now()))
    }

    async fn get_value(&self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>, KvError> {
        let depends = {
            let buffer = self.buffer.lock();
            if !buffer.check_get(key)? {
                return Ok(None);
            }
            self.check_age()?;
            buffer.depends_on(key)
        };
        let value = if depends { self.fetch(key).await? } else { None };
        self.buffer.lock().get(key, isolation, &Fetched { value, ..Fetched::default() })
    }

    async fn fetch(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let mut first = None;
        let take = async {
            let (value, at) = self.client.get(None, key).await?;
            first = Some(value);
            Ok(at)
        };
        let at = *self.at.get_or_try_init(|| take).await?;
        match first {
            Some(value) => Ok(value),
            None => {
                self.check_age()?;
                Ok(self.client.get(Some(at.wire), key).await?.0)
            }
        }
    }

    async fn get_page(&self, query: &RangeQuery) -> Result<RangeResult, KvError> {
        let mut parts = {
            let buffer = self.buffer.lock();
            buffer.check_get_range(query)?;
            self.check_age()?;
            buffer.unknown(&query.begin, &query.end)
        };
        if query.reverse {
            parts.reverse();
        }
        let mut fetched = Fetched::default();
        // What lies between two parts is known without the store.
        for (mut begin, mut end) in parts {
            loop {
                let page = self.fetch_range(&begin, &end, query).await?;
                fetched
                    .items
                    .extend(page.items.into_iter().map(|item| KeyValue { key: item.key, value: item.value }));
                let Some(last) = fetched.items.last().filter(|_| page.more) else { break };
                let mut known = query.clone();
                if query.reverse {
                    end = last.key.clone();
                    known.begin = end.clone();
                } else {
                    begin = key_after(&last.key);
                    known.end = begin.clone();
                }
                let result = self.buffer.lock().get_range(&known, &fetched, true)?;
                // Or else own writes hide all that was fetched.
                if !result.items.is_empty() {
                    return Ok(result);
                }
            }
        }
        self.buffer.lock().get_range(query, &fetched, false)
    }

    async fn fetch_range(
        &self,
        begin: &Bytes,
        end: &Bytes,
        query: &RangeQuery,
    ) -> Result<KvRangeReply, KvError> {
        let request = |at| KvRangeRequest {
            at,
            begin: begin.clone(),
            end: end.clone(),
            // Larger than the service's own bounds is as good as none.
            limit: query.limit.try_into().unwrap_or(0),
            target_bytes: query.target_bytes.try_into().unwrap_or(0),
            reverse: query.reverse,
        };
        let mut first = None;
        let take = async {
            let (page, at) = self.client.get_range(request(None)).await?;
            first = Some(page);
            Ok(at)
        };
        let at = *self.at.get_or_try_init(|| take).await?;
        match first {
            Some(page) => Ok(page),
            None => {
                self.check_age()?;
                Ok(self.client.get_range(request(Some(at.wire))).await?.0)
            }
        }
    }

    fn take_commit(&self) -> Result<Option<(Commit, Option<At>)>, KvError> {
        let at = self.at.get().copied();
        let commit = self.buffer.lock().take_commit(at.map(|at| at.read), Instant::now())?;
        Ok(commit.map(|commit| (commit, at)))
    }
}

impl Transaction for RemoteTransaction {
    fn get<'a>(
        &'a self,
        key: &'a [u8],
        isolation: Isolation,
    ) -> BoxFuture<'a, Result<Option<Bytes>, KvError>> {
        Box::pin(self.get_value(key, isolation))
    }

    fn get_range(&self, query: RangeQuery) -> BoxFuture<'_, Result<RangeResult, KvError>> {
        Box::pin(async move { self.get_page(&query).await })
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.buffer.lock().set(key, value)
    }

    fn clear(&self, key: &[u8]) -> Result<(), KvError> {
        self.buffer.lock().clear(key)
    }

    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.buffer.lock().clear_range(begin, end)
    }

    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        self.buffer.lock().atomic(key, op, operand)
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        self.buffer.lock().set_versionstamped_key(key, offset, value)
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError> {
        self.buffer.lock().set_versionstamped_value(key, value, offset)
    }

    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.buffer.lock().add_read_conflict(begin, end)
    }

    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.buffer.lock().add_write_conflict(begin, end)
    }

    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>> {
        Box::pin(async {
            self.buffer.lock().check_open()?;
            let at = self.at.get_or_try_init(|| self.client.read_version()).await?;
            self.check_age()?;
            self.buffer.lock().check_open()?;
            Ok(at.wire.version)
        })
    }

    fn size(&self) -> usize {
        self.buffer.lock().size()
    }

    fn cancel(&self) {
        self.buffer.lock().cancel();
    }

    fn commit(&self) -> BoxFuture<'_, Result<Option<Versionstamp>, KvError>> {
        let taken = self.take_commit();
        Box::pin(async move {
            let Some((commit, at)) = taken? else { return Ok(None) };
            let request = wire::commit_request(commit, at.map(|at| at.wire));
            self.client.commit(request).await.map(Some)
        })
    }
}
