//! What an operator says about a key-value service, and the errors that name the key which is wrong.

use std::path::PathBuf;

use catena_proto::ids::ClusterId;
use catena_proto::token::Token;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The commented example that `catena config example kv` prints.
pub const EXAMPLE: &str = include_str!("example.toml");

/// Configuration of one key-value service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster: 32 hexadecimal digits.
    #[serde(deserialize_with = "from_text")]
    pub cluster: ClusterId,
    /// The cluster's shared token: 64 hexadecimal digits.
    #[serde(deserialize_with = "from_text")]
    pub token: Token,
    /// gRPC address to listen on, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// HTTP address of `/metrics`; served by the CLI.
    #[serde(default)]
    pub metrics: Option<String>,
    /// The store; opened by the CLI and handed to [`crate::start`].
    pub store: Store,
    /// Read by the CLI.
    #[serde(default)]
    pub log: Option<toml::Value>,
}

/// The store that is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Store {
    /// One directory on this machine.
    Embedded {
        /// The directory.
        path: PathBuf,
    },
    /// In memory, gone when the process ends: tests only.
    Mem,
}

/// A configuration that cannot be used; names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("configuration key `{key}`: {what}")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub what: String,
}

impl Config {
    /// Checks what types cannot say.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match has_port(&self.listen) {
            true => Ok(()),
            false => Err(ConfigError { key: "listen", what: format!("{:?} is not host:port", self.listen) }),
        }
    }
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_configuration() {
        let config: Config = toml::from_str(EXAMPLE).unwrap();
        config.validate().unwrap();
        assert_eq!(config.store, Store::Embedded { path: "/var/lib/catena/kv".into() });
        let nowhere = Config { listen: "nowhere".into(), ..config };
        assert_eq!(nowhere.validate().unwrap_err().key, "listen");
    }
}
