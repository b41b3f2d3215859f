//! What the engine promises its caller, one behaviour a test, on the simulated disk.

use std::ops::Bound;

use catena_buf::Buf;
use catena_engine::disk::File;
use catena_engine::sim::{Failure, SimConfig, SimDisk};
use catena_engine::{At, Engine, EngineError, Meta, Op, Options, ReadRequest, TagEntry};
use catena_proto::checksum::{crc32c, piece_checksums};
use catena_proto::ids::*;

use crate::common::*;

async fn on(disk: &SimDisk) -> Engine {
    fresh(&disk.attach()).await
}

async fn put(
    engine: &Engine,
    target: TargetId,
    index: u32,
    number: u64,
    op: Op,
) -> Result<Meta, EngineError> {
    engine.stage(target, chunk(index), version(number), None, op, None).await?;
    engine.commit(target, chunk(index), version(number))
}

async fn reopen(disk: &SimDisk, options: Options) -> Engine {
    Engine::open(disk.attach(), EXPECT, pool(), options).await.expect("opens")
}

#[tokio::test]
async fn a_full_disk_refuses_new_writes_and_keeps_what_it_has() {
    let disk = SimDisk::new(SimConfig::default());
    on(&disk).await.close().await.expect("closes");
    let full = Options { capacity: 8 << 20, reserve: 1 << 20, growth: 1 << 20, ..options() };
    let engine = reopen(&disk, full).await;
    let data = bytes(1, 300_000);
    let mut held = 0;
    let refused = loop {
        let op = write(None, 0, &data);
        let reservation = match engine.admit(T, chunk(held), &op) {
            Ok(reservation) => reservation,
            Err(error) => break error,
        };
        engine.stage(T, chunk(held), version(1), None, op, Some(reservation)).await.expect("was admitted");
        engine.commit(T, chunk(held), version(1)).expect("commits");
        held += 1;
    };
    // 512 KiB each, of 8 MiB without the reserve of 1 MiB.
    assert_eq!(held, 14);
    assert!(matches!(refused, EngineError::NoSpace { needed, free, reserve, .. }
        if (needed, free, reserve) == (512 << 10, 1 << 20, 1 << 20)));
    // What a predecessor has accepted already may use the reserve.
    for index in [100, 101] {
        put(&engine, T, index, 1, write(None, 0, &data)).await.expect("uses the reserve");
    }
    let error = put(&engine, T, 102, 1, write(None, 0, &data)).await.expect_err("there is nothing left");
    assert!(matches!(error, EngineError::NoSpace { .. }));
    assert_eq!(engine.chunk(T, chunk(102)), None);
    // Small overwrites, reads and removes go on.
    let small = write(None, 4096, &bytes(2, 4096));
    drop(engine.admit(T, chunk(0), &small).expect("an overwrite needs no space"));
    put(&engine, T, 0, 2, small).await.expect("overwrites");
    for index in (1..held).chain([100, 101]) {
        let read = engine.read(T, chunk(index), At::Committed, 0, MIB).await.expect("reads");
        assert!(read.data[..] == data[..]);
    }
    put(&engine, T, 5, 2, Op::Remove).await.expect("removes");
    put(&engine, T, 6, 2, Op::Remove).await.expect("removes");
    engine.maintain().await.expect("upkeep");
    put(&engine, T, 102, 1, write(None, 0, &data)).await.expect("there is room again");
    assert!(matches!(engine.read(T, chunk(5), At::Committed, 0, 1).await, Err(EngineError::NotFound(_))));
}

