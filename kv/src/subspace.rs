//! Key arithmetic: prefixes, so that several clusters can share one database, and neighbours.

use bytes::{BufMut, Bytes, BytesMut};

/// The smallest key behind `key`.
pub fn successor(key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(key.len() + 1);
    out.put_slice(key);
    out.put_u8(0);
    out.freeze()
}

/// The smallest key that does not begin with `prefix` and lies behind all that do; `None` if there is none.
pub fn strinc(prefix: &[u8]) -> Option<Bytes> {
    let len = prefix.iter().rposition(|&byte| byte != 0xff)? + 1;
    let mut out = prefix[..len].to_vec();
    out[len - 1] += 1;
    Some(out.into())
}

/// All keys with a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subspace {
    prefix: Bytes,
}

impl Subspace {
    /// The keys that begin with `prefix`.
    pub fn new(prefix: impl Into<Bytes>) -> Subspace {
        Subspace { prefix: prefix.into() }
    }
    /// The key of `rest` in it.
    pub fn key(&self, rest: &[u8]) -> Bytes {
        [&self.prefix[..], rest].concat().into()
    }
    /// The part of `key` behind the prefix.
    pub fn rest<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(&self.prefix[..])
    }
    /// First key, and first key behind it.
    pub fn range(&self) -> (Bytes, Bytes) {
        (self.prefix.clone(), strinc(&self.prefix).unwrap_or_else(|| Bytes::from_static(&[0xff])))
    }
    /// A subspace in it.
    pub fn sub(&self, rest: &[u8]) -> Subspace {
        Subspace { prefix: self.key(rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours() {
        assert_eq!(&successor(b"a")[..], b"a\0");
        assert_eq!(strinc(b"a\xff\xff").as_deref(), Some(b"b".as_slice()));
        assert_eq!(strinc(b"\xff"), None);
        let space = Subspace::new("c/");
        assert_eq!(space.rest(&space.key(b"k")), Some(b"k".as_slice()));
        assert_eq!(space.rest(b"d/k"), None);
        assert_eq!(space.range(), (Bytes::from("c/"), Bytes::from("c0")));
    }
}
