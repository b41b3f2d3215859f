//! What an operator says about mgmtd, and the errors that name the key which is wrong.

use std::time::Duration;

use catena_kv::StoreConfig;
use catena_proto::ids::ClusterId;
use catena_proto::token::Token;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The commented example that `catena config example mgmtd` prints.
pub const EXAMPLE: &str = include_str!("example.toml");

/// Configuration of one mgmtd.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster: 32 hexadecimal digits.
    #[serde(deserialize_with = "from_text")]
    pub cluster: ClusterId,
    /// The cluster's shared token: 64 hexadecimal digits.
    #[serde(deserialize_with = "from_text")]
    pub token: Token,
    /// This process's number, unique in the cluster, never 0.
    pub node: u32,
    /// gRPC address to listen on, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Address that others are told; the bound one when absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// HTTP address of `/metrics`; served by the CLI, shown in routing information.
    #[serde(default)]
    pub metrics: Option<String>,
    /// The lease T of services.
    #[serde(default = "default_lease", deserialize_with = "duration")]
    pub lease: Duration,
    /// The lease of clients' sessions.
    #[serde(default = "default_client_lease", deserialize_with = "duration")]
    pub client_lease: Duration,
    /// The key-value store; opened by the CLI and handed to [`crate::start`].
    #[serde(default)]
    pub store: StoreConfig,
    /// Read by the CLI.
    #[serde(default)]
    pub log: Option<toml::Value>,
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

/// Leases that make sense: shorter ones fail healthy services, longer ones leave chains down too long.
const LEASES: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(600);

impl Config {
    /// Checks what types cannot say.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bad = |key, what: String| Err(ConfigError { key, what });
        if self.node == 0 {
            return bad("node", "0 is no node number; number the nodes from 1".into());
        }
        for (key, address) in [("listen", Some(&self.listen)), ("advertise", self.advertise.as_ref())] {
            if let Some(address) = address.filter(|address| !has_port(address)) {
                return bad(key, format!("{address:?} is not host:port"));
            }
        }
        self.store.validate().or_else(|(key, what)| bad(key, what))?;
        for (key, lease) in [("lease", self.lease), ("client_lease", self.client_lease)] {
            if !LEASES.contains(&lease) {
                return bad(key, format!("{lease:?} is outside {:?}..{:?}", LEASES.start(), LEASES.end()));
            }
        }
        Ok(())
    }
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn default_lease() -> Duration {
    Duration::from_secs(10)
}

fn default_client_lease() -> Duration {
    Duration::from_secs(60)
}

fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// `250ms`, `10s`, `5min`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse::<u64>().ok();
    let parsed = match (number, text[digits..].trim()) {
        (Some(number), "ms") => Some(Duration::from_millis(number)),
        (Some(number), "s") => Some(Duration::from_secs(number)),
        (Some(number), "min") => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    };
    parsed.ok_or_else(|| D::Error::custom(format!("{text:?} is no duration; write 250ms, 10s or 5min")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
    }

    fn bare(extra: &str) -> String {
        let token = "0".repeat(64);
        format!(
            "cluster = \"{}1\"\ntoken = \"{token}\"\nnode = 1\nlisten = \"127.0.0.1:0\"\n{extra}",
            "0".repeat(31)
        )
    }

    #[test]
    fn the_example_is_a_configuration() {
        let config = parse(EXAMPLE).unwrap();
        config.validate().unwrap();
        assert_eq!(config.lease, Duration::from_secs(10));
        assert_eq!(config.store, StoreConfig::Embedded { path: "/var/lib/catena/mgmtd".into() });
    }

    #[test]
    fn a_typo_is_named() {
        let error = parse(&bare("leese = \"3s\"")).unwrap_err();
        assert!(error.to_string().contains("leese"), "{error}");
        let error = parse(&bare("lease = \"3 sheep\"")).unwrap_err();
        assert!(error.to_string().contains("write 250ms, 10s or 5min"), "{error}");
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_key() {
        let key = |change: fn(&mut Config)| {
            let mut config = parse(&bare("")).unwrap();
            config.validate().unwrap();
            change(&mut config);
            config.validate().unwrap_err().key
        };
        assert_eq!(key(|config| config.node = 0), "node");
        assert_eq!(key(|config| config.listen = "nowhere".into()), "listen");
        assert_eq!(key(|config| config.advertise = Some(":1".into())), "advertise");
        assert_eq!(
            key(|config| config.store = StoreConfig::Remote { address: "kv".into() }),
            "store.address"
        );
        assert_eq!(key(|config| config.lease = Duration::from_millis(1)), "lease");
        assert_eq!(key(|config| config.client_lease = Duration::from_secs(3600)), "client_lease");
    }
}
