//! Opening a store: again, twice, half made, foreign, newer, damaged.

mod common;

use std::fs;
use std::path::Path;

use catena_kv::{Database, Isolation, RangeQuery, TxOptions, Versionstamp};
use catena_kv_embedded::{EmbeddedDatabase, OpenError, Options};

fn open(path: &Path) -> Result<EmbeddedDatabase, OpenError> {
    EmbeddedDatabase::open(path, Options::default())
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

fn put(db: &EmbeddedDatabase, key: &str, value: &[u8]) -> Versionstamp {
    block(async {
        let tx = db.begin(TxOptions::default()).expect("begin");
        tx.set(key.as_bytes(), value).expect("set");
        tx.commit().await.expect("commit").expect("a stamp")
    })
}

fn keys(db: &EmbeddedDatabase) -> Vec<String> {
    block(async {
        let tx = db.begin(TxOptions::default()).expect("begin");
        let page = tx.get_range(RangeQuery::new("", "\u{7f}")).await.expect("get_range");
        page.items.iter().map(|item| String::from_utf8_lossy(&item.key).into_owned()).collect()
    })
}

/// The one opening error's text.
fn refusal(path: &Path) -> String {
    open(path).err().expect("it must not open").to_string()
}

#[test]
fn what_was_committed_is_there_again_and_versions_go_on() {
    let directory = common::directory();
    let mut last = None;
    for round in 0..5 {
        let db = open(directory.path()).unwrap();
        assert_eq!(keys(&db).len(), round);
        let read_version =
            block(async { db.begin(TxOptions::default()).unwrap().read_version().await.unwrap() });
        assert!(last.is_none_or(|last: Versionstamp| read_version >= last.version()));
        let stamp = put(&db, &format!("round{round}"), b"");
        assert!(last < Some(stamp));
        last = Some(stamp);
    }
}

#[test]
fn a_store_in_use_is_refused_and_says_by_whom() {
    let directory = common::directory();
    let db = open(directory.path()).unwrap();
    let text = refusal(directory.path());
    assert!(text.contains(&format!("in use by process {}", std::process::id())), "{text}");
    // An open transaction keeps it open.
    let tx = db.begin(TxOptions::default()).unwrap();
    block(tx.get(b"a", Isolation::Snapshot)).unwrap();
    drop(db);
    assert!(matches!(open(directory.path()), Err(OpenError::InUse { .. })));
    drop(tx);
    open(directory.path()).unwrap();
}

#[test]
fn a_foreign_directory_is_refused_and_left_alone() {
    let directory = common::directory();
    fs::write(directory.path().join("thesis.tex"), "years of work").unwrap();
    let text = refusal(directory.path());
    assert!(text.contains("give another directory"), "{text}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let directory = common::directory();
    fs::write(directory.path().join("FORMAT"), "something else\n1\n").unwrap();
    assert!(matches!(open(directory.path()), Err(OpenError::Foreign { .. })));
}

#[test]
fn a_newer_format_is_refused() {
    let directory = common::directory();
    drop(open(directory.path()).unwrap());
    for (format, named) in
        [("catena-kv-embedded\n2\n", "format 2"), ("catena-kv-embedded\n", "format unknown")]
    {
        fs::write(directory.path().join("FORMAT"), format).unwrap();
        let text = refusal(directory.path());
        assert!(text.contains(named) && text.contains("matching version of catena"), "{text}");
    }
}

#[test]
fn an_interrupted_creation_is_completed() {
    let whole = common::directory();
    drop(open(whole.path()).unwrap());
    // Stopped while it was being written.
    let directory = common::directory();
    fs::create_dir_all(directory.path().join("creating/fjall")).unwrap();
    fs::write(directory.path().join("creating/fjall/0.jnl"), "half").unwrap();
    put(&open(directory.path()).unwrap(), "a", b"");
    // Stopped just before the marker.
    let directory = common::copy(whole.path());
    fs::remove_file(directory.path().join("FORMAT")).unwrap();
    put(&open(directory.path()).unwrap(), "a", b"");
    assert_eq!(keys(&open(directory.path()).unwrap()), ["a"]);
}

#[test]
fn missing_and_damaged_files_are_named() {
    let whole = common::directory();
    let db = open(whole.path()).unwrap();
    for number in 0..9 {
        put(&db, &format!("key{number}"), &[number; 100]);
    }
    let data = |directory: &tempfile::TempDir, file: &str| directory.path().join("data").join(file);
    let directory = common::copy(whole.path());
    fs::remove_dir_all(directory.path().join("data")).unwrap();
    assert!(refusal(directory.path()).contains("its data directory is missing"));
    let directory = common::copy(whole.path());
    fs::remove_file(data(&directory, "log.1")).unwrap();
    assert!(matches!(open(directory.path()), Err(OpenError::Io { .. })));
    // One byte in the middle of the log.
    let directory = common::copy(whole.path());
    let mut log = fs::read(data(&directory, "log.0")).unwrap();
    log[512 * 4 + 60] ^= 1;
    fs::write(data(&directory, "log.0"), log).unwrap();
    let text = refusal(directory.path());
    assert!(text.contains("is damaged") && text.contains("lost one after"), "{text}");
    // A log that does not reach the tables: files of another day.
    let old = common::copy(whole.path());
    for number in 10..19 {
        put(&db, &format!("key{number}"), &[number; 100]);
    }
    drop(db);
    let directory = common::copy(whole.path());
    fs::copy(data(&old, "log.0"), data(&directory, "log.0")).unwrap();
    let text = refusal(directory.path());
    assert!(text.contains("but its log ends at"), "{text}");
}

/// A power cut may leave any page that fjall wrote to its journal unwritten, also one within a value; the log has it all.
#[test]
fn what_fjall_lost_is_replayed_from_the_log() {
    let whole = common::directory();
    let db = open(whole.path()).unwrap();
    for number in 10..60 {
        put(&db, &format!("key{number}"), &[number; 10_000]);
    }
    let crash = common::copy(whole.path());
    let journal = fs::read(crash.path().join("data/fjall/0.jnl")).unwrap();
    let end = journal.iter().rposition(|&byte| byte != 0).expect("something was written");
    for lost in (0..end).step_by(9 * 4096) {
        let directory = common::copy(crash.path());
        let mut torn = journal.clone();
        let upto = (lost + 4096).min(torn.len());
        torn[lost..upto].fill(0);
        fs::write(directory.path().join("data/fjall/0.jnl"), torn).unwrap();
        let again = open(directory.path()).unwrap();
        assert_eq!(keys(&again).len(), 50, "page at {lost} lost");
        put(&again, "more", b"");
    }
}

/// Every commit overwrites the log's last but one, which a checkpoint must have brought into fjall before. A copy of the files lacks what
/// fjall has not written out yet.
#[test]
fn a_log_that_turns_at_every_commit_loses_nothing() {
    let directory = common::directory();
    let mut options = Options::default();
    options.log = 1;
    let db = EmbeddedDatabase::open(directory.path(), options).unwrap();
    for number in 1..=8 {
        put(&db, &format!("b{number}"), b"small");
        let crash = common::copy(directory.path());
        assert_eq!(keys(&open(crash.path()).unwrap()).len(), number);
    }
    for segment in ["log.0", "log.1"] {
        assert_eq!(fs::metadata(directory.path().join("data").join(segment)).unwrap().len(), 64 << 10);
    }
}

#[test]
fn a_commit_whose_caller_left_is_still_done() {
    let directory = common::directory();
    let db = open(directory.path()).unwrap();
    let tx = db.begin(TxOptions::default()).unwrap();
    tx.set(b"a", b"").unwrap();
    drop(tx.commit());
    drop(tx);
    drop(db);
    assert_eq!(keys(&open(directory.path()).unwrap()), ["a"]);
}
