//! Writes and reads through chains of one, two and three replicas while nothing fails.

mod support;

use catena_proto::checksum;
use catena_proto::frame::WriteKind;
use catena_proto::ids::*;
use catena_proto::status::Status;
use futures_util::future::join_all;
use support::*;

#[tokio::test]
async fn what_is_written_is_read_from_every_replica_and_all_are_identical() {
    for replicas in 1..=3 {
        let world = World::new(replicas).await;
        let client = world.client().await;
        let data = bytes(1, 300_000);
        let written = client.write(1, chunk(0), 0, &data, 1).await.unwrap();
        assert_eq!(written, Written { version: 1, assigned: 1, length: 300_000 });
        let small = client.write(1, chunk(0), 5000, &bytes(2, 100), 2).await.unwrap();
        assert_eq!((small.version, small.length), (2, 300_000));
        let mut expected = data;
        expected[5000..5100].copy_from_slice(&bytes(2, 100));
        for node in 1..=replicas {
            let read = client.read(node, chunk(0), 0, CHUNK_SIZE).await.unwrap();
            assert_eq!(read, ReadOut { version: 2, chunk_length: 300_000, data: expected.clone() });
            let read = client.read(node, chunk(0), 4999, 7).await.unwrap();
            assert_eq!(read.data, expected[4999..5006]);
            assert!(client.read(node, chunk(0), 400_000, 10).await.unwrap().data.is_empty());
            assert_eq!(client.read(node, chunk(1), 0, 10).await, Err(Status::NotFound));
        }
        world.identical(&(1..=replicas).collect::<Vec<_>>()).await;
    }
}

#[tokio::test]
async fn lengths_follow_truncate_extend_and_remove_everywhere() {
    let world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, &bytes(1, 10_000), 1).await.unwrap();
    assert_eq!(client.mutate(1, chunk(0), WriteKind::Truncate, 5000, 2).await.unwrap().length, 5000);
    assert_eq!(client.mutate(1, chunk(0), WriteKind::Extend, 3000, 3).await.unwrap().length, 5000);
    assert_eq!(client.mutate(1, chunk(0), WriteKind::Extend, 9000, 4).await.unwrap().length, 9000);
    let mut expected = bytes(1, 5000);
    expected.resize(9000, 0);
    for node in 1..=3 {
        assert_eq!(client.read(node, chunk(0), 0, 20_000).await.unwrap().data, expected);
        assert_eq!(client.last(node, 42).await.unwrap().unwrap().length.get(), 9000);
    }
    client.mutate(1, chunk(0), WriteKind::Remove, 0, 5).await.unwrap();
    for node in 1..=3 {
        assert_eq!(client.read(node, chunk(0), 0, 10).await, Err(Status::NotFound));
        assert_eq!(client.last(node, 42).await, Ok(None));
        assert!(client.list(node, 0, 10, false).await.unwrap().is_empty());
    }
    // A removed chunk may be written again, and its history goes on.
    assert_eq!(client.write(1, chunk(0), 0, b"anew", 6).await.unwrap().version, 6);
    world.identical(&[1, 2, 3]).await;
}

#[tokio::test]
async fn many_writes_to_one_chunk_at_once_make_one_history() {
    let world = World::new(3).await;
    let client = world.client().await;
    let writes = (0..64_u32).map(|i| {
        let client = Client { id: ClientId(2000 + u64::from(i)), ..client.clone() };
        async move { client.write(1, chunk(0), i * 4000, &bytes(i.into(), 6000), 1).await.unwrap().version }
    });
    let mut versions = join_all(writes).await;
    versions.sort();
    assert_eq!(versions, (1..=64).collect::<Vec<_>>());
    world.identical(&[1, 2, 3]).await;
    let copies = join_all((1..=3).map(|node| client.read(node, chunk(0), 0, CHUNK_SIZE))).await;
    assert_eq!(copies[0], copies[1]);
    assert_eq!(copies[1], copies[2]);
    assert_eq!(copies[0].as_ref().unwrap().chunk_length, 63 * 4000 + 6000);
}

