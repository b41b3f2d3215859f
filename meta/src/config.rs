//! What an operator says about one metadata service, and the errors that name the key which is wrong.

use std::time::Duration;

use catena_kv::StoreConfig;
use catena_net::TransportConfig;
use catena_proto::ids::{ClusterId, NodeId, TableId};
use catena_proto::layout::{DEFAULT_CHUNK_SIZE, check_chunk_size};
use catena_proto::token::Token;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The commented example that `catena config example meta` prints.
pub const EXAMPLE: &str = include_str!("example.toml");

/// Configuration of one metadata service.
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
    /// gRPC address to listen on, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Address that others are told; the bound one when absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Control-plane addresses of all mgmtd services.
    pub mgmtd: Vec<String>,
    /// HTTP address of `/metrics`; served by the CLI, announced to mgmtd here.
    #[serde(default)]
    pub metrics: Option<String>,
    /// The key-value store; opened by the CLI and handed to [`crate::start`].
    #[serde(default)]
    pub store: StoreConfig,
    /// The root directory of a new file system.
    #[serde(default)]
    pub root: Root,
    /// Layout of files that inherit none.
    #[serde(default)]
    pub layout: LayoutDefaults,
    /// Background removal.
    #[serde(default)]
    pub reclaim: Reclaim,
    /// Memory of requests.
    #[serde(default)]
    pub requests: Requests,
    /// How new answers are.
    #[serde(default)]
    pub reads: Reads,
    /// Operations slower than this are logged.
    #[serde(default = "default_slow", deserialize_with = "duration")]
    pub slow: Duration,
    /// What reaches storage services; opened by the CLI and handed to [`crate::start`].
    #[serde(default)]
    pub transport: TransportConfig,
    /// Read by the CLI.
    #[serde(default)]
    pub log: Option<toml::Value>,
}

/// The root directory of a new file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Root {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Layout of files that inherit none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayoutDefaults {
    /// Chain table; files take its newest version.
    pub table: u32,
    /// Bytes in a chunk.
    pub chunk_size: u32,
    /// Chains in a stripe, clipped to the table's.
    pub stripe: u32,
}

/// Background removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reclaim {
    /// How often an idle service looks for work that another one left behind.
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    /// How often file sessions of dead clients are looked for; they are ended at the second look.
    #[serde(deserialize_with = "duration")]
    pub sessions: Duration,
    /// Files at once.
    pub parallel: usize,
    /// Most chunks removed in a second by this service; 0: no limit.
    pub chunks_per_second: u32,
    /// Most names taken apart in a second by this service; 0: no limit.
    pub entries_per_second: u32,
}

/// Memory of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requests {
    /// How long an outcome is remembered at least.
    #[serde(deserialize_with = "duration")]
    pub remember: Duration,
}

/// How new answers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reads {
    /// How old a state stat, lookups, listings and the like may be answered from. 0: everything acknowledged before is seen.
    #[serde(deserialize_with = "duration")]
    pub staleness: Duration,
}

/// More and the version may be gone before it is read: the store keeps five seconds.
const LONGEST_STALENESS: Duration = Duration::from_secs(2);

