//! Real directories, with each backend.

use std::sync::Arc;

use catena_engine::disk::{Backend, DirConfig, Disk, open_dir};
use catena_engine::{At, DiskError, Engine, EngineError, Expect, Op, ReadRequest};
use catena_proto::checksum::piece_checksums;
use catena_proto::ids::{ClusterId, NodeId};

use crate::common::*;

fn open(path: &std::path::Path, backend: Backend) -> Arc<dyn Disk> {
    open_dir(path, DirConfig { backend, region: None }).expect("opens the directory")
}

async fn holds(engine: &Engine, index: u32, expected: &[u8]) {
    let read = engine.read(T, chunk(index), At::Committed, 0, 4 * MIB).await.expect("reads");
    assert_eq!(read.data.len(), expected.len());
    assert!(&read.data[..] == expected, "chunk {index} has other bytes");
    assert_eq!(read.crcs, piece_checksums(0, expected));
}

async fn life_of_a_chunk(backend: Backend) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut model, pool) = (Vec::new(), pool());
    {
        let disk = open(dir.path(), backend);
        let engine = fresh(&disk).await;
        let mut number = 0;
        for (offset, len) in [
            (0u32, 3000usize),
            (3000, 5000),
            (8000, 192),
            (100, 50),
            (4096, 4096),
            (0, 300_000),
            (300_000, 1_000_000),
            (50_000, 200_000),
            (2_000_000, 10),
            (1, 1),
        ] {
            number += 1;
            let data = bytes(number as u32, len);
            if model.len() < offset as usize + len {
                model.resize(offset as usize + len, 0);
            }
            model[offset as usize..offset as usize + len].copy_from_slice(&data);
            let pool = (number % 2 == 0).then_some(&pool);
            let op = write(pool, offset, &data);
            let reservation = engine.admit(T, chunk(0), &op).expect("room");
            let staged = engine.stage(T, chunk(0), version(number), None, op, Some(reservation)).await;
            assert_eq!(staged.expect("stages").length as usize, model.len());
            engine.commit(T, chunk(0), version(number)).expect("commits");
            holds(&engine, 0, &model).await;
            if number % 3 == 0 {
                engine.maintain().await.expect("upkeep");
                holds(&engine, 0, &model).await;
            }
        }
        for (op, length) in [
            (Op::Truncate { length: 5001 }, 5001),
            (Op::Extend { length: 9000 }, 9000),
            (Op::Extend { length: 10 }, 9000),
        ] {
            number += 1;
            model.truncate(length);
            model.resize(length, 0);
            engine.stage(T, chunk(0), version(number), None, op, None).await.expect("stages");
            engine.commit(T, chunk(0), version(number)).expect("commits");
            if length == 5001 {
                model.truncate(5001);
            }
            holds(&engine, 0, &model).await;
        }
        model[5001..].fill(0);
        assert_eq!(engine.verify(T, chunk(0)).await, Ok(9000));
        let all = [model.clone(), vec![0; 4096 - 9000 % 4096]].concat();
        assert_eq!(engine.checksum(T, chunk(0)).await, Ok(catena_proto::checksum::crc32c(&all)));
        // A second chunk stays pending.
        let op = write(Some(&pool), 0, &bytes(99, 70_000));
        engine.stage(T, chunk(1), version(1), Some(tag(5, 6)), op, None).await.expect("stages");
    }
    let disk = open(dir.path(), backend);
    let engine = Engine::open(disk, EXPECT, pool, options()).await.expect("recovers");
    // Commit marks may be volatile, versions are not.
    for pending in engine.pendings(T).into_iter().filter(|pending| pending.chunk == chunk(0)) {
        engine.commit(T, chunk(0), pending.id).expect("commits");
    }
    holds(&engine, 0, &model).await;
    let state = engine.chunk(T, chunk(1)).expect("is there");
    assert_eq!((state.committed, &state.pending[..]), (None, &[version(1)][..]));
    engine.commit(T, chunk(1), version(1)).expect("commits");
    holds(&engine, 1, &bytes(99, 70_000)).await;
    assert_eq!(engine.tag(T, tag(5, 6).client, tag(5, 6).channel).map(|tag| tag.length), Some(70_000));
    let requests: Vec<ReadRequest> = (0..40)
        .map(|at| ReadRequest {
            chunk: chunk(1),
            at: At::Committed,
            offset: at * 1700,
            len: 1000,
            verify: at % 2 == 0,
        })
        .collect();
    let expected = bytes(99, 70_000);
    for (request, read) in requests.iter().zip(engine.read_many(T, &requests).await) {
        let read = read.expect("reads");
        let range = request.offset as usize..request.offset as usize + 1000;
        assert!(read.data[..] == expected[range]);
        assert_eq!(read.crcs, piece_checksums(request.offset, &read.data));
    }
    engine.close().await.expect("closes");
    assert!(matches!(engine.commit(T, chunk(1), version(1)), Err(EngineError::DiskFailed { .. })));
}

#[tokio::test]
async fn a_chunk_lives_on_io_uring() {
    life_of_a_chunk(Backend::Auto).await;
}

#[tokio::test]
async fn a_chunk_lives_on_threads() {
    life_of_a_chunk(Backend::Threads).await;
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(dir.path(), Backend::Threads);
    let refused = open_dir(dir.path(), DirConfig::default()).err().expect("is refused");
    assert_eq!(refused, DiskError::Locked { path: dir.path().to_path_buf() });
    assert!(refused.to_string().contains(&*dir.path().to_string_lossy()));
    drop(first);
    open(dir.path(), Backend::Threads);
}

