//! FoundationDB's limits.

use std::sync::Arc;
use std::time::Duration;

use crate::conformance::{Case, read};
use crate::{
    Atomic, Isolation, KEY_LIMIT, KvError, RangeQuery, TRANSACTION_AGE, TRANSACTION_LIMIT, USER_KEY_END,
    VALUE_LIMIT,
};

/// At the call, and exactly.
pub async fn keys_and_values_are_limited(case: Arc<Case>) {
    // The case's prefix counts too.
    let prefix = "conformance/keys_and_values_are_limited/".len();
    let longest = vec![b'k'; KEY_LIMIT - prefix];
    let longer = vec![b'k'; KEY_LIMIT - prefix + 1];
    let tx = case.begin();
    tx.set(&longest, &vec![1; VALUE_LIMIT]).unwrap();
    assert_eq!(tx.set(&longer, b""), Err(KvError::KeyTooLarge(KEY_LIMIT + 1)));
    assert_eq!(tx.clear(&longer), Err(KvError::KeyTooLarge(KEY_LIMIT + 1)));
    assert_eq!(tx.atomic(&longer, Atomic::Add, b""), Err(KvError::KeyTooLarge(KEY_LIMIT + 1)));
    assert_eq!(tx.set(b"a", &vec![1; VALUE_LIMIT + 1]), Err(KvError::ValueTooLarge(VALUE_LIMIT + 1)));
    assert_eq!(
        tx.atomic(b"a", Atomic::AppendIfFits, &vec![1; VALUE_LIMIT + 1]),
        Err(KvError::ValueTooLarge(VALUE_LIMIT + 1))
    );
    assert_eq!(tx.get(&longer, Isolation::Serializable).await, Ok(None));
    // A refused write leaves the transaction usable.
    tx.commit().await.unwrap();
    let value = case.begin().get(&longest, Isolation::Snapshot).await.unwrap().expect("the longest key");
    assert_eq!(value.len(), VALUE_LIMIT);
}

/// At commit; just below it passes.
pub async fn transactions_are_limited_in_size(case: Arc<Case>) {
    let value = vec![0; VALUE_LIMIT];
    for (values, fits) in
        [(TRANSACTION_LIMIT / VALUE_LIMIT - 1, true), (TRANSACTION_LIMIT / VALUE_LIMIT + 1, false)]
    {
        let tx = case.begin();
        for number in 0..values as u32 {
            tx.set(&number.to_be_bytes(), &value).unwrap();
        }
        assert!(tx.size() >= values * VALUE_LIMIT);
        match tx.commit().await {
            Ok(_) => assert!(fits),
            Err(error) => assert!(!fits && matches!(error, KvError::TransactionTooLarge(_)), "{error:?}"),
        }
    }
    let tx = case.begin();
    let page = tx.get_range(RangeQuery::new("", "z").target_bytes(0).snapshot()).await.unwrap();
    // A backend may end a page early; but what is there is of the transaction that fitted.
    assert!(!page.items.is_empty() && page.items.len() < TRANSACTION_LIMIT / VALUE_LIMIT);
    // Conflict ranges count.
    let tx = case.begin();
    let key = [b'k'; 9_000];
    for number in 0..(TRANSACTION_LIMIT / 9_000) as u32 {
        let end = [&key[..], &number.to_be_bytes()].concat();
        tx.add_write_conflict(&end, &end).unwrap();
        tx.add_write_conflict(&end, &[&end[..], b"0"].concat()).unwrap();
    }
    assert!(matches!(tx.commit().await, Err(KvError::TransactionTooLarge(_))));
}

/// Where FoundationDB keeps its own.
pub async fn reserved_keys_and_inverted_ranges_are_refused(case: Arc<Case>) {
    let tx = case.begin();
    for key in [&b"\xff"[..], b"\xff\xff/x"] {
        assert_eq!(tx.set(key, b""), Err(KvError::KeyOutsideRange));
        assert_eq!(tx.clear(key), Err(KvError::KeyOutsideRange));
        assert_eq!(tx.get(key, Isolation::Snapshot).await, Err(KvError::KeyOutsideRange));
    }
    assert_eq!(tx.clear_range(b"a", b"\xff\0"), Err(KvError::KeyOutsideRange));
    assert_eq!(tx.clear_range(b"b", b"a"), Err(KvError::InvertedRange));
    assert_eq!(tx.add_read_conflict(b"b", b"a"), Err(KvError::InvertedRange));
    assert_eq!(tx.get_range(RangeQuery::new("b", "a")).await, Err(KvError::InvertedRange));
    assert_eq!(tx.get_range(RangeQuery::new("a", &b"\xff\xff"[..])).await, Err(KvError::KeyOutsideRange));
    tx.clear_range(b"", USER_KEY_END).unwrap();
    tx.clear_range(b"a", b"a").unwrap();
    tx.set(b"\xfe\xff", b"last").unwrap();
    tx.commit().await.unwrap();
    let page = case.begin().get_range(RangeQuery::new("", USER_KEY_END)).await.unwrap();
    assert_eq!(page.items[0].key, &b"\xfe\xff"[..]);
}

/// Five seconds from its read version on, and not from its begin.
pub async fn an_old_transaction_is_refused(case: Arc<Case>) {
    case.put(&[("a", "1")]).await;
    let (reading, writing, unread, blind) = (case.begin(), case.begin(), case.begin(), case.begin());
    read(&reading, "a").await;
    read(&writing, "a").await;
    writing.set(b"b", b"1").unwrap();
    blind.set(b"c", b"1").unwrap();
    case.pass(TRANSACTION_AGE + Duration::from_secs(1)).await;
    // In FoundationDB versions only pass with time and commits.
    case.put(&[("d", "1")]).await;
    assert_eq!(reading.get(b"a", Isolation::Snapshot).await, Err(KvError::TooOld));
    assert_eq!(reading.get_range(RangeQuery::new("a", "b")).await, Err(KvError::TooOld));
    assert_eq!(writing.commit().await, Err(KvError::TooOld));
    assert_eq!(read(&unread, "a").await.as_deref(), Some("1"));
    blind.commit().await.unwrap();
    assert_eq!(case.all().await, "a=1 c=1 d=1");
}
