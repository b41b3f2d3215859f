//! Where a local cluster keeps its names and its state: its own embedded store, or FoundationDB.

use std::path::{Path, PathBuf};
use std::time::Duration;

use catena_kv::{FdbConfig, Jitter, KvError, Retry, StoreConfig, transact};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::args::local::StoreArgs;
use crate::cluster_file::Cluster;
use crate::exit::{Exit, Failure, Result};

/// Where FoundationDB's own packages put it, and its own tools look for it.
const CLUSTER_FILE: &str = "/etc/foundationdb/fdb.cluster";
/// The variable by which FoundationDB's own tools are told of another one.
const CLUSTER_FILE_VARIABLE: &str = "FDB_CLUSTER_FILE";
/// A database that does not take a cluster's keys back by then is down.
const CLEAR_LIMIT: Duration = Duration::from_secs(30);

/// What `--kv` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    /// On this machine: in the service's own directory, or in a key-value service that several share.
    Embedded,
    /// In FoundationDB.
    Fdb,
}

impl Kind {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Embedded => "embedded",
            Kind::Fdb => "fdb",
        }
    }
}

/// A local cluster's store.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Store {
    /// On this machine.
    #[default]
    Embedded,
    /// In FoundationDB, below the prefix that belongs to the cluster's id.
    Fdb {
        /// FoundationDB's cluster file.
        cluster_file: PathBuf,
        /// Its client library, if the linker does not find it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        library: Option<PathBuf>,
    },
}

impl Store {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Store::Embedded => Kind::Embedded,
            Store::Fdb { .. } => Kind::Fdb,
        }
    }

    /// The store of a new cluster, paths made absolute: services have other working directories than who starts them.
    pub fn wished(args: &StoreArgs) -> Result<Store> {
        match args.kv.unwrap_or(Kind::Embedded) {
            Kind::Embedded => match args.cluster_file.is_some() || args.fdb_library.is_some() {
                true => Err(Failure::usage("--cluster-file and --fdb-library are FoundationDB's")
                    .hint("add --kv fdb, or leave them out")),
                false => Ok(Store::Embedded),
            },
            Kind::Fdb => {
                let named = args.cluster_file.clone();
                let named = named.or_else(|| std::env::var_os(CLUSTER_FILE_VARIABLE).map(PathBuf::from));
                let cluster_file = absolute(&named.unwrap_or_else(|| CLUSTER_FILE.into()))?;
                let library = args.fdb_library.as_deref().map(absolute).transpose()?;
                let store = Store::Fdb { cluster_file, library };
                store.check()?;
                Ok(store)
            }
        }
    }

    /// Fails if what it names on this machine is not there.
    pub fn check(&self) -> Result<()> {
        let Store::Fdb { cluster_file, library } = self else { return Ok(()) };
        if let Err(error) = std::fs::File::open(cluster_file) {
            return Err(Failure::io(format_args!("FoundationDB's cluster file {}", cluster_file.display()), error)
                .hint("name it with --cluster-file; FoundationDB's server packages install it, and a copy of it is all that a client needs"));
        }
        if let Some(library) = library.as_ref().filter(|library| !library.exists()) {
            let message = format!("{}: no such file", library.display());
            return Err(Failure::new(Exit::NotFound, message)
                .hint("--fdb-library names libfdb_c.so, which FoundationDB's client packages install"));
        }
        Ok(())
    }

    /// What differs from what the command line says: the option, what it says, what there is.
    pub fn differs(&self, args: &StoreArgs) -> Option<(&'static str, String, String)> {
        if let Some(kind) = args.kv.filter(|kind| *kind != self.kind()) {
            return Some(("--kv", kind.name().into(), self.kind().name().into()));
        }
        let nothing = || "none".to_owned();
        let (cluster_file, library) = match self {
            Store::Embedded => (None, None),
            Store::Fdb { cluster_file, library } => (Some(cluster_file), library.as_ref()),
        };
        let paths = [
            ("--cluster-file", &args.cluster_file, cluster_file),
            ("--fdb-library", &args.fdb_library, library),
        ];
        paths.into_iter().find_map(|(option, wanted, is)| {
            let wanted = std::path::absolute(wanted.as_ref()?).ok()?;
            let is = is.map_or_else(nothing, |is| is.display().to_string());
            (wanted.display().to_string() != is).then(|| (option, wanted.display().to_string(), is))
        })
    }

    /// The `[store]` table of a service's configuration, if that does not depend on the service.
    pub fn table(&self) -> Option<String> {
        let Store::Fdb { cluster_file, library } = self else { return None };
        let quote = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
        let library = library.as_deref().map(|library| format!("library = {}\n", quote(library)));
        Some(format!(
            "\n[store]\nkind = \"fdb\"\ncluster_file = {}\n{}",
            quote(cluster_file),
            library.unwrap_or_default()
        ))
    }

    /// What `catena-kv-open` is told, with a prefix that is not the cluster's own; nothing for a store that is in the directory.
    pub fn shared(&self, prefix: Option<String>) -> Option<StoreConfig> {
        match self.clone() {
            Store::Embedded => None,
            Store::Fdb { cluster_file, library } => {
                Some(StoreConfig::Fdb(FdbConfig { cluster_file, prefix, library }))
            }
        }
    }

    /// Takes what a throw-away cluster has put into a store that is not in its directory out of it again, when it has stopped.
    pub async fn clear(&self, cluster: &Cluster) -> Result<()> {
        let Some(config) = self.shared(None) else { return Ok(()) };
        let name = catena_kv_open::name(&config);
        let db = catena_kv_open::open(&config, cluster.id, &cluster.token);
        let db = db.map_err(|error| Failure::failed(error.to_string()))?;
        let left = |error: KvError| {
            let message = format!("{name}: the keys of this cluster could not be removed: {error}");
            let hint =
                format!("they begin with catena/{:032x}/; `fdbcli` can clear that range", cluster.id.0);
            Failure::new(Exit::Unreachable, message).hint(hint)
        };
        clear(&*db).await.map_err(left)
    }
}

