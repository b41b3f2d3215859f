//! Replicas fail, return and are brought up to date while clients go on.

mod support;

use std::time::Duration;

use catena_net::PeerId;
use catena_net::mem::Weather;
use catena_proto::frame::WriteKind;
use catena_proto::ids::NodeId;
use catena_proto::routing::PublicState;
use catena_proto::status::Status;
use support::*;

/// A write that is under way until the chain changes.
fn under_way(
    client: &Client,
    node: u32,
    data: &'static [u8],
    sequence: u64,
) -> tokio::task::JoinHandle<Result<Written, Status>> {
    let client = client.clone();
    tokio::spawn(async move { client.write(node, chunk(0), 0, data, sequence).await })
}

/// Until every one of these replicas has so many pending versions.
async fn pending(world: &World, ids: &[u32], count: u32) {
    until("the write is pending", || async {
        for &id in ids {
            let contents = world.contents(id).await;
            if contents.iter().map(|entry| entry.pending.get()).sum::<u32>() != count {
                return false;
            }
        }
        true
    })
    .await;
}

#[tokio::test]
async fn a_write_survives_the_loss_of_the_tail() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    world.crash(3);
    let write = under_way(&client, 1, b"behind", 2);
    pending(&world, &[1, 2], 1).await;
    world.take_out(3).await;
    assert_eq!(write.await.unwrap().unwrap().version, 2);
    let client = world.client().await;
    assert_eq!(client.read(2, chunk(0), 0, 10).await.unwrap().data, b"behind");
    world.identical(&[1, 2]).await;
}

#[tokio::test]
async fn what_is_on_its_way_to_a_slow_successor_is_not_sent_again() {
    let world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    let forwards = || world.counted(2, "storage_operations_total{op=\"forward\"");
    assert_eq!(forwards(), 1);
    // Slower than what has not moved waits until it is sent again.
    let slow = Weather { delay: Duration::from_millis(2500), ..Weather::default() };
    world.net.set_weather_between(PeerId::Node(NodeId(1)), PeerId::Node(NodeId(2)), Some(slow));
    assert_eq!(client.write(1, chunk(0), 0, b"behind", 2).await.unwrap().version, 2);
    // Behind everything that was sent before.
    client.write(1, chunk(0), 0, b"onward", 3).await.unwrap();
    world.identical(&[1, 2, 3]).await;
    assert_eq!(forwards(), 3, "once each");
}

#[tokio::test]
async fn a_write_survives_the_loss_of_the_middle() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    world.crash(2);
    let write = under_way(&client, 1, b"behind", 2);
    pending(&world, &[1], 1).await;
    world.take_out(2).await;
    assert_eq!(write.await.unwrap().unwrap().version, 2);
    world.identical(&[1, 3]).await;
}

#[tokio::test]
async fn a_write_survives_the_loss_of_the_head_and_its_retry_finds_it() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    // The acknowledgement never reaches the head.
    world.cut(2, 1);
    let write = under_way(&client, 1, b"behind", 2);
    until("the tail has committed", || async {
        client.read(3, chunk(0), 0, 10).await.is_ok_and(|read| read.data == b"behind")
    })
    .await;
    world.crash(1);
    write.abort();
    world.net.heal();
    world.take_out(1).await;
    let client = world.client().await;
    let again = client.write(2, chunk(0), 0, b"behind", 2).await.unwrap();
    assert_eq!((again.version, again.assigned), (2, 1), "the first application's answer");
    assert_eq!(client.write(2, chunk(0), 0, b"onward", 3).await.unwrap().version, 3);
    world.identical(&[2, 3]).await;
}

#[tokio::test]
async fn a_dirty_chunk_is_read_as_the_tail_says() {
    let world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    // Committed at the tail, pending at the head for want of the acknowledgement.
    world.cut(2, 1);
    let write = under_way(&client, 1, b"behind", 2);
    until("the tail has committed", || async {
        client.read(3, chunk(0), 0, 10).await.is_ok_and(|read| read.data == b"behind")
    })
    .await;
    assert_eq!(client.read(1, chunk(0), 0, 10).await.unwrap().data, b"behind");
    write.abort();
}