#[tokio::test]
async fn a_corrupt_block_never_passes_for_a_good_one() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    let data = bytes(3, 20_000);
    put(&engine, T, 0, 1, write(None, 0, &data)).await.expect("writes");
    let places = disk.find(File::Store, &data[9000..9032]);
    assert_eq!(places.len(), 1);
    disk.corrupt(File::Store, places[0], 0x10);
    let corrupt = EngineError::Corrupt { target: T, chunk: chunk(0), block: 2 };
    // A whole block goes out with its stored checksum: the client sees the difference.
    let read = engine.read(T, chunk(0), At::Committed, 8192, 4096).await.expect("reads");
    assert_ne!(crc32c(&read.data), read.crcs[0]);
    assert_eq!(engine.read(T, chunk(0), At::Committed, 8200, 10).await.err(), Some(corrupt.clone()));
    let checked = ReadRequest { chunk: chunk(0), at: At::Committed, offset: 0, len: MIB, verify: true };
    assert_eq!(engine.read_many(T, &[checked]).await.pop().and_then(Result::err), Some(corrupt.clone()));
    assert_eq!(engine.verify(T, chunk(0)).await, Err(corrupt.clone()));
    // An overwrite of part of the block would give bad bytes a good checksum.
    assert_eq!(put(&engine, T, 0, 2, write(None, 8300, b"new")).await, Err(corrupt));
    assert_eq!(engine.stats().corrupt, 4);
    // The neighbours are fine, and a write of the whole block heals it.
    put(&engine, T, 0, 2, write(None, 8192, &bytes(4, 4096))).await.expect("writes");
    engine.maintain().await.expect("upkeep");
    assert_eq!(engine.verify(T, chunk(0)).await, Ok(20_000));
}

#[tokio::test]
async fn a_failed_write_puts_the_disk_out_of_service_and_a_failed_read_does_not() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    put(&engine, T, 0, 1, write(None, 0, b"here")).await.expect("writes");
    disk.fail_at(1, Failure::Error);
    assert!(engine.read(T, chunk(0), At::Committed, 0, 4).await.is_err());
    assert_eq!(&engine.read(T, chunk(0), At::Committed, 0, 4).await.expect("reads").data[..], b"here");
    assert_eq!(engine.failure(), None);
    // An append into the last block reads it first, and that read may fail too: the write is refused, the disk stays.
    disk.fail_at(1, Failure::Error);
    put(&engine, T, 0, 2, write(None, 4, b" and gone")).await.expect_err("the old block cannot be read");
    assert_eq!(engine.failure(), None);
    disk.fail_at(2, Failure::Error);
    let error = put(&engine, T, 0, 2, write(None, 4, b" and gone")).await.expect_err("the disk failed");
    assert!(matches!(error, EngineError::DiskFailed { .. }), "{error}");
    assert!(engine.failure().is_some());
    assert!(matches!(
        engine.read(T, chunk(0), At::Committed, 0, 4).await,
        Err(EngineError::DiskFailed { .. })
    ));
    assert!(matches!(engine.set_target_state(T, b"x").await, Err(EngineError::DiskFailed { .. })));
    let engine = reopen(&disk, options()).await;
    assert_eq!(engine.pendings(T).len() + usize::from(engine.committed(T, chunk(0)).is_some()), 1);
}

#[tokio::test]
async fn versions_are_contiguous_and_nonsense_is_refused() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    let stage = async |number, op| engine.stage(T, chunk(0), version(number), None, op, None).await;
    assert!(matches!(stage(2, write(None, 0, b"x")).await, Err(EngineError::Gap { .. })));
    stage(1, write(None, 0, b"x")).await.expect("stages");
    assert!(matches!(stage(1, write(None, 0, b"x")).await, Err(EngineError::Gap { .. })));
    let crcs = piece_checksums(0, b"abc");
    let data = || placed(None, 0, b"abc");
    let write = |offset, chunk_size, crcs: &[u32]| Op::Write {
        offset,
        data: data(),
        crcs: crcs.to_vec(),
        chunk_size,
    };
    for op in [
        write(0, 5000, &crcs),
        write(0, 128 * MIB, &crcs),
        write(65535, 64 << 10, &crcs),
        write(u32::MAX, 64 * MIB, &crcs),
        write(0, 64 << 10, &[]),
        write(4095, 64 << 10, &crcs),
        Op::Write { offset: 0, data: placed(None, 0, b""), crcs: Vec::new(), chunk_size: MIB },
        Op::Truncate { length: u32::MAX },
        Op::Extend { length: 64 * MIB + 1 },
        Op::Replace { length: 2, data: vec![data()], crcs: crcs.clone() },
        Op::Replace { length: 9, data: vec![data(), data()], crcs: crcs.clone() },
        Op::Replace { length: 9, data: vec![data()], crcs: Vec::new() },
    ] {
        assert!(matches!(engine.admit(T, chunk(0), &op), Err(EngineError::Invalid { .. })), "{op:?}");
        assert!(matches!(stage(2, op.clone()).await, Err(EngineError::Invalid { .. })), "{op:?}");
    }
    let elsewhere = engine.stage(TargetId(99), chunk(0), version(1), None, Op::Remove, None).await;
    assert_eq!(elsewhere.err(), Some(EngineError::NoSuchTarget(TargetId(99))));
    assert!(engine.commit(T, chunk(0), version(2)).is_err());
    assert_eq!(engine.commit(T, chunk(0), version(1)).map(|meta| meta.length), Ok(1));
    assert_eq!(engine.commit(T, chunk(0), version(1)).map(|meta| meta.length), Ok(1));
}

