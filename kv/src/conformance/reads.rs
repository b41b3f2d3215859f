//! What reads return, own writes included.

use std::sync::Arc;

use crate::conformance::{Case, range, read};
use crate::{Atomic, Isolation, RangeQuery};

/// Set, clear, empty values, binary keys.
pub async fn what_was_set_is_read(case: Arc<Case>) {
    assert_eq!(case.read("a").await, None);
    case.put(&[("a", "1"), ("empty", ""), ("a\0b", "2")]).await;
    assert_eq!(case.read("a").await.as_deref(), Some("1"));
    assert_eq!(case.read("empty").await.as_deref(), Some(""));
    assert_eq!(case.all().await, "a=1 a\0b=2 empty=");
    case.put(&[("a", "3")]).await;
    let tx = case.begin();
    tx.clear(b"empty").unwrap();
    tx.clear(b"absent").unwrap();
    tx.clear_range(b"a\0", b"b").unwrap();
    tx.commit().await.unwrap();
    assert_eq!(case.all().await, "a=3");
}

/// Limits by number and bytes, forwards and backwards, paging to the end.
pub async fn ranges_come_in_order_and_in_pages(case: Arc<Case>) {
    case.put(&[("b", "1"), ("c", "2"), ("ca", "3"), ("d", "4"), ("e", "5")]).await;
    let tx = case.begin();
    let all = || RangeQuery::new("", "z");
    for (query, expected) in [
        (all(), "b=1 c=2 ca=3 d=4 e=5"),
        (all().reverse(), "e=5 d=4 ca=3 c=2 b=1"),
        (RangeQuery::new("c", "d"), "c=2 ca=3"),
        (RangeQuery::new("c", "d").reverse(), "ca=3 c=2"),
        (RangeQuery::prefix(b"c").snapshot(), "c=2 ca=3"),
        (RangeQuery::new("c", "c"), ""),
        (RangeQuery::new("x", "z"), ""),
        (all().limit(2), "b=1 c=2 ..."),
        (all().limit(2).reverse(), "e=5 d=4 ..."),
    ] {
        assert_eq!(range(&tx, query.clone()).await, expected, "{query:?}");
    }
    for step in [all().limit(1), all().limit(2), all().target_bytes(1), all().target_bytes(5)] {
        for query in [step.clone(), step.reverse()] {
            let (mut keys, mut pages) = (Vec::new(), 0);
            let mut next = Some(query.clone());
            while let Some(query) = next {
                let page = tx.get_range(query.clone()).await.unwrap();
                assert!(!page.items.is_empty() || !page.more, "an empty page with more");
                assert!(query.limit == 0 || page.items.len() <= query.limit);
                keys.extend(page.items.iter().map(|item| item.key.clone()));
                next = query.next_page(&page);
                pages += 1;
            }
            if query.reverse {
                keys.reverse();
            }
            assert_eq!(keys, ["b", "c", "ca", "d", "e"], "{query:?}");
            assert!(pages > 1, "{query:?}");
        }
    }
}

/// Sets, clears and cleared ranges.
pub async fn a_transaction_reads_its_own_writes(case: Arc<Case>) {
    case.put(&[("a", "old"), ("b", "old"), ("c", "old")]).await;
    let tx = case.begin();
    tx.set(b"a", b"new").unwrap();
    tx.clear(b"b").unwrap();
    assert_eq!(read(&tx, "a").await.as_deref(), Some("new"));
    assert_eq!(read(&tx, "b").await, None);
    tx.clear_range(b"a", b"d").unwrap();
    tx.set(b"bb", b"after").unwrap();
    assert_eq!(read(&tx, "a").await, None);
    assert_eq!(read(&tx, "c").await, None);
    assert_eq!(read(&tx, "bb").await.as_deref(), Some("after"));
    // Snapshot reads see them too.
    let value = tx.get(b"bb", Isolation::Snapshot).await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"after"[..]));
    assert_eq!(case.all().await, "a=old b=old c=old");
    tx.commit().await.unwrap();
    assert_eq!(case.all().await, "bb=after");
}

