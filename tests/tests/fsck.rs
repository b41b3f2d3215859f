//! Checking a whole cluster: damage made on purpose is found, healed, and gone; a busy cluster shows none. And what a dead client leaves.

use std::time::Duration;

use bytes::Bytes;
use catena_buf::Buf;
use catena_client::{
    Catena, ConnectOptions, Credentials, File, Finding, FindingKind, FsckOptions, FsckReport, LayoutChoice,
    OpenOptions, Status,
};
use catena_meta::schema::{Inode, decode, encode, key};
use catena_proto::ids::{ChunkId, InodeId};
use catena_tests::{Cluster, Shape, block_on};

fn small_chunks() -> OpenOptions {
    let layout = LayoutChoice { chunk_size: Some(64 << 10), ..LayoutChoice::default() };
    OpenOptions::new().read(true).write(true).create(true).layout(layout)
}

async fn write(catena: &Catena, path: &str, length: usize) -> File {
    let file = small_chunks().open(catena, path).await.unwrap();
    file.write_at(0, &vec![7; length]).await.unwrap();
    file
}

async fn check(catena: &Catena, repair: bool) -> (FsckReport, Vec<Finding>) {
    let options = FsckOptions { repair, grace: Duration::from_millis(100), ..FsckOptions::default() };
    let mut found = Vec::new();
    let report = catena.fsck(options, |finding| found.push(finding.clone())).await.unwrap();
    found.sort_by_key(|finding| finding.kind);
    (report, found)
}

fn kinds(found: &[Finding]) -> Vec<FindingKind> {
    found.iter().map(|finding| finding.kind).collect()
}

async fn set(cluster: &Cluster, key: Bytes, value: Option<Bytes>) {
    let tx = cluster.meta_db().begin(Default::default()).unwrap();
    match value {
        Some(value) => tx.set(&key, &value).unwrap(),
        None => tx.clear(&key).unwrap(),
    }
    tx.commit().await.unwrap();
}

async fn damage(cluster: &Cluster, inode: InodeId, change: impl FnOnce(&mut Inode)) {
    let tx = cluster.meta_db().begin(Default::default()).unwrap();
    let value = tx.get(&key::inode(inode), catena_kv::Isolation::Snapshot).await.unwrap().unwrap();
    let mut stored: Inode = decode("an inode", &value).unwrap();
    change(&mut stored);
    set(cluster, key::inode(inode), Some(encode(&stored))).await;
}

#[test]
fn damage_is_found_and_healed_and_gone() {
    block_on(async {
        let cluster = Cluster::start(Shape::default()).await;
        let catena = cluster.client().await;
        catena.mkdir_all("/d/e", 0o755).await.unwrap();
        for path in ["/d/gone", "/d/short", "/d/e/lost", "/d/links"] {
            write(&catena, path, 200_000).await.close().await.unwrap();
        }
        let inode = async |path: &str| catena.stat(path).await.unwrap().inode;
        let (report, found) = check(&catena, false).await;
        assert_eq!(found, [], "nothing is wrong yet");
        assert_eq!((report.inodes, report.entries, report.chunks), (7, 6, 16));

        // An inode is lost, and with it the name and the chunks; a directory is lost; a length was not settled; links are miscounted;
        // a chunk was written for a file that never was.
        let gone = inode("/d/gone").await;
        set(&cluster, key::inode(gone), None).await;
        let (lost, e) = (inode("/d/e/lost").await, inode("/d/e").await);
        set(&cluster, key::inode(e), None).await;
        damage(&cluster, inode("/d/short").await, |inode| inode.length = 70_000).await;
        damage(&cluster, inode("/d/links").await, |inode| inode.nlink = 3).await;
        let chain = catena.open("/d/short").await.unwrap().chains()[0];
        let stray = ChunkId { inode: InodeId(77), index: 3 };
        let (storage, data) = (catena.storage(), Buf::from(vec![1; 100]));
        storage.write(chain, stray, 0, data, 64 << 10, storage.deadline()).await.unwrap();

        let expected = [
            // /d/gone and /d/e.
            FindingKind::DanglingEntry,
            FindingKind::DanglingEntry,
            FindingKind::LostEntry,
            FindingKind::WrongNlink,
            FindingKind::WrongLength,
            FindingKind::OrphanChunk,
            FindingKind::OrphanChunk,
            FindingKind::OrphanChunk,
            FindingKind::OrphanChunk,
            FindingKind::OrphanChunk,
        ];
        let (report, found) = check(&catena, false).await;
        // A file whose only name is in a lost directory still has that name.
        assert_eq!(kinds(&found), expected, "{found:#?}");
        assert_eq!((report.findings, report.repaired), (10, 0));
        let (report, found) = check(&catena, true).await;
        assert_eq!(kinds(&found), expected, "{found:#?}");
        assert_eq!(report.left(), 0, "{found:#?}");
        let (report, found) = check(&catena, false).await;
        assert_eq!((report.findings, found), (0, vec![]));

        assert_eq!(catena.read("/d/short").await.unwrap(), vec![7; 200_000]);
        assert_eq!(catena.read(format!("/lost+found/#{}", lost.0).as_str()).await.unwrap(), vec![7; 200_000]);
        assert_eq!(catena.stat("/d/gone").await.unwrap_err().status(), Status::NotFound);
        let below = catena.fsck_below("/d", FsckOptions::default(), |finding| panic!("{finding}")).await;
        assert_eq!(below.unwrap().inodes, 3);
        cluster.stop().await;
    });
}