#[tokio::test]
async fn a_pending_is_sent_again_as_it_was_staged_also_after_a_restart() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    let data = bytes(5, 9000);
    let ops = [
        write(None, 0, &data),
        write(None, 5000, b"overwritten"),
        Op::Truncate { length: 6000 },
        Op::Extend { length: 7000 },
        replace(None, 10_000, &data),
        Op::Remove,
        write(None, 10, b"again"),
    ];
    for (number, op) in (1..).zip(&ops) {
        engine.stage(T, chunk(0), version(number), None, op.clone(), None).await.expect("stages");
    }
    let mut engine = engine;
    for restart in [false, true] {
        if restart {
            engine = reopen(&disk, options()).await;
        }
        for (number, op) in (1..).zip(&ops) {
            let found = engine.read_op(T, chunk(0), version(number)).await.expect("is there");
            match (op, found) {
                (
                    Op::Write { offset, data, crcs, .. },
                    Op::Write { offset: at, data: same, crcs: sums, .. },
                ) => assert!((*offset, &data[..], crcs) == (at, &same[..], &sums)),
                (Op::Truncate { length }, Op::Truncate { length: same })
                | (Op::Extend { length }, Op::Extend { length: same }) => assert_eq!(*length, same),
                (Op::Replace { length, .. }, Op::Replace { length: same, data: parts, .. }) => {
                    let found: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
                    assert!(*length == same && found == data);
                }
                (Op::Remove, Op::Remove) => {}
                (op, found) => panic!("{op:?} came back as {found:?}"),
            }
        }
    }
}

#[tokio::test]
async fn targets_share_a_disk_and_nothing_else() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    let other = TargetId(12);
    engine.create_target(other).await.expect("creates");
    engine.create_target(other).await.expect("again is nothing");
    let empty = engine.stats().used;
    for index in 0..20 {
        put(&engine, T, index, 1, write(None, 0, &bytes(index, 5000))).await.expect("writes");
        put(&engine, other, index, 1, write(None, 0, &bytes(index + 100, 5000))).await.expect("writes");
    }
    engine.set_target_state(T, b"mine").await.expect("sets");
    engine.remove_target(other).await.expect("removes");
    engine.maintain().await.expect("upkeep");
    let mut engine = engine;
    for restart in [false, true] {
        if restart {
            engine = reopen(&disk, options()).await;
        }
        assert_eq!((engine.targets(), engine.target_state(T)), (vec![T], Ok(b"mine".to_vec())));
        assert_eq!(engine.chunk(other, chunk(0)), None);
        let read = engine.read(T, chunk(7), At::Committed, 0, MIB).await.expect("reads");
        assert!(read.data[..] == bytes(7, 5000));
        put(&engine, T, 99, 1, Op::Extend { length: 1 }).await.expect("works");
        engine.forget(T, chunk(99)).await.expect("forgets");
    }
    engine = reopen(&disk, options()).await;
    assert_eq!(engine.stats().used - empty, 20 * 8192);
}

