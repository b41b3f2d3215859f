//! Range reads: what to ask and what comes back, and the two ways to name an end of a range.

use bytes::{Bytes, BytesMut};

use crate::Isolation;

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// A read of the keys in `begin..end`, in order, a page at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeQuery {
    /// First key, included.
    pub begin: Bytes,
    /// Last key, not included; at most [`USER_KEY_END`](crate::USER_KEY_END).
    pub end: Bytes,
    /// Most items to return; 0 means no limit.
    pub limit: usize,
    /// Return no further items once keys and values returned reach this many bytes; 0 means no limit. A page with anything to
    /// return has at least one item. A backend may end a page earlier than asked.
    pub target_bytes: usize,
    /// From the end backwards.
    pub reverse: bool,
    /// Whether the keys read take part in conflict detection.
    pub isolation: Isolation,
}

impl RangeQuery {
    /// Everything in `begin..end`, serialisable, forwards, in pages of up to [`RangeQuery::DEFAULT_TARGET`] bytes.
    pub fn new(begin: impl Into<Bytes>, end: impl Into<Bytes>) -> RangeQuery {
        RangeQuery {
            begin: begin.into(),
            end: end.into(),
            limit: 0,
            target_bytes: RangeQuery::DEFAULT_TARGET,
            reverse: false,
            isolation: Isolation::Serializable,
        }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &[u8]) -> RangeQuery {
        RangeQuery::new(Bytes::copy_from_slice(prefix), prefix_end(prefix))
    }

    /// Bytes in a page unless asked otherwise.
    pub const DEFAULT_TARGET: usize = 1 << 20;

    /// At most `limit` items a page.
    pub fn limit(self, limit: usize) -> RangeQuery {
        RangeQuery { limit, ..self }
    }

    /// About `target_bytes` a page.
    pub fn target_bytes(self, target_bytes: usize) -> RangeQuery {
        RangeQuery { target_bytes, ..self }
    }

    /// From the end backwards.
    pub fn reverse(self) -> RangeQuery {
        RangeQuery { reverse: true, ..self }
    }

    /// Without conflict detection.
    pub fn snapshot(self) -> RangeQuery {
        RangeQuery { isolation: Isolation::Snapshot, ..self }
    }

    /// The query for what follows `page`, or `None` when `page` was the last.
    pub fn next_page(&self, page: &RangeResult) -> Option<RangeQuery> {
        let last = page.items.last().filter(|_| page.more)?;
        let mut next = self.clone();
        if self.reverse {
            next.end = last.key.clone();
        } else {
            next.begin = key_after(&last.key);
        }
        Some(next)
    }
}

/// One page of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeResult {
    /// The items, in the order asked for.
    pub items: Vec<KeyValue>,
    /// The page ended because of a limit and there may be more behind it. Never true for an empty page; never false if there is more.
    pub more: bool,
}

/// The smallest key greater than `key`.
pub fn key_after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}

/// The smallest key greater than every key that begins with `prefix`: the end of its range. For a prefix of `0xff` bytes only (or
/// an empty one) that is the end of all user keys.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&byte| byte != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        }
        None => Bytes::from_static(crate::USER_KEY_END),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_sibling() {
        assert_eq!(prefix_end(b"a"), &b"b"[..]);
        assert_eq!(prefix_end(b"a\xff\xff"), &b"b"[..]);
        assert_eq!(prefix_end(b"a\xffb"), &b"a\xffc"[..]);
        assert_eq!(prefix_end(b""), crate::USER_KEY_END);
        assert_eq!(prefix_end(b"\xff\xff"), crate::USER_KEY_END);
        assert_eq!(prefix_end(b"\xfe"), crate::USER_KEY_END);
    }
}
