//! Which commits are refused, and which must not be.

use std::sync::Arc;

use crate::conformance::{Case, range, read};
use crate::{Atomic, Isolation, KvError, RangeQuery, Tx};

impl Case {
    /// A transaction whose read version is taken, with a write of its own so that its commit is checked.
    async fn reader(&self) -> Tx {
        let tx = self.begin();
        tx.read_version().await.expect("read_version");
        tx.set(b"mine", b"").expect("set");
        tx
    }
}

async fn conflicts(tx: Tx) {
    assert_eq!(tx.commit().await, Err(KvError::Conflict));
}

async fn commits(tx: Tx) {
    tx.commit().await.expect("no conflict");
}

/// Also if it was changed to the same value.
pub async fn a_changed_read_conflicts(case: Arc<Case>) {
    case.put(&[("a", "1")]).await;
    let tx = case.reader().await;
    read(&tx, "a").await;
    case.put(&[("a", "1")]).await;
    conflicts(tx).await;
    let tx = case.reader().await;
    read(&tx, "a").await;
    case.put(&[("b", "1")]).await;
    commits(tx).await;
}

/// Neither of a key nor of a range.
pub async fn a_snapshot_read_does_not_conflict(case: Arc<Case>) {
    let tx = case.reader().await;
    tx.get(b"a", Isolation::Snapshot).await.unwrap();
    range(&tx, RangeQuery::new("", "z").snapshot()).await;
    case.put(&[("a", "1")]).await;
    commits(tx).await;
}

/// The later commit wins.
pub async fn blind_writes_do_not_conflict(case: Arc<Case>) {
    let (first, second) = (case.begin(), case.begin());
    first.set(b"a", b"1").unwrap();
    second.set(b"a", b"2").unwrap();
    first.clear_range(b"b", b"c").unwrap();
    second.clear_range(b"b", b"c").unwrap();
    second.commit().await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(case.all().await, "a=1");
}

/// Two that each read what the other writes cannot both commit.
pub async fn write_skew_is_refused(case: Arc<Case>) {
    let (first, second) = (case.begin(), case.begin());
    read(&first, "a").await;
    read(&second, "b").await;
    first.set(b"b", b"1").unwrap();
    second.set(b"a", b"1").unwrap();
    commits(first).await;
    conflicts(second).await;
    assert_eq!(case.all().await, "b=1");
}

/// A key that appears in, or disappears from, a range that was read.
pub async fn a_range_read_conflicts_with_a_phantom(case: Arc<Case>) {
    case.put(&[("b", "1"), ("d", "1")]).await;
    for reverse in [false, true] {
        let query = RangeQuery { reverse, ..RangeQuery::new("a", "e") };
        let tx = case.reader().await;
        range(&tx, query.clone()).await;
        case.put(&[("c", "1")]).await;
        conflicts(tx).await;
        let tx = case.reader().await;
        range(&tx, query.clone()).await;
        let clear = case.begin();
        clear.clear(b"c").unwrap();
        commits(clear).await;
        conflicts(tx).await;
        let tx = case.reader().await;
        range(&tx, query).await;
        case.put(&[("e", "1")]).await;
        commits(tx).await;
    }
}

/// A page with more behind it: up to its last key.
pub async fn only_the_part_of_a_range_that_was_read_conflicts(case: Arc<Case>) {
    let fill = [("b", "1"), ("d", "1"), ("f", "1")];
    for (reverse, written, conflict) in [
        (false, "a", true),
        (false, "c", true),
        (false, "d", true),
        (false, "e", false),
        (false, "f", false),
        (true, "g", true),
        (true, "e", true),
        (true, "d", true),
        (true, "c", false),
        (true, "b", false),
    ] {
        case.put(&fill).await;
        let tx = case.reader().await;
        let query = RangeQuery { reverse, ..RangeQuery::new("a", "h").limit(2) };
        range(&tx, query).await;
        case.put(&[(written, "2")]).await;
        let outcome = tx.commit().await;
        assert_eq!(outcome.is_err(), conflict, "reverse {reverse}, write of {written}: {outcome:?}");
        let clear = case.begin();
        clear.clear_range(b"", b"z").unwrap();
        commits(clear).await;
    }
}

/// The test-and-set that every unique name rests on.
pub async fn an_absent_key_that_appears_conflicts(case: Arc<Case>) {
    let (first, second) = (case.begin(), case.begin());
    for tx in [&first, &second] {
        assert_eq!(read(tx, "name").await, None);
    }
    first.set(b"name", b"1").unwrap();
    second.set(b"name", b"2").unwrap();
    commits(first).await;
    conflicts(second).await;
    assert_eq!(case.read("name").await.as_deref(), Some("1"));
}

