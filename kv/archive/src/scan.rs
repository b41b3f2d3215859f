//! Reading everything that a store holds, many ranges at a time.
//!
//! The ranges come from the store itself: the first and the last key of a range say by which byte it can be split. So it does not matter
//! which kinds of keys there are and how they are spread, and together the ranges are always the whole key space.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use catena_kv::{
    BoxFuture, Database, Jitter, KeyValue, KvError, RangeQuery, RangeResult, Retry, Tx, USER_KEY_END,
    transact,
};
use futures_util::future::try_join_all;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};

/// Ranges that are read at the same time.
const PARALLEL: usize = 32;
/// Bytes in a page asked for: with [`PARALLEL`] it bounds the memory. FoundationDB gives smaller ones.
const PAGE: usize = 256 << 10;
/// A range with fewer records...
const SMALL: usize = 256;
/// ...and fewer bytes is not split.
const SMALL_BYTES: usize = 32 << 10;
/// About so many ranges that are not small are aimed at.
const RANGES: usize = 1024;
/// A range is split at most so many times over: keys may have much in common.
const DEPTH: u32 = 12;

/// A range of keys, the end not included.
pub(crate) type Span = (Bytes, Bytes);

/// How a store is read.
pub(crate) struct Scan<'a> {
    db: &'a dyn Database,
    /// The transaction that everything is read in; or else every page is read in one of its own, and read again until it comes.
    one: Option<Tx>,
    patience: Duration,
    jitter: Jitter,
}

impl<'a> Scan<'a> {
    /// At the version of one transaction. An error of any read is final.
    pub(crate) fn at(db: &'a dyn Database, tx: Tx) -> Scan<'a> {
        Scan { db, one: Some(tx), patience: Duration::ZERO, jitter: Jitter::new(0) }
    }

    /// Page for page at versions of their own, each page within `patience`.
    pub(crate) fn at_many(db: &'a dyn Database, patience: Duration, seed: u64) -> Scan<'a> {
        Scan { db, one: None, patience, jitter: Jitter::new(seed) }
    }

    async fn page(&self, query: RangeQuery) -> Result<RangeResult, KvError> {
        let Some(tx) = &self.one else {
            // A read does no harm twice, whatever became of its empty commit.
            let retry = Retry::default().within(self.patience).idempotent();
            return transact(self.db, retry, &self.jitter, |tx| {
                let query = query.clone();
                async move { tx.get_range(query).await }
            })
            .await;
        };
        tx.get_range(query).await
    }

    /// Ranges that together are the whole key space, each small or one of many.
    pub(crate) async fn ranges(&self) -> Result<Vec<Span>, KvError> {
        let all = (Bytes::new(), Bytes::from_static(USER_KEY_END));
        match self.probe(&all).await? {
            Some(first) => self.split(all, first, RANGES, DEPTH).await,
            None => Ok(vec![all]),
        }
    }

    /// The first key of a range, unless the range is small.
    async fn probe(&self, (begin, end): &Span) -> Result<Option<Bytes>, KvError> {
        let some =
            RangeQuery::new(begin.clone(), end.clone()).snapshot().limit(SMALL).target_bytes(SMALL_BYTES);
        let page = self.page(some).await?;
        Ok(page.items.into_iter().next().filter(|_| page.more).map(|record| record.key))
    }

    /// Splits a range that is not small, so that about `wanted` of its parts are not.
    fn split(
        &self,
        span: Span,
        first: Bytes,
        wanted: usize,
        depth: u32,
    ) -> BoxFuture<'_, Result<Vec<Span>, KvError>> {
        Box::pin(async move {
            let back = RangeQuery::new(span.0.clone(), span.1.clone()).snapshot().reverse().limit(1);
            let Some(last) = self.page(back).await?.items.into_iter().next() else { return Ok(vec![span]) };
            let spans = cut(span, &cuts(&first, &last.key));
            let firsts = try_join_all(spans.iter().map(|span| self.probe(span))).await?;
            let large = firsts.iter().flatten().count();
            if large >= wanted || depth == 0 || spans.len() < 2 {
                return Ok(spans);
            }
            let each = wanted.div_ceil(large.max(1));
            let parts = spans.into_iter().zip(firsts).map(|(span, first)| async move {
                match first {
                    Some(first) => self.split(span, first, each, depth - 1).await,
                    None => Ok(vec![span]),
                }
            });
            Ok(try_join_all(parts).await?.into_iter().flatten().collect())
        })
    }

    /// The records of `ranges`, a page at a time, those of each range in order.
    pub(crate) fn pages(
        &self,
        ranges: Vec<Span>,
    ) -> impl Stream<Item = Result<Vec<KeyValue>, KvError>> + Send {
        stream::iter(ranges).map(|range| self.range(range)).flatten_unordered(PARALLEL)
    }

    fn range(&self, (begin, end): Span) -> BoxStream<'_, Result<Vec<KeyValue>, KvError>> {
        let first = RangeQuery::new(begin, end).snapshot().target_bytes(PAGE);
        stream::try_unfold(Some(first), move |query| async move {
            let Some(query) = query else { return Ok(None) };
            let page = self.page(query.clone()).await?;
            let next = query.next_page(&page);
            Ok(Some((page.items, next)))
        })
        .boxed()
    }
}

