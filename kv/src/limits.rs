//! FoundationDB's limits, enforced by every backend so that what works on one works on all.

use std::time::Duration;

use crate::{KvError, VERSIONSTAMP_LEN};

/// Longest key, in bytes.
pub const KEY_LIMIT: usize = 10_000;
/// Longest value, in bytes.
pub const VALUE_LIMIT: usize = 100_000;
/// Largest transaction, in bytes: keys and values written and conflict ranges.
pub const TRANSACTION_LIMIT: usize = 10_000_000;
/// How long after its read version was taken a transaction can read and commit.
pub const TRANSACTION_AGE: Duration = Duration::from_secs(5);
/// First key that does not belong to users. A legal end of a range, never a legal key.
pub const USER_KEY_END: &[u8] = b"\xff";

/// Checks a key about to be written.
pub fn check_key(key: &[u8]) -> Result<(), KvError> {
    if key >= USER_KEY_END {
        return Err(KvError::KeyOutsideRange);
    }
    if key.len() > KEY_LIMIT {
        return Err(KvError::KeyTooLarge(key.len()));
    }
    Ok(())
}

/// Checks a range about to be read, cleared or declared. One byte more than a key is allowed, for the key after the longest.
pub fn check_range(begin: &[u8], end: &[u8]) -> Result<(), KvError> {
    if begin > end {
        return Err(KvError::InvertedRange);
    }
    if end > USER_KEY_END {
        return Err(KvError::KeyOutsideRange);
    }
    match begin.len().max(end.len()) {
        long if long > KEY_LIMIT + 1 => Err(KvError::KeyTooLarge(long)),
        _ => Ok(()),
    }
}

/// Checks a value about to be written.
pub fn check_value(value: &[u8]) -> Result<(), KvError> {
    if value.len() > VALUE_LIMIT {
        return Err(KvError::ValueTooLarge(value.len()));
    }
    Ok(())
}

/// Checks that a versionstamp fits into `length` bytes at `offset`.
pub fn check_stamp(offset: usize, length: usize) -> Result<(), KvError> {
    match offset.checked_add(VERSIONSTAMP_LEN) {
        Some(end) if end <= length => Ok(()),
        _ => Err(KvError::BadVersionstampOffset { offset, length }),
    }
}
