//! What an operator says about the store of mgmtd or meta: the `[store]` table of their configurations.

use std::path::PathBuf;

use serde::Deserialize;

/// Where a service keeps its state. Opened by `catena-kv-open`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreConfig {
    /// One directory on this machine.
    Embedded {
        /// The directory.
        path: PathBuf,
    },
    /// A key-value service, which several services share: `catena serve kv`.
    Remote {
        /// Its gRPC address, `host:port`.
        address: String,
    },
    /// FoundationDB.
    Fdb(FdbConfig),
    /// In memory, gone when the process ends: tests only.
    #[default]
    Mem,
}

/// A FoundationDB cluster and this Catena cluster's place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbConfig {
    /// FoundationDB's cluster file. The client rewrites it when the coordinators change, so let the service write it.
    pub cluster_file: PathBuf,
    /// What all keys begin with; `catena/CLUSTER/` when absent, CLUSTER being the cluster's id in 32 hexadecimal digits.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The client library, if the dynamic linker does not find `libfdb_c.so` by itself.
    #[serde(default)]
    pub library: Option<PathBuf>,
}

/// Longest prefix, bytes: it is in every key, and keys have a limit.
pub const PREFIX_LIMIT: usize = 256;

impl StoreConfig {
    /// Whether no other process can be using it. A restarted mgmtd then need not wait for the lease of the one that it replaces.
    pub fn is_exclusive(&self) -> bool {
        matches!(self, StoreConfig::Embedded { .. })
    }

    /// Checks what types cannot say; the error is the key and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        match self {
            StoreConfig::Remote { address } if !has_port(address) => {
                Err(("store.address", format!("{address:?} is not host:port")))
            }
            StoreConfig::Fdb(fdb) => fdb.validate(),
            _ => Ok(()),
        }
    }
}

impl FdbConfig {
    fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.cluster_file.as_os_str().is_empty() {
            return Err((
                "store.cluster_file",
                "name FoundationDB's cluster file, often /etc/foundationdb/fdb.cluster".into(),
            ));
        }
        match &self.prefix {
            Some(prefix) if prefix.is_empty() => Err((
                "store.prefix",
                "an empty prefix would take the whole database; leave the key out".into(),
            )),
            Some(prefix) if prefix.len() > PREFIX_LIMIT => {
                Err(("store.prefix", format!("{} bytes; at most {PREFIX_LIMIT}", prefix.len())))
            }
            _ => Ok(()),
        }
    }
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_store_is_refused_by_key() {
        let fdb = |file: &str, prefix: Option<&str>| {
            StoreConfig::Fdb(FdbConfig {
                cluster_file: file.into(),
                prefix: prefix.map(str::to_owned),
                library: None,
            })
        };
        let key = |store: StoreConfig| store.validate().err().map(|(key, _)| key);
        assert_eq!(key(StoreConfig::Remote { address: ":7300".into() }), Some("store.address"));
        assert_eq!(key(StoreConfig::Remote { address: "kv:7300".into() }), None);
        assert_eq!(key(fdb("", None)), Some("store.cluster_file"));
        assert_eq!(key(fdb("fdb.cluster", Some(""))), Some("store.prefix"));
        assert_eq!(key(fdb("fdb.cluster", Some(&"x".repeat(PREFIX_LIMIT + 1)))), Some("store.prefix"));
        assert_eq!(key(fdb("fdb.cluster", Some("catena/"))), None);
    }
}
