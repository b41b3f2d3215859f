//! A transaction without its view: what it wrote and read, what it will commit, and whether it may still be used.

use bytes::Bytes;
use catena_rt::time::Instant;

use crate::limits::{check_key, check_range, check_stamp, check_value};
use crate::local::group::stamped_range;
use crate::local::overlay::Overlay;
use crate::local::{Commit, Mutation, Span, View};
use crate::{
    Atomic, Isolation, KEY_LIMIT, KvError, RangeQuery, RangeResult, TRANSACTION_AGE, TRANSACTION_LIMIT,
    USER_KEY_END, key_after,
};

/// Collects a transaction's writes and conflict ranges, checks limits, and reads its own writes over a view. What
/// [`LocalTransaction`](crate::local::LocalTransaction) and the transactions of remote stores are made of.
#[derive(Debug, Default)]
pub struct Buffer {
    phase: Phase,
    overlay: Overlay,
    commit: Commit,
    /// Size of the mutations in `commit`.
    written: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Open,
    Cancelled,
    Used,
}

/// When a read version was asked for: what a transaction's age is counted from.
#[derive(Clone, Copy, Debug)]
pub struct ReadAt {
    /// The version.
    pub version: u64,
    /// A moment at which it was not older than the newest.
    pub since: Instant,
}

impl ReadAt {
    /// Whether it may still be read at.
    pub fn check_age(&self, now: Instant) -> Result<(), KvError> {
        match now.saturating_duration_since(self.since) > TRANSACTION_AGE {
            true => Err(KvError::TooOld),
            false => Ok(()),
        }
    }
}

impl Buffer {
    /// Whether the transaction is neither committed nor cancelled. Every other method but [`size`](Buffer::size) and
    /// [`cancel`](Buffer::cancel) asks first.
    pub fn check_open(&self) -> Result<(), KvError> {
        match self.phase {
            Phase::Open => Ok(()),
            Phase::Cancelled => Err(KvError::Cancelled),
            Phase::Used => Err(KvError::Used),
        }
    }

    /// Whether a key to be read can be there at all; an error if it may not even be asked for.
    pub fn check_get(&self, key: &[u8]) -> Result<bool, KvError> {
        self.check_open()?;
        match key >= USER_KEY_END {
            true => Err(KvError::KeyOutsideRange),
            false => Ok(key.len() <= KEY_LIMIT),
        }
    }

    /// Whether a range may be asked for.
    pub fn check_get_range(&self, query: &RangeQuery) -> Result<(), KvError> {
        self.check_open()?;
        check_range(&query.begin, &query.end)
    }

    /// Whether the value of `key` depends on the database; if not, [`get`](Buffer::get) does not ask its view.
    pub fn depends_on(&self, key: &[u8]) -> bool {
        self.overlay.depends_on(key)
    }

    /// The parts of `begin..end` that depend on the database, in order; of the rest [`get_range`](Buffer::get_range) does not ask its view.
    pub fn unknown(&self, begin: &Bytes, end: &Bytes) -> Vec<(Bytes, Bytes)> {
        self.overlay.unknown(begin, end)
    }

    /// The value of `key`, own writes over `view`.
    pub fn get(
        &mut self,
        key: &[u8],
        isolation: Isolation,
        view: &impl View,
    ) -> Result<Option<Bytes>, KvError> {
        self.check_open()?;
        let (value, depends) = self.overlay.get(key, view)?;
        if depends && isolation == Isolation::Serializable {
            self.commit.reads.push(Span::Key(Bytes::copy_from_slice(key)));
        }
        Ok(value)
    }

