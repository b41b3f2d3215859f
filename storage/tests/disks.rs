//! Disks that are full, damaged or broken.

mod support;

use catena_proto::frame::WriteKind;
use catena_proto::routing::{LocalState, PublicState};
use catena_proto::status::Status;
use support::*;

const MIB: usize = 1 << 20;

/// Fills chunks until nothing more is taken; returns how many are whole.
async fn fill(client: &Client, most: u32) -> u32 {
    for index in 0..most {
        match client.write(1, chunk(index), 0, &bytes(index.into(), MIB), 1).await {
            Ok(_) => {}
            Err(Status::NoSpace) => return index,
            Err(status) => panic!("chunk {index}: {status}"),
        }
    }
    panic!("the disk never was full");
}

#[tokio::test]
async fn a_full_disk_refuses_and_keeps_what_it_acknowledged() {
    let world = World::with_capacity(1, &[(1, 32 << 20)]).await;
    let client = world.client().await;
    let filled = fill(&client, 100).await;
    assert!(filled > 8, "{filled}");
    for index in 0..filled {
        assert_eq!(client.read(1, chunk(index), 0, CHUNK_SIZE).await.unwrap().data, bytes(index.into(), MIB));
    }
    // A write that was applied keeps its answer.
    assert_eq!(client.write(1, chunk(0), 0, &bytes(0, MIB), 1).await.unwrap().version, 1);
    for index in 0..8 {
        client.mutate(1, chunk(index), WriteKind::Remove, 0, 2).await.unwrap();
    }
    until("there is room again", || async {
        client.write(1, chunk(200), 0, &bytes(200, MIB), 1).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_full_replica_behind_the_head_lets_the_head_refuse_and_stays_in_the_chain() {
    let world = World::with_capacity(3, &[(3, 32 << 20)]).await;
    let client = world.client().await;
    let filled = fill(&client, 100).await;
    for index in 0..filled {
        let data = bytes(index.into(), MIB);
        assert_eq!(client.read(3, chunk(index), 0, CHUNK_SIZE).await.unwrap().data, data);
    }
    for id in 1..=3 {
        assert_eq!(world.report(id).unwrap().local(), LocalState::UpToDate);
    }
    for index in 0..16 {
        client.mutate(1, chunk(index), WriteKind::Remove, 0, 2).await.unwrap();
    }
    until("there is room again", || async {
        client.write(1, chunk(200), 0, &bytes(200, MIB), 1).await.is_ok()
    })
    .await;
    world.identical(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_damaged_block_is_an_items_error_and_counted_and_the_other_replica_has_it() {
    let world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    client.write(1, chunk(1), 0, &bytes(10, 5000), 1).await.unwrap();
    world.identical(&[1, 2]).await;
    world.damage(2, &data[8192..]);
    let items =
        [client.item(chunk(0), 0, 100_000), client.item(chunk(1), 0, 5000), client.item(chunk(0), 0, 100)];
    let out = client.read_items(2, &items).await.unwrap();
    assert_eq!(out[0], Err(Status::Corrupt));
    assert_eq!(out[1].as_ref().unwrap().data, bytes(10, 5000));
    assert_eq!(out[2].as_ref().unwrap().data, data[..100], "other blocks of the chunk are fine");
    assert_eq!(client.read(1, chunk(0), 0, 100_000).await.unwrap().data, data);
    assert_eq!(world.counted(2, "storage_corrupt_blocks_total"), 1);
}

#[tokio::test]
async fn a_resync_heals_a_damaged_chunk() {
    let mut world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(9, 100_000);
    client.write(1, chunk(0), 0, &data, 1).await.unwrap();
    world.identical(&[1, 2]).await;
    world.stop(2).await;
    world.take_out(2).await;
    world.damage(2, &data[8192..]);
    let client = world.client().await;
    client.write(1, chunk(0), 50_000, b"changed", 2).await.unwrap();
    world.start(2).await;
    world.bring_back(2).await;
    world.identical(&[1, 2]).await;
    let client = world.client().await;
    let read = client.read(2, chunk(0), 0, 100_000).await.unwrap();
    assert_eq!(read.data[..50_000], data[..50_000]);
}

#[tokio::test]
async fn a_broken_disk_leaves_its_chain_at_once_and_writes_go_on() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    world.nodes[&2].broken.store(true, std::sync::atomic::Ordering::SeqCst);
    let write = {
        let client = client.clone();
        tokio::spawn(async move { client.write(1, chunk(0), 0, b"behind", 2).await })
    };
    until("the target says that it is offline", || async {
        world.report(2).unwrap().local() == LocalState::Offline
    })
    .await;
    let report = world.running(2).report();
    assert!(report.disks[0].failed);
    assert_eq!(client.write(2, chunk(0), 0, b"x", 9).await, Err(Status::NotServing));
    world.change(&[(2, PublicState::Offline)]);
    assert_eq!(write.await.unwrap().unwrap().version, 2);
    world.adopted().await;
    assert_eq!(
        world.report(2).unwrap().local(),
        LocalState::Offline,
        "a broken disk never comes back by itself"
    );
    world.identical(&[1, 3]).await;
}

#[tokio::test]
async fn a_foreign_disk_is_refused_and_left_as_it_was() {
    let mut world = World::new(2).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"kept", 1).await.unwrap();
    for id in 1..=2 {
        world.stop(id).await;
    }
    let (one, two) = (world.path(1), world.path(2));
    let aside = one.with_extension("aside");
    std::fs::rename(&one, &aside).unwrap();
    std::fs::rename(&two, &one).unwrap();
    let error = world.try_start(1).await.unwrap_err();
    assert!(error.contains("belongs to node n2, not n1"), "{error}");
    std::fs::rename(&one, &two).unwrap();
    std::fs::rename(&aside, &one).unwrap();
    world.change(&[(1, PublicState::Lastsrv), (2, PublicState::Lastsrv)]);
    world.start(1).await;
    world.change(&[(1, PublicState::Serving), (2, PublicState::Offline)]);
    world.adopted().await;
    let client = world.client().await;
    assert_eq!(client.read(1, chunk(0), 0, 4).await.unwrap().data, b"kept");
}
