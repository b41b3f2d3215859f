//! `catena admin fsck` as an operator runs it, on a cluster whose metadata store was damaged behind its back.

use std::path::Path;

use catena_kv::{Database, Isolation, TxOptions};
use catena_kv_embedded::{EmbeddedDatabase, Options};
use catena_meta::schema::{Inode, decode, encode, key};
use catena_proto::ids::InodeId;
use serde_json::Value;

use crate::run::{Dev, disk_directory, run};

fn dev(root: &Path) -> Dev {
    Dev::start(root, &["--nodes", "2", "--disk-capacity", "256MiB", "--log-level", "warn"])
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
    assert_eq!(second.run("admin fsck /d/sub --json").good().json()["found"], 0);
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
    second.stop();
}
