//! Backups of stores that change and fail, and restores that are interrupted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::fault::{Chances, Fault, Faulty, Point, random};
use catena_kv::reserved::{PROBE, RESTORE_MARKER};
use catena_kv::{Database, Isolation, KvError, MemDatabase, RangeQuery, TxOptions};
use catena_kv_archive::*;
use catena_proto::ids::ClusterId;
use parking_lot::Mutex;

const QUIET: Tell<'static> = &|_| {};

fn source<'a>(db: &'a dyn Database, keys: Keys, exclusive: bool) -> Source<'a> {
    Source { db, name: "the source", keys, exclusive }
}

fn target<'a>(db: &'a dyn Database, keys: Keys) -> Target<'a> {
    Target { db, name: "the target", keys, clears_at_once: false }
}

fn making() -> BackupOptions {
    BackupOptions {
        cluster: ClusterId(7),
        made: 0,
        release: "test".into(),
        stopped: false,
        patience: Duration::from_secs(60),
        seed: 3,
    }
}

fn filling(run: u128) -> RestoreOptions {
    RestoreOptions { cluster: ClusterId(7), replace: false, run, patience: Duration::from_secs(600) }
}

async fn put(db: &dyn Database, records: &[(Vec<u8>, Vec<u8>)]) {
    for part in records.chunks(1000) {
        let tx = db.begin(TxOptions::default()).unwrap();
        part.iter().for_each(|(key, value)| tx.set(key, value).unwrap());
        tx.commit().await.unwrap();
    }
}

async fn contents(db: &dyn Database) -> Vec<(Vec<u8>, Vec<u8>)> {
    let tx = db.begin(TxOptions::default()).unwrap();
    let mut all = Vec::new();
    let mut query = Some(RangeQuery::new(&b""[..], &b"\xff"[..]));
    while let Some(range) = query {
        let page = tx.get_range(range.clone()).await.unwrap();
        query = range.next_page(&page);
        all.extend(page.items.iter().map(|item| (item.key.to_vec(), item.value.to_vec())));
    }
    all
}

/// As a cluster's, about 2 MB in several blocks; with kinds that nobody knows.
fn records() -> Vec<(Vec<u8>, Vec<u8>)> {
    some_records(8000, 200)
}

fn some_records(files: u64, inode: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records = vec![
        (b"CONFcluster".to_vec(), vec![7; 16]),
        (b"MGMTC".to_vec(), vec![1, 2, 3]),
        (b"MGMTL".to_vec(), vec![]),
        (b"NEWKind".to_vec(), b"of a later release".to_vec()),
        (b"x".to_vec(), b"short".to_vec()),
        (vec![0xfe; 100], vec![9; 90_000]),
    ];
    for n in 0..files {
        records.push(([b"INOD".to_vec(), n.to_le_bytes().to_vec()].concat(), vec![n as u8; inode]));
        records.push((
            [b"DENT\x01\0\0\0\0\0\0\0".to_vec(), format!("file-{n}").into_bytes()].concat(),
            vec![1; 9],
        ));
    }
    records.sort();
    records
}

async fn filled() -> MemDatabase {
    let db = MemDatabase::new();
    put(&db, &records()).await;
    db
}

/// A file with [`records`].
async fn archive(directory: &Path) -> Archive {
    archive_of(directory, &records()).await
}