#[tokio::test]
async fn a_base_voids_what_was_there_and_lower_numbers_count() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    for number in 1..6 {
        put(&engine, T, 0, number, write(None, 0, &bytes(number as u32, 9000))).await.expect("writes");
    }
    let other = VersionId { version: ChunkVersion(3), assigned: ChainVersion(9) };
    engine.install(T, chunk(0), other, replace(None, 4000, &bytes(50, 4000))).await.expect("installs");
    let meta = engine.committed(T, chunk(0)).expect("is there");
    assert_eq!((meta.version, meta.length), (other, 4000));
    let next = VersionId { version: ChunkVersion(2), assigned: ChainVersion(9) };
    engine.stage_rebase(T, chunk(0), next, None, Op::Remove).await.expect("stages");
    assert_eq!(engine.committed(T, chunk(0)), None);
    assert_eq!(engine.chunk(T, chunk(0)).expect("is there").pending, [next]);
    let engine = reopen(&disk, options()).await;
    assert_eq!(engine.committed(T, chunk(0)), None);
    assert!(engine.commit(T, chunk(0), next).expect("commits").tombstone);
    engine.forget(T, chunk(0)).await.expect("forgets");
    assert_eq!(engine.chunk(T, chunk(0)), None);
    put(&engine, T, 0, 1, write(None, 0, b"anew")).await.expect("begins at 1 again");
}

#[tokio::test]
async fn spooled_contents_take_no_space_unless_they_become_a_version() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    put(&engine, T, 9, 1, write(None, 0, b"x")).await.expect("writes");
    let used = engine.stats().used;
    let data = bytes(8, 3 * 4096 + 5);
    let spool = engine.spool(data.len() as u32).await.expect("there is room");
    assert_eq!(engine.stats().used, used + 16384);
    let part = async |offset: usize, len: usize| {
        let part = &data[offset..offset + len];
        let crcs = piece_checksums(0, part);
        engine.spool_write(&spool, offset as u32, placed(None, 0, part), &crcs).await
    };
    part(8192, 4096 + 5).await.expect("any order");
    assert!(part(1, 4096).await.is_err() && part(0, 100).await.is_err());
    let early = engine.install(T, chunk(0), version(1), Op::Spooled(spool.clone())).await;
    assert!(matches!(early, Err(EngineError::Invalid { .. })));
    part(0, 8192).await.expect("writes");
    engine.install(T, chunk(0), version(1), Op::Spooled(spool.clone())).await.expect("installs");
    let read = engine.read(T, chunk(0), At::Committed, 0, MIB).await.expect("reads");
    assert!(read.data[..] == data[..] && read.crcs == piece_checksums(0, &data));
    drop(engine.spool(100_000).await.expect("there is room"));
    put(&engine, T, 9, 2, write(None, 0, b"y")).await.expect("writes");
    engine.maintain().await.expect("upkeep");
    put(&engine, T, 9, 3, write(None, 0, b"z")).await.expect("writes");
    drop(engine);
    let engine = reopen(&disk, options()).await;
    assert_eq!(engine.stats().used, used + 16384 + 4096 * engine.pendings(T).len() as u64);
}

#[tokio::test]
async fn tags_are_merged_by_sequence_and_go_with_their_client() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    for number in 1..4 {
        let op = write(None, 0, b"x");
        let staged = engine.stage(T, chunk(0), version(number), Some(tag(1, 10 + number)), op, None);
        staged.await.expect("stages");
    }
    assert_eq!(engine.tag(T, ClientId(1), ChannelId(1)), None);
    engine.commit(T, chunk(0), version(2)).expect("commits");
    let sequence =
        |engine: &Engine, client| engine.tag(T, ClientId(client), ChannelId(1)).map(|tag| tag.sequence.0);
    assert_eq!(sequence(&engine, 1), Some(12));
    let entry = |client, sequence| TagEntry {
        client: ClientId(client),
        channel: ChannelId(1),
        sequence: Sequence(sequence),
        chunk: chunk(4),
        version: version(1),
        length: 1,
    };
    let tags: Vec<TagEntry> =
        (2..1500).map(|client| entry(client, 5)).chain([entry(1, 3), entry(2, 7)]).collect();
    engine.merge_tags(T, &tags).await.expect("merges");
    engine.forget_client(T, ClientId(3)).await.expect("forgets");
    for engine in [engine.clone(), reopen(&disk, options()).await, {
        let engine = reopen(&disk, options()).await;
        engine.close().await.expect("closes");
        reopen(&disk, options()).await
    }] {
        assert_eq!([1, 2, 3, 4].map(|client| sequence(&engine, client)), [Some(12), Some(7), None, Some(5)]);
        let page = engine.tags(T, Some((ClientId(2), ChannelId(1))), 3).expect("lists");
        assert_eq!(page.iter().map(|tag| tag.client.0).collect::<Vec<_>>(), [4, 5, 6]);
    }
    // A dropped pending's tag goes with it.
    let engine = reopen(&disk, options()).await;
    engine.drop_all_pending(T).await.expect("drops");
    assert_eq!(sequence(&engine, 1), Some(12));
}

