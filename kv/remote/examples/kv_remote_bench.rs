//! What the way over gRPC costs: the same store used directly and through a service on loopback, side by side.
//!
//! `cargo run --release -p catena-kv-remote --example kv_remote_bench -- [directory] [seconds]`
//!
//! Service and clients share one process and its cores. Every client is a task of its own; all use one connection.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catena_kv::{Atomic, Database, Isolation, Jitter, KvError, Retry, TxOptions, transact};
use catena_kv_embedded::{EmbeddedDatabase, Options as Embedded};
use catena_kv_remote::{GrpcKv, Options, RemoteDatabase, bind, start};
use catena_proto::ids::ClusterId;
use catena_proto::rpc::ClientAuth;
use catena_proto::token::Token;
use catena_rt::JoinSet;
use catena_rt::time::Instant;
use hdrhistogram::Histogram;

const KEYS: u64 = 100_000;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map(PathBuf::from);
    let seconds = Duration::from_secs_f64(arguments.next().map_or(Ok(3.0), |s| s.parse())?);
    let temporary = tempfile::TempDir::new_in(directory.unwrap_or_else(std::env::temp_dir))?;
    let workers = std::thread::available_parallelism()?.get();
    println!("directory {}, {workers} threads, {seconds:?} each", temporary.path().display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(async {
        let store = EmbeddedDatabase::open(temporary.path().join("kv"), Embedded::default())?;
        load(&store).await?;
        let (cluster, token) = (ClusterId(1), Token([1; 32]));
        let listener = bind("127.0.0.1:0").await?;
        let running = start(listener, (cluster, token), Arc::new(store.clone()), 1)?;
        let address = running.address().to_string();
        let api = GrpcKv::new(&address, ClientAuth::new(cluster, &token))
            .map_err(|failure| failure.message.clone())?;
        let remote = RemoteDatabase::new(Arc::new(api), Options::new(address));
        let ways: [(&str, Arc<dyn Database>); 2] =
            [("embedded", Arc::new(store)), ("remote", Arc::new(remote))];
        for clients in [1, 8, 64] {
            for (name, db) in &ways {
                report("gets", name, clients, seconds, run(db, clients, seconds, get).await?);
            }
        }
        for clients in [1, 8, 64] {
            for (name, db) in &ways {
                report("commits", name, clients, seconds, run(db, clients, seconds, create).await?);
            }
        }
        running.stop().await;
        Ok(())
    })
}

fn key(number: u64) -> [u8; 24] {
    let mut key = *b"DENT....................";
    key[4..12].copy_from_slice(&(number / 1000).to_be_bytes());
    key[16..].copy_from_slice(&number.to_be_bytes());
    key
}

async fn load(db: &EmbeddedDatabase) -> Outcome<()> {
    for chunk in 0..KEYS / 1000 {
        let tx = db.begin(TxOptions::default())?;
        for number in chunk * 1000..(chunk + 1) * 1000 {
            tx.set(&key(number), &[number as u8; 150])?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Clients that do one thing after another; the latency of each, in microseconds.
async fn run<F: Future<Output = Result<(), KvError>> + Send + 'static>(
    db: &Arc<dyn Database>,
    clients: u64,
    time: Duration,
    what: fn(Arc<dyn Database>, Arc<Jitter>, u64) -> F,
) -> Outcome<Histogram<u64>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let jitter = Arc::new(Jitter::new(5));
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for _ in 0..clients {
        let (db, jitter) = (db.clone(), jitter.clone());
        tasks.spawn(async move {
            let mut latency = histogram();
            while start.elapsed() < time {
                let begun = Instant::now();
                what(db.clone(), jitter.clone(), NEXT.fetch_add(1, Ordering::Relaxed)).await?;
                latency.saturating_record(begun.elapsed().as_micros() as u64);
            }
            Ok::<_, KvError>(latency)
        });
    }
    let mut all = histogram();
    while let Some(each) = tasks.join_next().await {
        all.add(each??)?;
    }
    Ok(all)
}

/// A transaction that reads one key that is there.
async fn get(db: Arc<dyn Database>, _: Arc<Jitter>, number: u64) -> Result<(), KvError> {
    let tx = db.begin(TxOptions::default())?;
    let value = tx.get(&key(number.wrapping_mul(104_729) % KEYS), Isolation::Serializable).await?;
    assert!(value.is_some());
    tx.commit().await.map(drop)
}

/// A transaction like the create of a file: looks whether the name is there, writes an entry, an inode and a counter.
async fn create(db: Arc<dyn Database>, jitter: Arc<Jitter>, number: u64) -> Result<(), KvError> {
    transact(&*db, Retry::default(), &jitter, |tx| async move {
        let name = key(KEYS + number);
        if tx.get(&name, Isolation::Serializable).await?.is_none() {
            tx.set(&name, &[1; 40])?;
            tx.set(&[b"INOD", &number.to_le_bytes()[..]].concat(), &[2; 150])?;
            tx.atomic(&[b'C', number as u8 % 16], Atomic::Add, &1u64.to_le_bytes())?;
        }
        Ok(())
    })
    .await
}

fn report(what: &str, way: &str, clients: u64, time: Duration, latency: Histogram<u64>) {
    println!(
        "{what:<8} {clients:>3} clients  {way:<9} {:>9.0}/s  p50 {:>6} us  p99 {:>6} us",
        latency.len() as f64 / time.as_secs_f64(),
        latency.value_at_quantile(0.5),
        latency.value_at_quantile(0.99),
    );
}

/// Microseconds up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds and digits are within what is allowed")
}
