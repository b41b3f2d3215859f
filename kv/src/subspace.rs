//! A prefix of one's own in a shared database, so that several clusters (or several services of one) can live in one store.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::{
    Atomic, BoxFuture, Database, Isolation, KvError, RangeQuery, RangeResult, Transaction, Tx, TxOptions,
    USER_KEY_END, Versionstamp, prefix_end,
};

/// Keys that begin with a common prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subspace {
    prefix: Bytes,
}

impl Subspace {
    /// The keys that begin with `prefix`.
    pub fn new(prefix: impl Into<Bytes>) -> Subspace {
        Subspace { prefix: prefix.into() }
    }

    /// The prefix.
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// `key` within this subspace.
    pub fn key(&self, key: &[u8]) -> Bytes {
        let mut whole = BytesMut::with_capacity(self.prefix.len() + key.len());
        whole.extend_from_slice(&self.prefix);
        whole.extend_from_slice(key);
        whole.freeze()
    }

    /// The end of a range within this subspace: `end` like a key, but [`USER_KEY_END`] means the end of the subspace.
    pub fn end(&self, end: &[u8]) -> Bytes {
        if end == USER_KEY_END { prefix_end(&self.prefix) } else { self.key(end) }
    }

    /// What `key` is called within this subspace; `None` if it is not in it. Shares `key`'s memory.
    pub fn strip(&self, key: &Bytes) -> Option<Bytes> {
        key.starts_with(&self.prefix).then(|| key.slice(self.prefix.len()..))
    }

    /// Every key of this subspace.
    pub fn all(&self) -> RangeQuery {
        RangeQuery::prefix(&self.prefix)
    }
}

/// A [`Database`] whose keys all live in a [`Subspace`] of another: callers see it as a database of their own. The prefix counts
/// towards the limits of keys and transactions.
#[derive(Clone)]
pub struct Prefixed {
    inner: Arc<dyn Database>,
    space: Subspace,
}

impl Prefixed {
    /// `space` of `inner` as a database.
    pub fn new(inner: Arc<dyn Database>, space: Subspace) -> Prefixed {
        Prefixed { inner, space }
    }
}

impl Database for Prefixed {
    fn begin(&self, options: TxOptions) -> Result<Tx, KvError> {
        let inner = self.inner.begin(options)?;
        Ok(Arc::new(PrefixedTransaction { inner, space: self.space.clone() }))
    }
}

struct PrefixedTransaction {
    inner: Tx,
    space: Subspace,
}

impl PrefixedTransaction {
    fn key(&self, key: &[u8]) -> Result<Bytes, KvError> {
        if key >= USER_KEY_END {
            return Err(KvError::KeyOutsideRange);
        }
        Ok(self.space.key(key))
    }

    fn range(&self, begin: &[u8], end: &[u8]) -> Result<(Bytes, Bytes), KvError> {
        crate::limits::check_range(begin, end)?;
        Ok((self.space.end(begin), self.space.end(end)))
    }
}

impl Transaction for PrefixedTransaction {
    fn get<'a>(
        &'a self,
        key: &'a [u8],
        isolation: Isolation,
    ) -> BoxFuture<'a, Result<Option<Bytes>, KvError>> {
        Box::pin(async move { self.inner.get(&self.key(key)?, isolation).await })
    }

    fn get_range(&self, mut query: RangeQuery) -> BoxFuture<'_, Result<RangeResult, KvError>> {
        Box::pin(async move {
            (query.begin, query.end) = self.range(&query.begin, &query.end)?;
            let mut page = self.inner.get_range(query).await?;
            for item in &mut page.items {
                item.key = item.key.slice(self.space.prefix.len()..);
            }
            Ok(page)
        })
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.inner.set(&self.key(key)?, value)
    }

    fn clear(&self, key: &[u8]) -> Result<(), KvError> {
        self.inner.clear(&self.key(key)?)
    }

    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let (begin, end) = self.range(begin, end)?;
        self.inner.clear_range(&begin, &end)
    }

    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        self.inner.atomic(&self.key(key)?, op, operand)
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        let offset = offset.saturating_add(self.space.prefix.len());
        self.inner.set_versionstamped_key(&self.key(key)?, offset, value)
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError> {
        self.inner.set_versionstamped_value(&self.key(key)?, value, offset)
    }

    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let (begin, end) = self.range(begin, end)?;
        self.inner.add_read_conflict(&begin, &end)
    }

    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let (begin, end) = self.range(begin, end)?;
        self.inner.add_write_conflict(&begin, &end)
    }

    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>> {
        self.inner.read_version()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn cancel(&self) {
        self.inner.cancel()
    }

    fn commit(&self) -> BoxFuture<'_, Result<Option<Versionstamp>, KvError>> {
        self.inner.commit()
    }
}