#[tokio::test]
async fn many_chunks_are_listed_in_order_also_from_a_checkpoint() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    let id = |at: u32| ChunkId { inode: InodeId(u64::from(at) * 7919 % 5003), index: at % 3 };
    for at in 0..5003 {
        engine.stage(T, id(at), version(1), None, Op::Extend { length: at }, None).await.expect("stages");
        engine.commit(T, id(at), version(1)).expect("commits");
    }
    engine.close().await.expect("closes");
    let engine = reopen(&disk, options()).await;
    let mut all = Vec::new();
    let mut from = Bound::Unbounded;
    loop {
        let page = engine.list(T, from, Bound::Unbounded, 700).expect("lists");
        let Some(last) = page.last() else { break };
        from = Bound::Excluded(last.chunk);
        all.extend(page);
    }
    assert_eq!(all.len(), 5003);
    assert!(all.is_sorted_by_key(|info| info.chunk));
    for at in (0..5003).step_by(97) {
        assert_eq!(engine.committed(T, id(at)).map(|meta| meta.length), Some(at));
    }
    let none = engine.list(T, Bound::Excluded(id(5)), Bound::Excluded(id(5)), 10);
    assert_eq!(none, Ok(Vec::new()));
}

#[tokio::test]
async fn data_that_lies_right_is_not_copied() {
    let disk = SimDisk::new(SimConfig::default());
    let (engine, pool) = (on(&disk).await, pool());
    put(&engine, T, 0, 1, write(Some(&pool), 0, &bytes(1, 300_000))).await.expect("writes");
    put(&engine, T, 0, 2, write(Some(&pool), 300_000, &bytes(2, 300_000))).await.expect("appends");
    put(&engine, T, 0, 3, write(Some(&pool), 5000, &bytes(3, 200_000))).await.expect("overwrites");
    assert_eq!(engine.stats().copied, 0);
    let mut op = write(None, 0, &bytes(4, 700_000));
    if let Op::Write { data, .. } = &mut op {
        // Where no disk wants it, wherever the heap put it.
        let odd = |skip: usize| {
            Buf::from_vec([vec![0; skip], bytes(4, 700_000)].concat()).slice(skip..skip + 700_000)
        };
        *data = [odd(1), odd(2)]
            .into_iter()
            .find(|data| !(data.as_ptr() as usize).is_multiple_of(512))
            .expect("one is not aligned");
    }
    put(&engine, T, 0, 4, op).await.expect("writes from the heap");
    assert_eq!(engine.stats().copied, 700_000);
}

#[tokio::test]
async fn a_small_overwrite_costs_the_device_less_than_three_blocks() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    put(&engine, T, 0, 1, write(None, 0, &bytes(1, MIB as usize))).await.expect("writes");
    let before = engine.stats().device_written;
    for at in 0..200u32 {
        let op = write(None, at * 37 % 256 * 4096, &bytes(at, 4096));
        put(&engine, T, 0, u64::from(at) + 2, op).await.expect("overwrites");
    }
    engine.close().await.expect("closes");
    let each = (engine.stats().device_written - before) / 200;
    assert!(each <= 3 * 4096, "{each} bytes");
}

#[tokio::test]
async fn a_file_system_without_room_for_a_checkpoint_is_no_failure() {
    let disk = SimDisk::new(SimConfig::default());
    let engine = on(&disk).await;
    for index in 0..3000 {
        put(&engine, T, index, 1, write(None, 0, b"small")).await.expect("writes");
    }
    disk.set_capacity(0);
    assert!(matches!(engine.close().await, Err(EngineError::NoSpace { .. })));
    assert_eq!(engine.failure(), None);
    let engine = reopen(&disk, options()).await;
    for index in (0..3000).step_by(100) {
        let read = engine.read(T, chunk(index), At::Committed, 0, 10).await.expect("reads");
        assert_eq!(&read.data[..], b"small");
    }
    disk.set_capacity(1 << 30);
    engine.close().await.expect("there is room again");
    assert_eq!(reopen(&disk, options()).await.stats().chunks, 3000);
}
