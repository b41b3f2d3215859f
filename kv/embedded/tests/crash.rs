//! kill -9. A child process (this test binary again) commits from several tasks and prints a line for each commit that was acknowledged;
//! it is killed after a drawn number of lines, which is the only synchronisation. Then everything acknowledged must be there, and
//! nothing half; and again on the same store, so that what one kill left is what the next child starts from.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use catena_kv::{Atomic, Database, Isolation, RangeQuery, TxOptions};
use catena_kv_embedded::{EmbeddedDatabase, Options};

const DIRECTORY: &str = "CATENA_KV_CRASH_DIRECTORY";
const ROUND: &str = "CATENA_KV_CRASH_ROUND";

/// Small, so that the log turns, tables are written and checkpoints run within a test.
fn options() -> Options {
    let mut options = Options::default();
    options.log = 128 << 10;
    options.write_buffer = 512 << 10;
    options
}

/// The child. As a test of its own it does nothing.
#[test]
fn child() {
    let (Ok(directory), Ok(round)) = (std::env::var(DIRECTORY), std::env::var(ROUND)) else { return };
    let db = Arc::new(EmbeddedDatabase::open(directory, options()).expect("the store opens"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let (db, round) = (db.clone(), round.clone());
            tasks.spawn(async move {
                for number in 0..u32::MAX {
                    let id = format!("{round}.{task}.{number}");
                    let tx = db.begin(TxOptions::default()).expect("begin");
                    // Parts of one transaction that must be there together; sizes from bytes to tens of kilobytes.
                    let value = vec![task as u8; 1 << (number % 15)];
                    tx.set(format!("a/{id}").as_bytes(), &value).expect("set");
                    tx.set(format!("b/{id}").as_bytes(), id.as_bytes()).expect("set");
                    tx.atomic(b"count", Atomic::Add, &1u64.to_le_bytes()).expect("atomic");
                    tx.set_versionstamped_key(b"log/..........", 4, id.as_bytes()).expect("stamp");
                    // And one thing that is taken away with it.
                    tx.clear_range(format!("t/{task}/").as_bytes(), format!("t/{task}0").as_bytes())
                        .expect("clear");
                    tx.set(format!("t/{task}/{id}").as_bytes(), b"").expect("set");
                    let stamp = tx.commit().await.expect("commit").expect("a stamp");
                    let line = format!("ack {id} {} {}\n", stamp.version(), stamp.order());
                    std::io::stdout().write_all(line.as_bytes()).expect("the parent listens");
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    });
}

/// Runs a child until `acks` lines were read (0: not even until it is up), kills it, and returns every acknowledgement it gave.
fn run_and_kill(directory: &Path, round: usize, acks: usize) -> Vec<(String, u64, u16)> {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut acknowledged = Vec::new();
    let mut killed = false;
    let mut line = String::new();
    loop {
        if !killed && acknowledged.len() >= acks {
            child.kill().expect("SIGKILL");
            killed = true;
        }
        line.clear();
        // What is in the pipe when the child dies was acknowledged too.
        if lines.read_line(&mut line).expect("utf-8") == 0 {
            break;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        // The test harness's own lines come first; a line cut off by the kill has no end.
        if let (["ack", id, version, order], true) = (&words[..], line.ends_with('\n')) {
            let number = "a number, as the child printed it";
            acknowledged.push((id.to_string(), version.parse().expect(number), order.parse().expect(number)));
        }
    }
    assert!(killed, "the child ended by itself");
    child.wait().expect("wait");
    acknowledged
}

fn check(directory: &Path, acknowledged: &[(String, u64, u16)]) -> usize {
    let db = EmbeddedDatabase::open(directory, options()).expect("the store opens after a kill");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let tx = db.begin(TxOptions::default()).expect("begin");
        let all = async |prefix: &str| {
            let query = RangeQuery::prefix(prefix.as_bytes()).target_bytes(0);
            tx.get_range(query).await.expect("get_range").items
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("an id");
        let log = all("log/").await;
        let committed: BTreeSet<String> = log.iter().map(|item| text(&item.value)).collect();
        assert_eq!(committed.len(), log.len(), "a transaction is there twice");
        let a: BTreeSet<String> = all("a/").await.iter().map(|item| text(&item.key[2..])).collect();
        let b: BTreeSet<String> = all("b/").await.iter().map(|item| text(&item.value)).collect();
        assert_eq!(a, committed, "half of a transaction");
        assert_eq!(b, committed, "half of a transaction");
        let count = tx.get(b"count", Isolation::Snapshot).await.expect("get");
        let count = count.map_or(0, |count| u64::from_le_bytes((*count).try_into().expect("eight bytes")));
        assert_eq!(count, committed.len() as u64, "an atomic addition is missing or there twice");
        for item in all("t/").await {
            let id = text(&item.key["t/0/".len()..]);
            assert!(committed.contains(&id));
        }
        assert!(all("t/").await.len() <= 8, "a cleared range is back");
        let last = acknowledged.iter().map(|(_, version, _)| *version).max().unwrap_or(0);
        assert!(tx.read_version().await.expect("read_version") >= last);
        for (id, version, order) in acknowledged {
            assert!(committed.contains(id), "{id} was acknowledged and is gone");
            let stamp = catena_kv::Versionstamp::new(*version, *order);
            let entry =
                tx.get(&[b"log/", stamp.as_bytes()].concat(), Isolation::Snapshot).await.expect("get");
            assert_eq!(entry.as_deref(), Some(id.as_bytes()), "its stamp is another's");
        }
        committed.len()
    })
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_nothing_is_half() {
    let directory = common::directory();
    let mut acknowledged = Vec::new();
    // From not even up to several turns of the log; the numbers are arbitrary.
    for (round, acks) in [0, 1, 700, 0, 37, 1500, 3, 0, 250, 1, 900, 80].into_iter().enumerate() {
        let before = acknowledged.iter().map(|(_, version, _): &(String, u64, u16)| *version).max();
        let new = run_and_kill(directory.path(), round, acks);
        assert!(new.iter().all(|(_, version, _)| Some(*version) > before), "versions go on across restarts");
        acknowledged.extend(new);
        check(directory.path(), &acknowledged);
    }
    assert!(acknowledged.len() >= 3_400);
}
