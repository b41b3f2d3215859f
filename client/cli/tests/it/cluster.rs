//! `catena dev` and what one does with its cluster.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::run::{Dev, catena, disk_directory, gone, run, signal};

/// Bytes that no two places share.
fn contents(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761).rotate_left(seed) >> 11) as u8).collect()
}

fn dev(directory: &Path) -> Dev {
    Dev::start(directory, &["--nodes", "2", "--chunk-size", "64KiB", "--log-level", "warn"])
}

#[test]
fn files_go_in_and_come_out_and_obey_the_usual_commands() {
    let temp = disk_directory();
    let dev = dev(&temp.path().join("cluster"));
    let local = temp.path().join("local");
    std::fs::create_dir_all(local.join("sub/deep")).unwrap();
    let data = contents(1_000_003, 3);
    std::fs::write(local.join("data"), &data).unwrap();
    std::fs::write(local.join("sub/small"), b"small").unwrap();
    std::fs::write(local.join("sub/deep/empty"), b"").unwrap();
    std::os::unix::fs::symlink("data", local.join("link")).unwrap();
    let local = local.to_str().unwrap();

    // In and out, whole trees, stdin and stdout.
    let put = dev.run(&format!("fs put -rp {local} /tree --json")).good().json();
    assert_eq!((put["files"].clone(), put["bytes"].clone()), (3.into(), (1_000_003 + 5).into()));
    dev.run(&format!("fs get -r /tree {local}-back")).good();
    for name in ["data", "sub/small", "sub/deep/empty"] {
        let back = std::fs::read(format!("{local}-back/{name}")).unwrap();
        assert!(back == std::fs::read(format!("{local}/{name}")).unwrap(), "{name} came back changed");
    }
    assert_eq!(std::fs::read_link(format!("{local}-back/link")).unwrap(), Path::new("data"));
    let mut child = dev.catena(["fs", "put", "-", "/piped"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(dev.run("fs cat /piped /tree/sub/small").good().out, "from a pipesmall");
    assert_eq!(dev.run("fs cat --offset 5 --length 3 /piped").good().out, "a p");
    assert_eq!(dev.run("fs get /piped -").good().out, "from a pipe");

    // Names and attributes.
    assert_eq!(dev.run("fs ls /tree").good().out, "data\nlink\nsub\n");
    let long = dev.run("fs ls -lb /tree").good().out;
    assert!(long.contains(" 1000003  ") && long.contains("link -> data"), "{long}");
    dev.run("fs mkdir -p /a/b/c").good();
    dev.run("fs mv /piped /tree/data /a").good();
    dev.run("fs ln /a/piped /a/hard").good();
    dev.run("fs ln -s piped /a/soft").good();
    let stat = dev.run("fs stat /a/hard --json").good().json();
    assert_eq!((stat["nlink"].clone(), stat["length"].clone()), (2.into(), 11.into()));
    dev.run("fs chmod u=rw,go= /a/hard").good();
    assert_eq!(dev.run("fs stat -L /a/soft --json").good().json()["mode"], "0600");
    dev.run("fs touch -m -d 2001-02-03T04:05:06Z /a/piped /a/new").good();
    assert!(dev.run("fs stat /a/new").good().out.contains("2001-02-03 04:05:06"));
    dev.run("fs truncate -s 4 /a/piped").good();
    assert_eq!(dev.run("fs cat /a/hard").good().out, "from");
    dev.run("fs truncate -s +2 /a/piped").good();
    assert_eq!(dev.run("fs cat /a/hard").good().out, "from\0\0");
    let tree = dev.run("fs tree /tree").good().out;
    assert!(tree.contains("└── sub/\n    ├── deep/\n    │   └── empty\n    └── small\n"), "{tree}");
    assert!(
        dev.run("fs du -b /a").good().out.contains("  1000009  /a\n")
            || dev.run("fs du -s /a").good().code == 0
    );
    assert!(dev.run("fs df --json").good().json()["capacity"].as_u64().unwrap() > 0);

    // Layouts: on two nodes every chunk has two identical replicas.
    let layout = dev.run("fs layout /a/data --checksums --json").good().json();
    let chunks = layout["chunks"].as_array().unwrap();
    assert_eq!(chunks.len(), 1_000_003_usize.div_ceil(65536));
    for chunk in chunks {
        let replicas = chunk["replicas"].as_array().unwrap();
        assert_eq!(replicas.len(), 2);
        assert_eq!(replicas[0]["checksum"], replicas[1]["checksum"]);
        assert_ne!(replicas[0]["node"], replicas[1]["node"]);
    }
    dev.run("fs layout set /a --chunk-size 1MiB").good();
    let set = dev.run("fs layout set /a --stripe 1 --json").good().json();
    assert_eq!((set["chunk_size"].clone(), set["stripe"].clone()), ((1 << 20).into(), 1.into()));
    dev.run("fs touch /a/wide").good();
    assert_eq!(dev.run("fs stat /a/wide --json").good().json()["layout"]["chunk_size"], 1 << 20);

    // What mgmtd knows.
    let nodes = dev.run("admin nodes --json").good().json();
    assert_eq!(
        nodes
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["kind"] == "storage" && node["state"] == "up")
            .count(),
        2
    );
    assert_eq!(dev.run("admin chains --degraded --json").good().json(), serde_json::json!([]));
    for words in ["admin targets", "admin tables", "admin routing", "admin clients"] {
        dev.run(words).good();
    }

    // A scrub reads all of it and finds nothing.
    dev.run("admin scrub start --rate 1GiB").good();
    let scrubbed = || {
        let said = dev.run("admin scrub status --json").good().json();
        let disks = said["disks"].as_array().unwrap().clone();
        assert_eq!((disks.len(), said["damaged"].clone()), (2, serde_json::json!([])));
        for disk in &disks {
            assert!(disk["found"] == 0 && disk["unrepaired"] == 0 && disk["path"] != "-", "{disk}");
        }
        disks.iter().all(|disk| disk["passes"] == 1 && disk["state"] == "idle" && disk["progress"] == 1.0)
    };
    let since = std::time::Instant::now();
    while !scrubbed() {
        assert!(since.elapsed() < std::time::Duration::from_secs(60), "the scrub never ended");
    }
    assert!(dev.run("admin scrub status").good().out.contains("LAST FINISHED"));
    dev.run("admin scrub stop").good();
    dev.run("admin scrub start --target 999").bad(3, "target t999: not in this cluster");
    dev.run("admin scrub status --node 999").bad(3, "storage node 999: not in this cluster");

    // Errors name the path, and have the status that scripts test for.
    dev.run("fs get /x y").bad(3, "catena: fs get: /x: no such file or directory");
    dev.run("fs ls /a/data/x").bad(1, "not a directory");
    dev.run("fs mkdir /a").bad(6, "/a: file exists");
    dev.run("fs rm /a").bad(1, "-r removes it");
    dev.run("fs rm -d /a").bad(6, "not empty");
    dev.run("fs cat /a").bad(1, "is a directory");
    dev.run("fs put README /a/b/none/x").bad(3, "README");
    dev.run(&format!("fs touch /{}", "n".repeat(256))).bad(2, "too long");
    dev.run("fs rm -f /none").good();
    dev.run("fs rm -r /a /tree").good();
    assert_eq!(dev.run("fs ls /").good().out, "");

    // A short measurement of each kind, verified, leaves nothing.
    for words in [
        "write --size 1MiB --verify",
        "read --size 1MiB --threads 2 --verify",
        "randread --size 1MiB --duration 200ms --verify",
        "randwrite --size 1MiB --duration 200ms --depth 4 --verify",
        "meta --files 50 --clients 4 --dirs 2",
    ] {
        let said = dev.run(&format!("bench {words} --json")).good().json();
        for key in
            "op bytes ops seconds mib_s ops_s p50_us p99_us p999_us client_cpu_s server_cpu_s".split(' ')
        {
            assert!(!said[key].is_null(), "bench {words}: no {key} in {said}");
        }
        assert!(said["ops"].as_u64().unwrap() > 0);
    }
    assert_eq!(dev.run("fs ls -a /").good().out, "");
    dev.stop();
}

#[test]
fn a_cluster_keeps_its_files_over_a_stop_and_over_the_death_of_everything() {
    let temp = disk_directory();
    let root = temp.path().join("cluster");
    let file = temp.path().join("file");
    let data = contents(700_001, 5);
    std::fs::write(&file, &data).unwrap();
    let check = |dev: &Dev, path: &str| {
        let back = temp.path().join("back");
        run(dev.catena(["fs", "get", path]).arg(&back)).good();
        assert!(std::fs::read(&back).unwrap() == data, "{path} came back changed");
    };

    let first = dev(&root);
    run(first.catena(["fs", "put"]).args([file.as_os_str(), "/one".as_ref()])).good();
    // The directory belongs to one process at a time, and keeps its shape.
    run(catena(["dev", "--dir"]).arg(&root)).bad(6, "in use by another catena dev");
    let cluster = std::fs::read(root.join("cluster.toml")).unwrap();
    first.stop();
    run(catena(["dev", "--nodes", "3", "--dir"]).arg(&root)).bad(2, "made with --nodes 2, not 3");

    // A port that somebody else has taken is named.
    let state = std::fs::read_to_string(root.join("dev.toml")).unwrap();
    // The shape has a `meta` too: how many there are.
    let (_, ports) = state.split_once("[ports]").unwrap();
    let port: u16 = ports.lines().find_map(|line| line.strip_prefix("meta = ")).unwrap().parse().unwrap();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    run(catena(["dev", "--dir"]).arg(&root)).bad(6, &format!("port {port} of meta is in use"));
    drop(taken);

    let second = dev(&root);
    assert_eq!(std::fs::read(root.join("cluster.toml")).unwrap(), cluster, "clients find it where it was");
    check(&second, "/one");
    run(second.catena(["fs", "put"]).args([file.as_os_str(), "/two".as_ref()])).good();
    second.kill_all();

    let third = dev(&root);
    check(&third, "/one");
    check(&third, "/two");
    third.stop();
}

#[test]
fn a_full_disk_refuses_clearly_keeps_what_is_there_and_takes_more_once_there_is_room() {
    let temp = disk_directory();
    let dev = Dev::start(
        &temp.path().join("cluster"),
        &["--nodes", "2", "--disk-capacity", "64MiB", "--log-level", "warn"],
    );
    let (small, large) = (temp.path().join("small"), temp.path().join("large"));
    let data = contents(300_000, 7);
    std::fs::write(&small, &data).unwrap();
    std::fs::write(&large, vec![7; 100 << 20]).unwrap();
    run(dev.catena(["fs", "put"]).args([small.as_os_str(), "/kept".as_ref()])).good();

    run(dev.catena(["fs", "put"]).args([large.as_os_str(), "/large".as_ref()])).bad(7, "no space left");
    assert_eq!(dev.run("fs ls /").good().out, "kept\n", "half a file stayed");
    let back = temp.path().join("back");
    run(dev.catena(["fs", "get", "/kept"]).arg(&back)).good();
    assert!(std::fs::read(&back).unwrap() == data);

    // What the failed write took is freed in the background.
    let again = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        run(dev.catena(["fs", "put"]).args([small.as_os_str(), "/again".as_ref()])).code == 0
    });
    assert!(again, "there is room, and still nothing is taken");
    dev.stop();
}

