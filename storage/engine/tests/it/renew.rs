//! A damaged version written anew in place of itself: what a repair may and may not do to its chunk.

use catena_engine::disk::File;
use catena_engine::sim::{Crash, Failure, SimConfig, SimDisk};
use catena_engine::{At, Engine, EngineError, Meta, Op};
use catena_proto::checksum::piece_checksums;
use catena_proto::ids::*;

use crate::common::*;

/// Bytes of block 2 that are nowhere else on the disk.
const MARK: &[u8] = b"this is the block that goes bad";

/// A chunk at version 2 with one bad block, its good bytes, and its disk.
async fn damaged(len: usize) -> (SimDisk, Engine, Vec<u8>) {
    let disk = SimDisk::new(SimConfig::default());
    let engine = fresh(&disk.attach()).await;
    let mut data = bytes(1, len);
    data[9100..9100 + MARK.len()].copy_from_slice(MARK);
    put(&engine, 1, write(None, 0, &data)).await;
    data[100..105].copy_from_slice(b"small");
    put(&engine, 2, write(None, 100, b"small")).await;
    engine.maintain().await.expect("marks and applies");
    let places = disk.find(File::Store, MARK);
    assert_eq!(places.len(), 1);
    disk.corrupt(File::Store, places[0], 0x40);
    assert!(matches!(engine.verify(T, chunk(0)).await, Err(EngineError::Corrupt { block: 2, .. })));
    (disk, engine, data)
}

async fn put(engine: &Engine, number: u64, op: Op) {
    engine.stage(T, chunk(0), version(number), None, op, None).await.expect("stages");
    engine.commit(T, chunk(0), version(number)).expect("commits");
}

async fn spooled(engine: &Engine, data: &[u8]) -> Op {
    let spool = engine.spool(data.len() as u32).await.expect("there is room");
    let crcs = piece_checksums(0, data);
    engine.spool_write(&spool, 0, placed(None, 0, data), &crcs).await.expect("writes");
    Op::Spooled(spool)
}

async fn reopened(disk: &SimDisk) -> Engine {
    Engine::open(disk.attach(), EXPECT, pool(), options()).await.expect("opens")
}

#[tokio::test]
async fn a_renewed_version_is_the_same_version_with_good_bytes() {
    let (disk, engine, data) = damaged(20_000).await;
    let (before, used) = (engine.committed(T, chunk(0)), engine.stats().used);
    let checksum = engine.checksum(T, chunk(0)).await;
    let op = spooled(&engine, &data).await;
    engine.renew(T, chunk(0), version(2), op).await.expect("renews");
    engine.maintain().await.expect("upkeep");
    let mut engine = engine;
    for restart in [false, true] {
        if restart {
            engine = reopened(&disk).await;
        }
        assert_eq!(engine.committed(T, chunk(0)), before);
        assert_eq!(engine.checksum(T, chunk(0)).await, checksum);
        assert_eq!(engine.verify(T, chunk(0)).await, Ok(20_000));
        let read = engine.read(T, chunk(0), At::Committed, 0, MIB).await.expect("reads");
        assert!(read.data[..] == data[..] && read.version == version(2));
        assert!(engine.pendings(T).is_empty());
    }
    put(&engine, 3, write(None, 0, b"on")).await;
    engine.maintain().await.expect("upkeep");
    assert_eq!(engine.stats().used, used, "the damaged copy's place is free again");
}

#[tokio::test]
async fn only_the_committed_version_is_renewed_and_only_while_nobody_writes() {
    let (_disk, engine, data) = damaged(20_000).await;
    let renew = async |number, op| engine.renew(T, chunk(0), version(number), op).await;
    let gone = |number| Err(EngineError::NoSuchVersion { chunk: chunk(0), version: version(number) });
    assert_eq!(renew(1, replace(None, 20_000, &data)).await, gone(1));
    assert_eq!(renew(3, replace(None, 20_000, &data)).await, gone(3));
    let elsewhere = VersionId { assigned: ChainVersion(7), ..version(2) };
    assert!(engine.renew(T, chunk(0), elsewhere, replace(None, 20_000, &data)).await.is_err());
    for op in [
        replace(None, 19_999, &data[..19_999]),
        replace(None, 20_000, &data[..4096]),
        Op::Remove,
        write(None, 0, &data),
    ] {
        assert!(matches!(renew(2, op).await, Err(EngineError::Invalid { .. })));
    }
    engine.stage(T, chunk(0), version(3), None, write(None, 0, b"x"), None).await.expect("stages");
    assert!(matches!(renew(2, replace(None, 20_000, &data)).await, Err(EngineError::Busy { .. })));
    engine.commit(T, chunk(0), version(3)).expect("commits");
    engine.maintain().await.expect("marks");
    assert_eq!(renew(2, replace(None, 20_000, &data)).await, gone(2));
    put(&engine, 4, Op::Remove).await;
    engine.maintain().await.expect("marks");
    assert!(renew(4, replace(None, 0, b"")).await.is_err(), "a tombstone has nothing to renew");
    assert_eq!(engine.renew(T, chunk(9), version(1), replace(None, 0, b"")).await.err(), {
        Some(EngineError::NoSuchVersion { chunk: chunk(9), version: version(1) })
    });
}