#[tokio::test]
async fn a_pending_version_that_the_tail_does_not_have_is_not_read() {
    let world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    world.cut(2, 3);
    let write = under_way(&client, 1, b"behind", 2);
    pending(&world, &[1, 2], 1).await;
    assert_eq!(client.read(1, chunk(0), 0, 10).await.unwrap().data, b"before");
    world.net.heal();
    assert!(write.await.unwrap().is_ok(), "what was lost is sent again");
    world.identical(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_returning_replica_gets_what_it_missed_and_loses_what_is_gone() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    for index in 0..40 {
        client.write(1, chunk(index), 0, &bytes(index.into(), 3000), 1).await.unwrap();
    }
    world.crash(3);
    world.take_out(3).await;
    let client = world.client().await;
    for index in 0..40 {
        match index % 4 {
            0 => drop(client.write(1, chunk(index), 1000, &bytes(99, 5000), 2).await.unwrap()),
            1 => drop(client.mutate(1, chunk(index), WriteKind::Remove, 0, 2).await.unwrap()),
            2 => drop(client.mutate(1, chunk(index), WriteKind::Truncate, 10, 2).await.unwrap()),
            _ => {}
        }
    }
    client.write(1, chunk(100), 0, &bytes(7, 100_000), 1).await.unwrap();
    world.start(3).await;
    world.bring_back(3).await;
    world.identical(&[1, 2, 3]).await;
    // It knows the writes that it was away for.
    let client = world.client().await;
    world.take_out(1).await;
    world.take_out(2).await;
    let client = Client { version: world.version(), ..client };
    let again = client.mutate(3, chunk(1), WriteKind::Remove, 0, 2).await.unwrap();
    assert_eq!((again.version, again.assigned), (2, 2));
    assert_eq!(client.read(3, chunk(100), 0, CHUNK_SIZE).await.unwrap().data, bytes(7, 100_000));
}

#[tokio::test]
async fn an_empty_disk_is_filled_while_writes_go_on() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    for index in 0..50 {
        client.write(1, chunk(index), 0, &bytes(index.into(), 20_000), 1).await.unwrap();
    }
    world.crash(2);
    world.take_out(2).await;
    world.exchange_disk(2);
    world.start(2).await;
    world.assign_disk(2);
    let writer = |first: u32, client: Client| async move {
        for round in 0..20_u64 {
            for index in (first..60).step_by(7) {
                client
                    .write(1, chunk(index), (round * 1000) as u32, &bytes(round, 1500), round + 2)
                    .await
                    .unwrap();
            }
        }
    };
    world.publish();
    world.begin_sync(2).await;
    world.adopted().await;
    let client = world.client().await;
    tokio::join!(writer(0, client.clone()), writer(3, client.clone()));
    world.finish_sync(2).await;
    world.identical(&[1, 3, 2]).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"after", 100).await.unwrap();
    assert_eq!(client.read(2, chunk(0), 0, 5).await.unwrap().data, b"after");
}

