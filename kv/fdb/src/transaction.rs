//! A transaction: FoundationDB's own, with the contract's checks before it.

use std::sync::Arc;

use bytes::Bytes;
use catena_kv::limits::{check_key, check_range, check_stamp, check_value};
use catena_kv::local::stamped_range;
use catena_kv::{
    Atomic, BoxFuture, Isolation, KEY_LIMIT, KeyValue, KvError, RangeQuery, RangeResult, TRANSACTION_AGE,
    TRANSACTION_LIMIT, Transaction, USER_KEY_END, Versionstamp, key_after,
};
use catena_rt::time::Instant;
use foundationdb::options::{ConflictRangeType, MutationType, StreamingMode};
use foundationdb::{FdbResult, KeySelector, RangeOption};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};

use crate::database::Client;

/// What FoundationDB counts for a mutation and its conflict range besides keys and value, rounded up.
const MUTATION_OVERHEAD: usize = 64;
/// The same for a conflict range.
const RANGE_OVERHEAD: usize = 32;

/// A transaction on FoundationDB.
pub(crate) struct FdbTransaction {
    client: Arc<Client>,
    // Never held across an await: FoundationDB's calls only begin work.
    state: Mutex<State>,
    /// Closed by `cancel`, which a commit under way waits for too.
    cancelled: Semaphore,
    /// The read version, if it is to be left for stale reads: taken before the first read, once.
    leaves: Option<OnceCell<()>>,
}

struct State {
    phase: Phase,
    /// Bytes written, towards the limit.
    size: usize,
    /// Whether there is anything to commit.
    wrote: bool,
    /// Keys that are not known before the commit. FoundationDB refuses to read them too, and then refuses to commit.
    unreadable: Vec<(Bytes, Bytes)>,
    /// When the first read began: what the transaction's age is counted from. FoundationDB would go on answering what it has read already.
    since: Option<Instant>,
}

enum Phase {
    Open(foundationdb::Transaction),
    Cancelled,
    Used,
}

impl State {
    fn open(&self) -> Result<&foundationdb::Transaction, KvError> {
        match &self.phase {
            Phase::Open(tx) => Ok(tx),
            Phase::Cancelled => Err(KvError::Cancelled),
            Phase::Used => Err(KvError::Used),
        }
    }
}

impl State {
    /// Whether a read that begins now is in time.
    fn check_age(&mut self, now: Instant) -> Result<(), KvError> {
        let since = *self.since.get_or_insert(now);
        match now.saturating_duration_since(since) > TRANSACTION_AGE {
            true => Err(KvError::TooOld),
            false => Ok(()),
        }
    }

    /// Whether `begin..end` is known before the commit.
    fn check_readable(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        match self.unreadable.iter().any(|(from, to)| begin < &to[..] && &from[..] < end) {
            true => Err(KvError::Unreadable),
            false => Ok(()),
        }
    }
}

impl FdbTransaction {
    pub(crate) fn new(client: Arc<Client>, inner: foundationdb::Transaction, leaves: bool) -> FdbTransaction {
        FdbTransaction {
            client,
            state: Mutex::new(State {
                phase: Phase::Open(inner),
                size: 0,
                wrote: false,
                unreadable: Vec::new(),
                since: None,
            }),
            cancelled: Semaphore::new(0),
            leaves: leaves.then(OnceCell::new),
        }
    }

    /// Writes, after `check`ing; `size` is what it counts for.
    fn write(
        &self,
        check: Result<(), KvError>,
        size: usize,
        write: impl FnOnce(&foundationdb::Transaction) -> FdbResult<()>,
    ) -> Result<(), KvError> {
        let mut state = self.state.lock();
        let tx = state.open()?;
        check?;
        write(tx).map_err(|error| self.client.error(error, state.size))?;
        state.size += size;
        state.wrote = true;
        Ok(())
    }

    /// Writes a range. An empty one is nothing, to FoundationDB too.
    fn write_range(
        &self,
        begin: &[u8],
        end: &[u8],
        size: usize,
        write: impl FnOnce(&foundationdb::Transaction) -> FdbResult<()>,
    ) -> Result<(), KvError> {
        if begin == end {
            self.state.lock().open()?;
            return check_range(begin, end);
        }
        self.write(check_range(begin, end), size, write)
    }

