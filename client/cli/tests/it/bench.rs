//! `catena bench` with clusters of its own.

use crate::run::{catena, disk_directory, run};

#[test]
fn stores_are_measured_side_by_side_with_a_bare_loop_and_leave_nothing() {
    let directory = disk_directory();
    let words = "bench meta --kv embedded --meta 2 --files 60 --dirs 3 --clients 1,4 --json --dir";
    let said = run(catena(words.split(' ')).arg(directory.path())).good().json();
    let rows = said["rows"].as_array().unwrap();
    let clients: Vec<_> = rows.iter().map(|row| row["clients"].as_u64().unwrap()).collect();
    assert_eq!(clients, [1, 4]);
    for row in rows {
        for phase in ["create", "open", "stat", "rename", "remove", "bare"] {
            assert_eq!(row[phase]["ops"], 60, "{phase}: {row}");
        }
        assert!(row["readdir"]["ops"].as_u64().unwrap() > 0);
        assert!(row["create_ratio"].as_f64().unwrap() > 0.0);
        assert_eq!((&row["kv"], &row["bar"]), (&"embedded".into(), &serde_json::Value::Null));
    }
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "the benchmark left something behind"
    );
}

#[test]
fn a_missing_cluster_file_is_refused_before_anything_is_made() {
    let directory = disk_directory();
    for words in ["dev", "demo", "bench meta"] {
        let words = format!("{words} --kv fdb --cluster-file /nowhere/fdb.cluster --dir");
        let mut command = catena(words.split(' '));
        run(command.arg(directory.path().join("made"))).bad(3, "/nowhere/fdb.cluster");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "{words}: something was made");
    }
}