/// What a chaos driver rests on: process ids in files, and services that come back.
#[test]
fn services_that_share_a_store_are_killed_and_come_back_and_clients_do_not_notice() {
    let temp = disk_directory();
    let dev = Dev::start(
        &temp.path().join("cluster"),
        &["--nodes", "1", "--meta", "2", "--disk-capacity", "256MiB", "--log-level", "warn"],
    );
    let services = dev.ready["services"].as_array().unwrap();
    let names: Vec<_> = services.iter().map(|service| service["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kv", "mgmtd", "meta-1", "meta-2", "storage-1"]);
    let pid = |name: &str| {
        let file = dev.directory.join(format!("run/{name}.pid"));
        std::fs::read_to_string(file).ok().map(|text| text.parse::<u32>().unwrap())
    };
    dev.run("fs mkdir /before").good();
    let mut pids = Vec::new();
    // Twice, because whoever was killed must not be punished with a longer pause.
    for round in 0..2 {
        for name in ["meta-1", "kv", "meta-2"] {
            let old = pid(name).unwrap();
            signal(old, Signal::KILL);
            dev.run(&format!("fs mkdir /{name}-{round}")).good();
            dev.run("fs ls /before").good();
            let back = (0..100).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                pid(name).filter(|new| *new != old)
            });
            pids.push(back.unwrap_or_else(|| panic!("{name} did not come back within 10 s")));
        }
    }
    let all = "before\nkv-0\nkv-1\nmeta-1-0\nmeta-1-1\nmeta-2-0\nmeta-2-1\n";
    assert_eq!(dev.run("fs ls /").good().out, all);
    dev.stop();
    assert!(pids.into_iter().all(gone), "restarted services outlived `catena dev`");
}