    /// Begins a read and waits for it.
    async fn read<T, F: Future<Output = FdbResult<T>>>(
        &self,
        begin: impl FnOnce(&foundationdb::Transaction) -> F,
    ) -> Result<T, KvError> {
        self.state.lock().check_age(Instant::now())?;
        self.leave_version().await?;
        let read = begin(self.state.lock().open()?);
        self.client.read(0, read).await
    }

    /// Takes the read version by itself if others are to have it.
    async fn leave_version(&self) -> Result<(), KvError> {
        let Some(once) = &self.leaves else { return Ok(()) };
        let take = || async {
            let since = Instant::now();
            let version = self.state.lock().open()?.get_read_version();
            self.client.versions.heard(self.client.read(0, version).await?, since);
            Ok(())
        };
        once.get_or_try_init(take).await.copied()
    }

    async fn get_value(&self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>, KvError> {
        self.state.lock().open()?;
        if key >= USER_KEY_END {
            return Err(KvError::KeyOutsideRange);
        }
        if key.len() > KEY_LIMIT {
            return Ok(None);
        }
        self.state.lock().check_readable(key, &key_after(key))?;
        let value = self.read(|tx| tx.get(key, isolation == Isolation::Snapshot)).await?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    async fn get_page(&self, query: &RangeQuery) -> Result<RangeResult, KvError> {
        self.state.lock().open()?;
        check_range(&query.begin, &query.end)?;
        self.state.lock().check_readable(&query.begin, &query.end)?;
        let option = RangeOption {
            begin: KeySelector::first_greater_or_equal(&query.begin[..]),
            end: KeySelector::first_greater_or_equal(&query.end[..]),
            limit: (query.limit > 0).then_some(query.limit),
            target_bytes: query.target_bytes,
            // FoundationDB's largest pages, about 80 KB: whoever asks for a page wants what he named, not a taste of it.
            mode: StreamingMode::WantAll,
            reverse: query.reverse,
            ..RangeOption::default()
        };
        let snapshot = query.isolation == Isolation::Snapshot;
        let page = self.read(|tx| tx.get_range(&option, 1, snapshot)).await?;
        let items: Vec<KeyValue> = page.iter().map(|item| shared(item.key(), item.value())).collect();
        let more = page.more() && !items.is_empty();
        Ok(RangeResult { items, more })
    }

    async fn committed(
        &self,
        tx: foundationdb::Transaction,
        size: usize,
    ) -> Result<Option<Versionstamp>, KvError> {
        let since = Instant::now();
        let stamp = tx.get_versionstamp();
        let commit = async {
            let error = |error| self.client.error(error, size);
            let committed = tx.commit().await.map_err(|failed| error(failed.into()))?;
            let version = committed.committed_version().map_err(error)?;
            // What this process has written is in what it reads later, however stale.
            self.client.versions.heard(version, since);
            // The commit is done, whatever becomes of this.
            let stamp = stamp.await.map_err(|_| KvError::CommitUnknown)?;
            let bytes = <[u8; 10]>::try_from(&stamp[..]).map_err(|_| KvError::CommitUnknown)?;
            Ok(Some(Versionstamp(bytes)))
        };
        tokio::select! {
            biased;
            done = self.client.commit(commit) => done,
            _ = self.cancelled.acquire() => Err(KvError::CommitUnknown),
        }
    }
}

/// Key and value in one allocation.
fn shared(key: &[u8], value: &[u8]) -> KeyValue {
    let both = Bytes::from([key, value].concat());
    KeyValue { key: both.slice(..key.len()), value: both.slice(key.len()..) }
}

/// A parameter that ends with where the versionstamp goes, as FoundationDB takes it.
fn stamped(bytes: &[u8], offset: usize) -> Vec<u8> {
    // Checked before: within a key or a value.
    [bytes, &u32::try_from(offset).unwrap_or(u32::MAX).to_le_bytes()].concat()
}

fn mutation(op: Atomic) -> MutationType {
    match op {
        Atomic::Add => MutationType::Add,
        Atomic::BitAnd => MutationType::BitAnd,
        Atomic::BitOr => MutationType::BitOr,
        Atomic::BitXor => MutationType::BitXor,
        Atomic::Max => MutationType::Max,
        Atomic::Min => MutationType::Min,
        Atomic::ByteMax => MutationType::ByteMax,
        Atomic::ByteMin => MutationType::ByteMin,
        Atomic::AppendIfFits => MutationType::AppendIfFits,
        Atomic::CompareAndClear => MutationType::CompareAndClear,
    }
}

fn sized(key: &[u8], value: &[u8]) -> usize {
    3 * key.len() + value.len() + MUTATION_OVERHEAD
}

impl Transaction for FdbTransaction {
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
        let check = check_key(key).and_then(|()| check_value(value));
        self.write(check, sized(key, value), |tx| {
            tx.set(key, value);
            Ok(())
        })
    }

    fn clear(&self, key: &[u8]) -> Result<(), KvError> {
        self.write(check_key(key), sized(key, key), |tx| {
            tx.clear(key);
            Ok(())
        })
    }

    fn clear_range(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let size = 2 * (begin.len() + end.len()) + MUTATION_OVERHEAD;
        self.write_range(begin, end, size, |tx| {
            tx.clear_range(begin, end);
            Ok(())
        })
    }

    fn atomic(&self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        let check = check_key(key).and_then(|()| check_value(operand));
        self.write(check, sized(key, operand), |tx| {
            tx.atomic_op(key, operand, mutation(op));
            Ok(())
        })
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        let check =
            check_stamp(offset, key.len()).and_then(|()| check_key(key)).and_then(|()| check_value(value));
        self.write(check, sized(key, value), |tx| {
            tx.atomic_op(&stamped(key, offset), value, MutationType::SetVersionstampedKey);
            Ok(())
        })?;
        self.state.lock().unreadable.push(stamped_range(key, offset));
        Ok(())
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) -> Result<(), KvError> {
        let check =
            check_key(key).and_then(|()| check_stamp(offset, value.len())).and_then(|()| check_value(value));
        self.write(check, sized(key, value), |tx| {
            tx.atomic_op(key, &stamped(value, offset), MutationType::SetVersionstampedValue);
            Ok(())
        })?;
        self.state.lock().unreadable.push((Bytes::copy_from_slice(key), key_after(key)));
        Ok(())
    }

    fn add_read_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let mut state = self.state.lock();
        let tx = state.open()?;
        check_range(begin, end)?;
        let added = tx.add_conflict_range(begin, end, ConflictRangeType::Read);
        added.map_err(|error| self.client.error(error, state.size))?;
        state.size += begin.len() + end.len() + RANGE_OVERHEAD;
        Ok(())
    }