/// Where to cut a range of which these are the first and last key: at every byte that may follow what they have in common.
fn cuts(first: &[u8], last: &[u8]) -> Vec<Bytes> {
    let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    // The first key cannot be the longer one of two that agree up to the shorter one's end.
    let Some(&to) = last.get(common) else { return Vec::new() };
    let from = first.get(common).map_or(0, |&byte| byte.saturating_add(1));
    let at = |byte| {
        let mut key = BytesMut::with_capacity(common + 1);
        key.put_slice(&last[..common]);
        key.put_u8(byte);
        key.freeze()
    };
    (from..=to).map(at).collect()
}

fn cut((begin, end): Span, cuts: &[Bytes]) -> Vec<Span> {
    let begins = [begin].into_iter().chain(cuts.iter().cloned());
    let ends = cuts.iter().cloned().chain([end]);
    begins.zip(ends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_kv::{MemDatabase, TxOptions};

    #[test]
    fn cuts_lie_behind_the_first_key_and_not_behind_the_last() {
        for (first, last, expected) in [
            (&b"CNTR"[..], &b"XATR"[..], (b'D'..=b'X').map(|byte| vec![byte]).collect::<Vec<_>>()),
            (b"INODa", b"INODc", vec![b"INODb".to_vec(), b"INODc".to_vec()]),
            (b"a", b"a\x01x", vec![b"a\x00".to_vec(), b"a\x01".to_vec()]),
            (b"", b"\x00", vec![b"\x00".to_vec()]),
            (b"same", b"same", vec![]),
        ] {
            let found = cuts(first, last);
            assert_eq!(found, expected, "{first:?} {last:?}");
            assert!(found.iter().all(|cut| first < &cut[..] && &cut[..] <= last));
        }
    }

    async fn filled(keys: impl Iterator<Item = Vec<u8>>) -> MemDatabase {
        let db = MemDatabase::new();
        let tx = db.begin(TxOptions::default()).unwrap();
        keys.for_each(|key| tx.set(&key, b"v").unwrap());
        tx.commit().await.unwrap();
        db
    }

    fn assert_whole(ranges: &[Span]) {
        assert_eq!(ranges.first().unwrap().0, &b""[..]);
        assert_eq!(ranges.last().unwrap().1, USER_KEY_END);
        assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "the ranges leave gaps");
    }

    #[tokio::test]
    async fn the_ranges_are_the_whole_key_space_and_split_what_is_large() {
        // One large directory, inodes by their low byte, a kind nobody knows, and the shortest and longest keys.
        let names =
            (0..3000u32).map(|n| [b"DENT\x07\0\0\0\0\0\0\0file-".to_vec(), n.to_string().into()].concat());
        let inodes = (0..3000u64).map(|n| [b"INOD".to_vec(), n.to_le_bytes().into()].concat());
        let odd = [vec![0], vec![0xfe; 10_000], b"zebra".to_vec(), b"IDEM\0\0\0\x01x".to_vec()];
        let db = filled(names.chain(inodes).chain(odd)).await;
        let scan = Scan::at(&db, db.begin(TxOptions::default()).unwrap());
        let ranges = scan.ranges().await.unwrap();
        assert_whole(&ranges);
        assert!(ranges.len() > 100 && ranges.len() < 4 * RANGES, "{}", ranges.len());
        let mut keys = Vec::new();
        let mut pages = std::pin::pin!(scan.pages(ranges.clone()));
        while let Some(page) = pages.next().await {
            keys.extend(page.unwrap().into_iter().map(|item| item.key));
        }
        let largest = ranges
            .iter()
            .map(|(begin, end)| keys.iter().filter(|key| *key >= begin && *key < end).count())
            .max();
        assert!(largest < Some(600), "{largest:?} of 6004 records in one range");
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 6004);
    }

    #[tokio::test]
    async fn an_empty_store_is_one_range() {
        let db = MemDatabase::new();
        let ranges = Scan::at_many(&db, Duration::from_secs(1), 1).ranges().await.unwrap();
        assert_eq!(ranges.len(), 1);
        assert_whole(&ranges);
    }
}
