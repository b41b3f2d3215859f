//! Scrub: what is damaged on one replica is found, by a pass or by whoever reads it, and comes back from another.

mod support;

use std::sync::atomic::Ordering;

use catena_proto::frame::{ScrubDamage, ScrubDisk, ScrubOrder, WriteKind};
use catena_proto::routing::LocalState;
use catena_proto::status::Status;
use support::*;

/// How a node's scrubber stands.
async fn standing(client: &Client, node: u32) -> (ScrubDisk, Vec<ScrubDamage>) {
    client.scrub(node, ScrubOrder::Status, 0, 0).await.unwrap()
}

/// Scrubs a node once, to the end.
async fn scrub(client: &Client, node: u32) {
    let before = standing(client, node).await.0.passes.get();
    client.scrub(node, ScrubOrder::Start, 0, 1 << 30).await.unwrap();
    until("the pass is over", || async { standing(client, node).await.0.passes.get() > before }).await;
}

async fn repaired(client: &Client, node: u32, count: u64) {
    until("everything found is repaired", || async {
        let (disk, damages) = standing(client, node).await;
        assert!(disk.repaired.get() <= count);
        damages.is_empty() && disk.repaired.get() == count
    })
    .await;
}

/// Found, repaired, waiting, unrepaired.
fn counts(disk: &ScrubDisk) -> [u64; 4] {
    [disk.found.get(), disk.repaired.get(), disk.waiting.get(), disk.unrepaired.get()]
}

