//! The retry loop on this backend, with failures injected in front of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::conformance::Case;
use crate::fault::{Chances, Fault, Faulty, Point, random};
use crate::{Isolation, Jitter, KvError, KvFailure, Retry, Tx, transact};

async fn add_one(tx: Tx, key: &[u8]) -> Result<u64, KvError> {
    let old = tx.get(key, Isolation::Serializable).await?;
    let old = old.map_or(0, |value| u64::from_le_bytes((*value).try_into().expect("eight bytes")));
    tokio::task::yield_now().await;
    tx.set(key, &(old + 1).to_le_bytes())?;
    Ok(old + 1)
}

/// Read, then write, from many tasks: every one counts once, although most conflict at first.
pub async fn transact_loses_no_increment(case: Arc<Case>) {
    let jitter = Arc::new(Jitter::new(3));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (case, jitter) = (case.clone(), jitter.clone());
        tasks.spawn(async move {
            let retry = Retry::default().within(Duration::from_secs(60));
            for _ in 0..10 {
                transact(&*case.db, retry, &jitter, |tx| add_one(tx, b"count"))
                    .await
                    .expect("committed in the end");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    let value = case.begin().get(b"count", Isolation::Snapshot).await.unwrap().expect("a count");
    assert_eq!(*value, 80u64.to_le_bytes());
}

#[derive(PartialEq, Debug)]
enum Failure {
    Exists,
    Kv(KvError),
}

impl From<KvError> for Failure {
    fn from(error: KvError) -> Failure {
        Failure::Kv(error)
    }
}

impl KvFailure for Failure {
    fn kv(&self) -> Option<&KvError> {
        match self {
            Failure::Kv(error) => Some(error),
            Failure::Exists => None,
        }
    }
}

/// With an error of its own: nothing is committed, nothing retried.
pub async fn the_body_can_end_a_transaction(case: Arc<Case>) {
    let attempts = AtomicU32::new(0);
    let outcome: Result<(), Failure> = transact(&*case.db, Retry::default(), &Jitter::new(1), |tx| {
        attempts.fetch_add(1, Ordering::Relaxed);
        async move {
            tx.set(b"a", b"1")?;
            Err(Failure::Exists)
        }
    })
    .await;
    assert_eq!(outcome, Err(Failure::Exists));
    assert_eq!(attempts.into_inner(), 1);
    assert_eq!(case.read("a").await, None);
    let outcome: Result<(), Failure> =
        transact(&*case.db, Retry::default(), &Jitter::new(1), |tx| async move {
            tx.set(b"\xff", b"1")?;
            Ok(())
        })
        .await;
    assert_eq!(outcome, Err(Failure::Kv(KvError::KeyOutsideRange)));
}

/// As the caller says; and an idempotent body (one that leaves a record) is done once, whatever happens.
pub async fn unknown_results_are_returned_or_retried(case: Arc<Case>) {
    for (fault, there) in [(Fault::CommitThenUnknown, true), (Fault::Fail(KvError::CommitUnknown), false)] {
        let hook = move |point| (point == Point::Commit).then(|| fault.clone());
        let db = Faulty::new(case.db.clone(), Box::new(hook));
        let outcome =
            transact(&db, Retry::default(), &Jitter::new(1), |tx| async move { tx.set(b"a", b"1") }).await;
        assert_eq!(outcome, Err(KvError::CommitUnknown));
        assert_eq!(case.read("a").await.is_some(), there);
        let tx = case.begin();
        tx.clear(b"a").unwrap();
        tx.commit().await.unwrap();
    }
    let chances =
        Chances { conflict: 100, unknown_applied: 200, unknown_lost: 200, too_old: 20, unavailable: 20 };
    let db = Faulty::new(case.db.clone(), random(99, chances));
    let retry =
        Retry { backoff: Duration::ZERO, ..Retry::default().within(Duration::from_secs(60)).idempotent() };
    for request in 0..100u32 {
        transact(&db, retry, &Jitter::new(request.into()), |tx| async move {
            let record = [b"done/", &request.to_be_bytes()[..]].concat();
            if tx.get(&record, Isolation::Serializable).await?.is_none() {
                tx.set(&record, b"")?;
                add_one(tx, b"count").await?;
            }
            Ok::<_, KvError>(())
        })
        .await
        .expect("committed in the end");
    }
    let value = case.begin().get(b"count", Isolation::Snapshot).await.unwrap().expect("a count");
    assert_eq!(*value, 100u64.to_le_bytes());
}

/// With the reason, and having tried more than once.
pub async fn an_outage_ends_at_the_deadline(case: Arc<Case>) {
    let attempts = Arc::new(AtomicU32::new(0));
    let count = attempts.clone();
    let db = Faulty::new(
        case.db.clone(),
        Box::new(move |point| {
            count.fetch_add(u32::from(point == Point::Begin), Ordering::Relaxed);
            (point == Point::Read).then(|| Fault::Fail(KvError::Unavailable("test".into())))
        }),
    );
    let retry = Retry::default().within(Duration::from_millis(50));
    let outcome = transact(&db, retry, &Jitter::new(1), |tx| add_one(tx, b"a")).await;
    assert_eq!(outcome, Err(KvError::Unavailable("test".into())));
    assert!(attempts.load(Ordering::Relaxed) > 1);
    db.set_hook(Box::new(|_| None));
    assert_eq!(transact(&db, retry, &Jitter::new(1), |tx| add_one(tx, b"a")).await, Ok(1));
}
