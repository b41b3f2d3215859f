//! What an operator says about one storage service, and the errors that name the key which is wrong.

use std::path::PathBuf;
use std::time::Duration;

use catena_net::TransportConfig;
use catena_proto::ids::{ClusterId, NodeId};
use catena_proto::token::Token;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The commented example that `catena config example storage` prints.
pub const EXAMPLE: &str = include_str!("example.toml");

/// Configuration of one storage service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster: 32 hexadecimal digits.
    #[serde(deserialize_with = "from_text")]
    pub cluster: ClusterId,
    /// The cluster's shared token: 64 hexadecimal digits.
    #[serde(deserialize_with = "from_text")]
    pub token: Token,
    /// This node's number, unique in the cluster, never 0.
    pub node: u32,
    /// Data-plane address to listen on, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Address that others are told; the bound one when absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Control-plane addresses of all mgmtd services.
    pub mgmtd: Vec<String>,
    /// HTTP address of `/metrics`; served by the CLI, announced to mgmtd here.
    #[serde(default)]
    pub metrics: Option<String>,
    /// One directory for each disk.
    pub disks: Vec<PathBuf>,
    /// Failure domain (rack, power feed): nodes of one domain never share a chain. Empty: the node itself.
    #[serde(default)]
    pub domain: String,
    /// How disks are read and written.
    #[serde(default)]
    pub io: IoBackend,
    /// Bytes of registered memory for data on its way.
    #[serde(default = "default_pool", deserialize_with = "bytes")]
    pub pool: u64,
    /// Most bytes that chunks may use on each disk; 0: what the file system has.
    #[serde(default, deserialize_with = "bytes")]
    pub capacity: u64,
    /// Memory for the cache of checksum tables, for each disk.
    #[serde(default = "default_sums_cache", deserialize_with = "bytes")]
    pub sums_cache: u64,
    /// Lease until mgmtd has said its own. A service unanswered for half of it stops serving.
    #[serde(default = "default_lease", deserialize_with = "duration")]
    pub lease: Duration,
    /// What resync may move through this node.
    #[serde(default, deserialize_with = "resync_rate")]
    pub resync_rate: ResyncRate,
    /// Bytes a second that scrubbing reads from each disk at most; 0: no limit but the disk's other work.
    #[serde(default = "default_scrub_rate", deserialize_with = "bytes")]
    pub scrub_rate: u64,
    /// Between the end of one scrub of a disk and the beginning of the next; 0s: only by order.
    #[serde(default = "default_scrub_interval", deserialize_with = "duration")]
    pub scrub_interval: Duration,
    /// What carries data; opened by the CLI and handed to [`crate::start`].
    #[serde(default)]
    pub transport: TransportConfig,
    /// Read by the CLI.
    #[serde(default)]
    pub log: Option<toml::Value>,
}

/// How disks are read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoBackend {
    /// io_uring, or threads where the kernel or a container forbids it (said at start).
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// A pool of threads.
    Threads,
}

/// What resync may move through a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ResyncRate {
    /// As much as there is while no client wants anything, a share beside the clients otherwise.
    #[default]
    Adaptive,
    /// As much as there is.
    Unlimited,
    /// Bytes a second.
    Bytes(u64),
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
        let bad = |key, what: String| Err(ConfigError { key, what });
        if self.node == 0 {
            return bad("node", "0 is no node number; number the nodes from 1".into());
        }
        for address in std::iter::once(&self.listen).chain(&self.advertise) {
            if !has_port(address) {
                return bad("listen", format!("{address:?} is not host:port"));
            }
        }
        if self.mgmtd.is_empty() {
            return bad("mgmtd", "name at least one mgmtd as host:port".into());
        }
        if let Some(address) = self.mgmtd.iter().find(|address| !has_port(address)) {
            return bad("mgmtd", format!("{address:?} is not host:port"));
        }
        if self.disks.is_empty() {
            return bad("disks", "name at least one directory".into());
        }
        let mut paths: Vec<_> = self.disks.iter().collect();
        paths.sort();
        if let Some(pair) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
            return bad("disks", format!("{} is there twice", pair[0].display()));
        }
        if self.pool < MIN_POOL {
            return bad("pool", format!("at least {} MiB are needed", MIN_POOL >> 20));
        }
        if self.lease < Duration::from_millis(200) || self.lease > Duration::from_secs(600) {
            return bad("lease", "between 200ms and 10min".into());
        }
        Ok(())
    }

    /// This node's identity.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.node)
    }
}

/// The smallest pool with which every lane can hold one message of the greatest size.
pub const MIN_POOL: u64 = 64 << 20;

fn default_pool() -> u64 {
    512 << 20
}
fn default_sums_cache() -> u64 {
    16 << 20
}
fn default_lease() -> Duration {
    Duration::from_secs(10)
}

fn default_scrub_rate() -> u64 {
    50 << 20
}
fn default_scrub_interval() -> Duration {
    Duration::from_secs(7 * 24 * 3600)
}

