//! Log lines: for people or as JSON, to stderr. Services are told how by `[log]` in their configuration, commands by `-v`;
//! `CATENA_LOG` overrides the level of both (syntax of `tracing_subscriber::EnvFilter`).

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::filter::EnvFilter;

use crate::exit::{Failure, Result};

/// The `[log]` table.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// How lines look.
    #[serde(default)]
    pub format: Format,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,catena_storage=debug`. Default `info`.
    pub level: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One object a line.
    Json,
}

/// Sets up logging for a service.
pub fn for_service(config: &LogConfig) -> Result<()> {
    let level = config.level.as_deref().unwrap_or("info");
    start(config.format, level)
}

/// Sets up logging for a command: warnings, and more with every `-v`.
pub fn for_command(verbose: u8) -> Result<()> {
    start(Format::Human, ["error", "warn", "info", "debug", "trace"][usize::from(verbose.min(4))])
}

fn start(format: Format, level: &str) -> Result<()> {
    let directives = std::env::var("CATENA_LOG").unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(&directives).map_err(|error| {
        Failure::usage(format!("log level `{directives}`: {error}"))
            .hint("use error, warn, info, debug, trace, or directives such as info,catena_storage=debug")
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        Format::Human => lines.with_ansi(std::io::stderr().is_terminal()).compact().try_init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    Ok(())
}
