//! `catena demo`.

use std::time::Duration;

use rustix::process::Signal;

use crate::run::{catena, disk_directory, gone, run, signal};

#[test]
fn the_demo_verifies_everything_and_leaves_nothing() {
    let directory = disk_directory();
    let demo = run(catena(["demo", "--size", "16MiB", "--json", "--dir"]).arg(directory.path())).good();
    let said = demo.json();
    assert_eq!(said["ok"], true);
    assert_eq!(said["bytes"], 16 << 20);
    assert_eq!(said["replicas"], 3);
    assert_eq!(said["verified"], true);
    assert!(said["write_mib_s"].as_f64().unwrap() > 0.0 && said["read_mib_s"].as_f64().unwrap() > 0.0);
    assert_eq!(demo.out.lines().count(), 1, "with --json stdout has one line: {}", demo.out);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the demo left something behind");
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let directory = disk_directory();
    let mut demo = catena(["demo", "--size", "64MiB", "--json", "--dir"]);
    let mut child = demo.arg(directory.path()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // As soon as a service runs.
    let pids = loop {
        let run = std::fs::read_dir(directory.path())
            .unwrap()
            .flatten()
            .next()
            .map(|entry| entry.path().join("run"));
        let pids: Vec<u32> = run
            .and_then(|run| std::fs::read_dir(run).ok())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.path()).ok()?.parse().ok())
            .collect();
        if !pids.is_empty() {
            break pids;
        }
        assert!(child.try_wait().unwrap().is_none(), "the demo was over before it began");
        std::thread::sleep(Duration::from_millis(5));
    };
    signal(child.id(), Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(pids.into_iter().all(gone), "services outlived the demo");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the demo left something behind");
}
