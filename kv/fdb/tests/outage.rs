//! A server that is not there, goes away in the middle, stands still, and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use catena_kv::{Atomic, Database, Isolation, Jitter, KvError, Retry, TxOptions, transact};
use catena_kv_fdb::FdbDatabase;
use catena_kv_testing::{LIBRARY, server::Server};

/// Shorter than in production, so that the tests are.
const PATIENCE: Duration = Duration::from_secs(2);

fn open(server: &Server) -> FdbDatabase {
    let library = std::env::var_os(LIBRARY).map(std::path::PathBuf::from);
    FdbDatabase::open_with(&server.cluster_file(), library.as_deref(), PATIENCE).unwrap()
}

async fn put(db: &FdbDatabase, deadline: Duration) -> Result<(), KvError> {
    let retry = Retry::default().within(deadline).idempotent();
    transact(db, retry, &Jitter::new(1), |tx| async move { tx.set(b"a", b"1") }).await
}

#[tokio::test]
async fn a_cluster_that_is_not_there_fails_at_the_deadline_and_is_used_when_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::new(directory.path());
    let db = open(&server);
    let begin = Instant::now();
    let error = put(&db, Duration::from_secs(5)).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    assert!(matches!(error, KvError::Unavailable(_) | KvError::TimedOut | KvError::CommitUnknown), "{error}");
    let read = db.begin(TxOptions::default()).unwrap().get(b"a", Isolation::Snapshot).await.unwrap_err();
    let KvError::Unavailable(why) = read else { panic!("{read}") };
    assert!(why.contains("fdb.cluster") && why.contains("fdbcli"), "{why}");
    server.start();
    server.configure();
    put(&db, Duration::from_secs(30)).await.unwrap();
}

/// Counts up through everything that happens to the server. What was acknowledged is there, and nothing was done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_is_done_twice_when_the_server_is_killed_and_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::new(directory.path());
    server.start();
    server.configure();
    let db = open(&server);
    put(&db, Duration::from_secs(60)).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (acknowledged, tried) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..8_u64)
        .map(|writer| {
            let (db, stop) = (db.clone(), stop.clone());
            let (acknowledged, tried) = (acknowledged.clone(), tried.clone());
            tokio::spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    tried.fetch_add(1, Ordering::Relaxed);
                    let record = [&b"done/"[..], &writer.to_be_bytes(), &number.to_be_bytes()].concat();
                    let retry = Retry::default().within(Duration::from_secs(60)).idempotent();
                    transact(&db, retry, &Jitter::new(writer), |tx| {
                        let record = record.clone();
                        async move {
                            if tx.get(&record, Isolation::Serializable).await?.is_none() {
                                tx.set(&record, b"")?;
                                tx.atomic(b"count", Atomic::Add, &1_u64.to_le_bytes())?;
                            }
                            Ok::<_, KvError>(())
                        }
                    })
                    .await
                    .unwrap_or_else(|error| panic!("writer {writer}, {number}: {error}"));
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let progress = async |what: &str| {
        let before = acknowledged.load(Ordering::Relaxed);
        let limit = Instant::now() + Duration::from_secs(60);
        while acknowledged.load(Ordering::Relaxed) < before + 50 {
            assert!(Instant::now() < limit, "no progress {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    progress("at first").await;
    server.signal("STOP");
    tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
    server.signal("CONT");
    progress("after it stood still").await;
    for _ in 0..2 {
        server.kill();
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.start();
        progress("after it was killed").await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let tx = db.begin(TxOptions::default()).unwrap();
    let count = tx.get(b"count", Isolation::Snapshot).await.unwrap().unwrap();
    let count = u64::from_le_bytes(count[..].try_into().unwrap());
    assert_eq!(count, acknowledged.load(Ordering::Relaxed));
    assert_eq!(count, tried.load(Ordering::Relaxed));
}
