//! `catena config`: examples and checks.

use std::path::Path;

use crate::args::{ConfigCommand, ServiceKind};
use crate::exit::{Failure, Result};
use crate::logging::LogConfig;
use crate::output::{self, Output};
use crate::toml_file;

/// Runs `catena config`.
pub fn run(command: ConfigCommand, out: Output) -> Result<()> {
    match command {
        ConfigCommand::Example { kind } => {
            let example = match kind {
                ServiceKind::Mgmtd => catena_mgmtd::EXAMPLE,
                ServiceKind::Meta => catena_meta::EXAMPLE,
                ServiceKind::Storage => catena_storage::EXAMPLE,
                ServiceKind::Kv => catena_kv_remote::EXAMPLE,
            };
            output::print(&example.trim_end());
        }
        ConfigCommand::Check { kind, file } => {
            match kind {
                ServiceKind::Mgmtd => load_mgmtd(&file).map(drop)?,
                ServiceKind::Meta => load_meta(&file).map(drop)?,
                ServiceKind::Storage => load_storage(&file).map(drop)?,
                ServiceKind::Kv => load_kv(&file).map(drop)?,
            }
            if out.json {
                out.object(serde_json::json!({"ok": true}));
            } else {
                out.say(format_args!("{}: a valid configuration of {}", file.display(), kind.name()));
            }
        }
    }
    Ok(())
}

/// A configuration file: the service's part, and what the binary itself does for every service.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The service's part.
    pub config: C,
    /// How it logs.
    pub log: LogConfig,
}

macro_rules! loader {
    ($(#[$doc:meta])* $name:ident, $config:ty) => {
        $(#[$doc])*
        pub fn $name(path: &Path) -> Result<Loaded<$config>> {
            let text = toml_file::read(path).map_err(|failure| {
                failure.hint("`catena config example KIND` prints a configuration to start from")
            })?;
            let config: $config = toml_file::parse(path, &text)?;
            config.validate().map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            Ok(Loaded { config, log: toml_file::parse::<Common>(path, &text)?.log })
        }
    };
}

loader!(
    /// Reads and checks a mgmtd's configuration.
    load_mgmtd,
    catena_mgmtd::Config
);
loader!(
    /// Reads and checks a metadata service's configuration.
    load_meta,
    catena_meta::Config
);
loader!(
    /// Reads and checks a storage service's configuration.
    load_storage,
    catena_storage::Config
);

loader!(
    /// Reads and checks a key-value service's configuration.
    load_kv,
    catena_kv_remote::Config
);

/// What the binary reads for itself; the rest is the service's.
#[derive(serde::Deserialize)]
struct Common {
    #[serde(default)]
    log: LogConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn every_example_is_a_configuration() {
        load_mgmtd(file(catena_mgmtd::EXAMPLE).path()).unwrap();
        load_meta(file(catena_meta::EXAMPLE).path()).unwrap();
        load_storage(file(catena_storage::EXAMPLE).path()).unwrap();
        load_kv(file(catena_kv_remote::EXAMPLE).path()).unwrap();
    }

    #[test]
    fn a_typo_is_named_with_its_line_everywhere() {
        for example in [catena_mgmtd::EXAMPLE, catena_meta::EXAMPLE, catena_storage::EXAMPLE] {
            let text = example.replacen("listen =", "lisen =", 1);
            let line = text.lines().position(|line| line.starts_with("lisen")).unwrap() + 1;
            let file = file(&text);
            let failure = match example {
                catena_mgmtd::EXAMPLE => load_mgmtd(file.path()).unwrap_err(),
                catena_meta::EXAMPLE => load_meta(file.path()).unwrap_err(),
                _ => load_storage(file.path()).unwrap_err(),
            };
            assert!(failure.message.ends_with(&format!(":{line}: unknown key `lisen`")), "{failure}");
            assert_eq!(failure.hint.as_deref(), Some("did you mean `listen`?"));
        }
    }

    #[test]
    fn the_log_table_is_checked_too() {
        let text = catena_mgmtd::EXAMPLE.replacen("level = \"info\"", "levl = \"info\"", 1);
        let failure = load_mgmtd(file(&text).path()).unwrap_err();
        assert_eq!(failure.hint.as_deref(), Some("did you mean `level`?"), "{failure}");
    }
}