async fn archive_of(directory: &Path, records: &[(Vec<u8>, Vec<u8>)]) -> Archive {
    let path = directory.join("backup");
    let db = MemDatabase::new();
    put(&db, records).await;
    backup(&[source(&db, Keys::All, false)], &path, &making(), QUIET).await.unwrap();
    Archive::open(&path, QUIET).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_store_comes_back_record_for_record() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("backup");
    let db = filled().await;
    put(&db, &[(PROBE.to_vec(), b"left behind".to_vec())]).await;
    let made = backup(&[source(&db, Keys::All, false)], &path, &making(), QUIET).await.unwrap();
    assert_eq!(made.tally.records, records().len() as u64);
    assert!(made.read_version.is_some() && made.left_out == 0);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "something was left beside the file");
    let archive = Archive::open(&path, QUIET).await.unwrap();
    assert_eq!((archive.header().cluster, archive.tally()), (ClusterId(7), &made.tally));

    let other = MemDatabase::new();
    put(&other, &[(PROBE.to_vec(), b"left behind".to_vec())]).await;
    restore(&archive, &[target(&other, Keys::All)], &filling(1), QUIET).await.unwrap();
    let tx = other.begin(TxOptions::default()).unwrap();
    tx.clear(PROBE).unwrap();
    tx.commit().await.unwrap();
    assert!(contents(&other).await == records());
}

#[tokio::test(start_paused = true)]
async fn two_stores_become_one_and_one_becomes_two() {
    let temp = tempfile::tempdir().unwrap();
    let (mgmtd, meta): (Vec<_>, Vec<_>) =
        records().into_iter().partition(|(key, _)| key.starts_with(b"MGMT"));
    let (a, b) = (MemDatabase::new(), MemDatabase::new());
    put(&a, &mgmtd).await;
    put(&b, &meta).await;
    // What lies in the wrong store is not taken, and is counted.
    put(&a, &[(b"INODold".to_vec(), vec![])]).await;
    let path = temp.path().join("backup");
    let both = [source(&a, Keys::Mgmtd, true), source(&b, Keys::Meta, true)];
    let made = backup(&both, &path, &making(), QUIET).await.unwrap();
    assert_eq!((made.read_version, made.left_out), (None, 1));
    let archive = Archive::open(&path, QUIET).await.unwrap();

    let one = MemDatabase::new();
    restore(&archive, &[target(&one, Keys::All)], &filling(1), QUIET).await.unwrap();
    assert!(contents(&one).await == records());

    let (a, b) = (MemDatabase::new(), MemDatabase::new());
    let only = restore(&archive, &[target(&a, Keys::Mgmtd)], &filling(2), QUIET).await;
    assert!(matches!(only, Err(RestoreError::Homeless { whose: "meta" })), "{only:?}");
    assert!(contents(&a).await.is_empty());
    restore(&archive, &[target(&a, Keys::Mgmtd), target(&b, Keys::Meta)], &filling(3), QUIET).await.unwrap();
    assert!(contents(&a).await == mgmtd && contents(&b).await == meta);
}

#[tokio::test(start_paused = true)]
async fn two_stores_that_others_use_need_to_be_stopped() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b) = (filled().await, filled().await);
    let both = [source(&a, Keys::Mgmtd, false), source(&b, Keys::Meta, true)];
    let path = temp.path().join("backup");
    let refused = backup(&both, &path, &making(), QUIET).await;
    assert!(matches!(refused, Err(BackupError::Several)), "{refused:?}");
    backup(&both, &path, &BackupOptions { stopped: true, ..making() }, QUIET).await.unwrap();
    let again = backup(&both, &path, &BackupOptions { stopped: true, ..making() }, QUIET).await;
    assert!(matches!(again, Err(BackupError::Exists { .. })), "{again:?}");
}

/// Writes into the store whenever it is read.
fn written_while_read(db: MemDatabase) -> Faulty {
    let inner = db.clone();
    let mut n = 0u64;
    let hook = move |point| {
        if point == Point::Read {
            n += 1;
            let tx = inner.begin(TxOptions::default()).unwrap();
            // Two keys in ranges far from each other that are always equal.
            tx.set(b"INOD\x40invariant", &n.to_be_bytes()).unwrap();
            tx.set(b"XATR\x90invariant", &n.to_be_bytes()).unwrap();
            futures_util::FutureExt::now_or_never(tx.commit()).unwrap().unwrap();
        }
        None
    };
    Faulty::new(Arc::new(db), Box::new(hook))
}