#[tokio::test]
async fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("thesis.tex"), "years of work").expect("writes");
    let refused = open_dir(dir.path(), DirConfig::default()).err().expect("is refused");
    assert_eq!(refused, DiskError::Foreign { path: dir.path().to_path_buf(), name: "thesis.tex".into() });
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
}

#[tokio::test]
async fn anothers_disk_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = open(dir.path(), Backend::Threads);
    let unformatted = Engine::open(disk.clone(), EXPECT, pool(), options()).await.err();
    assert!(matches!(unformatted, Some(EngineError::NotFormatted { .. })));
    Engine::format_with(disk.clone(), superblock(), 1 << 20).await.expect("formats");
    let again = Engine::format(disk.clone(), superblock()).await.err();
    assert!(matches!(again, Some(EngineError::AlreadyFormatted { .. })));
    let other = Expect { cluster: ClusterId(9), ..EXPECT };
    let refused = Engine::open(disk.clone(), other, pool(), options()).await.err();
    assert!(matches!(refused, Some(EngineError::WrongCluster { .. })));
    let other = Expect { node: NodeId(9), ..EXPECT };
    let refused = Engine::open(disk.clone(), other, pool(), options()).await.err();
    assert!(matches!(refused, Some(EngineError::WrongNode { .. })));
    assert_eq!(Engine::identify(&disk).await, Ok(superblock()));
}

#[tokio::test]
async fn a_chunk_grows_to_64_mib() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = open(dir.path(), Backend::Auto);
    let (engine, pool) = (fresh(&disk).await, pool());
    let part = bytes(1, 4 * MIB as usize);
    let crcs = piece_checksums(0, &part);
    for at in 0..16 {
        let data = placed(Some(&pool), 0, &part);
        let op = Op::Write { offset: at * 4 * MIB, data, crcs: crcs.clone(), chunk_size: 64 * MIB };
        let id = version(u64::from(at) + 1);
        engine.stage(T, chunk(0), id, None, op, None).await.expect("stages");
        engine.commit(T, chunk(0), id).expect("commits");
    }
    // Overwritten in the middle: not the whole chunk again.
    let before = engine.stats().device_written;
    let data = placed(Some(&pool), 0, &part[MIB as usize..3 * MIB as usize]);
    let crcs = piece_checksums(0, &data);
    let op = Op::Write { offset: 7 * MIB, data, crcs, chunk_size: 64 * MIB };
    engine.stage(T, chunk(0), version(17), None, op, None).await.expect("stages");
    engine.commit(T, chunk(0), version(17)).expect("commits");
    engine.maintain().await.expect("upkeep");
    assert!(engine.stats().device_written - before < 5 << 20);
    drop(engine);
    let engine = Engine::open(disk, EXPECT, crate::common::pool(), options()).await.expect("opens");
    assert_eq!(engine.committed(T, chunk(0)).map(|meta| meta.length), Some(64 * MIB));
    assert_eq!(engine.verify(T, chunk(0)).await, Ok(64 << 20));
    let read = engine.read(T, chunk(0), At::Committed, 7 * MIB, 2 * MIB).await.expect("reads");
    assert!(read.data[..] == part[MIB as usize..3 * MIB as usize]);
    let read = engine.read(T, chunk(0), At::Committed, 60 * MIB, 4 * MIB).await.expect("reads");
    assert!(read.data[..] == part[..]);
}

/// A directory's data file that nobody may write to; not even root, whom mode bits do not stop. `None` where that cannot be arranged.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn new(dir: &std::path::Path) -> Option<ReadOnly> {
        let store = dir.join("store");
        let done = std::process::Command::new("chattr").arg("+i").arg(&store).output().ok()?;
        done.status.success().then_some(ReadOnly(store))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chattr").arg("-i").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_disk_that_turns_read_only_fails_at_the_next_write_and_has_everything_after_a_restart() {
    for backend in [Backend::Auto, Backend::Threads] {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = open(dir.path(), backend);
        let engine = fresh(&disk).await;
        engine.stage(T, chunk(0), version(1), None, write(None, 0, b"kept"), None).await.expect("stages");
        engine.commit(T, chunk(0), version(1)).expect("commits");
        let Some(read_only) = ReadOnly::new(dir.path()) else {
            eprintln!("skipped: this file system or user cannot make a file immutable");
            return;
        };
        let read = engine.read(T, chunk(0), At::Committed, 0, 4).await.expect("reads go on until then");
        assert_eq!(&read.data[..], b"kept");
        let refused = engine.stage(T, chunk(0), version(2), None, write(None, 0, b"lost"), None).await;
        assert!(matches!(refused, Err(EngineError::DiskFailed { .. })), "{refused:?}");
        assert!(engine.failure().is_some());
        drop(read_only);
        // Writable again is not trusted again: what the failed write left is not known before recovery has looked.
        let refused = engine.stage(T, chunk(0), version(2), None, write(None, 0, b"lost"), None).await;
        assert!(matches!(refused, Err(EngineError::DiskFailed { .. })), "{refused:?}");
        drop((engine, disk));
        let disk = open(dir.path(), backend);
        let engine = Engine::open(disk, EXPECT, pool(), options()).await.expect("opens");
        // Durable, and pending or committed as after any crash.
        engine.commit(T, chunk(0), version(1)).expect("is there");
        holds(&engine, 0, b"kept").await;
        engine.stage(T, chunk(0), version(2), None, write(None, 0, b"goes"), None).await.expect("stages");
    }
}
