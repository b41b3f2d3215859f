//! Training data: many small records at random places, fetched by the hundred in one call.
//!
//! ```sh
//! cargo run --release -p catena-client --example batch_read -- CLUSTER_FILE [RECORDS]
//! ```

use std::time::Instant;

use catena_client::{Catena, ClusterFile, ConnectOptions, ReadRequest};

const RECORD: usize = 4096;
const BATCH: usize = 64;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let cluster = ClusterFile::load(args.next().ok_or("name a cluster file")?)?;
    let records = match args.next() {
        Some(count) => count.to_str().ok_or("not a number")?.parse::<u64>()?,
        None => 16_384,
    };
    let catena = Catena::connect(&cluster, ConnectOptions::default()).await?;

    // Every record begins with its number, so that we can tell whether we got the right one.
    let file = catena.create("/batch_read.data").await?;
    let mut writer = file.writer(0);
    for number in 0..records {
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&number.to_le_bytes());
        writer.write(&record).await?;
    }
    writer.finish().await?;
    file.sync().await?;

    let start = Instant::now();
    let mut state = 1_u64;
    let mut read = 0;
    for _ in 0..256 {
        let wanted: Vec<u64> = (0..BATCH)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % records
            })
            .collect();
        let requests: Vec<_> = wanted
            .iter()
            .map(|number| ReadRequest { file: &file, offset: number * RECORD as u64, length: RECORD })
            .collect();
        for (number, data) in wanted.iter().zip(catena.read_batch(&requests).await) {
            let data = data?;
            assert_eq!(data.parts()[0][..8], number.to_le_bytes());
            read += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{read} records of {RECORD} bytes in {seconds:.3} s: {:.0} a second", f64::from(read) / seconds);

    file.close().await?;
    catena.remove("/batch_read.data").await?;
    catena.close().await;
    Ok(())
}