#[tokio::test]
async fn a_scrub_finds_what_is_damaged_and_repairs_it_from_the_chain() {
    let world = World::new(3).await;
    let client = world.client().await;
    let long = bytes(9, CHUNK_SIZE as usize);
    client.write(1, chunk(0), 0, &long, 1).await.unwrap();
    for index in 1..30 {
        client.write(1, chunk(index), 0, &bytes(index.into(), 5000), 1).await.unwrap();
    }
    client.write(1, chunk(1), 100, b"overwritten", 2).await.unwrap();
    client.mutate(1, chunk(2), WriteKind::Remove, 0, 2).await.unwrap();
    client.mutate(1, chunk(3), WriteKind::Extend, 100_000, 2).await.unwrap();
    world.identical(&[1, 2, 3]).await;
    let before = world.contents(2).await;
    scrub(&client, 2).await;
    let (disk, _) = standing(&client, 2).await;
    assert_eq!(counts(&disk), [0; 4]);
    assert!(disk.verified.get() >= u64::from(CHUNK_SIZE) && disk.verified == disk.total, "{disk:?}");
    world.damage(2, &long[900_000 / 4096 * 4096..]);
    world.damage(2, &long[8192..]);
    world.damage(2, &bytes(7, 5000)[4096..]);
    scrub(&client, 2).await;
    repaired(&client, 2, 2).await;
    assert_eq!(counts(&standing(&client, 2).await.0), [2, 2, 0, 0]);
    assert_eq!(world.contents(2).await, before, "the same versions, lengths and checksums");
    assert_eq!(client.read(2, chunk(0), 0, CHUNK_SIZE).await.unwrap().data, long);
    assert_eq!(client.read(2, chunk(7), 0, 5000).await.unwrap().data, bytes(7, 5000));
    world.identical(&[1, 2, 3]).await;
    // It goes on as if nothing had been, and a scrub has nothing to say.
    client.write(1, chunk(0), 8200, b"after", 2).await.unwrap();
    scrub(&client, 2).await;
    assert_eq!(counts(&standing(&client, 2).await.0), [2, 2, 0, 0]);
    world.identical(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_repair_survives_a_restart() {
    let mut world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.identical(&[1, 2]).await;
    world.damage(2, &data[8192..]);
    scrub(&client, 2).await;
    repaired(&client, 2, 1).await;
    world.crash(2);
    world.take_out(2).await;
    world.start(2).await;
    world.bring_back(2).await;
    let client = world.client().await;
    scrub(&client, 2).await;
    assert_eq!(counts(&standing(&client, 2).await.0), [0; 4]);
    assert_eq!(client.read(2, chunk(0), 0, 100_000).await.unwrap().data, data);
}

#[tokio::test]
async fn whoever_reads_a_bad_block_is_sent_elsewhere_and_has_it_repaired() {
    let world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.identical(&[1, 2]).await;
    world.damage(1, &data[8192..]);
    assert_eq!(client.read(1, chunk(0), 0, 100_000).await, Err(Status::Corrupt));
    repaired(&client, 1, 1).await;
    assert_eq!(client.read(1, chunk(0), 0, 100_000).await.unwrap().data, data);
    world.identical(&[1, 2]).await;
}

#[tokio::test]
async fn a_sector_that_cannot_be_read_is_repaired_and_the_disk_stays() {
    let world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.identical(&[1, 2]).await;
    let place = world.places(2, &data[8192..])[0];
    world.nodes[&2].bad_sectors.lock().push(place..place + 512);
    assert_eq!(client.read(2, chunk(0), 0, 100_000).await, Err(Status::DiskFailed));
    repaired(&client, 2, 1).await;
    assert_eq!(client.read(2, chunk(0), 0, 100_000).await.unwrap().data, data);
    assert_eq!(world.report(2).unwrap().local(), LocalState::UpToDate);
    assert!(!world.running(2).report().disks[0].failed);
    // A disk that is altogether gone is found out by the repair.
    client.write(1, chunk(1), 0, &data, 1).await.unwrap();
    world.nodes[&2].broken.store(true, Ordering::SeqCst);
    assert_eq!(client.read(2, chunk(1), 0, 10).await, Err(Status::DiskFailed));
    until("the target is offline", || async { world.report(2).unwrap().local() == LocalState::Offline })
        .await;
}

#[tokio::test]
async fn what_is_damaged_on_every_replica_is_reported_and_never_made_up() {
    let world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    client.write(1, chunk(1), 0, &bytes(10, 5000), 1).await.unwrap();
    world.identical(&[1, 2]).await;
    for id in 1..=2 {
        world.damage(id, &data[8192..]);
    }
    scrub(&client, 1).await;
    scrub(&client, 2).await;
    for id in 1..=2 {
        until("it is known to be hopeless", || async { standing(&client, id).await.0.unrepaired.get() == 1 })
            .await;
        let (disk, damages) = standing(&client, id).await;
        assert_eq!(counts(&disk), [1, 0, 0, 1]);
        let named = (damages[0].target.get(), damages[0].inode.get(), damages[0].index.get());
        assert_eq!((named, damages[0].block.get(), damages[0].hopeless), ((id.into(), 42, 0), 2, 1));
        assert_eq!(client.read(id, chunk(0), 8192, 4096).await, Err(Status::Corrupt));
        assert_eq!(client.read(id, chunk(0), 0, 8192).await.unwrap().data, data[..8192]);
        assert_eq!(client.read(id, chunk(1), 0, 5000).await.unwrap().data, bytes(10, 5000));
        assert_eq!(world.report(id).unwrap().local(), LocalState::UpToDate);
    }
    // A part of the bad block cannot be written: what would be beside it is lost. All of it can.
    assert_eq!(client.write(1, chunk(0), 8200, b"part", 2).await, Err(Status::Corrupt));
    client.write(1, chunk(0), 8192, &bytes(11, 4096), 3).await.unwrap();
    for id in 1..=2 {
        client.scrub(id, ScrubOrder::Start, 0, 0).await.unwrap();
        until("nothing is reported any more", || async { standing(&client, id).await.1.is_empty() }).await;
        let read = client.read(id, chunk(0), 0, 100_000).await.unwrap().data;
        assert!(read[8192..12288] == bytes(11, 4096) && read[12288..] == data[12288..]);
        assert_eq!(counts(&standing(&client, id).await.0), [1, 0, 0, 0]);
    }
    world.identical(&[1, 2]).await;
}

#[tokio::test]
async fn an_only_replica_says_what_it_has_lost_and_stays() {
    let world = World::new(1).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.damage(1, &data[8192..]);
    scrub(&client, 1).await;
    until("it is known to be hopeless", || async { standing(&client, 1).await.0.unrepaired.get() == 1 })
        .await;
    assert_eq!(client.read(1, chunk(0), 8192, 10).await, Err(Status::Corrupt));
    assert_eq!(client.write(1, chunk(0), 8200, b"part", 2).await, Err(Status::Corrupt));
    assert_eq!(client.read(1, chunk(0), 0, 8192).await.unwrap().data, data[..8192]);
    assert_eq!(world.report(1).unwrap().local(), LocalState::UpToDate);
}

#[tokio::test]
async fn a_write_into_a_block_that_is_known_to_be_bad_waits_for_its_repair() {
    let world = World::new(3).await;
    let client = world.client().await;
    let mut data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.identical(&[1, 2, 3]).await;
    for id in 1..=2 {
        world.damage(id, &data[8192..]);
        assert_eq!(client.read(id, chunk(0), 8192, 10).await, Err(Status::Corrupt));
    }
    until("the write is taken", || async {
        match client.write(1, chunk(0), 8200, b"part", 2).await {
            Ok(_) => true,
            Err(Status::Busy) => false,
            Err(status) => panic!("{status}"),
        }
    })
    .await;
    data[8200..8204].copy_from_slice(b"part");
    world.identical(&[1, 2, 3]).await;
    for id in 1..=3 {
        assert_eq!(client.read(id, chunk(0), 0, 100_000).await.unwrap().data, data);
        assert_eq!(world.report(id).unwrap().local(), LocalState::UpToDate);
    }
}

#[tokio::test]
async fn a_bad_block_that_nobody_knew_of_never_gets_a_good_checksum_from_a_write_beside_it() {
    let mut world = World::new(2).await;
    let client = world.client().await;
    let mut data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.identical(&[1, 2]).await;
    world.damage(2, &data[8192..]);
    let write = {
        let client = client.clone();
        tokio::spawn(async move { client.write(1, chunk(0), 8200, b"part", 2).await })
    };
    // The version cannot be staged there: the chain goes on without the target, and the resync brings the chunk anew although the
    // stored checksums are equal.
    until("the target is offline", || async { world.report(2).unwrap().local() == LocalState::Offline })
        .await;
    world.take_out(2).await;
    write.await.unwrap().unwrap();
    data[8200..8204].copy_from_slice(b"part");
    world.bring_back(2).await;
    world.identical(&[1, 2]).await;
    let client = world.client().await;
    assert_eq!(client.read(2, chunk(0), 0, 100_000).await.unwrap().data, data);
    until("nothing is reported any more", || async { standing(&client, 2).await.1.is_empty() }).await;
}

#[tokio::test]
async fn a_resync_replaces_a_chunk_that_is_known_to_be_damaged_though_checksums_agree() {
    let mut world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.identical(&[1, 2]).await;
    world.take_out(2).await;
    world.damage(2, &data[8192..]);
    scrub(&world.client().await, 2).await;
    let client = world.client().await;
    assert_eq!(counts(&standing(&client, 2).await.0)[..2], [1, 0]);
    world.bring_back(2).await;
    let client = world.client().await;
    assert_eq!(client.read(2, chunk(0), 0, 100_000).await.unwrap().data, data);
    assert_eq!(standing(&client, 2).await.0.repaired.get(), 0, "the resync did it");
}

#[tokio::test]
async fn a_pass_keeps_its_rate_and_stops_when_told() {
    let world = World::new(1).await;
    let client = world.client().await;
    for index in 0..8 {
        client.write(1, chunk(index), 0, &bytes(index.into(), CHUNK_SIZE as usize), 1).await.unwrap();
    }
    // A MiB in a hundred seconds: it will not come far.
    client.scrub(1, ScrubOrder::Start, 0, 10 << 10).await.unwrap();
    until("it has begun", || async { standing(&client, 1).await.0.verified.get() > 0 }).await;
    let (disk, _) = standing(&client, 1).await;
    assert_eq!((disk.state, disk.rate.get(), disk.total.get()), (1, 10 << 10, 8 << 20));
    assert_eq!(disk.verified.get(), 1 << 20);
    client.scrub(1, ScrubOrder::Stop, 0, 0).await.unwrap();
    until("it has stopped", || async { standing(&client, 1).await.0.state == 0 }).await;
    assert_eq!(standing(&client, 1).await.0.passes.get(), 0);
    // Begun slowly, and hurried on.
    client.scrub(1, ScrubOrder::Start, 1, 10 << 10).await.unwrap();
    until("it has begun", || async { standing(&client, 1).await.0.verified.get() > 0 }).await;
    client.scrub(1, ScrubOrder::Start, 1, 1 << 30).await.unwrap();
    until("it is over", || async { standing(&client, 1).await.0.passes.get() == 1 }).await;
    assert_eq!(standing(&client, 1).await.0.verified.get(), 8 << 20);
    assert_eq!(client.scrub(1, ScrubOrder::Start, 99, 0).await, Err(Status::NotFound));
}