    /// One page, own writes over `view`. With `cut_short` the view only knows the database within the query, and the caller's range
    /// goes on behind it: a page that is not empty then has `more`, and an empty one counts as not read (ask again, with more known).
    pub fn get_range(
        &mut self,
        query: &RangeQuery,
        view: &impl View,
        cut_short: bool,
    ) -> Result<RangeResult, KvError> {
        self.check_get_range(query)?;
        let reads = &mut self.commit.reads;
        self.overlay.get_range(query, view, cut_short, &mut |span| {
            if query.isolation == Isolation::Serializable {
                reads.push(span);
            }
        })
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.check_open()?;
        check_key(key)?;
        check_value(value)?;
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.overlay.write(key.clone(), Some(value.clone()));
        self.push(Mutation::Set(key, value));
        Ok(())
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn clear(&mut self, key: &[u8]) -> Result<(), KvError> {
        self.check_open()?;
        check_key(key)?;
        let key = Bytes::copy_from_slice(key);
        self.overlay.write(key.clone(), None);
        self.push(Mutation::Clear(key));
        Ok(())
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn clear_range(&mut self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.check_open()?;
        check_range(begin, end)?;
        if begin == end {
            return Ok(());
        }
        let (begin, end) = (Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        self.overlay.clear_range(begin.clone(), end.clone());
        self.push(Mutation::ClearRange(begin, end));
        Ok(())
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn atomic(&mut self, key: &[u8], op: Atomic, operand: &[u8]) -> Result<(), KvError> {
        self.check_open()?;
        check_key(key)?;
        check_value(operand)?;
        let (key, operand) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(operand));
        self.overlay.atomic(key.clone(), op, operand.clone());
        self.push(Mutation::Atomic(key, op, operand));
        Ok(())
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) -> Result<(), KvError> {
        self.check_open()?;
        check_stamp(offset, key.len())?;
        check_key(key)?;
        check_value(value)?;
        // A version never reaches 2^56, so the stamp's first byte is zero and cannot make the key reserved.
        let (begin, end) = stamped_range(key, offset);
        self.overlay.make_unreadable(begin, end);
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.push(Mutation::StampedKey(key, offset, value));
        Ok(())
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn set_versionstamped_value(
        &mut self,
        key: &[u8],
        value: &[u8],
        offset: usize,
    ) -> Result<(), KvError> {
        self.check_open()?;
        check_key(key)?;
        check_stamp(offset, value.len())?;
        check_value(value)?;
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.overlay.make_unreadable(key.clone(), key_after(&key));
        self.push(Mutation::StampedValue(key, value, offset));
        Ok(())
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn add_read_conflict(&mut self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.check_open()?;
        check_range(begin, end)?;
        let span = Span::Range(Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        self.commit.reads.push(span);
        Ok(())
    }

    /// See [`Transaction`](crate::Transaction).
    pub fn add_write_conflict(&mut self, begin: &[u8], end: &[u8]) -> Result<(), KvError> {
        self.check_open()?;
        check_range(begin, end)?;
        if begin == end {
            return Ok(());
        }
        let span = Span::Range(Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end));
        self.commit.writes.push(span);
        Ok(())
    }

    /// Bytes counted towards [`TRANSACTION_LIMIT`].
    pub fn size(&self) -> usize {
        self.written + self.commit.reads.size() + self.commit.writes.size()
    }

    /// From now on every call fails with [`KvError::Cancelled`].
    pub fn cancel(&mut self) {
        self.phase = Phase::Cancelled;
    }

    /// What is to be committed by a transaction that read at `read`; `None` if nothing is. From now on every call fails with
    /// [`KvError::Used`].
    pub fn take_commit(&mut self, read: Option<ReadAt>, now: Instant) -> Result<Option<Commit>, KvError> {
        self.check_open()?;
        self.phase = Phase::Used;
        let size = self.size();
        let mut commit = std::mem::take(&mut self.commit);
        self.overlay = Overlay::default();
        if size > TRANSACTION_LIMIT {
            return Err(KvError::TransactionTooLarge(size));
        }
        if commit.mutations.is_empty() && commit.writes.is_empty() {
            return Ok(None);
        }
        if let Some(read) = read {
            if !commit.reads.is_empty() {
                read.check_age(now)?;
            }
            commit.read_version = Some(read.version);
        }
        Ok(Some(commit))
    }

    fn push(&mut self, mutation: Mutation) {
        self.written += mutation.size();
        self.commit.mutations.push(mutation);
    }
}
