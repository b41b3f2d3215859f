//! `catena admin kv` as an operator uses it: a cluster's state out of its stores, and into others.

use std::path::{Path, PathBuf};

use catena_kv::{Database, TxOptions, reserved::RESTORE_MARKER};
use catena_kv_embedded::{EmbeddedDatabase, Options};

use crate::run::{Dev, Ended, catena, disk_directory, run};

fn dev(root: &Path) -> Dev {
    Dev::start(root, &["--nodes", "1", "--disk-capacity", "256MiB", "--log-level", "warn"])
}

fn kv(command: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Ended {
    let mut words = catena(["admin", "kv", command]);
    arguments.iter().for_each(|argument| {
        words.arg(argument.as_ref());
    });
    run(&mut words)
}

/// A restore that was begun in the store of a cluster that is stopped.
fn mark(store: PathBuf, set: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let db = EmbeddedDatabase::open(store, Options::default()).unwrap();
    runtime.block_on(async {
        let tx = db.begin(TxOptions::default()).unwrap();
        match set {
            true => tx.set(RESTORE_MARKER, b"run").unwrap(),
            false => tx.clear(RESTORE_MARKER).unwrap(),
        }
        tx.commit().await.unwrap();
    });
}

#[test]
fn a_cluster_s_state_survives_the_loss_of_its_stores_and_moves_to_a_shared_one() {
    let temp = disk_directory();
    let (root, file, saved) =
        (temp.path().join("cluster"), temp.path().join("file"), temp.path().join("saved"));
    let data: Vec<u8> = (0..700_001u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    std::fs::write(&file, &data).unwrap();
    let check = |dev: &Dev| {
        let back = temp.path().join("back");
        run(dev.catena(["fs", "get", "/d/file"]).arg(&back)).good();
        assert!(std::fs::read(&back).unwrap() == data, "the file came back changed");
        let _ = std::fs::remove_file(back);
    };
    let first = dev(&root);
    first.run("fs mkdir /d").good();
    run(first.catena(["fs", "put"]).args([file.as_os_str(), "/d/file".as_ref()])).good();
    // A store belongs to its process.
    let busy = kv("backup", &[&"--dir", &root, &"--out", &saved]).bad(6, "in use by process");
    assert!(busy.err.contains("stop the cluster first") && !saved.exists(), "{busy:?}");
    first.stop();

    let config = |name: &str| root.join(format!("config/{name}.toml"));
    let half = kv("backup", &[&"--config", &config("meta"), &"--out", &saved]).bad(2, "is only meta's");
    assert!(half.err.contains("add mgmtd's configuration"), "{half:?}");
    let both: [&dyn AsRef<std::ffi::OsStr>; 4] =
        [&"--config", &config("mgmtd"), &"--config", &config("meta")];
    let made = kv("backup", &[&both[..], &[&"--out", &saved, &"--json"]].concat()).good().json();
    assert!(
        made["kinds"]["DENT"]["records"].as_u64() >= Some(2) && made["kinds"]["MGMT"]["records"] != 0,
        "{made}"
    );
    kv("backup", &[&"--dir", &root, &"--out", &saved]).bad(6, "exists already");
    let status = kv("status", &[&"--dir", &root, &"--json"]).good().json();
    let status = status.as_array().unwrap();
    assert_eq!((status.len(), status[0]["complete"].clone()), (2, true.into()));
    let records = |n: usize| status[n]["records"].as_u64().unwrap();
    assert_eq!(made["records"], records(0) + records(1));

    // What must not be restored, or not there.
    let restore = |more: &[&dyn AsRef<std::ffi::OsStr>]| {
        kv("restore", &[&[&"--dir" as &dyn AsRef<_>, &root], more].concat())
    };
    restore(&[&"--in", &saved]).bad(6, "is not empty; --replace removes");
    let damaged = temp.path().join("damaged");
    let mut bytes = std::fs::read(&saved).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, &bytes).unwrap();
    restore(&[&"--replace", &"--in", &damaged]).bad(8, "damaged at byte");
    std::fs::write(&damaged, &bytes[..middle]).unwrap();
    restore(&[&"--replace", &"--in", &damaged]).bad(8, "it ends in the middle");
    let other = temp.path().join("other");
    dev(&other).stop();
    kv("restore", &[&"--dir", &other, &"--replace", &"--in", &saved]).bad(5, "the backup is of cluster");

    // Both stores are lost. The half of a restore is not started.
    for store in ["mgmtd", "meta"] {
        std::fs::remove_dir_all(root.join(store)).unwrap();
    }
    kv("status", &[&"--dir", &root]).bad(3, "no store is there");
    kv("restore", &[&"--config", &config("mgmtd"), &"--in", &saved]).bad(2, "records of meta");
    let done = restore(&[&"--in", &saved]).good();
    assert!(done.out.contains(" records of cluster "), "{done:?}");
    mark(root.join("meta"), true);
    restore(&[&"--in", &saved]).bad(6, "");
    kv("status", &[&"--dir", &root]).bad(1, "a restore into it did not finish");
    mark(root.join("mgmtd"), true);
    run(catena(["serve", "mgmtd", "--config"]).arg(config("mgmtd"))).bad(1, "with --replace");
    restore(&[&"--in", &saved]).bad(6, "a restore into it did not finish");
    restore(&[&"--replace", &"--in", &saved]).good();
    let second = dev(&root);
    check(&second);
    second.run("fs mkdir /d/after").good();
    second.stop();

    // Two meta services share a store with mgmtd: what was in two stores goes into one.
    let moved = temp.path().join("moved");
    kv("backup", &[&"--dir", &root, &"--out", &moved]).good();
    let state = std::fs::read_to_string(root.join("dev.toml")).unwrap();
    std::fs::write(root.join("dev.toml"), state.replacen("meta = 1", "meta = 2", 1)).unwrap();
    restore(&[&"--in", &moved]).good();
    let third = dev(&root);
    check(&third);
    assert_eq!(third.run("fs ls /d").good().out, "after\nfile\n");
    // A shared store is saved while the cluster runs.
    let live = kv("backup", &[&"--dir", &root, &"--out", &temp.path().join("live"), &"--json"]).good().json();
    assert!(live["read_version"].as_u64() > Some(0), "{live}");
    third.stop();
}
