//! The first five minutes: connect, make a directory, write a file, read it back, list, clean up.
//!
//! ```sh
//! catena dev --dir /tmp/catena &
//! cargo run -p catena-client --example quickstart -- /tmp/catena/cluster.toml
//! ```

use catena_client::{Catena, ClusterFile, ConnectOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = match std::env::args_os().nth(1) {
        Some(path) => ClusterFile::load(path)?,
        None => ClusterFile::from_env()?,
    };
    let catena = Catena::connect(&cluster, ConnectOptions::default()).await?;

    catena.mkdir_all("/quickstart", 0o755).await?;

    // A write is durable on every replica when it returns; close makes the length known to everyone.
    let file = catena.create("/quickstart/hello.txt").await?;
    file.write_at(0, b"Hello, chain!\n").await?;
    let second = file.append(b"A second line.\n").await?;
    println!("the second line begins at byte {second}");
    file.close().await?;

    let contents = catena.read("/quickstart/hello.txt").await?;
    print!("{}", String::from_utf8_lossy(&contents));

    let mut listing = catena.read_dir("/quickstart", true);
    while let Some(entry) = listing.next().await? {
        let length = entry.stat.as_ref().map_or(0, |stat| stat.length);
        println!("{:>8} bytes  {}", length, entry.name_text());
    }

    // Where is it?
    let file = catena.open("/quickstart/hello.txt").await?;
    for place in file.locate(0..=0) {
        let targets: Vec<String> =
            place.targets.iter().map(|place| format!("{} on node {}", place.target, place.node)).collect();
        println!("chunk {} is in chain {}: {}", place.index, place.chain, targets.join(", "));
    }

    catena.remove_all("/quickstart").await?;
    catena.close().await;
    Ok(())
}