#[tokio::test(start_paused = true)]
async fn what_is_written_during_a_backup_is_in_it_as_a_whole_or_not_at_all() {
    let temp = tempfile::tempdir().unwrap();
    for n in 0..8 {
        let db = filled().await;
        let zero = 0u64.to_be_bytes().to_vec();
        put(&db, &[(b"INOD\x40invariant".to_vec(), zero.clone()), (b"XATR\x90invariant".to_vec(), zero)])
            .await;
        let busy = written_while_read(db);
        let path = temp.path().join(n.to_string());
        backup(&[source(&busy, Keys::All, false)], &path, &making(), QUIET).await.unwrap();
        let mut reader = Reader::new(std::fs::File::open(&path).unwrap()).unwrap();
        let mut found = Vec::new();
        while let Some(block) = reader.next_block().unwrap() {
            found.extend(block.into_iter().filter(|record| record.key.ends_with(b"invariant")));
        }
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].value, found[1].value, "two moments in one backup");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_store_that_is_not_stopped_is_found_out() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("backup");
    let stopped = BackupOptions { stopped: true, ..making() };
    let busy = written_while_read(filled().await);
    let refused = backup(&[source(&busy, Keys::All, false)], &path, &stopped, QUIET).await;
    assert!(matches!(refused, Err(BackupError::Changed { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "half a backup was left");
    busy.set_hook(Box::new(|_| None));
    backup(&[source(&busy, Keys::All, false)], &path, &stopped, QUIET).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_too_large_for_one_version_says_how_far_it_came_and_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("backup");
    // Every read takes a second, and 32 are done at a time.
    let slow = Faulty::new(
        Arc::new(filled().await),
        Box::new(|point| (point == Point::Read).then_some(Fault::Delay(Duration::from_secs(1)))),
    );
    let refused = backup(&[source(&slow, Keys::All, false)], &path, &making(), QUIET).await.unwrap_err();
    assert!(matches!(refused, BackupError::TooLarge { .. }), "{refused}");
    assert!(refused.to_string().ends_with("with --stopped"), "{refused}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    let patient = BackupOptions { stopped: true, patience: Duration::from_secs(600), ..making() };
    let made = backup(&[source(&slow, Keys::All, false)], &path, &patient, QUIET).await.unwrap();
    assert_eq!(made.tally.records, records().len() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_middle_of_a_young_backup_is_tried_again() {
    let temp = tempfile::tempdir().unwrap();
    let mut reads = 0;
    let flaky = Faulty::new(
        Arc::new(filled().await),
        Box::new(move |point| {
            reads += u32::from(point == Point::Read);
            (point == Point::Read && reads == 40)
                .then(|| Fault::Fail(KvError::Unavailable("injected".into())))
        }),
    );
    let made = backup(&[source(&flaky, Keys::All, false)], &temp.path().join("b"), &making(), QUIET).await;
    assert_eq!(made.unwrap().tally.records, records().len() as u64);
    // One that stays away is not waited for without end.
    let away = Faulty::new(
        Arc::new(MemDatabase::new()),
        Box::new(|_| Some(Fault::Fail(KvError::Unavailable("injected".into())))),
    );
    let failed = backup(&[source(&away, Keys::All, false)], &temp.path().join("c"), &making(), QUIET).await;
    assert!(matches!(failed, Err(BackupError::Store { .. })), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_not_empty_is_left_alone_unless_it_is_to_be_replaced() {
    let temp = tempfile::tempdir().unwrap();
    let archive = archive(temp.path()).await;
    for clears_at_once in [false, true] {
        let db = MemDatabase::new();
        let old: Vec<_> =
            (0..25_000u32).map(|n| ([b"OLD".to_vec(), n.to_be_bytes().to_vec()].concat(), vec![1])).collect();
        put(&db, &old).await;
        let target = Target { clears_at_once, ..target(&db, Keys::All) };
        let refused = restore(&archive, &[target], &filling(1), QUIET).await;
        assert!(matches!(refused, Err(RestoreError::NotEmpty { .. })), "{refused:?}");
        assert!(contents(&db).await == old);
        restore(&archive, &[target], &RestoreOptions { replace: true, ..filling(2) }, QUIET).await.unwrap();
        assert!(contents(&db).await == records());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_of_both_is_not_replaced_for_one() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("mgmtd");
    let db = filled().await;
    backup(&[source(&db, Keys::Mgmtd, false)], &path, &making(), QUIET).await.unwrap();
    let archive = Archive::open(&path, QUIET).await.unwrap();
    let options = RestoreOptions { replace: true, ..filling(1) };
    let refused = restore(&archive, &[target(&db, Keys::Mgmtd)], &options, QUIET).await;
    assert!(matches!(refused, Err(RestoreError::Shared { whose: "meta", .. })), "{refused:?}");
    assert!(contents(&db).await == records());
}

#[tokio::test(start_paused = true)]
async fn another_cluster_s_file_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let archive = archive(temp.path()).await;
    let db = MemDatabase::new();
    let ours = RestoreOptions { cluster: ClusterId(8), ..filling(1) };
    let refused = restore(&archive, &[target(&db, Keys::All)], &ours, QUIET).await;
    assert!(matches!(refused, Err(RestoreError::OtherCluster { .. })), "{refused:?}");
    assert!(contents(&db).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restore_gets_through_conflicts_outages_and_unknown_commits() {
    let temp = tempfile::tempdir().unwrap();
    let archive = archive(temp.path()).await;
    let chances =
        Chances { conflict: 100, unknown_applied: 150, unknown_lost: 150, too_old: 50, unavailable: 50 };
    for seed in 0..16 {
        let db = MemDatabase::new();
        put(&db, &[(b"OLD".to_vec(), vec![1])]).await;
        let faulty = Faulty::new(Arc::new(db.clone()), random(seed, chances));
        let target = Target { clears_at_once: seed % 2 == 0, ..target(&faulty, Keys::All) };
        let options = RestoreOptions { replace: true, ..filling(u128::from(seed) + 1) };
        restore(&archive, &[target], &options, QUIET).await.unwrap();
        assert!(contents(&db).await == records(), "seed {seed}");
    }
}

/// A restore into two stores of which neither commits anything after the first `commits` commits: the process has died. Gives how many
/// there were, if it did not.
async fn dies_after(
    commits: usize,
    archive: &Archive,
    mgmtd: &MemDatabase,
    meta: &MemDatabase,
) -> Option<usize> {
    let done = Arc::new(Mutex::new(0));
    let dying = |db: &MemDatabase| {
        let done = done.clone();
        let hook = move |point| {
            if point != Point::Commit {
                return None;
            }
            let mut done = done.lock();
            *done += 1;
            (*done > commits).then(|| Fault::Fail(KvError::Storage("injected".into())))
        };
        Faulty::new(Arc::new(db.clone()), Box::new(hook))
    };
    let (mgmtd, meta) = (dying(mgmtd), dying(meta));
    let targets = [target(&mgmtd, Keys::Mgmtd), target(&meta, Keys::Meta)];
    let outcome = restore(archive, &targets, &filling(1), QUIET).await;
    outcome.is_ok().then(|| *done.lock())
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_ends_anywhere_leaves_a_store_that_says_so_and_can_be_restored() {
    let temp = tempfile::tempdir().unwrap();
    // Few records, in several blocks.
    let records = some_records(40, 30_000);
    let archive = archive_of(temp.path(), &records).await;
    let all = dies_after(usize::MAX, &archive, &MemDatabase::new(), &MemDatabase::new()).await.unwrap();
    assert!(all > 15, "the restore has only {all} commits");
    // Most are of the reading at the end, and commit nothing.
    for commits in (0..all).filter(|&n| n < 30 || n + 6 > all || n % 20 == 0) {
        let (a, b) = (MemDatabase::new(), MemDatabase::new());
        assert_eq!(dies_after(commits, &archive, &a, &b).await, None);
        let found = [contents(&a).await, contents(&b).await];
        let marked = |n: usize| found[n].iter().any(|(key, _)| key == RESTORE_MARKER);
        let empty = found.iter().all(Vec::is_empty);
        assert!(
            empty || marked(0) || marked(1),
            "after {commits} commits nobody knows that it is half filled"
        );
        let targets = [target(&a, Keys::Mgmtd), target(&b, Keys::Meta)];
        if !empty {
            let refused = restore(&archive, &targets, &filling(2), QUIET).await;
            let refused =
                matches!(refused, Err(RestoreError::Unfinished { .. } | RestoreError::NotEmpty { .. }));
            assert!(refused, "after {commits} commits");
        }
        if marked(0) {
            let path = temp.path().join("half");
            let half = backup(&[source(&a, Keys::All, false)], &path, &making(), QUIET).await;
            assert!(matches!(half, Err(BackupError::HalfRestored { .. })), "{half:?}");
        }
        restore(&archive, &targets, &RestoreOptions { replace: true, ..filling(3) }, QUIET).await.unwrap();
        let mut whole = [contents(&a).await, contents(&b).await].concat();
        whole.sort();
        assert!(whole == records, "after {commits} commits");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_restores_into_one_store_the_later_one_has_it() {
    let temp = tempfile::tempdir().unwrap();
    let archive = archive(temp.path()).await;
    let db = MemDatabase::new();
    let inner = db.clone();
    let mut commits = 0;
    let stolen = move |point| {
        commits += u32::from(point == Point::Commit);
        if commits == 8 && point == Point::Commit {
            let tx = inner.begin(TxOptions::default()).unwrap();
            tx.set(RESTORE_MARKER, &2u128.to_be_bytes()).unwrap();
            futures_util::FutureExt::now_or_never(tx.commit()).unwrap().unwrap();
        }
        None
    };
    let faulty = Faulty::new(Arc::new(db.clone()), Box::new(stolen));
    let overtaken = restore(&archive, &[target(&faulty, Keys::All)], &filling(1), QUIET).await;
    assert!(matches!(overtaken, Err(RestoreError::Overtaken { .. })), "{overtaken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_writes_during_a_restore_is_noticed() {
    let temp = tempfile::tempdir().unwrap();
    let archive = archive(temp.path()).await;
    let db = MemDatabase::new();
    let inner = db.clone();
    let mut commits = 0;
    let meddler = move |point| {
        commits += u32::from(point == Point::Commit);
        if commits == 8 && point == Point::Commit {
            let tx = inner.begin(TxOptions::default()).unwrap();
            tx.set(b"INODmeddler", b"").unwrap();
            futures_util::FutureExt::now_or_never(tx.commit()).unwrap().unwrap();
        }
        None
    };
    let faulty = Faulty::new(Arc::new(db.clone()), Box::new(meddler));
    let changed = restore(&archive, &[target(&faulty, Keys::All)], &filling(1), QUIET).await;
    assert!(matches!(changed, Err(RestoreError::Changed { .. })), "{changed:?}");
    let tx = db.begin(TxOptions::default()).unwrap();
    let marker = tx.get(RESTORE_MARKER, Isolation::Snapshot).await.unwrap();
    assert!(marker.is_some(), "no service may start on it");
}

#[tokio::test(start_paused = true)]
async fn a_census_says_when_it_did_not_count_everything() {
    let db = filled().await;
    let whole = census(&db, Duration::from_secs(5), u64::MAX, 1).await.unwrap();
    assert!(whole.complete && !whole.half_restored);
    assert_eq!(whole.tally.records, records().len() as u64);
    let some = census(&db, Duration::from_secs(5), 2000, 1).await.unwrap();
    assert!(!some.complete && some.tally.records >= 2000 && some.tally.records < whole.tally.records);
    let slow = Faulty::new(
        Arc::new(db),
        Box::new(|point| (point == Point::Read).then_some(Fault::Delay(Duration::from_millis(500)))),
    );
    let begun = tokio::time::Instant::now();
    let some = census(&slow, Duration::from_secs(5), u64::MAX, 1).await.unwrap();
    assert!(!some.complete && begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
}
