//! What a set of records comes to: by kind, and as one number that does not depend on the order they come in.

use std::collections::BTreeMap;
use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::format::KINDS_LIMIT;

/// The four letters that a key begins with; zeros behind a shorter key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Kind(pub [u8; 4]);

impl Kind {
    /// The kind of a key.
    pub fn of(key: &[u8]) -> Kind {
        let mut kind = Kind::default();
        let length = key.len().min(4);
        kind.0[..length].copy_from_slice(&key[..length]);
        kind
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// How many records, of how many bytes (keys and values).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    /// Records.
    pub records: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// Of a store, a file, or a part of one. Equal tallies mean equal records, except with a chance of 2^-128.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// The sum, modulo 2^128, of each record's XXH3-128: of the value, with the key's XXH3-64 as seed.
    pub digest: u128,
    /// The same counts by kind. Of very many kinds (which no cluster has) the last ones are counted together, as zeros.
    pub kinds: BTreeMap<Kind, Count>,
}

impl Tally {
    /// Adds a record.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let bytes = (key.len() + value.len()) as u64;
        self.records += 1;
        self.bytes += bytes;
        self.digest = self.digest.wrapping_add(xxh3_128_with_seed(value, xxh3_64(key)));
        let kind = Kind::of(key);
        let full = self.kinds.len() + 1 >= KINDS_LIMIT && !self.kinds.contains_key(&kind);
        let count = self.kinds.entry(if full { Kind::default() } else { kind }).or_default();
        count.records += 1;
        count.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(records: &[(&str, &str)]) -> Tally {
        let mut tally = Tally::default();
        records.iter().for_each(|(key, value)| tally.add(key.as_bytes(), value.as_bytes()));
        tally
    }

    #[test]
    fn the_order_does_not_matter_and_everything_else_does() {
        let records = [("INODa", "1"), ("INODb", "2"), ("DENTa", "1")];
        let mut turned = records;
        turned.reverse();
        assert_eq!(tally(&records), tally(&turned));
        let kinds: Vec<_> =
            tally(&records).kinds.into_iter().map(|(k, c)| (k.to_string(), c.records)).collect();
        assert_eq!(kinds, [("DENT".into(), 1), ("INOD".into(), 2)]);
        for other in [
            [("INODa", "2"), ("INODb", "1"), ("DENTa", "1")],
            [("INODa1", ""), ("INODb", "2"), ("DENTa", "1")],
            [("INODa", "1"), ("INODb", "2"), ("DENTa", "3")],
        ] {
            assert_ne!(tally(&records).digest, tally(&other).digest, "{other:?}");
        }
    }

    #[test]
    fn kinds_without_end_are_counted_together() {
        let mut tally = Tally::default();
        (0..10_000u32).for_each(|n| tally.add(&(n + 1).to_be_bytes(), b""));
        assert_eq!(tally.kinds.len(), KINDS_LIMIT);
        assert_eq!(tally.kinds.values().map(|count| count.records).sum::<u64>(), 10_000);
        assert_eq!(tally.kinds[&Kind::default()].records, 10_000 - (KINDS_LIMIT as u64 - 1));
    }
}