/// Two leases of 5 s are more than the 5 s in which a cluster that is down is noticed.
#[test]
fn a_command_that_is_begun_while_mgmtd_elects_a_primary_waits_for_it() {
    let temp = disk_directory();
    let shape = ["--nodes", "1", "--mgmtd", "3", "--lease", "5s", "--disk-capacity", "256MiB"];
    let dev = Dev::start(&temp.path().join("cluster"), &[&shape[..], &["--log-level", "warn"]].concat());
    let primary = || {
        let nodes = dev.run("admin nodes --json").good().json();
        let nodes = nodes.as_array().unwrap().clone();
        nodes.into_iter().find(|node| node["role"] == "primary").expect("a primary")
    };
    let lost = primary()["pid"].as_u64().unwrap() as u32;
    signal(lost, Signal::STOP);
    let begun = std::time::Instant::now();
    dev.run("fs ls /").good();
    let waited = begun.elapsed();
    assert_ne!(primary()["pid"], lost, "another one has taken over");
    signal(lost, Signal::CONT);
    assert!(waited > std::time::Duration::from_secs(3), "there was nothing to wait for: {waited:?}");

    // A cluster that is gone is noticed sooner.
    let cluster = dev.directory.join("cluster.toml");
    dev.stop();
    let begun = std::time::Instant::now();
    run(catena(["fs", "ls", "/", "--cluster"]).arg(cluster)).bad(4, "is the cluster running?");
    assert!(begun.elapsed() < std::time::Duration::from_secs(9), "{:?}", begun.elapsed());
}