#[tokio::test]
async fn a_long_chunk_is_brought_over_in_parts() {
    let mut world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(5, 4 << 20);
    let size = 16 << 20;
    for part in 0..3_u32 {
        let mut head = client.head(chunk(0), WriteKind::Write, part * (4 << 20), &data, u64::from(part) + 1);
        head.chunk_size = size.into();
        let crcs = catena_proto::checksum::piece_checksums(0, &data);
        client.send(1, head, &data, &crcs).await.unwrap();
    }
    client.write(1, chunk(1), 0, b"short", 1).await.unwrap();
    world.crash(2);
    world.take_out(2).await;
    world.exchange_disk(2);
    world.start(2).await;
    world.assign_disk(2);
    world.publish();
    world.begin_sync(2).await;
    world.adopted().await;
    let client = world.client().await;
    let mut head = client.head(chunk(0), WriteKind::Write, 100, b"in between", 4);
    head.chunk_size = size.into();
    client
        .send(1, head, b"in between", &catena_proto::checksum::piece_checksums(100, b"in between"))
        .await
        .unwrap();
    world.finish_sync(2).await;
    world.identical(&[1, 2]).await;
    let client = world.client().await;
    let read = client.read(2, chunk(0), 0, 4 << 20).await.unwrap();
    assert_eq!(&read.data[100..110], b"in between");
    assert_eq!(read.data[110..], data[110..]);
    assert_eq!(read.chunk_length, 12 << 20);
}

#[tokio::test]
async fn pendings_of_the_last_one_left_are_committed_when_it_returns() {
    let mut world = World::new(2).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    world.crash(2);
    let write = under_way(&client, 1, b"behind", 2);
    pending(&world, &[1], 1).await;
    world.crash(1);
    write.abort();
    world.change(&[(2, PublicState::Offline)]);
    world.start(1).await;
    world.take_lastsrv_back(1).await;
    let client = world.client().await;
    assert_eq!(client.read(1, chunk(0), 0, 10).await.unwrap().data, b"behind");
    let again = client.write(1, chunk(0), 0, b"behind", 2).await.unwrap();
    assert_eq!((again.version, again.assigned), (2, 1));
    world.start(2).await;
    world.bring_back(2).await;
    world.identical(&[1, 2]).await;
}

#[tokio::test]
async fn everything_is_there_after_a_clean_stop_of_all() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    for index in 0..10 {
        client.write(1, chunk(index), 0, &bytes(index.into(), 10_000), 1).await.unwrap();
    }
    for id in 1..=3 {
        world.stop(id).await;
    }
    let lost = [(1, PublicState::Lastsrv), (2, PublicState::Lastsrv), (3, PublicState::Lastsrv)];
    world.change(&lost);
    for id in 1..=3 {
        world.start(id).await;
    }
    world.change(&[(2, PublicState::Serving), (1, PublicState::Offline), (3, PublicState::Offline)]);
    world.adopted().await;
    let client = world.client().await;
    assert_eq!(client.read(2, chunk(9), 0, 10_000).await.unwrap().data, bytes(9, 10_000));
    world.bring_back(3).await;
    world.bring_back(1).await;
    world.identical(&[1, 2, 3]).await;
}

#[tokio::test]
async fn the_predecessor_may_change_in_the_middle_of_a_resync() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    for index in 0..100 {
        client.write(1, chunk(index), 0, &bytes(index.into(), 50_000), 1).await.unwrap();
    }
    world.crash(3);
    world.take_out(3).await;
    world.exchange_disk(3);
    world.start(3).await;
    world.assign_disk(3);
    world.publish();
    world.begin_sync(3).await;
    until("some chunks are over", || async { world.contents(3).await.len() > 10 }).await;
    world.crash(2);
    world.take_out(2).await;
    let client = world.client().await;
    client.write(1, chunk(50), 10, b"meanwhile", 2).await.unwrap();
    world.finish_sync(3).await;
    world.identical(&[1, 3]).await;
}

#[tokio::test]
async fn a_replica_that_is_late_with_the_routing_delays_but_loses_nothing() {
    let mut world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"before", 1).await.unwrap();
    world.crash(2);
    world.deaf.insert(3);
    world.take_out(2).await;
    let client = Client { deadline: Duration::from_secs(20), ..world.client().await };
    let write = under_way(&client, 1, b"behind", 2);
    pending(&world, &[1], 1).await;
    world.deaf.clear();
    world.publish();
    assert_eq!(write.await.unwrap().unwrap().version, 2);
    world.identical(&[1, 3]).await;
}