/// Removes every key of a database that one has to oneself.
pub async fn clear(db: &dyn catena_kv::Database) -> std::result::Result<(), KvError> {
    let retry = Retry::default().within(CLEAR_LIMIT).idempotent();
    let all = |tx: catena_kv::Tx| async move { tx.clear_range(b"", catena_kv::USER_KEY_END) };
    transact(db, retry, &Jitter::new(rand::random()), all).await
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::io(path.display(), error))
}

#[cfg(test)]
mod tests {
    use catena_kv::{Database, Isolation, MemDatabase, Prefixed, Subspace, TxOptions};

    use super::*;

    #[test]
    fn a_missing_cluster_file_is_named_with_the_option_that_names_another() {
        let args = StoreArgs {
            kv: Some(Kind::Fdb),
            cluster_file: Some("/nowhere/fdb.cluster".into()),
            ..StoreArgs::default()
        };
        let failure = Store::wished(&args).unwrap_err();
        assert!(failure.message.contains("/nowhere/fdb.cluster"), "{failure}");
        assert!(failure.hint.unwrap().contains("--cluster-file"));
    }

    #[test]
    fn a_cluster_file_without_foundationdb_is_a_mistake() {
        let args = StoreArgs { cluster_file: Some("fdb.cluster".into()), ..StoreArgs::default() };
        assert!(Store::wished(&args).unwrap_err().hint.unwrap().contains("--kv fdb"));
    }

    #[test]
    fn the_services_are_told_absolute_paths() {
        let temp = tempfile::NamedTempFile::new_in(".").unwrap();
        let name = PathBuf::from(temp.path().file_name().unwrap());
        let args =
            StoreArgs { kv: Some(Kind::Fdb), cluster_file: Some(name.clone()), ..StoreArgs::default() };
        let store = Store::wished(&args).unwrap();
        let table: toml::Table = toml::from_str(&store.table().unwrap()).unwrap();
        let config: StoreConfig = table["store"].clone().try_into().unwrap();
        assert_eq!(Some(config.clone()), store.shared(None));
        assert!(config.validate().is_ok());
        assert_eq!(table["store"]["cluster_file"].as_str(), std::path::absolute(name).unwrap().to_str());
    }

    #[tokio::test]
    async fn clearing_takes_one_cluster_s_keys_and_no_other_s() {
        let shared = std::sync::Arc::new(MemDatabase::new());
        let of = |name: &'static str| Prefixed::new(shared.clone(), Subspace::new(name));
        for name in ["a/", "b/"] {
            for key in [&b""[..], b"x", b"\xfe\xff"] {
                let tx = of(name).begin(TxOptions::default()).unwrap();
                tx.set(key, b"1").unwrap();
                tx.commit().await.unwrap();
            }
        }
        clear(&of("a/")).await.unwrap();
        for (name, left) in [("a/", false), ("b/", true)] {
            let tx = of(name).begin(TxOptions::default()).unwrap();
            for key in [&b""[..], b"x", b"\xfe\xff"] {
                assert_eq!(tx.get(key, Isolation::Snapshot).await.unwrap().is_some(), left, "{name} {key:?}");
            }
        }
    }
}
