//! Measures the chunk store beside the disk under it, in one run:
//!
//! ```text
//! cargo run --release -p catena-engine --example engine_bench -- DIR [MIB] [CHUNKS]
//! ```
//!
//! Sequential writes and reads of 1 MiB, random 4 KiB reads and overwrites with the bytes that reach the device, and what a start with
//! many chunks takes of time and memory. "raw" is the same ring writing and reading a file without the engine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use catena_buf::{Buf, BufPool, PoolClass, PoolConfig};
use catena_engine::disk::{Backend, Batch, DirConfig, Disk, File, Io, open_dir};
use catena_engine::{At, Engine, Expect, Op, Options, ReadRequest, Superblock};
use catena_proto::checksum::piece_checksums;
use catena_proto::ids::*;

const MIB: usize = 1 << 20;
const T: TargetId = TargetId(1);
const EXPECT: Expect = Expect { cluster: ClusterId(1), node: NodeId(1) };

type Anything = Box<dyn std::error::Error + Send + Sync>;

fn chunk(index: u32) -> ChunkId {
    ChunkId { inode: InodeId(1), index }
}
fn version(number: u64) -> VersionId {
    VersionId { version: ChunkVersion(number), assigned: ChainVersion(1) }
}

/// Time, CPU time of this process and bytes that it had the kernel write.
struct Meter {
    start: Instant,
    cpu: f64,
    written: u64,
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn from_proc(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn resident_mib() -> f64 {
    from_proc("/proc/self/status", "VmRSS:") as f64 / 1024.0
}

impl Meter {
    fn start() -> Meter {
        Meter { start: Instant::now(), cpu: cpu(), written: from_proc("/proc/self/io", "write_bytes:") }
    }
    fn report(&self, what: &str, bytes: u64, operations: u64) -> f64 {
        let seconds = self.start.elapsed().as_secs_f64();
        let (mib, cpu) = (bytes as f64 / MIB as f64, cpu() - self.cpu);
        let written = (from_proc("/proc/self/io", "write_bytes:") - self.written) as f64;
        println!(
            "{what:<44} {:>8.0} MiB/s {:>9.0} op/s   {:>6.2} CPU s/GiB  {:>8.0} bytes written/op",
            mib / seconds,
            operations as f64 / seconds,
            cpu / mib * 1024.0,
            written / operations as f64
        );
        operations as f64 / seconds
    }
}

/// Carries out `count` operations, `depth` of them at a time.
async fn many<F, Fut>(count: u64, depth: u64, operation: F) -> Result<(), Anything>
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Anything>> + Send,
{
    let (next, operation) = (Arc::new(AtomicU64::new(0)), Arc::new(operation));
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let (next, operation) = (next.clone(), operation.clone());
            tokio::spawn(async move {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return Ok::<_, Anything>(());
                    }
                    operation(at).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn random(at: u64, below: u64) -> u64 {
    let mixed = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) % below
}

fn filled(pool: &BufPool, len: usize) -> Buf {
    let mut buf = pool.try_alloc(len, PoolClass::Client).expect("the pool is large enough");
    for (at, byte) in buf.iter_mut().enumerate() {
        *byte = (at * 31 / 7) as u8;
    }
    buf.freeze()
}

async fn raw(dir: &Path, pool: &BufPool, size: u64) -> Result<(f64, f64), Anything> {
    let config = DirConfig { backend: Backend::Auto, region: Some(pool.region()) };
    let disk = open_dir(dir, config)?;
    let grow = Io::Allocate { file: File::Store, length: size };
    disk.submit(Batch { ios: vec![grow], ..Batch::default() }).await.result?;
    let (data, count) = (filled(pool, MIB), size / MIB as u64);
    for pass in ["raw write 1 MiB x 8, new", "raw write 1 MiB x 8, again"] {
        let (meter, writer, data) = (Meter::start(), disk.clone(), data.clone());
        many(count, 8, move |at| {
            let (disk, data) = (writer.clone(), data.clone());
            async move {
                let write = Io::Write { file: File::Store, offset: at * MIB as u64, data: vec![data] };
                disk.submit(Batch { ios: vec![write], ..Batch::default() }).await.result?;
                Ok(())
            }
        })
        .await?;
        disk.submit(Batch { sync: vec![File::Store], ..Batch::default() }).await.result?;
        meter.report(pass, size, count);
    }
    let read = async |len: usize, depth: u64, count: u64, batch: usize| -> Result<(), Anything> {
        let (disk, pool) = (disk.clone(), pool.clone());
        many(count / batch as u64, depth, move |at| {
            let (disk, pool) = (disk.clone(), pool.clone());
            async move {
                let (mut bufs, mut ios) = (Vec::new(), Vec::new());
                for one in 0..batch {
                    bufs.push(pool.alloc(len, PoolClass::Local).await?);
                    let offset = random(at * batch as u64 + one as u64, size / len as u64) * len as u64;
                    ios.push(Io::Read { file: File::Store, offset, buf: one, at: 0, len });
                }
                disk.submit(Batch { bufs, ios, sync: Vec::new() }).await.result?;
                Ok(())
            }
        })
        .await
    };
    let meter = Meter::start();
    read(MIB, 8, count, 1).await?;
    let large = meter.report("raw read 1 MiB x 8", size, count);
    let (count, meter) = (200_000, Meter::start());
    read(4096, 4, count, 32).await?;
    let small = meter.report("raw read 4 KiB, 4 batches of 32", count * 4096, count);
    Ok((large, small))
}

async fn engine(dir: &Path, pool: &BufPool, size: u64) -> Result<(), Anything> {
    let config = DirConfig { backend: Backend::Auto, region: Some(pool.region()) };
    let disk: Arc<dyn Disk> = open_dir(dir, config)?;
    let superblock = Superblock { cluster: EXPECT.cluster, node: EXPECT.node, disk: DiskId(1), created: 0 };
    let started = Instant::now();
    Engine::format(disk.clone(), superblock).await?;
    println!("format {:.2} s", started.elapsed().as_secs_f64());
    let engine = Engine::open(disk, EXPECT, pool.clone(), Options::default()).await?;
    engine.create_target(T).await?;
    let upkeep = tokio::spawn({
        let engine = engine.clone();
        async move {
            loop {
                engine.maintenance_due().await;
                if engine.maintain().await.is_err() {
                    return;
                }
            }
        }
    });

    let data = filled(pool, MIB);
    let crcs = piece_checksums(0, &data);
    let count = size / MIB as u64;
    let write = |engine: &Engine, number: u64| {
        let (engine, data, crcs) = (engine.clone(), data.clone(), crcs.clone());
        move |at: u64| {
            let (engine, data, crcs) = (engine.clone(), data.clone(), crcs.clone());
            async move {
                let op = Op::Write { offset: 0, data, crcs, chunk_size: MIB as u32 };
                let id = version(number);
                engine.stage(T, chunk(at as u32), id, None, op, None).await?;
                engine.commit(T, chunk(at as u32), id)?;
                Ok(())
            }
        }
    };
    for (number, depth, what) in [
        (1, 8, "engine write 1 MiB x 8, new chunks"),
        (2, 8, "engine write 1 MiB x 8, whole chunks again"),
        (3, 2, "engine write 1 MiB x 2, whole chunks again"),
    ] {
        let (before, meter) = (engine.stats(), Meter::start());
        many(count, depth, write(&engine, number)).await?;
        meter.report(what, size, count);
        let after = engine.stats();
        println!(
            "    {} log writes, {:.4} bytes to the device for each byte",
            after.log_writes - before.log_writes,
            (after.device_written - before.device_written) as f64 / size as f64
        );
    }

    let meter = Meter::start();
    let reader = engine.clone();
    many(count, 8, move |at| {
        let engine = reader.clone();
        async move {
            let read = engine.read(T, chunk(at as u32), At::Committed, 0, MIB as u32).await?;
            assert_eq!(read.data.len(), MIB);
            Ok(())
        }
    })
    .await?;
    meter.report("engine read 1 MiB x 8", size, count);

    let reads = 200_000;
    for (batch, depth, what) in [
        (32, 4, "engine read 4 KiB, 4 batches of 32"),
        (64, 1, "engine read 4 KiB, 1 batch of 64"),
        (1, 64, "engine read 4 KiB, 64 single"),
    ] {
        let meter = Meter::start();
        let reader = engine.clone();
        many(reads / batch, depth, move |at| {
            let engine = reader.clone();
            async move {
                let requests: Vec<ReadRequest> = (0..batch)
                    .map(|one| {
                        let place = random(at * batch + one, count * 256);
                        ReadRequest {
                            chunk: chunk((place / 256) as u32),
                            at: At::Committed,
                            offset: (place % 256) as u32 * 4096,
                            len: 4096,
                            verify: false,
                        }
                    })
                    .collect();
                for read in engine.read_many(T, &requests).await {
                    assert_eq!(read?.data.len(), 4096);
                }
                Ok(())
            }
        })
        .await?;
        meter.report(what, reads * 4096, reads);
    }

    let overwrites = 40_000u64;
    let small = filled(pool, 4096);
    let crcs = piece_checksums(0, &small);
    for depth in [16u64, 1] {
        let overwrites = if depth == 1 { overwrites / 8 } else { overwrites };
        engine.maintain().await?;
        let (before, meter) = (engine.stats(), Meter::start());
        let (writer, small, crcs) = (engine.clone(), small.clone(), crcs.clone());
        many(overwrites, depth, move |at| {
            let (engine, small, crcs) = (writer.clone(), small.clone(), crcs.clone());
            async move {
                // Each task has chunks of its own: versions are contiguous.
                let place = random(at, count / depth) * depth + at % depth;
                let chunk = chunk(place as u32);
                loop {
                    let last = engine.chunk(T, chunk).and_then(|state| {
                        state.pending.last().copied().or(state.committed.map(|meta| meta.version))
                    });
                    let id = version(last.map_or(0, |last| last.version.0) + 1);
                    let op = Op::Write {
                        offset: random(at ^ 77, 256) as u32 * 4096,
                        data: small.clone(),
                        crcs: crcs.clone(),
                        chunk_size: MIB as u32,
                    };
                    match engine.stage(T, chunk, id, None, op, None).await {
                        Ok(_) => {
                            engine.commit(T, chunk, id)?;
                            return Ok(());
                        }
                        Err(catena_engine::EngineError::Gap { .. }) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        })
        .await?;
        engine.maintain().await?;
        meter.report(&format!("engine overwrite 4 KiB x {depth}"), overwrites * 4096, overwrites);
        let after = engine.stats();
        println!(
            "    {} log writes, {} checkpoints, {:.0} bytes to the device for each overwrite",
            after.log_writes - before.log_writes,
            after.checkpoints - before.checkpoints,
            (after.device_written - before.device_written) as f64 / overwrites as f64
        );
    }
    upkeep.abort();
    let started = Instant::now();
    engine.close().await?;
    println!("close {:.2} s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn start(dir: &Path, pool: &BufPool, chunks: u64) -> Result<(), Anything> {
    let config = DirConfig { backend: Backend::Auto, region: None };
    let open = async || -> Result<Engine, Anything> {
        let disk = open_dir(dir, config)?;
        Ok(Engine::open(disk, EXPECT, pool.clone(), Options::default()).await?)
    };
    let engine = open().await?;
    let empty = TargetId(2);
    engine.create_target(empty).await?;
    let small = filled(pool, 4096);
    let crcs = piece_checksums(0, &small);
    let (writer, meter) = (engine.clone(), Meter::start());
    many(chunks, 256, move |at| {
        let (engine, small, crcs) = (writer.clone(), small.clone(), crcs.clone());
        async move {
            let chunk = ChunkId { inode: InodeId(random(at, u64::MAX) | 1), index: at as u32 };
            let op = Op::Write { offset: 0, data: small, crcs, chunk_size: MIB as u32 };
            engine.stage(empty, chunk, version(1), None, op, None).await?;
            engine.commit(empty, chunk, version(1))?;
            Ok(())
        }
    })
    .await?;
    meter.report("engine write 4 KiB x 256, new chunks", chunks * 4096, chunks);
    println!("    {} checkpoints, resident {:.0} MiB", engine.stats().checkpoints, resident_mib());
    drop(engine);
    println!("resident with nothing open {:.0} MiB", resident_mib());
    Ok(())
}

async fn reopen(dir: &Path, pool: &BufPool) -> Result<(), Anything> {
    let before = resident_mib();
    for how in ["as it was left", "closed before"] {
        let started = Instant::now();
        let disk = open_dir(dir, DirConfig { backend: Backend::Auto, region: None })?;
        let engine = Engine::open(disk, EXPECT, pool.clone(), Options::default()).await?;
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "open with {} chunks, {how}: {seconds:.2} s, resident {:.0} MiB more than empty",
            engine.stats().chunks,
            resident_mib() - before
        );
        engine.close().await?;
    }
    Ok(())
}

fn main() -> Result<(), Anything> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: engine_bench DIR [MIB [CHUNKS [keep]]]   (or: engine_bench --reopen DIR)";
    let dir = arguments.next().ok_or(usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    if dir == "--reopen" {
        // In a process of its own, so that its memory is only its own.
        let dir = arguments.next().ok_or(usage)?;
        let pool = BufPool::new(PoolConfig { bytes: [4 * MIB, 0, 0, 0, 16 * MIB] })?;
        return runtime.block_on(reopen(Path::new(&dir), &pool));
    }
    let mib: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let chunks: u64 = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let base = Path::new(&dir);
    let pool = BufPool::new(PoolConfig { bytes: [64 * MIB, 0, 0, 0, 64 * MIB] })?;
    let (raw_dir, engine_dir) = (base.join("raw"), base.join("engine"));
    runtime.block_on(async {
        raw(&raw_dir, &pool, mib << 20).await?;
        std::fs::remove_dir_all(&raw_dir)?;
        engine(&engine_dir, &pool, mib << 20).await?;
        if chunks > 0 {
            start(&engine_dir, &pool, chunks).await?;
        }
        Ok::<_, Anything>(())
    })?;
    drop(runtime);
    if arguments.next().is_some_and(|text| text == "keep") {
        return Ok(());
    }
    let itself = std::env::current_exe()?;
    std::process::Command::new(itself).arg("--reopen").arg(&engine_dir).status()?;
    std::fs::remove_dir_all(&engine_dir)?;
    Ok(())
}
