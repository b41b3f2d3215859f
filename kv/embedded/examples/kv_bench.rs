//! How fast the embedded store is on this disk: reads, and small commits at several depths, beside what the disk's fdatasync allows.
//!
//! `cargo run --release -p catena-kv-embedded --example kv_bench -- [directory] [seconds]`

use std::error::Error;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catena_kv::{Database, Isolation, Jitter, KvError, RangeQuery, Retry, TxOptions, transact};
use catena_kv_embedded::{EmbeddedDatabase, Options};
use catena_rt::time::Instant;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

const KEYS: u64 = 200_000;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map(PathBuf::from);
    let seconds = Duration::from_secs_f64(arguments.next().map_or(Ok(3.0), |s| s.parse())?);
    let temporary = tempfile::TempDir::new_in(directory.unwrap_or_else(std::env::temp_dir))?;
    let workers = std::thread::available_parallelism()?.get();
    println!("directory {}, {workers} threads", temporary.path().display());

    for (name, overwrite) in [("append", false), ("overwrite", true)] {
        let (count, took) = raw_fdatasync(&temporary.path().join(name), overwrite, seconds / 2)?;
        let each = took / count;
        println!("raw: 4 KiB {name} + fdatasync     {:>9.0}/s  {each:>9.1?} each", 1.0 / each.as_secs_f64());
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_time().build()?;
    runtime.block_on(bench(&temporary.path().join("kv"), seconds))
}

/// What a store without group commit could do at most.
fn raw_fdatasync(path: &Path, overwrite: bool, time: Duration) -> Outcome<(u32, Duration)> {
    let mut file = File::create(path)?;
    file.set_len(64 << 20)?;
    if overwrite {
        file.write_all(&vec![1; 1 << 20])?;
    }
    file.sync_all()?;
    let start = Instant::now();
    let mut count = 0;
    file.seek(SeekFrom::Start(0))?;
    while start.elapsed() < time && count < 16_000 {
        if overwrite {
            file.seek(SeekFrom::Start(u64::from(count % 256) * 4096))?;
        }
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        count += 1;
    }
    Ok((count, start.elapsed()))
}

fn key(number: u64) -> [u8; 24] {
    let mut key = *b"DENT....................";
    key[4..12].copy_from_slice(&(number / 1000).to_be_bytes());
    key[16..].copy_from_slice(&number.to_be_bytes());
    key
}

async fn bench(directory: &Path, seconds: Duration) -> Outcome<()> {
    let db = Arc::new(EmbeddedDatabase::open(directory, Options::default())?);
    let start = Instant::now();
    for chunk in 0..KEYS / 1000 {
        let tx = db.begin(TxOptions::default())?;
        for number in chunk * 1000..(chunk + 1) * 1000 {
            tx.set(&key(number), &[number as u8; 150])?;
        }
        tx.commit().await?;
    }
    println!("load: {KEYS} keys in {:.2?}", start.elapsed());

    for (name, per_transaction, readers) in [
        ("1 get a transaction", 1, 1),
        ("5 gets a transaction", 5, 1),
        ("5 gets a transaction, all threads", 5, 0),
    ] {
        let readers = if readers == 0 { std::thread::available_parallelism()?.get() } else { readers };
        let rate = gets(&db, readers, per_transaction, seconds).await?;
        println!("{name:<34}{rate:>10.0} gets/s");
    }
    let mut pages = 0u64;
    let start = Instant::now();
    while start.elapsed() < seconds / 3 {
        let tx = db.begin(TxOptions::default())?;
        let directory = key((pages * 1000) % KEYS);
        let page = tx.get_range(RangeQuery::prefix(&directory[..12]).limit(100)).await?;
        assert_eq!(page.items.len(), 100);
        pages += 1;
    }
    let rate = pages as f64 * 100.0 / start.elapsed().as_secs_f64();
    println!("{:<34}{rate:>10.0} items/s", "pages of 100 items");

    for depth in [1, 8, 64, 256] {
        commits(&db, depth, seconds).await?;
    }
    Ok(())
}

async fn gets(
    db: &Arc<EmbeddedDatabase>,
    readers: usize,
    per_transaction: u64,
    time: Duration,
) -> Outcome<f64> {
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for reader in 0..readers as u64 {
        let db = db.clone();
        tasks.spawn(async move {
            let mut number = reader * 7919;
            let mut count = 0u64;
            while start.elapsed() < time {
                for _ in 0..64 {
                    let tx = db.begin(TxOptions::default())?;
                    for _ in 0..per_transaction {
                        number = (number + 104_729) % KEYS;
                        let value = tx.get(&key(number), Isolation::Serializable).await?;
                        assert!(value.is_some());
                    }
                    count += per_transaction;
                    tx.commit().await?;
                }
            }
            Ok::<_, KvError>(count)
        });
    }
    let mut total = 0;
    while let Some(count) = tasks.join_next().await {
        total += count??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// Transactions like the create of a file: look whether the name is there, write a directory entry, an inode and a counter.
async fn commits(db: &Arc<EmbeddedDatabase>, depth: usize, time: Duration) -> Outcome<()> {
    static NEXT: AtomicU64 = AtomicU64::new(KEYS);
    let before = db.stats();
    let mut tasks = JoinSet::new();
    let jitter = Arc::new(Jitter::new(5));
    let start = Instant::now();
    for task in 0..depth {
        let (db, jitter) = (db.clone(), jitter.clone());
        tasks.spawn(async move {
            let mut latency = histogram();
            let counter = [b'C', task as u8];
            while start.elapsed() < time {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let begun = Instant::now();
                transact(&*db, Retry::default(), &jitter, |tx| async move {
                    let name = key(number);
                    if tx.get(&name, Isolation::Serializable).await?.is_none() {
                        tx.set(&name, &[1; 40])?;
                        tx.set(&[b"INOD", &number.to_le_bytes()[..]].concat(), &[2; 150])?;
                        tx.atomic(&counter, catena_kv::Atomic::Add, &1u64.to_le_bytes())?;
                    }
                    Ok::<_, KvError>(())
                })
                .await?;
                latency.saturating_record(begun.elapsed().as_micros() as u64);
            }
            Ok::<_, KvError>(latency)
        });
    }
    let mut latency = histogram();
    while let Some(each) = tasks.join_next().await {
        latency.add(each??)?;
    }
    let took = start.elapsed().as_secs_f64();
    let groups = db.stats().groups - before.groups;
    println!(
        "commits at depth {depth:<4} {:>9.0}/s  p50 {} us  p99 {} us  syncs {:.0}/s  {:.1} a sync",
        latency.len() as f64 / took,
        latency.value_at_quantile(0.5),
        latency.value_at_quantile(0.99),
        groups as f64 / took,
        latency.len() as f64 / groups as f64,
    );
    Ok(())
}

/// Microseconds up to a minute. Fixed bounds: `saturating_record` would cut values off at the end of a histogram that could still grow.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds and digits are within what is allowed")
}