#[tokio::test]
async fn reads_beside_writes_see_whole_writes_that_never_go_back() {
    let world = World::new(3).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, &[0; 8192], 1).await.unwrap();
    let writing = async {
        for i in 1..=50_u8 {
            client.write(1, chunk(0), 0, &[i; 8192], u64::from(i) + 1).await.unwrap();
        }
    };
    let reading = |node| {
        let client = client.clone();
        async move {
            let mut seen = 0;
            while seen < 50 {
                let read = client.read(node, chunk(0), 0, 8192).await.unwrap();
                assert!(read.data.iter().all(|&byte| byte == read.data[0]), "a mixture of two writes");
                assert!(read.data[0] >= seen, "{} after {seen} at node {node}", read.data[0]);
                assert_eq!(read.version, u64::from(read.data[0]) + 1);
                seen = read.data[0];
            }
        }
    };
    tokio::join!(writing, reading(1), reading(2), reading(3));
}

#[tokio::test]
async fn a_retry_is_applied_once_and_gets_the_first_answer() {
    let world = World::new(2).await;
    let client = world.client().await;
    let first = client.write(1, chunk(0), 0, b"first", 1).await.unwrap();
    assert_eq!(client.write(1, chunk(0), 0, b"first", 1).await.unwrap(), first);
    // Twice at once: one of them attaches to the other.
    let both =
        join_all([client.write(1, chunk(0), 5, b" twice", 2), client.write(1, chunk(0), 5, b" twice", 2)])
            .await;
    assert_eq!(both[0], both[1]);
    assert_eq!(both[0].unwrap(), Written { version: 2, assigned: 1, length: 11 });
    assert_eq!(client.write(1, chunk(0), 0, b"late!", 1).await, Err(Status::StaleSequence));
    assert_eq!(client.read(2, chunk(0), 0, 100).await.unwrap().data, b"first twice");
    // The retry of a write whose chunk is gone by now still gets its answer.
    client.mutate(1, chunk(0), WriteKind::Remove, 0, 3).await.unwrap();
    assert_eq!(client.mutate(1, chunk(0), WriteKind::Remove, 0, 3).await.unwrap().version, 3);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_and_change_nothing() {
    let world = World::new(2).await;
    let client = world.client().await;
    let data = bytes(1, 100);
    let crcs = checksum::piece_checksums(0, &data);
    let good = client.head(chunk(0), WriteKind::Write, 0, &data, 1);
    let send = |head, crcs: Vec<u32>| {
        let (client, data) = (client.clone(), data.clone());
        async move { client.send(1, head, &data, &crcs).await.unwrap_err() }
    };
    let mut bad = good;
    bad.chunk_size = 100_000.into();
    assert_eq!(send(bad, crcs.clone()).await, Status::Invalid);
    let mut bad = good;
    bad.offset = (CHUNK_SIZE - 50).into();
    assert_eq!(send(bad, crcs.clone()).await, Status::Invalid);
    let mut bad = good;
    bad.length = 99.into();
    assert_eq!(send(bad, crcs.clone()).await, Status::Malformed);
    let mut bad = good;
    bad.kind = 77;
    assert_eq!(send(bad, crcs.clone()).await, Status::Malformed);
    assert_eq!(send(good, vec![crcs[0] ^ 1]).await, Status::Damaged);
    let mut bad = good;
    bad.chain = 9.into();
    assert_eq!(send(bad, crcs.clone()).await, Status::NotServing);
    let truncate = client.mutate(1, chunk(0), WriteKind::Truncate, CHUNK_SIZE + 1, 1).await;
    assert_eq!(truncate, Err(Status::Invalid));
    assert_eq!(client.read(1, chunk(0), 0, 10).await, Err(Status::NotFound));
    client.send(1, good, &data, &crcs).await.unwrap();
}

#[tokio::test]
async fn a_bad_item_spoils_nothing_for_the_rest_of_its_batch() {
    let world = World::new(1).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, &bytes(1, 9000), 1).await.unwrap();
    client.write(1, chunk(7), 0, &bytes(2, 9000), 1).await.unwrap();
    let mut elsewhere = client.item(chunk(0), 0, 10);
    elsewhere.chain = 99.into();
    let mut old = client.item(chunk(0), 0, 10);
    old.chain_version = 0.into();
    let items = [
        client.item(chunk(0), 100, 5000),
        client.item(chunk(1), 0, 10),
        elsewhere,
        client.item(chunk(0), 0, 0),
        old,
        client.item(chunk(7), 0, 9000),
    ];
    let out = client.read_items(1, &items).await.unwrap();
    assert_eq!(out[0].as_ref().unwrap().data, bytes(1, 9000)[100..5100]);
    assert_eq!(out[1], Err(Status::NotFound));
    assert_eq!(out[2], Err(Status::NotServing));
    assert_eq!(out[3], Err(Status::Invalid));
    assert_eq!(out[4], Err(Status::StaleRouting));
    assert_eq!(out[5].as_ref().unwrap().data, bytes(2, 9000));
}

