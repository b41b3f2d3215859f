//! Begin, commit, cancel, drop.

use std::sync::Arc;

use crate::conformance::{Case, read};
use crate::{Atomic, Isolation, KvError, RangeQuery, Tx};

async fn every_call_fails(tx: &Tx, error: KvError) {
    assert_eq!(tx.get(b"a", Isolation::Snapshot).await, Err(error.clone()));
    assert_eq!(tx.get_range(RangeQuery::new("a", "b")).await, Err(error.clone()));
    assert_eq!(tx.read_version().await, Err(error.clone()));
    assert_eq!(tx.set(b"a", b"late"), Err(error.clone()));
    assert_eq!(tx.clear(b"a"), Err(error.clone()));
    assert_eq!(tx.clear_range(b"a", b"b"), Err(error.clone()));
    assert_eq!(tx.atomic(b"a", Atomic::Add, b"1"), Err(error.clone()));
    assert_eq!(tx.add_read_conflict(b"a", b"b"), Err(error.clone()));
    assert_eq!(tx.add_write_conflict(b"a", b"b"), Err(error.clone()));
    assert_eq!(tx.commit().await, Err(error));
}

/// Its writes are there once.
pub async fn a_committed_transaction_cannot_be_used(case: Arc<Case>) {
    let tx = case.begin();
    tx.atomic(b"a", Atomic::AppendIfFits, b"1").unwrap();
    tx.commit().await.unwrap();
    every_call_fails(&tx, KvError::Used).await;
    assert_eq!(case.read("a").await.as_deref(), Some("1"));
}

/// Through any of its handles.
pub async fn a_cancelled_transaction_cannot_be_used(case: Arc<Case>) {
    let tx = case.begin();
    tx.set(b"a", b"1").unwrap();
    tx.clone().cancel();
    every_call_fails(&tx, KvError::Cancelled).await;
    assert_eq!(case.read("a").await, None);
}

/// Nor does it conflict with others.
pub async fn a_dropped_transaction_leaves_nothing(case: Arc<Case>) {
    let other = case.begin();
    read(&other, "a").await;
    other.set(b"b", b"1").unwrap();
    let tx = case.begin();
    tx.set(b"a", b"1").unwrap();
    drop(tx);
    other.commit().await.unwrap();
    assert_eq!(case.all().await, "b=1");
}

/// Many futures of one transaction at once, polled in any order.
pub async fn concurrent_reads_of_one_transaction(case: Arc<Case>) {
    case.put(&[("a", "1"), ("b", "2")]).await;
    let tx = case.begin();
    let (a, b) = (tx.get(b"a", Isolation::Serializable), tx.get(b"b", Isolation::Serializable));
    let all = tx.get_range(RangeQuery::new("", "z"));
    let (all, b, a) = tokio::join!(all, b, a);
    assert_eq!(all.unwrap().items.len(), 2);
    assert_eq!(a.unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(b.unwrap().as_deref(), Some(&b"2"[..]));
    // One that nobody waits for is harmless.
    drop(tx.get(b"a", Isolation::Serializable));
    tx.set(b"c", b"3").unwrap();
    tx.commit().await.unwrap();
}

/// With and without reads.
pub async fn the_commit_of_nothing_is_nothing(case: Arc<Case>) {
    assert_eq!(case.begin().commit().await, Ok(None));
    let tx = case.begin();
    read(&tx, "a").await;
    tx.add_read_conflict(b"a", b"b").unwrap();
    assert_eq!(tx.commit().await, Ok(None));
}