#[test]
fn a_busy_cluster_shows_no_damage() {
    block_on(async {
        let cluster = Cluster::start(Shape::default()).await;
        let catena = cluster.client().await;
        let work = (0..4).map(|worker| {
            let catena = catena.clone();
            tokio::spawn(async move {
                for nth in 0_u32.. {
                    let dir = format!("/{worker}");
                    catena.mkdir_all(&*dir, 0o755).await.unwrap();
                    let path = format!("{dir}/{}", nth % 5);
                    let file = write(&catena, &path, 150_000).await;
                    file.write_at(1000, &[nth as u8; 5000]).await.unwrap();
                    file.close().await.unwrap();
                    match nth % 4 {
                        0 => catena.remove(&*path).await.unwrap(),
                        1 => catena.truncate(&*path, 10).await.map(drop).unwrap(),
                        2 => catena
                            .rename(&*path, &*format!("{dir}/moved"), catena_client::RenameMode::Replace)
                            .await
                            .map(drop)
                            .unwrap(),
                        _ => catena.remove_all(&*dir).await.unwrap(),
                    }
                }
            })
        });
        let work: Vec<_> = work.collect();
        let mut chunks = 0;
        for _ in 0..4 {
            let (report, found) = check(&catena, true).await;
            assert_eq!(found, []);
            chunks += report.chunks;
        }
        assert!(chunks > 0, "there was something to look at");
        for work in work {
            assert!(!work.is_finished(), "the work went on all the time");
            work.abort();
        }
        cluster.stop().await;
    });
}

async fn end_sessions(cluster: &Cluster) {
    let tx = cluster.meta_db().begin(Default::default()).unwrap();
    let sessions = key::sessions();
    tx.clear_range(&sessions.begin, &sessions.end).unwrap();
    tx.commit().await.unwrap();
}

#[test]
fn a_client_that_was_taken_for_dead_goes_on_or_is_told_clearly() {
    block_on(async {
        let cluster = Cluster::start(Shape::default()).await;
        let (catena, other) = (cluster.client().await, cluster.client().await);
        let kept = write(&catena, "/kept", 100_000).await;
        let cut = write(&catena, "/cut", 100_000).await;
        let gone = write(&catena, "/gone", 100_000).await;
        for file in [&kept, &cut, &gone] {
            file.sync().await.unwrap();
        }
        // As if the client had been silent for longer than its lease.
        end_sessions(&cluster).await;
        other.remove("/gone").await.unwrap();
        other.truncate("/cut", 10).await.unwrap();

        kept.write_at(100_000, &[8; 100_000]).await.unwrap();
        kept.sync().await.unwrap();
        assert_eq!(other.stat("/kept").await.unwrap().length, 200_000);
        kept.truncate(150_000).await.unwrap();
        kept.close().await.unwrap();
        assert_eq!(other.stat("/kept").await.unwrap().length, 150_000);
        cut.close().await.unwrap();
        let error = gone.close().await.unwrap_err();
        assert_eq!(error.status(), Status::StaleHandle);
        assert!(error.to_string().contains("longer than its lease"), "{error}");
        cluster.stop().await;
    });
}

#[test]
fn what_a_dead_client_had_open_is_settled_and_removed() {
    block_on(async {
        let cluster =
            Cluster::start(Shape { client_lease: Duration::from_secs(2), ..Shape::default() }).await;
        let survivor = cluster.client().await;
        // A client on a runtime of its own, which ends with it: not a word more is said.
        let file = cluster.file().clone();
        let died = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let options = ConnectOptions {
                    credentials: Some(Credentials::root()),
                    pool_bytes: 64 << 20,
                    ..ConnectOptions::default()
                };
                let catena = Catena::connect(&file, options).await.unwrap();
                let kept = write(&catena, "/kept", 200_000).await;
                let unlinked = write(&catena, "/unlinked", 200_000).await;
                catena.remove("/unlinked").await.unwrap();
                std::mem::forget((kept, unlinked, catena));
            });
            runtime.shutdown_background();
        });
        died.join().unwrap();
        let before = survivor.statfs().await.unwrap();
        assert_eq!(survivor.stat("/kept").await.unwrap().length, 0, "it never said how far it had written");
        // While its lease lasts nothing is taken for damage.
        let (_, found) = check(&survivor, true).await;
        assert_eq!(found, []);
        let settled = async {
            while survivor.stat("/kept").await.unwrap().length != 200_000
                || survivor.statfs().await.unwrap().files == before.files
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), settled)
            .await
            .expect("its sessions end with its lease");
        assert_eq!(survivor.read("/kept").await.unwrap(), vec![7; 200_000]);
        let reclaimed = async {
            while check(&survivor, false).await.0.chunks != 4 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reclaimed)
            .await
            .expect("its unlinked file's chunks go");
        let (_, found) = check(&survivor, false).await;
        assert_eq!(found, []);
        cluster.stop().await;
    });
}
