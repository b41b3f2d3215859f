//! `catena bench`: measurements of a running cluster, or of one of its own.

pub mod bare;
pub mod cpu;
pub mod data;
pub mod failover;
pub mod files;
pub mod meta;
pub mod pulse;
pub mod resync;
pub mod stats;
pub mod stores;

use catena_client::Catena;
use catena_proto::status::Status;

use crate::args::ClusterArgs;
use crate::args::bench::BenchCommand;
use crate::cmd::fs::path::Remote;
use crate::connect;
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::signals::Stop;

/// Runs `catena bench`. Whatever happens, the benchmark's files are removed unless they are to be kept.
pub async fn run(command: BenchCommand, cluster: &ClusterArgs, out: Output) -> Result<()> {
    let command = match command {
        BenchCommand::Resync(args) => return resync::run(args, out).await,
        BenchCommand::Failover(args) => return failover::run(args, out).await,
        BenchCommand::Meta(args) if !args.kv.is_empty() => return stores::run(args, out).await,
        command => command,
    };
    let mut stop = Stop::new()?;
    let in_flight = match &command {
        BenchCommand::Meta(_) | BenchCommand::Resync(_) | BenchCommand::Failover(_) => 0,
        BenchCommand::Write(data) | BenchCommand::Read(data) => data::in_flight(data, false),
        BenchCommand::Randread(data) | BenchCommand::Randwrite(data) => data::in_flight(data, true),
    };
    let catena = connect::wide_client(cluster, in_flight).await?;
    let (path, keep) = match &command {
        BenchCommand::Meta(meta) => (meta.path.clone(), meta.keep),
        BenchCommand::Write(data)
        | BenchCommand::Read(data)
        | BenchCommand::Randread(data)
        | BenchCommand::Randwrite(data) => (data.path.clone(), data.keep),
        BenchCommand::Resync(_) | BenchCommand::Failover(_) => {
            unreachable!("they have clusters of their own")
        }
    };
    let base = Remote::new(std::path::Path::new(&path))?;
    // Runs side by side do not get into each other's way; kept files are found again.
    let directory =
        if keep { base.clone() } else { base.join(format!("run-{:08x}", rand::random::<u32>()).as_bytes()) };
    catena.mkdir_all(&directory, 0o755).await?;
    let measure = async {
        let one = match command {
            BenchCommand::Write(args) => data::write(&catena, &directory, &args, out).await,
            BenchCommand::Read(args) => data::read(&catena, &directory, &args, out).await,
            BenchCommand::Randread(args) => data::randread(&catena, &directory, &args, out).await,
            BenchCommand::Randwrite(args) => data::randwrite(&catena, &directory, &args, out).await,
            BenchCommand::Meta(args) => {
                let another = async || connect::wide_client(cluster, in_flight).await;
                let others = connect::for_other_metas(&catena, another).await?;
                let all: Vec<_> = others.iter().chain([&catena]).cloned().collect();
                let outcome = meta::run(&all, &directory, &args, out).await;
                for other in others {
                    other.close().await;
                }
                return outcome;
            }
            BenchCommand::Resync(_) | BenchCommand::Failover(_) => {
                unreachable!("they have clusters of their own")
            }
        };
        one.map(|object| vec![object])
    };
    let outcome = tokio::select! {
        outcome = measure => outcome,
        () = stop.wait() => Err(Failure::interrupted()),
    };
    let cleaned = if keep { Ok(()) } else { clean(&catena, &base, &directory).await };
    catena.close().await;
    let printed = outcome?;
    cleaned.map_err(|failure| failure.about("cleaning up"))?;
    if out.json {
        printed.into_iter().for_each(|object| out.object(serde_json::Value::Object(object)));
    }
    Ok(())
}

async fn clean(catena: &Catena, base: &Remote, directory: &Remote) -> Result<()> {
    catena.remove_all(directory).await?;
    // The last run takes the directory of all runs with it; others, or the user's files, keep it.
    match catena.remove_dir(base).await {
        Err(error) if !matches!(error.status(), Status::NotEmpty | Status::NotFound | Status::Exists) => {
            tracing::debug!(%error, "the benchmark's directory stays");
        }
        _ => {}
    }
    Ok(())
}