#[tokio::test]
async fn only_the_head_takes_writes_and_only_in_its_chain_version() {
    let world = World::new(3).await;
    let client = world.client().await;
    assert_eq!(client.write(2, chunk(0), 0, b"x", 1).await, Err(Status::NotHead));
    assert_eq!(client.write(3, chunk(0), 0, b"x", 1).await, Err(Status::NotHead));
    let old = Client { version: ChainVersion(0), ..client.clone() };
    assert_eq!(old.write(1, chunk(0), 0, b"x", 1).await, Err(Status::StaleRouting));
    let ahead = Client { version: ChainVersion(2), ..client.clone() };
    assert_eq!(ahead.write(1, chunk(0), 0, b"x", 1).await, Err(Status::NotYet));
    assert_eq!(ahead.read(2, chunk(0), 0, 1).await, Err(Status::NotYet));
}

#[tokio::test]
async fn the_last_chunk_is_found_behind_holes_and_tombstones() {
    let world = World::new(1).await;
    let client = world.client().await;
    for index in [0, 3, 1000, 70_000, 70_001, 70_002] {
        client.write(1, chunk(index), 0, &bytes(1, index as usize % 900 + 1), 1).await.unwrap();
    }
    let last =
        |client: Client| async move { client.last(1, 42).await.unwrap().map(|entry| entry.index.get()) };
    assert_eq!(last(client.clone()).await, Some(70_002));
    for (index, before) in [(70_002, 70_001), (70_001, 70_000), (70_000, 1000), (1000, 3)] {
        client.mutate(1, chunk(index), WriteKind::Remove, 0, 2).await.unwrap();
        assert_eq!(last(client.clone()).await, Some(before));
    }
    let listed = client.list(1, 0, 1, false).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(client.last(1, 43).await, Ok(None));
}

#[tokio::test]
async fn without_a_lease_nothing_is_served() {
    let mut world = World::new(1).await;
    let client = world.client().await;
    client.write(1, chunk(0), 0, b"x", 1).await.unwrap();
    // A start of its own keeps the routing but gets a lease that was never renewed.
    world.stop(1).await;
    world.start_without_lease(1).await;
    world.take_lastsrv_back(1).await;
    let client = world.client().await;
    assert_eq!(client.write(1, chunk(0), 0, b"y", 2).await, Err(Status::NoLease));
    assert_eq!(client.read(1, chunk(0), 0, 1).await, Err(Status::NoLease));
    assert_eq!(client.last(1, 42).await, Err(Status::NoLease));
    world.renew(1);
    assert_eq!(client.read(1, chunk(0), 0, 1).await.unwrap().data, b"x");
    client.write(1, chunk(0), 0, b"y", 2).await.unwrap();
}
