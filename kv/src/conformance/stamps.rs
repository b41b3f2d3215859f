//! Versionstamps.

use std::sync::Arc;

use crate::conformance::{Case, range, read};
use crate::{Isolation, KvError, RangeQuery, Versionstamp};

/// In the order of the commits, as numbers and as bytes.
pub async fn stamps_order_commits(case: Arc<Case>) {
    let mut last: Option<Versionstamp> = None;
    for _ in 0..20 {
        let tx = case.begin();
        let read_version = tx.read_version().await.unwrap();
        tx.set(b"a", b"1").unwrap();
        let stamp = tx.commit().await.unwrap().expect("a stamp");
        assert!(stamp.version() > read_version);
        assert!(last.is_none_or(|last| read_version >= last.version()));
        assert!(last.is_none_or(|last| last < stamp && last.as_bytes() < stamp.as_bytes()));
        last = Some(stamp);
    }
}

/// At the offsets given, and equal to what the commit returned.
pub async fn a_stamp_goes_into_keys_and_values(case: Arc<Case>) {
    let tx = case.begin();
    tx.set_versionstamped_key(b"log/..........!", 4, b"entry").unwrap();
    tx.set_versionstamped_value(b"last", b"<..........>", 1).unwrap();
    let stamp = tx.commit().await.unwrap().expect("a stamp");
    let tx = case.begin();
    let key = [b"log/", stamp.as_bytes(), b"!"].concat();
    let entry = tx.get(&key, Isolation::Snapshot).await.unwrap();
    assert_eq!(entry.as_deref(), Some(&b"entry"[..]));
    let value = tx.get(b"last", Isolation::Snapshot).await.unwrap();
    assert_eq!(value.as_deref(), Some(&[b"<", stamp.as_bytes(), b">"].concat()[..]));
    let page = tx.get_range(RangeQuery::new("", "z")).await.unwrap();
    assert_eq!(page.items.len(), 2);
    // A log in commit order.
    for number in 0..5u8 {
        let tx = case.begin();
        tx.set_versionstamped_key(b"order/..........", 6, &[number]).unwrap();
        tx.commit().await.unwrap();
    }
    let page = case.begin().get_range(RangeQuery::prefix(b"order/")).await.unwrap();
    let order: Vec<u8> = page.items.iter().map(|item| item.value[0]).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

/// Keys that it might become included.
pub async fn what_is_stamped_cannot_be_read_before_the_commit(case: Arc<Case>) {
    let tx = case.begin();
    tx.set_versionstamped_value(b"v", b"..........", 0).unwrap();
    tx.set_versionstamped_key(b"k/..........", 2, b"").unwrap();
    assert_eq!(tx.get(b"v", Isolation::Serializable).await, Err(KvError::Unreadable));
    assert_eq!(tx.get(b"k/\0abcdefghi", Isolation::Snapshot).await, Err(KvError::Unreadable));
    assert_eq!(tx.get_range(RangeQuery::new("a", "z")).await, Err(KvError::Unreadable));
    assert_eq!(read(&tx, "k").await, None);
    assert_eq!(range(&tx, RangeQuery::new("a", "k")).await, "");
    tx.commit().await.unwrap();
}

/// The key that it becomes counts as written, and the template it was made from does not.
pub async fn a_stamped_key_conflicts_with_a_range_read(case: Arc<Case>) {
    // The first byte of a stamp is zero, the template's is a dot.
    for (begin, end, conflict) in [("log/", "log/\x01", true), ("log/\x01", "log0", false)] {
        let reader = case.begin();
        range(&reader, RangeQuery::new(begin, end)).await;
        reader.set(b"x", b"").unwrap();
        let writer = case.begin();
        writer.set_versionstamped_key(b"log/..........", 4, b"").unwrap();
        writer.commit().await.unwrap();
        let outcome = reader.commit().await;
        assert_eq!(outcome == Err(KvError::Conflict), conflict, "{begin:?}..{end:?}: {outcome:?}");
    }
}

/// At the call.
pub async fn a_stamp_that_does_not_fit_is_refused(case: Arc<Case>) {
    let tx = case.begin();
    for offset in [1, 10, 11, usize::MAX] {
        let refused = tx.set_versionstamped_value(b"v", b"..........", offset);
        assert_eq!(refused, Err(KvError::BadVersionstampOffset { offset, length: 10 }));
        assert!(matches!(
            tx.set_versionstamped_key(b"..........", offset, b""),
            Err(KvError::BadVersionstampOffset { .. })
        ));
    }
}
