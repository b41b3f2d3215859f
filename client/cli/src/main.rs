//! `catena`: the one binary. Parses the command line, runs the command, turns failures into exit codes.

mod args;
mod clock;
mod cluster_file;
mod cmd;
mod connect;
mod content;
mod exit;
mod local;
mod logging;
mod metrics;
mod output;
mod progress;
mod pump;
mod replicas;
mod resyncs;
mod signals;
mod supervise;
mod table;
mod toml_file;
mod units;

use std::future::Future;
use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use exit::{Failure, Result};
use output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    let name = cli.command.name();
    let outcome = run(cli);
    // Its network, if a store used it, must not outlive `main`.
    catena_kv_fdb::stop();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => exit::report(&name, json, &failure),
    }
}

fn run(cli: Cli) -> Result<()> {
    let out = Output { json: cli.json };
    if !matches!(cli.command, Command::Serve(_)) {
        logging::for_command(cli.verbose)?;
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(cli.command, Command::Rdma(_)) {
        // What is timed is one connection: a second thread would only be woken for nothing.
        runtime.worker_threads(1);
    }
    let runtime = runtime
        .enable_all()
        .thread_name("catena")
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", error))?;
    runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => cmd::demo::run(args, out).await,
            Command::Dev(args) => cmd::dev::run(args, out).await,
            Command::Rdma(command) => cmd::rdma::run(command, out).await,
            Command::Serve(command) => cmd::serve::run(command).await,
            Command::Config(command) => cmd::config::run(command, out),
            Command::Fs(command) => interruptible(cmd::fs::run(command, &cli.cluster, out)).await,
            Command::Admin(command) => interruptible(cmd::admin::run(command, &cli.cluster, out)).await,
            Command::Bench(command) => cmd::bench::run(command, &cli.cluster, out).await,
        }
    })
}

/// Runs a command that has nothing to clean up but what its values drop.
async fn interruptible(command: impl Future<Output = Result<()>>) -> Result<()> {
    let mut stop = signals::Stop::new()?;
    tokio::select! {
        outcome = command => outcome,
        () = stop.wait() => Err(Failure::interrupted()),
    }
}