/// Own keys between, over and instead of the database's, with limits.
pub async fn ranges_see_own_writes(case: Arc<Case>) {
    case.put(&[("b", "1"), ("d", "1"), ("f", "1"), ("h", "1")]).await;
    let tx = case.begin();
    for key in ["a", "c", "f", "i"] {
        tx.set(key.as_bytes(), b"2").unwrap();
    }
    tx.clear(b"d").unwrap();
    let all = || RangeQuery::new("", "z");
    assert_eq!(range(&tx, all()).await, "a=2 b=1 c=2 f=2 h=1 i=2");
    assert_eq!(range(&tx, all().reverse()).await, "i=2 h=1 f=2 c=2 b=1 a=2");
    assert_eq!(range(&tx, all().limit(3)).await, "a=2 b=1 c=2 ...");
    assert_eq!(range(&tx, all().reverse().limit(3)).await, "i=2 h=1 f=2 ...");
    tx.clear_range(b"b", b"g").unwrap();
    tx.set(b"e", b"3").unwrap();
    assert_eq!(range(&tx, all()).await, "a=2 e=3 h=1 i=2");
    assert_eq!(range(&tx, RangeQuery::new("c", "h").reverse()).await, "e=3");
    tx.clear_range(b"g", b"hh").unwrap();
    assert_eq!(range(&tx, all()).await, "a=2 e=3 i=2");
    tx.commit().await.unwrap();
    assert_eq!(case.all().await, "a=2 e=3 i=2");
}

/// An atomic operation before the commit and at the commit gives the same, on values of the database and of the transaction.
pub async fn atomics_are_seen_before_and_after_commit(case: Arc<Case>) {
    let operations = [
        (Atomic::Add, "b"),
        (Atomic::BitAnd, "b"),
        (Atomic::BitOr, "b"),
        (Atomic::BitXor, "b"),
        (Atomic::Max, "bb"),
        (Atomic::Min, "b"),
        (Atomic::ByteMax, "b"),
        (Atomic::ByteMin, "b"),
        (Atomic::AppendIfFits, "b"),
        (Atomic::CompareAndClear, "ab"),
        (Atomic::CompareAndClear, "other"),
    ];
    case.put(&[("present", "ab"), ("cleared", "ab"), ("set", "x")]).await;
    for (op, operand) in operations {
        case.put(&[("present", "ab"), ("cleared", "ab"), ("set", "x")]).await;
        let tx = case.begin();
        tx.clear(b"cleared").unwrap();
        tx.set(b"set", b"ab").unwrap();
        for key in ["present", "cleared", "set", "absent"] {
            tx.atomic(key.as_bytes(), op, operand.as_bytes()).unwrap();
            // Twice, so that one works on the result of the other.
            tx.atomic(key.as_bytes(), Atomic::AppendIfFits, b"!").unwrap();
        }
        let before = range(&tx, RangeQuery::new("", "z")).await;
        let one_by_one = [read(&tx, "present").await, read(&tx, "cleared").await, read(&tx, "absent").await];
        tx.commit().await.unwrap();
        assert_eq!(case.all().await, before, "{op:?}");
        for (key, value) in ["present", "cleared", "absent"].into_iter().zip(one_by_one) {
            assert_eq!(case.read(key).await, value, "{op:?} {key}");
        }
        assert_eq!(case.read("set").await, case.read("present").await, "{op:?}");
        let tx = case.begin();
        tx.clear_range(b"", b"z").unwrap();
        tx.commit().await.unwrap();
    }
}

/// Later commits are not seen, however the reading is done.
pub async fn a_read_version_is_a_consistent_snapshot(case: Arc<Case>) {
    case.put(&[("a", "1"), ("b", "1"), ("c", "1")]).await;
    let tx = case.begin();
    assert_eq!(read(&tx, "a").await.as_deref(), Some("1"));
    let version = tx.read_version().await.unwrap();
    case.put(&[("a", "2"), ("b", "2"), ("d", "2")]).await;
    let clear = case.begin();
    clear.clear(b"c").unwrap();
    let committed = clear.commit().await.unwrap().expect("a stamp").version();
    assert!(committed > version);
    assert_eq!(range(&tx, RangeQuery::new("", "z").snapshot()).await, "a=1 b=1 c=1");
    assert_eq!(read(&tx, "c").await.as_deref(), Some("1"));
    assert_eq!(tx.read_version().await.unwrap(), version);
    let later = case.begin();
    assert!(later.read_version().await.unwrap() >= committed);
    assert_eq!(range(&later, RangeQuery::new("", "z")).await, "a=2 b=2 d=2");
}