impl Default for Root {
    fn default() -> Root {
        Root { uid: 0, gid: 0, mode: 0o755 }
    }
}
impl Default for LayoutDefaults {
    fn default() -> LayoutDefaults {
        LayoutDefaults { table: 1, chunk_size: DEFAULT_CHUNK_SIZE, stripe: 16 }
    }
}
impl Default for Reclaim {
    fn default() -> Reclaim {
        Reclaim {
            interval: Duration::from_secs(1),
            sessions: Duration::from_secs(30),
            parallel: 16,
            chunks_per_second: 20_000,
            entries_per_second: 50_000,
        }
    }
}
impl Default for Requests {
    fn default() -> Requests {
        Requests { remember: Duration::from_secs(300) }
    }
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
        let addresses = [("listen", Some(&self.listen)), ("advertise", self.advertise.as_ref())];
        for (key, address) in addresses {
            if let Some(address) = address.filter(|address| !has_port(address)) {
                return bad(key, format!("{address:?} is not host:port"));
            }
        }
        if self.mgmtd.is_empty() {
            return bad("mgmtd", "name at least one mgmtd as host:port".into());
        }
        if let Some(address) = self.mgmtd.iter().find(|address| !has_port(address)) {
            return bad("mgmtd", format!("{address:?} is not host:port"));
        }
        self.store.validate().or_else(|(key, what)| bad(key, what))?;
        if self.root.mode > 0o7777 {
            return bad("root.mode", format!("{:#o} has bits beyond 0o7777", self.root.mode));
        }
        if self.layout.table == 0 {
            return bad("layout.table", "chain tables are numbered from 1".into());
        }
        if let Err(error) = check_chunk_size(self.layout.chunk_size) {
            return bad("layout.chunk_size", error.to_string());
        }
        if self.layout.stripe == 0 {
            return bad("layout.stripe", "a file needs at least one chain".into());
        }
        if self.reclaim.interval < Duration::from_millis(1) {
            return bad("reclaim.interval", "at least 1ms".into());
        }
        if self.reclaim.sessions < Duration::from_secs(1) {
            return bad("reclaim.sessions", "at least 1s".into());
        }
        if self.reclaim.parallel == 0 || self.reclaim.parallel > 1024 {
            return bad("reclaim.parallel", "between 1 and 1024".into());
        }
        if self.reads.staleness > LONGEST_STALENESS {
            return bad("reads.staleness", format!("at most {LONGEST_STALENESS:?}"));
        }
        if self.requests.remember < Duration::from_secs(60) {
            return bad("requests.remember", "at least 60s: clients retry for 30s and more".into());
        }
        Ok(())
    }

    /// This node's identity.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.node)
    }
}

impl LayoutDefaults {
    /// The table's identity.
    pub fn table_id(&self) -> TableId {
        TableId(self.table)
    }
}

fn default_slow() -> Duration {
    Duration::from_millis(500)
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn from_text<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: std::fmt::Display>>(
    input: D,
) -> Result<T, D::Error> {
    String::deserialize(input)?.parse().map_err(D::Error::custom)
}

/// A time such as "10s" or "500ms".
fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let number = number.parse::<u64>().ok();
    number
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .map(Duration::from_millis)
        .ok_or_else(|| D::Error::custom(format!("{text:?} is no time; write \"10s\", \"500ms\" or \"5min\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        toml::from_str(EXAMPLE).expect("the example is a configuration")
    }

    #[test]
    fn the_example_says_the_defaults() {
        let config = config();
        config.validate().unwrap();
        assert_eq!(config.root, Root::default());
        assert_eq!(config.layout, LayoutDefaults::default());
        assert_eq!(config.reclaim, Reclaim::default());
        assert_eq!(config.store, StoreConfig::Embedded { path: "/var/lib/catena/meta".into() });
    }

    #[test]
    fn a_typo_is_refused_by_name() {
        for (text, typo) in [
            (EXAMPLE.replace("listen", "lisen"), "lisen"),
            (EXAMPLE.replace("parallel", "paralel"), "paralel"),
        ] {
            let error = toml::from_str::<Config>(&text).unwrap_err().to_string();
            assert!(error.contains(typo), "{error}");
        }
    }

    #[test]
    fn a_bad_value_names_its_key() {
        let key = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            config.validate().unwrap_err().key
        };
        assert_eq!(key(|c| c.node = 0), "node");
        assert_eq!(key(|c| c.listen = "nowhere".into()), "listen");
        assert_eq!(key(|c| c.mgmtd.clear()), "mgmtd");
        assert_eq!(key(|c| c.store = StoreConfig::Remote { address: ":7300".into() }), "store.address");
        assert_eq!(key(|c| c.root.mode = 0o10000), "root.mode");
        assert_eq!(key(|c| c.layout.chunk_size = 1_000_000), "layout.chunk_size");
        assert_eq!(key(|c| c.layout.stripe = 0), "layout.stripe");
        assert_eq!(key(|c| c.reclaim.parallel = 0), "reclaim.parallel");
        assert_eq!(key(|c| c.requests.remember = Duration::from_secs(1)), "requests.remember");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let read = |text: &str| {
            let text = EXAMPLE.replace("\"1s\"", &format!("\"{text}\""));
            toml::from_str::<Config>(&text).map(|config| config.reclaim.interval)
        };
        assert_eq!(read("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(read("2 min").unwrap(), Duration::from_secs(120));
        assert!(read("soon").is_err() && read("").is_err() && read("99999999999999999999h").is_err());
    }
}