/// Also with reads of keys that were absent before and after.
pub async fn clearing_a_range_conflicts_with_reads_in_it(case: Arc<Case>) {
    for (key, conflict) in [("a", false), ("b", true), ("bb", true), ("c", false)] {
        let tx = case.reader().await;
        read(&tx, key).await;
        let clear = case.begin();
        clear.clear_range(b"b", b"c").unwrap();
        commits(clear).await;
        assert_eq!(tx.commit().await.is_err(), conflict, "{key}");
    }
    let tx = case.reader().await;
    range(&tx, RangeQuery::new("a", "bb")).await;
    let clear = case.begin();
    clear.clear_range(b"b", b"c").unwrap();
    commits(clear).await;
    conflicts(tx).await;
}

/// What does not depend on the database cannot conflict with its change.
pub async fn reading_own_writes_does_not_conflict(case: Arc<Case>) {
    let tx = case.reader().await;
    tx.set(b"b", b"1").unwrap();
    tx.clear(b"c").unwrap();
    tx.clear_range(b"d", b"e").unwrap();
    for key in ["b", "c", "d", "dd"] {
        read(&tx, key).await;
    }
    range(&tx, RangeQuery::new("d", "e")).await;
    range(&tx, RangeQuery::new("b", "b\0")).await;
    case.put(&[("b", "2"), ("c", "2"), ("d", "2"), ("dd", "2"), ("ddd", "2")]).await;
    commits(tx).await;
    // Around an own key, a range still depends on the database.
    let tx = case.reader().await;
    tx.set(b"b", b"1").unwrap();
    range(&tx, RangeQuery::new("a", "c")).await;
    case.put(&[("b", "2")]).await;
    commits(tx).await;
    let tx = case.reader().await;
    tx.set(b"b", b"1").unwrap();
    range(&tx, RangeQuery::new("a", "c")).await;
    case.put(&[("bb", "2")]).await;
    conflicts(tx).await;
}

/// Counters stay hot without conflicts.
pub async fn atomics_do_not_conflict_with_each_other_but_with_reads(case: Arc<Case>) {
    let one = 1u64.to_le_bytes();
    let (first, second, reader) = (case.reader().await, case.reader().await, case.reader().await);
    first.atomic(b"count", Atomic::Add, &one).unwrap();
    second.atomic(b"count", Atomic::Add, &one).unwrap();
    read(&reader, "count").await;
    commits(first).await;
    commits(second).await;
    conflicts(reader).await;
    let value = case.begin().get(b"count", Isolation::Snapshot).await.unwrap();
    assert_eq!(value.as_deref(), Some(&2u64.to_le_bytes()[..]));
    // Reading one's own atomic operation depends on the database.
    let tx = case.reader().await;
    tx.atomic(b"count", Atomic::Add, &one).unwrap();
    read(&tx, "count").await;
    let other = case.begin();
    other.atomic(b"count", Atomic::Add, &one).unwrap();
    commits(other).await;
    conflicts(tx).await;
}

/// Reads and writes that are only declared.
pub async fn explicit_conflict_ranges_count(case: Arc<Case>) {
    let tx = case.reader().await;
    tx.add_read_conflict(b"b", b"d").unwrap();
    case.put(&[("c", "1")]).await;
    conflicts(tx).await;
    let tx = case.reader().await;
    tx.add_read_conflict(b"b", b"d").unwrap();
    case.put(&[("d", "1")]).await;
    commits(tx).await;
    let tx = case.reader().await;
    read(&tx, "c").await;
    let other = case.begin();
    other.add_write_conflict(b"b", b"d").unwrap();
    assert!(other.commit().await.unwrap().is_some());
    conflicts(tx).await;
    assert_eq!(case.read("c").await.as_deref(), Some("1"));
}

/// Not even the part that would not have conflicted.
pub async fn a_refused_commit_leaves_nothing(case: Arc<Case>) {
    let tx = case.reader().await;
    read(&tx, "a").await;
    tx.set(b"x", b"1").unwrap();
    tx.atomic(b"y", Atomic::Add, &[1]).unwrap();
    tx.clear_range(b"a", b"b").unwrap();
    case.put(&[("a", "1")]).await;
    // Neither does a refused commit count as written for others.
    let other = case.reader().await;
    read(&other, "x").await;
    conflicts(tx).await;
    commits(other).await;
    assert_eq!(case.all().await, "a=1 mine=");
}

/// They already read from one version.
pub async fn read_only_transactions_never_conflict(case: Arc<Case>) {
    let tx = case.begin();
    read(&tx, "a").await;
    range(&tx, RangeQuery::new("", "z")).await;
    case.put(&[("a", "1")]).await;
    assert_eq!(tx.commit().await, Ok(None));
}
