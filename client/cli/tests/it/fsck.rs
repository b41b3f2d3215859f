//! `catena admin fsck` as an operator runs it, on a cluster whose metadata store was damaged behind its back.

use std::path::Path;
use std::time::{Duration, Instant};

use catena_kv::{Database, Isolation, TxOptions};
use catena_kv_embedded::{EmbeddedDatabase, Options};
use catena_meta::schema::{Inode, decode, encode, key};
use catena_proto::ids::InodeId;
use serde_json::Value;

use rustix::process::Signal;

use crate::run::{Dev, disk_directory, run, signal};

fn dev(root: &Path) -> Dev {
    let shape = ["--nodes", "2", "--disk-capacity", "256MiB", "--lease", "2s", "--log-level", "warn"];
    Dev::start(root, &shape)
}

/// Changes the metadata store of a cluster that is stopped: an inode is lost, another one counts a name that it does not have.
fn damage(root: &Path, lost: InodeId, miscounted: InodeId) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let db = EmbeddedDatabase::open(root.join("meta"), Options::default()).unwrap();
    runtime.block_on(async {
        let tx = db.begin(TxOptions::default()).unwrap();
        let stored = tx.get(&key::inode(miscounted), Isolation::Serializable).await.unwrap().unwrap();
        let mut inode: Inode = decode("an inode", &stored).unwrap();
        inode.nlink = 2;
        tx.set(&key::inode(miscounted), &encode(&inode)).unwrap();
        tx.clear(&key::inode(lost)).unwrap();
        tx.commit().await.unwrap();
    });
}

fn within_a_minute(mut true_by_then: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !true_by_then() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute");
    }
}

fn kinds(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap().iter();
    let mut kinds: Vec<_> = findings.map(|finding| finding["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    kinds
}

#[test]
fn a_check_finds_damage_says_what_repair_would_do_and_repairs_it() {
    let temp = disk_directory();
    let (root, source) = (temp.path().join("cluster"), temp.path().join("source"));
    std::fs::create_dir_all(source.join("sub")).unwrap();
    for name in ["gone", "linked", "sub/kept"] {
        std::fs::write(source.join(name), vec![7; 100_000]).unwrap();
    }
    let first = dev(&root);
    run(first.catena(["fs", "put", "-r"]).args([source.as_os_str(), "/d".as_ref()])).good();
    let healthy = first.run("admin fsck").good();
    assert_eq!(healthy.out, "checked 6 inodes, 5 names, 3 chunks: 0 found, 0 repaired, 0 left\n");
    let inode = |path: &str| {
        let stat = first.run(&format!("fs stat {path} --json")).good().json();
        InodeId(stat["inode"].as_u64().unwrap())
    };
    let (gone, linked) = (inode("/d/gone"), inode("/d/linked"));
    first.stop();
    damage(&root, gone, linked);

    let second = dev(&root);
    let expected = ["dangling-entry", "orphan-chunk", "wrong-nlink"];
    let found = second.run("admin fsck").bad(1, "3 findings are left");
    assert!(found.out.contains("dangling-entry: gone (below inode "), "{found:?}");
    assert!(found.out.contains("[--repair removes the name]"), "{found:?}");
    assert!(found.out.contains("3 found, 0 repaired, 3 left"), "{found:?}");
    assert!(found.err.contains("`catena admin fsck --repair` repairs what is safe"), "{found:?}");
    let quick = second.run("admin fsck --quick --json").bad(1, "3 findings are left").json();
    assert_eq!((kinds(&quick), &quick["left"]), (expected.to_vec(), &Value::from(3)));
    // Below a path, what no path leads to is not seen.
    let below = second.run("admin fsck /d --json").bad(1, "left").json();
    assert!(kinds(&below).contains(&"dangling-entry") && !kinds(&below).contains(&"orphan-chunk"), "{below}");
    let whole = second.run("admin fsck /d/sub --json").good().json();
    assert_eq!((&whole["found"], &whole["degraded_chains"]), (&Value::from(0), &Value::from(0)));
    second.run("admin fsck /nowhere").bad(3, "/nowhere: no such file or directory");

    let repaired = second.run("admin fsck --repair --grace 100ms --json").good().json();
    assert_eq!(kinds(&repaired), expected);
    assert_eq!((&repaired["repaired"], &repaired["left"]), (&Value::from(3), &Value::from(0)));
    let findings = repaired["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["repaired"] == true), "{repaired}");
    let healed = second.run("admin fsck").good().out;
    assert_eq!(healed, "checked 5 inodes, 4 names, 2 chunks: 0 found, 0 repaired, 0 left\n");
    second.run("fs stat /d/gone").bad(3, "no such file or directory");
    assert_eq!(second.run("fs stat /d/linked --json").good().json()["nlink"], 1);

    // What cannot be checked is said: replicas that do not serve, and in the end whole chains, for which no file is waited for.
    let chains = |serving: usize| {
        let chains = second.run("admin chains --json").good().json();
        let serve = |chain: &Value| {
            let targets = chain["targets"].as_array().unwrap().iter();
            targets.filter(|target| target["state"] == "serving").count()
        };
        chains.as_array().unwrap().iter().all(|chain| serve(chain) == serving)
    };
    let freeze = |name: &str, how: Signal| {
        let pid = std::fs::read_to_string(root.join(format!("run/{name}.pid"))).unwrap();
        signal(pid.parse().unwrap(), how);
    };
    freeze("storage-1", Signal::STOP);
    within_a_minute(|| chains(1));
    let degraded = second.run("admin fsck --json").good();
    assert_ne!(degraded.json()["degraded_chains"], 0);
    assert!(degraded.err.contains("not at full strength"), "{degraded:?}");
    freeze("storage-2", Signal::STOP);
    within_a_minute(|| chains(0));
    let begun = Instant::now();
    let down = second.run("admin fsck --json").bad(1, "findings are left");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(kinds(&down.json()).iter().all(|kind| *kind == "chain-down"), "{down:?}");
    assert!(!down.err.contains("--repair"), "nothing here is for a check to repair: {down:?}");
    for name in ["storage-1", "storage-2"] {
        freeze(name, Signal::CONT);
    }
    within_a_minute(|| chains(2));
    assert_eq!(second.run("admin fsck").good().out, healed);
    second.stop();
}