    fn add_write_conflict(&self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        let size = begin.len() + end.len() + RANGE_OVERHEAD;
        self.write_range(begin, end, size, |tx| tx.add_conflict_range(begin, end, ConflictRangeType::Write))
    }

    fn read_version(&self) -> BoxFuture<'_, Result<u64, KvError>> {
        Box::pin(async {
            let version = self.read(|tx| tx.get_read_version()).await?;
            u64::try_from(version)
                .map_err(|_| KvError::Backend { code: 0, message: format!("read version {version}") })
        })
    }

    fn size(&self) -> usize {
        self.state.lock().size
    }

    fn cancel(&self) {
        self.cancelled.close();
        let before = std::mem::replace(&mut self.state.lock().phase, Phase::Cancelled);
        if let Phase::Open(tx) = before {
            // Reads under way end with FoundationDB's own error.
            drop(tx.cancel());
        }
    }

    fn commit(&self) -> BoxFuture<'_, Result<Option<Versionstamp>, KvError>> {
        let taken = {
            let mut state = self.state.lock();
            match state.open().map(drop) {
                Ok(()) => {
                    let phase = std::mem::replace(&mut state.phase, Phase::Used);
                    Ok((phase, state.size, state.wrote))
                }
                Err(error) => Err(error),
            }
        };
        Box::pin(async move {
            match taken? {
                (Phase::Open(_), size, true) if size > TRANSACTION_LIMIT => {
                    Err(KvError::TransactionTooLarge(size))
                }
                (Phase::Open(tx), size, true) => self.committed(tx, size).await,
                _ => Ok(None),
            }
        })
    }
}