fn has_port(address: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, host)| host);
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn from_text<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: std::fmt::Display>>(
    input: D,
) -> Result<T, D::Error> {
    String::deserialize(input)?.parse().map_err(D::Error::custom)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

/// A size: a number of bytes, or text such as "512 MiB".
fn bytes<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    NumberOrText::deserialize(input)?.bytes()
}

impl NumberOrText {
    fn bytes<E: serde::de::Error>(self) -> Result<u64, E> {
        let text = match self {
            NumberOrText::Number(bytes) => return Ok(bytes),
            NumberOrText::Text(text) => text,
        };
        let units = [("", 0), ("b", 0), ("kib", 10), ("mib", 20), ("gib", 30), ("tib", 40)];
        with_unit(&text)
            .and_then(|(number, unit)| {
                let shift = units.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name))?.1;
                number.checked_mul(1 << shift)
            })
            .ok_or_else(|| E::custom(format!("{text:?} is no size; write bytes or \"512 MiB\"")))
    }
}

fn resync_rate<'de, D: Deserializer<'de>>(input: D) -> Result<ResyncRate, D::Error> {
    match NumberOrText::deserialize(input)? {
        NumberOrText::Text(text) if text == "adaptive" => Ok(ResyncRate::Adaptive),
        given => {
            given.bytes().map(|rate| if rate == 0 { ResyncRate::Unlimited } else { ResyncRate::Bytes(rate) })
        }
    }
}

/// A time such as "10s" or "500ms".
fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    let parsed = with_unit(&text).and_then(|(number, unit)| match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "min" | "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        "d" | "days" => Some(Duration::from_secs(number.checked_mul(24 * 3600)?)),
        _ => None,
    });
    parsed.ok_or_else(|| D::Error::custom(format!("{text:?} is no time; write \"10s\" or \"500ms\"")))
}

fn with_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_configuration() {
        let config: Config = toml::from_str(EXAMPLE).unwrap();
        config.validate().unwrap();
        assert_eq!(config.lease, Duration::from_secs(10));
        assert_eq!(config.pool, 512 << 20);
        assert_eq!(config.io, IoBackend::Auto);
        assert_eq!((config.scrub_rate, config.scrub_interval), (50 << 20, Duration::from_secs(604_800)));
    }

    #[test]
    fn resync_is_adaptive_unless_a_rate_is_given() {
        let rate = |line: &str| {
            let without: String = EXAMPLE
                .lines()
                .filter(|line| !line.starts_with("resync_rate"))
                .map(|line| format!("{line}\n"))
                .collect();
            toml::from_str::<Config>(&format!("{line}\n{without}")).map(|config| config.resync_rate)
        };
        assert_eq!(rate(""), Ok(ResyncRate::Adaptive));
        assert_eq!(rate("resync_rate = \"adaptive\""), Ok(ResyncRate::Adaptive));
        assert_eq!(rate("resync_rate = 0"), Ok(ResyncRate::Unlimited));
        assert_eq!(rate("resync_rate = \"200 MiB\""), Ok(ResyncRate::Bytes(200 << 20)));
        assert!(rate("resync_rate = \"fast\"").is_err());
    }

    #[test]
    fn a_typo_is_refused_by_name() {
        let error = toml::from_str::<Config>(&format!("lisen = \"x\"\n{EXAMPLE}")).unwrap_err();
        assert!(error.to_string().contains("lisen"), "{error}");
    }

    #[test]
    fn a_bad_value_names_its_key() {
        let config = || toml::from_str::<Config>(EXAMPLE).unwrap();
        let key = |config: Config| config.validate().unwrap_err().key;
        assert_eq!(key(Config { node: 0, ..config() }), "node");
        assert_eq!(key(Config { disks: vec![], ..config() }), "disks");
        assert_eq!(key(Config { disks: vec!["/a".into(), "/a".into()], ..config() }), "disks");
        assert_eq!(key(Config { mgmtd: vec!["nowhere".into()], ..config() }), "mgmtd");
        assert_eq!(key(Config { pool: 4096, ..config() }), "pool");
        assert_eq!(key(Config { lease: Duration::ZERO, ..config() }), "lease");
    }

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        #[derive(Deserialize)]
        struct Both {
            #[serde(deserialize_with = "bytes")]
            size: u64,
            #[serde(deserialize_with = "duration")]
            time: Duration,
        }
        let read = |size: &str, time: &str| {
            toml::from_str::<Both>(&format!("size = {size}\ntime = {time}"))
                .map(|both| (both.size, both.time))
        };
        assert_eq!(read("\"3 GiB\"", "\"250ms\""), Ok((3 << 30, Duration::from_millis(250))));
        assert_eq!(read("77", "\"2 min\""), Ok((77, Duration::from_secs(120))));
        assert_eq!(read("0", "\"12h\""), Ok((0, Duration::from_secs(43_200))));
        assert_eq!(read("0", "\"7d\""), Ok((0, Duration::from_secs(604_800))));
        assert!(read("\"3 parsecs\"", "\"1s\"").is_err());
        assert!(read("\"99999999999 TiB\"", "\"1s\"").is_err());
        assert!(read("1", "\"soon\"").is_err());
    }
}
