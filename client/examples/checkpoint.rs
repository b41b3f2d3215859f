//! A checkpoint: several ranks write disjoint parts of one file at once, from pool buffers without a copy; the file appears under its
//! final name when it is complete.
//!
//! ```sh
//! cargo run --release -p catena-client --example checkpoint -- CLUSTER_FILE [MIB_PER_RANK]
//! ```

use std::time::Instant;

use catena_client::{
    Catena, ClusterFile, ConnectOptions, File, LayoutChoice, OpenOptions, RenameMode, Result,
};

const RANKS: u64 = 4;
const PART: usize = 4 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let cluster = ClusterFile::load(args.next().ok_or("name a cluster file")?)?;
    let mib = match args.next() {
        Some(count) => count.to_str().ok_or("not a number")?.parse::<u64>()?,
        None => 64,
    };
    let per_rank = (mib << 20).next_multiple_of(PART as u64);
    let catena = Catena::connect(&cluster, ConnectOptions::default()).await?;

    catena.mkdir_all("/checkpoints", 0o755).await?;
    // Large chunks for large sequential parts.
    let layout = LayoutChoice { chunk_size: Some(PART as u32), ..LayoutChoice::default() };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).layout(layout);
    let file = options.open(&catena, "/checkpoints/step-1000.part").await?;

    let start = Instant::now();
    let ranks: Vec<_> =
        (0..RANKS).map(|rank| tokio::spawn(write_rank(file.clone(), rank, per_rank))).collect();
    for rank in ranks {
        rank.await??;
    }
    file.close().await?;
    catena.rename("/checkpoints/step-1000.part", "/checkpoints/step-1000", RenameMode::Replace).await?;
    let seconds = start.elapsed().as_secs_f64();
    let total = per_rank * RANKS;
    println!("wrote {} MiB in {seconds:.2} s: {:.0} MiB/s", total >> 20, (total >> 20) as f64 / seconds);

    let file = catena.open("/checkpoints/step-1000").await?;
    let report = file.compare_replicas().await?;
    println!(
        "{} chunks with {} replicas each, {} of them differing",
        report.chunks,
        report.fewest,
        report.differing.len()
    );
    catena.remove_all("/checkpoints").await?;
    catena.close().await;
    Ok(())
}

async fn write_rank(file: File, rank: u64, bytes: u64) -> Result<()> {
    // Two buffers on their way at once: while one is being written the next is filled.
    let mut previous = None;
    for offset in (0..bytes).step_by(PART) {
        let mut buf = file.catena().alloc_buf(PART).await?;
        buf.fill(rank as u8 + 1);
        let file = file.clone();
        let at = rank * bytes + offset;
        let write = tokio::spawn(async move { file.write_buf_at(at, buf.freeze()).await });
        if let Some(write) = previous.replace(write) {
            finished(write).await?;
        }
    }
    match previous {
        Some(write) => finished(write).await,
        None => Ok(()),
    }
}

async fn finished(write: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    write.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
