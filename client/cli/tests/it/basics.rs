//! What works without a cluster: help, configuration, errors.

use crate::run::{catena, disk_directory, run};

#[test]
fn help_shows_examples_at_every_level() {
    for words in [
        "",
        "demo",
        "dev",
        "serve storage",
        "fs",
        "fs put",
        "fs ls",
        "fs layout set",
        "admin chains",
        "admin chain recover",
        "admin scrub start",
        "bench randread",
    ] {
        let help = run(catena(words.split_whitespace()).arg("--help")).good();
        assert!(help.out.contains("Examples:"), "catena {words} --help: {}", help.out);
    }
}

#[test]
fn printed_examples_are_accepted_and_a_typo_is_named_with_its_line() {
    let directory = disk_directory();
    for kind in ["mgmtd", "meta", "storage", "kv"] {
        let example = run(&mut catena(["config", "example", kind])).good().out;
        let file = directory.path().join(format!("{kind}.toml"));
        std::fs::write(&file, &example).unwrap();
        run(catena(["config", "check", kind]).arg(&file)).good();

        std::fs::write(&file, format!("# a comment\nlissten = \"x\"\n{example}")).unwrap();
        let said = run(catena(["config", "check", kind]).arg(&file))
            .bad(2, &format!("{kind}.toml:2: unknown key `lissten`"));
        assert!(said.err.contains("did you mean `listen`?"), "{}", said.err);
        // The service itself refuses it in the same words.
        run(catena(["serve", kind, "--config"]).arg(&file)).bad(2, "unknown key `lissten`");
    }
}

#[test]
fn a_missing_cluster_is_explained() {
    run(&mut catena(["fs", "ls", "/"])).bad(2, "catena dev --dir");
    run(&mut catena(["fs", "ls", "/", "--cluster", "/nonexistent/cluster.toml"])).bad(3, "catena dev --dir");
}

#[test]
fn a_cluster_that_is_down_is_noticed_soon() {
    let directory = disk_directory();
    let file = directory.path().join("cluster.toml");
    let token = "0".repeat(64);
    // Nobody can listen on port 1 without being root, and nobody does.
    std::fs::write(
        &file,
        format!("cluster = \"{:032x}\"\ntoken = \"{token}\"\nmgmtd = [\"127.0.0.1:1\"]", 1),
    )
    .unwrap();
    let said = run(catena(["admin", "nodes", "--timeout", "1s", "--json", "--cluster"]).arg(&file))
        .bad(4, "127.0.0.1:1");
    assert_eq!((said.json()["ok"].clone(), said.json()["exit"].clone()), (false.into(), 4.into()));
}

#[test]
fn impossible_clusters_are_refused_before_anything_is_made() {
    let directory = disk_directory();
    let root = directory.path().join("d");
    let dev = |words: &str| run(catena(["dev", "--dir"]).arg(&root).args(words.split_whitespace()));
    dev("--nodes 2 --replicas 3").bad(2, "3 replicas need at least 3 storage nodes, not 2");
    dev("--chunk-size 100000").bad(2, "power of two");
    dev("--chunk-size 128MiB").bad(2, "67108864");
    assert!(!root.exists());
    run(&mut catena(["demo", "--replicas", "4", "--json"])).bad(2, "4 replicas need at least 4");
}

#[test]
fn usage_errors_have_their_own_status() {
    run(&mut catena(["fs", "frobnicate"])).bad(2, "frobnicate");
    run(&mut catena(["demo", "--size", "lots"])).bad(2, "is not a size");
}

#[test]
fn data_is_not_given_up_without_a_word() {
    let said = run(&mut catena(["admin", "chain", "recover", "7", "--target", "21"]));
    said.bad(2, "--accept-data-loss");
}
