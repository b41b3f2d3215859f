//! `catena`: the one binary. Parses the command line, runs the command, turns failures into exit codes.

mod args;
mod clock;
mod cluster_file;
mod exit;
mod logging;
mod metrics;
mod progress;
mod table;
mod toml_file;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    println!("{cli:?}");
    ExitCode::SUCCESS
}