#[tokio::test]
async fn readers_and_writers_go_on_while_a_version_is_renewed() {
    let (disk, engine, mut data) = damaged(20_000).await;
    let op = spooled(&engine, &data).await;
    // It has its place and is not polled yet: readers find the old copy, the next version is staged on top of the new one.
    let renewing = engine.renew(T, chunk(0), version(2), op);
    let meta = Meta { version: version(2), length: 20_000, tombstone: false };
    assert_eq!(engine.committed(T, chunk(0)), Some(meta));
    assert!(engine.chunk(T, chunk(0)).expect("is there").pending.is_empty());
    let read = engine.read(T, chunk(0), At::Committed, 0, 4096).await.expect("good blocks are read");
    assert!(read.data[..] == data[..4096]);
    let read = engine.read(T, chunk(0), At::Version(version(2)), 0, 4096).await.expect("by name too");
    assert!(read.data[..] == data[..4096]);
    let writing = engine.stage(T, chunk(0), version(3), None, write(None, 9000, b"over the bad block"), None);
    let (renewed, written) = tokio::join!(renewing, writing);
    assert_eq!((renewed.map(|_| ()), written.map(|_| ())), (Ok(()), Ok(())));
    engine.commit(T, chunk(0), version(3)).expect("commits");
    data[9000..9018].copy_from_slice(b"over the bad block");
    let mut engine = engine;
    for restart in [false, true] {
        if restart {
            engine.maintain().await.expect("marks");
            engine = reopened(&disk).await;
        }
        assert_eq!(engine.committed(T, chunk(0)), Some(Meta { version: version(3), ..meta }));
        let read = engine.read(T, chunk(0), At::Committed, 0, MIB).await.expect("reads");
        assert!(read.data[..] == data[..]);
        assert_eq!(engine.verify(T, chunk(0)).await, Ok(20_000));
    }
}

#[tokio::test]
async fn a_crash_in_mid_renewal_leaves_the_damaged_copy_or_the_good_one() {
    let (mut left, mut renewed) = (0, 0);
    for at in 1..40 {
        for crash in [Crash::Power, Crash::Process] {
            let (disk, engine, data) = damaged(20_000).await;
            disk.fail_at(at, Failure::Cut);
            let renewal = async {
                let spool = engine.spool(20_000).await?;
                let crcs = piece_checksums(0, &data);
                engine.spool_write(&spool, 0, placed(None, 0, &data), &crcs).await?;
                engine.renew(T, chunk(0), version(2), Op::Spooled(spool)).await?;
                engine.maintain().await
            };
            let ended = renewal.await;
            disk.crash(crash);
            let engine = reopened(&disk).await;
            let meta = engine.committed(T, chunk(0)).expect("the version is never gone");
            assert_eq!((meta.version, meta.length), (version(2), 20_000));
            match engine.verify(T, chunk(0)).await {
                Ok(_) => {
                    let read = engine.read(T, chunk(0), At::Committed, 0, MIB).await.expect("reads");
                    assert!(read.data[..] == data[..]);
                    renewed += 1;
                }
                Err(EngineError::Corrupt { block: 2, .. }) => {
                    assert!(ended.is_err(), "a renewal that was reported as done was lost (operation {at})");
                    left += 1;
                }
                Err(error) => panic!("operation {at}: {error}"),
            }
        }
    }
    assert!(left > 0 && renewed > 0, "{left} left, {renewed} renewed: the cuts hit nothing");
}
