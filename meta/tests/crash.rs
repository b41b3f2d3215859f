//! Crashes and stoppages between any two steps of what takes several transactions.

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_kv::KvError;
use catena_kv::fault::{Fault, Faulty, Point};
use catena_kv_testing::database;
use catena_meta::{Chunks, Extent, MemChunks, Parts, Service};
use catena_proto::ids::{ChainId, ChunkId, InodeId};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep};
use common::{World, at};
use tokio::sync::Semaphore;

const WRITER: [u8; 16] = [1; 16];

fn down() -> Failure {
    Failure::new(Status::Busy, "the chain does not serve")
}

/// A file of ten chunks of 1 MiB, closed.
async fn big_file(world: &World, path: &str) -> pb::Inode {
    let inode = world.create(path, WRITER).await;
    for index in 0..10 {
        world.write(&inode, index, 1 << 20);
    }
    let closed = world.sync(inode.id, WRITER, |request| {
        (request.close, request.wrote, request.high_water) = (true, true, 10 << 20);
    });
    closed.await.expect("close")
}

fn cut_request(world: &World, path: &str, length: u64) -> pb::TruncateRequest {
    pb::TruncateRequest { caller: world.root(), at: at(path), length, session: Default::default() }
}

/// Bytes that the chunk store still has behind `length`.
fn behind(world: &World, inode: u64, length: u64) -> bool {
    let ends = world.chunks.of(InodeId(inode)).into_iter();
    ends.map(|(_, extent)| (u64::from(extent.index) << 20) + u64::from(extent.length)).any(|end| end > length)
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_its_service_did_not_finish_is_finished_by_another() {
    let length = (3 << 20) + 77;
    for calls in 0..20 {
        let world = World::new().await;
        let inode = big_file(&world, "/f").await;
        let request = cut_request(&world, "/f", length);
        world.chunks.fail_after(Some((calls, down())));
        let first = world.service.truncate(request.clone()).await;
        world.chunks.fail_after(None);
        if first.is_err() {
            // Readers see the new length, and nobody brings the old one back.
            assert_eq!(world.stat("/f").await.unwrap().length, length);
            let other = world.another(5);
            let grow = other.service.truncate(cut_request(&world, "/f", 20 << 20)).await;
            assert_eq!(grow.unwrap_err().status, Status::Busy, "{calls} calls");
            // The service is gone; another one has its background work.
            let _background = other.service.background(None);
            sleep(Duration::from_secs(20)).await;
            let again = other.service.truncate(request).await.expect("the recorded outcome");
            assert_eq!(again.inode.unwrap().length, length);
        }
        assert!(!behind(&world, inode.id, length), "{calls} calls");
        assert_eq!(world.keys("TRNC").await, 0);
        assert_eq!(world.chunks.of(InodeId(inode.id)).len(), 4, "what is before the end stays");
        world.service.truncate(cut_request(&world, "/f", 20 << 20)).await.expect("cut again");
    }
}

/// A client that opens a file to overwrite it waits for this: it must not take longer than what else a loss costs.
#[tokio::test(start_paused = true)]
async fn a_cut_is_taken_over_within_little_more_than_the_clusters_lease() {
    let lease = Duration::from_secs(2);
    let world = World::new().await;
    let inode = big_file(&world, "/f").await;
    world.service.follow_lease(lease);
    let request = cut_request(&world, "/f", 0);
    world.chunks.fail_after(Some((3, down())));
    world.service.truncate(request.clone()).await.expect_err("chunks are down");
    world.chunks.fail_after(None);
    // Another one, which has not heard of the lease: the intent says how long its owner may be at it.
    let other = world.another(5);
    let _background = other.service.background(None);
    let begun = Instant::now();
    while other.service.truncate(request.clone()).await.is_err() {
        assert!(behind(&world, inode.id, 0) || begun.elapsed() >= lease);
        sleep(Duration::from_millis(50)).await;
    }
    let took = begun.elapsed();
    assert!(took >= lease, "taken over while the first may still be at it: {took:?}");
    assert!(took < 2 * lease + Duration::from_millis(100), "{took:?}");
    assert!(!behind(&world, inode.id, 0));
}

#[tokio::test(start_paused = true)]
async fn the_same_service_goes_on_with_a_cut_when_the_request_comes_again() {
    for calls in 0..20 {
        let world = World::new().await;
        let inode = big_file(&world, "/f").await;
        let request = cut_request(&world, "/f", 0);
        world.chunks.fail_after(Some((calls, down())));
        let first = world.service.truncate(request.clone()).await;
        world.chunks.fail_after(None);
        let second = world.service.truncate(request.clone()).await.expect("second");
        if let Ok(first) = first {
            assert_eq!(first, second);
        }
        assert_eq!(world.service.truncate(request).await.expect("third"), second);
        assert_eq!(world.chunks.of(InodeId(inode.id)).len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_removed_while_it_is_cut_is_reclaimed_whole() {
    let world = World::new().await;
    let inode = big_file(&world, "/f").await;
    world.chunks.fail_after(Some((3, down())));
    world.service.truncate(cut_request(&world, "/f", 5)).await.expect_err("chunks are down");
    world.chunks.fail_after(None);
    world.remove("/f", false).await.expect("remove");
    assert_eq!(world.keys("TRNC").await, 0);
    world.service.reclaim().await.expect("reclaim");
    assert_eq!(world.chunks.of(InodeId(inode.id)), []);
}

/// Chunk calls of one service that stand still until they are let through.
struct Gate {
    inner: Arc<MemChunks>,
    open: Semaphore,
}

impl Gate {
    async fn pass(&self) {
        self.open.acquire().await.expect("never closed").forget();
    }
}

#[async_trait]
impl Chunks for Gate {
    async fn last(
        &self,
        chain: ChainId,
        inode: InodeId,
        deadline: Instant,
    ) -> Result<Option<Extent>, Failure> {
        self.inner.last(chain, inode, deadline).await
    }
    async fn list(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: u32,
        limit: u32,
        deadline: Instant,
    ) -> Result<Vec<Extent>, Failure> {
        // What it saw before it stood still.
        let listed = self.inner.list(chain, inode, from, limit, deadline).await;
        self.pass().await;
        listed
    }
    async fn cut(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        length: u32,
        size: u32,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.inner.cut(chain, chunk, length, size, deadline).await
    }
    async fn remove(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        size: u32,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.inner.remove(chain, chunk, size, deadline).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stood_still_in_a_cut_removes_nothing_afterwards() {
    let world = World::new().await;
    let inode = big_file(&world, "/f").await;
    let gate = Arc::new(Gate { inner: world.chunks.clone(), open: Semaphore::new(0) });
    let parts = Parts {
        db: world.db.clone(),
        chunks: gate.clone(),
        routing: world.routing.clone(),
        clock: world.clock.clone(),
        seed: 99,
    };
    let slow = Service::new(common::settings(), parts);
    let request = cut_request(&world, "/f", 0);
    let stuck = tokio::spawn({
        let (slow, request) = (slow.clone(), request.clone());
        async move { slow.truncate(request).await }
    });
    // Another service takes over when the first has not been heard of for long enough.
    let _background = world.service.background(None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.chunks.of(InodeId(inode.id)).len(), 10);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(world.chunks.of(InodeId(inode.id)).len(), 0);
    let done = world.service.truncate(request).await.expect("the outcome of the one that took over");
    // The client goes on and writes; then the first service wakes up.
    world.create("/f", WRITER).await;
    for index in 0..10 {
        world.write(&inode, index, 50);
    }
    gate.open.add_permits(1000);
    let late = stuck.await.expect("no panic");
    assert_eq!(late.unwrap_err().status, Status::Busy);
    assert_eq!(world.chunks.of(InodeId(inode.id)).len(), 10, "acknowledged writes stay");
    assert_eq!(done.inode.unwrap().truncate_epoch, 1);
}

#[tokio::test(start_paused = true)]
async fn reclaim_survives_a_crash_after_any_call() {
    for calls in 0..30 {
        let world = World::new().await;
        big_file(&world, "/f").await;
        big_file(&world, "/g").await;
        world.remove("/f", false).await.expect("remove");
        world.remove("/g", false).await.expect("remove");
        assert_eq!(world.statfs().await.reclaim_bytes, 20 << 20);
        world.chunks.fail_after(Some((calls, down())));
        let stopped = world.service.reclaim().await.expect("reclaim");
        world.chunks.fail_after(None);
        let rest = world.another(5).service.reclaim().await.expect("reclaim");
        assert_eq!(stopped.files + rest.files, 2, "{calls} calls");
        assert_eq!(world.chunks.count(), 0);
        let statfs = world.statfs().await;
        assert_eq!((statfs.files, statfs.reclaim_files, statfs.reclaim_bytes), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_tree_goes_although_the_store_stops_after_any_commit() {
    let mut commits = 0;
    loop {
        let db = Arc::new(Faulty::new(database(), Box::new(|_| None)));
        let world = World::on(db.clone()).await;
        for path in ["/t", "/t/a", "/t/a/b", "/t/c", "/t/c/d"] {
            let request =
                pb::MkdirRequest { caller: world.root(), at: at(path), mode: 0o755, ..Default::default() };
            world.service.mkdir(request).await.expect("mkdir");
            big_file(&world, &format!("{path}/f")).await;
        }
        // More names than one transaction takes.
        for nth in 0..300 {
            let request = pb::OpenRequest {
                caller: world.root(),
                at: at(&format!("/t/a/b/{nth}")),
                create: true,
                ..Default::default()
            };
            world.service.open(request).await.expect("create");
        }
        world.remove("/t", true).await.expect("remove");
        assert_eq!(world.stat("/t").await.unwrap_err().status, Status::NotFound);
        let mut left = commits;
        db.set_hook(Box::new(move |point| match point {
            Point::Commit if left == 0 => Some(Fault::Fail(KvError::Storage("stopped".into()))),
            Point::Commit => {
                left -= 1;
                None
            }
            _ => None,
        }));
        let first = world.service.reclaim().await;
        db.set_hook(Box::new(|_| None));
        world.another(5).service.reclaim().await.expect("reclaim");
        assert_eq!(world.chunks.count(), 0, "{commits} commits");
        let statfs = world.statfs().await;
        assert_eq!((statfs.files, statfs.directories, statfs.reclaim_files), (0, 1, 0), "{commits} commits");
        for letters in ["DENT", "TRSH", "RECL", "XATR", "SESS"] {
            assert_eq!(world.keys(letters).await, 0, "{letters} after {commits} commits");
        }
        if first.is_ok() {
            break;
        }
        commits += 1;
    }
    assert!(commits > 5, "the work took {commits} commits");
}

struct Living(std::collections::BTreeSet<catena_proto::ids::ClientId>);

#[async_trait]
impl catena_meta::Clients for Living {
    async fn alive(&self) -> Result<std::collections::BTreeSet<catena_proto::ids::ClientId>, Failure> {
        Ok(self.0.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_of_dead_clients_end_with_the_length_that_the_chains_say() {
    let world = World::new().await;
    let kept = world.create("/kept", [1; 16]).await;
    world.write(&kept, 6, 77);
    let gone = world.create("/gone", [2; 16]).await;
    world.write(&gone, 3, 5);
    world.remove("/gone", false).await.expect("remove");
    // While its client lives nothing happens.
    let living = Living([catena_proto::ids::ClientId(42)].into());
    let suspects = world.service.reap_sessions(&living, &Default::default()).await.expect("reap");
    assert!(suspects.is_empty());
    let _background = world.service.background(Some(Arc::new(Living(Default::default()))));
    sleep(Duration::from_secs(50)).await;
    assert_eq!(world.statfs().await.sessions, 2, "one look is not enough");
    sleep(Duration::from_secs(30)).await;
    let statfs = world.statfs().await;
    assert_eq!((statfs.sessions, statfs.files, statfs.reclaim_files), (0, 1, 0));
    assert_eq!(world.stat("/kept").await.unwrap().length, (6 << 20) + 77);
    assert_eq!(world.chunks.of(InodeId(gone.id)), []);
    let late = world.sync(kept.id, [1; 16], |request| request.close = true).await;
    assert_eq!(late.unwrap_err().status, Status::StaleHandle);
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_remembered_long_enough_and_not_for_ever() {
    let world = World::new().await;
    let other = world.another(5);
    let _background = (world.service.background(None), other.service.background(None));
    sleep(Duration::from_secs(250)).await;
    let request = pb::MkdirRequest { caller: world.root(), at: at("/d"), mode: 0o755, ..Default::default() };
    let first = world.service.mkdir(request.clone()).await.expect("mkdir");
    for _ in 0..29 {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(other.service.mkdir(request.clone()).await.as_ref(), Ok(&first));
    }
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(world.keys("IDEM").await, 0);
    assert_eq!(world.service.mkdir(request).await.unwrap_err().status, Status::Exists);
}

#[tokio::test(start_paused = true)]
async fn one_request_id_names_one_call() {
    let world = World::new().await;
    let caller = world.root();
    let mkdir = pb::MkdirRequest { caller: caller.clone(), at: at("/d"), mode: 0o755, ..Default::default() };
    world.service.mkdir(mkdir).await.expect("mkdir");
    let remove = pb::RemoveRequest { caller, at: at("/d"), directory: true, recursive: false };
    assert_eq!(world.service.remove(remove).await.unwrap_err().status, Status::Invalid);
    let nameless = Some(pb::Caller { request: Default::default(), ..world.root().unwrap() });
    let mkdir = pb::MkdirRequest { caller: nameless, at: at("/e"), mode: 0o755, ..Default::default() };
    assert_eq!(world.service.mkdir(mkdir).await.unwrap_err().status, Status::Invalid);
}

#[tokio::test(start_paused = true)]
async fn another_cluster_s_store_is_refused() {
    let world = World::new().await;
    let mut settings = common::settings();
    settings.cluster = catena_proto::ids::ClusterId(8);
    let parts = Parts {
        db: world.db.clone(),
        chunks: world.chunks.clone(),
        routing: world.routing.clone(),
        clock: world.clock.clone(),
        seed: 5,
    };
    let refused = Service::new(settings, parts).initialise().await.unwrap_err();
    assert_eq!(refused.status, Status::WrongCluster);
    world.another(6).service.initialise().await.expect("its own");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_a_restore_left_half_filled_is_refused() {
    let world = World::new().await;
    let tx = world.db.begin(catena_kv::TxOptions::default()).unwrap();
    tx.set(catena_kv::reserved::RESTORE_MARKER, b"run").unwrap();
    tx.commit().await.unwrap();
    let parts = Parts {
        db: world.db.clone(),
        chunks: world.chunks.clone(),
        routing: world.routing.clone(),
        clock: world.clock.clone(),
        seed: 5,
    };
    let refused = Service::new(common::settings(), parts).initialise().await.unwrap_err();
    assert_eq!(refused.status, Status::Internal);
    assert!(refused.message.contains("with --replace"), "{refused}");
}
