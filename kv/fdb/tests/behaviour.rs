//! What is FoundationDB's own, beyond the contract: stale reads, subspaces, its status, large ranges.

use std::sync::Arc;
use std::time::Duration;

use catena_kv::{
    Database, Isolation, KvError, Prefixed, RangeQuery, Subspace, Tx, TxOptions, USER_KEY_END, Versionstamp,
};
use catena_kv_fdb::FdbDatabase;

fn fdb() -> FdbDatabase {
    catena_kv_testing::foundationdb().expect("CATENA_TEST_FDB names no cluster file; run ci/fdb")
}

fn space(name: &str) -> Subspace {
    Subspace::new(format!("{}{name}/{:016x}/", catena_kv_testing::PREFIX, rand::random::<u64>()))
}

fn own(fdb: &FdbDatabase, name: &str) -> Prefixed {
    Prefixed::new(Arc::new(fdb.clone()), space(name))
}

fn begin(db: &dyn Database, staleness: Option<Duration>) -> Tx {
    db.begin(TxOptions { staleness }).unwrap()
}

async fn put(db: &dyn Database, key: &[u8], value: &[u8]) -> Versionstamp {
    let tx = begin(db, None);
    tx.set(key, value).unwrap();
    tx.commit().await.unwrap().unwrap()
}

async fn read(tx: &Tx, key: &[u8]) -> Option<Vec<u8>> {
    tx.get(key, Isolation::Snapshot).await.unwrap().map(|value| value.to_vec())
}

#[tokio::test]
async fn a_stale_read_sees_the_past_but_never_misses_what_this_process_wrote() {
    let space = space("stale");
    let [here, there] = [fdb(), fdb()].map(|fdb| Prefixed::new(Arc::new(fdb), space.clone()));
    put(&here, b"a", b"1").await;
    // Another process writes; this one has not heard of it.
    put(&there, b"a", b"2").await;
    let minute = Some(Duration::from_secs(60));
    assert_eq!(read(&begin(&here, minute), b"a").await.as_deref(), Some(&b"1"[..]), "from a cached version");
    assert_eq!(read(&begin(&here, None), b"a").await.as_deref(), Some(&b"2"[..]), "the newest");
    put(&here, b"b", b"3").await;
    let stale = begin(&here, minute);
    assert_eq!(read(&stale, b"b").await.as_deref(), Some(&b"3"[..]));
    assert_eq!(read(&stale, b"a").await.as_deref(), Some(&b"2"[..]));
}

#[tokio::test]
async fn a_range_of_many_pages_is_read_whole_in_both_directions() {
    let db = own(&fdb(), "pages");
    let value = [7; 10_000];
    for batch in 0..4_u32 {
        let tx = begin(&db, None);
        for item in 0..100_u32 {
            tx.set(&(batch * 100 + item).to_be_bytes(), &value).unwrap();
        }
        tx.commit().await.unwrap();
    }
    for reverse in [false, true] {
        let tx = begin(&db, None);
        let mut query = Some(RangeQuery { reverse, ..RangeQuery::new("", USER_KEY_END) });
        let (mut keys, mut pages) = (Vec::new(), 0);
        while let Some(asked) = query {
            let page = tx.get_range(asked.clone()).await.unwrap();
            query = asked.next_page(&page);
            keys.extend(page.items.into_iter().map(|item| item.key));
            pages += 1;
        }
        let mut expected: Vec<_> = (0..400_u32).map(|number| number.to_be_bytes().to_vec()).collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!(keys, expected);
        assert!(pages > 10, "4 MB in {pages} pages");
    }
}

#[tokio::test]
async fn clusters_in_one_database_do_not_see_each_other() {
    let fdb = fdb();
    let (one, other) = (own(&fdb, "one"), own(&fdb, "other"));
    put(&one, b"a", b"1").await;
    put(&other, b"b", b"2").await;
    let tx = begin(&other, None);
    tx.clear_range(b"", USER_KEY_END).unwrap();
    tx.commit().await.unwrap();
    assert_eq!(read(&begin(&one, None), b"a").await.as_deref(), Some(&b"1"[..]));
    assert_eq!(read(&begin(&other, None), b"b").await, None);
}

#[tokio::test]
async fn a_transaction_that_is_cancelled_ends_its_reads_and_its_commit() {
    let db = own(&fdb(), "cancel");
    let tx = begin(&db, None);
    let reads: Vec<_> = (0..100_u32)
        .map(|key| {
            let tx = tx.clone();
            tokio::spawn(async move { tx.get(&key.to_be_bytes(), Isolation::Snapshot).await })
        })
        .collect();
    tokio::task::yield_now().await;
    tx.cancel();
    for read in reads {
        assert!(matches!(read.await.unwrap(), Ok(None) | Err(KvError::Cancelled)));
    }
    assert_eq!(tx.get(b"a", Isolation::Snapshot).await, Err(KvError::Cancelled));
    let tx = begin(&db, None);
    tx.set(b"a", b"1").unwrap();
    let commit = tx.commit();
    tx.cancel();
    assert!(matches!(commit.await, Err(KvError::CommitUnknown) | Ok(Some(_))));
    assert_eq!(tx.commit().await, Err(KvError::Cancelled));
}

#[tokio::test]
async fn the_cluster_says_how_it_is() {
    let health = fdb().health().await.unwrap();
    assert!(health.available, "{health:?}");
    assert!(health.version.starts_with("7."), "{health:?}");
    assert!(health.processes > 0 && health.coordinators.0 == health.coordinators.1, "{health:?}");
    assert!(!health.engine.is_empty() && !health.redundancy.is_empty(), "{health:?}");
}
