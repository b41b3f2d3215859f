//! Which stores the configurations name, for whom, and opening them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use catena_kv::{Database, StoreConfig};
use catena_kv_archive::Keys;
use catena_kv_embedded::EmbeddedDatabase;
use catena_proto::ids::ClusterId;
use catena_proto::token::Token;

use crate::args::ServiceKind;
use crate::args::kv::StoresArgs;
use crate::cluster_file::Cluster;
use crate::cmd::config::{load_kv, load_meta, load_mgmtd};
use crate::exit::{Exit, Failure, Result};
use crate::local::directory::Directory;
use crate::local::shape::Wish;
use crate::local::store::Store;
use crate::toml_file;

/// The stores of one cluster.
pub struct Stores {
    /// Whose.
    pub cluster: ClusterId,
    token: Token,
    /// Each store once.
    pub places: Vec<Place>,
    /// Of a `catena dev` that does not run, and cannot be started meanwhile.
    directory: Option<Directory>,
}

/// A store that was named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Where it is.
    pub config: StoreConfig,
    /// What to call it.
    pub name: String,
    /// A configuration of mgmtd names it.
    pub mgmtd: bool,
    /// A configuration of meta names it.
    pub meta: bool,
}

/// What one configuration says.
struct Named {
    cluster: ClusterId,
    token: Token,
    config: StoreConfig,
    kind: ServiceKind,
}

impl Place {
    /// What it is for.
    pub fn keys(&self) -> Keys {
        match (self.mgmtd, self.meta) {
            (true, false) => Keys::Mgmtd,
            (false, true) => Keys::Meta,
            _ => Keys::All,
        }
    }

    /// Nobody else has it open while this process has.
    pub fn exclusive(&self) -> bool {
        self.config.is_exclusive()
    }
}

impl Stores {
    /// Finds them.
    pub fn find(args: &StoresArgs) -> Result<Stores> {
        let (files, directory) = match &args.dir {
            None => (args.config.clone(), None),
            Some(root) => files_in(root)?,
        };
        let mut stores: Option<Stores> = None;
        for file in files {
            let named = load(&file)?;
            let stores = stores.get_or_insert_with(|| Stores {
                cluster: named.cluster,
                token: named.token,
                places: Vec::new(),
                directory: None,
            });
            if named.cluster != stores.cluster {
                let message = format!(
                    "{}: cluster {}, the others say {}",
                    file.display(),
                    named.cluster,
                    stores.cluster
                );
                return Err(Failure::usage(message).hint("name the configurations of one cluster"));
            }
            stores.add(named).map_err(|failure| failure.about(file.display()))?;
        }
        let mut stores = stores.ok_or_else(|| Failure::usage("no configuration was named"))?;
        stores.directory = directory;
        Ok(stores)
    }

    /// Those that the cluster in `directory` would have with another `store`.
    pub fn of(directory: &Directory, store: &Store) -> Result<Stores> {
        let Cluster { id: cluster, token, .. } = *directory.cluster();
        let mut stores = Stores { cluster, token, places: Vec::new(), directory: None };
        for (kind, config) in directory.stores(store) {
            stores.add(Named { cluster, token, config, kind })?;
        }
        Ok(stores)
    }

    /// The directory of a `catena dev` that does not run, if that is where they were found.
    pub fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// The same, and nothing else.
    pub fn into_directory(self) -> Option<Directory> {
        self.directory
    }

    fn add(&mut self, named: Named) -> Result<()> {
        let config = named.config;
        if config == StoreConfig::Mem {
            let failure = Failure::usage("its store is in the memory of its process: nobody else can use it");
            return Err(
                failure.hint("only embedded, remote and fdb stores can be looked at, saved and restored")
            );
        }
        let (mgmtd, meta) = (named.kind != ServiceKind::Meta, named.kind != ServiceKind::Mgmtd);
        let known = self.places.iter().position(|place| place.config == config);
        for (n, place) in self.places.iter().enumerate() {
            if known != Some(n) && (place.mgmtd && mgmtd || place.meta && meta) {
                let whose = if place.mgmtd && mgmtd { "mgmtd" } else { "meta" };
                let message = format!(
                    "names {} for {whose}, another configuration names {}",
                    catena_kv_open::name(&config),
                    place.name
                );
                return Err(Failure::usage(message)
                    .hint("all mgmtd of a cluster share a store, and so do all meta: correct `store`"));
            }
        }
        match known {
            Some(n) => {
                self.places[n].mgmtd |= mgmtd;
                self.places[n].meta |= meta;
            }
            None => {
                let name = catena_kv_open::name(&config);
                self.places.push(Place { config, name, mgmtd, meta });
            }
        }
        Ok(())
    }

    /// For reading: whoever names only one service of a store that several share means all of it.
    pub fn for_reading(&mut self) -> Result<()> {
        let [place] = &mut self.places[..] else { return Ok(()) };
        if place.mgmtd && place.meta {
            return Ok(());
        }
        if place.exclusive() {
            let (whose, other) = if place.mgmtd { ("mgmtd", "meta") } else { ("meta", "mgmtd") };
            let message = format!("{} is only {whose}'s; {other} keeps its own", place.name);
            return Err(Failure::usage(message).hint(format!("add {other}'s configuration: --config FILE")));
        }
        (place.mgmtd, place.meta) = (true, true);
        Ok(())
    }

    /// Opens one of them; makes an embedded one only if told to.
    pub fn open(&self, place: &Place, make: bool) -> Result<Arc<dyn Database>> {
        if let StoreConfig::Embedded { path } = &place.config
            && !make
            && !EmbeddedDatabase::exists(path)
        {
            let message = format!("{}: no store is there", path.display());
            return Err(
                Failure::new(Exit::NotFound, message).hint("it is made when its service first starts")
            );
        }
        catena_kv_open::open(&place.config, self.cluster, &self.token).map_err(|error| match &error {
            catena_kv_open::OpenError::Embedded(catena_kv_embedded::OpenError::InUse { .. }) => {
                Failure::new(Exit::Exists, error.to_string()).hint(
                    "an embedded store belongs to one process: stop the cluster first. If it is served by `catena serve kv`, name mgmtd's and meta's configurations instead",
                )
            }
            _ => Failure::failed(error.to_string()),
        })
    }
}

/// The configurations of a `catena dev` directory. If the cluster does not run, it is kept from being started.
fn files_in(root: &Path) -> Result<(Vec<PathBuf>, Option<Directory>)> {
    if !root.join("dev.toml").is_file() {
        let message = format!("{}: no directory of `catena dev`", root.display());
        return Err(Failure::new(Exit::NotFound, message).hint("name configurations with --config FILE"));
    }
    let (services, directory) = match Directory::open(root, &Wish::default()) {
        Ok(directory) => {
            directory.write_configs("info")?;
            (directory.services(), Some(directory))
        }
        // It runs.
        Err(failure) if failure.exit == Exit::Exists => (Directory::services_in(root)?, None),
        Err(failure) => return Err(failure),
    };
    // What services share is served by a `kv`, if it runs; if not, the store itself can be opened.
    let has_kv = services.iter().any(|spec| spec.kind == ServiceKind::Kv);
    let wanted = |kind| match (has_kv, directory.is_some()) {
        (true, true) => kind == ServiceKind::Kv,
        _ => matches!(kind, ServiceKind::Mgmtd | ServiceKind::Meta),
    };
    let files = services.into_iter().filter(|spec| wanted(spec.kind)).map(|spec| spec.config).collect();
    Ok((files, directory))
}

/// Reads a configuration of whichever service it is for.
fn load(file: &Path) -> Result<Named> {
    let keys: toml::Table = toml_file::parse(file, &toml_file::read(file)?)?;
    if keys.contains_key("disks") {
        let message = format!("{}: a storage service keeps nothing in a key-value store", file.display());
        return Err(Failure::usage(message).hint("name the configurations of mgmtd and meta"));
    }
    Ok(if keys.contains_key("mgmtd") {
        let config = load_meta(file)?.config;
        Named { cluster: config.cluster, token: config.token, config: config.store, kind: ServiceKind::Meta }
    } else if keys.contains_key("node") {
        let config = load_mgmtd(file)?.config;
        Named { cluster: config.cluster, token: config.token, config: config.store, kind: ServiceKind::Mgmtd }
    } else {
        let config = load_kv(file)?.config;
        let store = match config.store {
            catena_kv_remote::config::Store::Embedded { path } => StoreConfig::Embedded { path },
            catena_kv_remote::config::Store::Mem => StoreConfig::Mem,
        };
        Named { cluster: config.cluster, token: config.token, config: store, kind: ServiceKind::Kv }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: ServiceKind, config: StoreConfig) -> Named {
        Named { cluster: ClusterId(1), token: Token([0; 32]), config, kind }
    }

    fn none() -> Stores {
        Stores { cluster: ClusterId(1), token: Token([0; 32]), places: Vec::new(), directory: None }
    }

    #[test]
    fn a_store_is_for_those_who_name_it() {
        let own = |name: &str| StoreConfig::Embedded { path: name.into() };
        let shared = || StoreConfig::Remote { address: "kv:7300".into() };
        let mut stores = none();
        stores.add(named(ServiceKind::Mgmtd, own("a"))).unwrap();
        stores.add(named(ServiceKind::Meta, own("b"))).unwrap();
        stores.add(named(ServiceKind::Meta, own("b"))).unwrap();
        let keys: Vec<_> = stores.places.iter().map(Place::keys).collect();
        assert_eq!(keys, [Keys::Mgmtd, Keys::Meta]);
        let failure = stores.add(named(ServiceKind::Mgmtd, own("c"))).unwrap_err();
        assert!(failure.message.contains("the embedded store c for mgmtd"), "{failure}");

        let mut stores = none();
        stores.add(named(ServiceKind::Mgmtd, shared())).unwrap();
        assert_eq!(stores.places[0].keys(), Keys::Mgmtd);
        stores.add(named(ServiceKind::Meta, shared())).unwrap();
        assert_eq!((stores.places.len(), stores.places[0].keys()), (1, Keys::All));

        let mut stores = none();
        stores.add(named(ServiceKind::Kv, own("kv"))).unwrap();
        assert_eq!(stores.places[0].keys(), Keys::All);
        assert!(stores.add(named(ServiceKind::Meta, StoreConfig::Mem)).is_err());
    }

    #[test]
    fn half_of_a_cluster_is_not_read_for_the_whole() {
        let mut own = none();
        own.add(named(ServiceKind::Mgmtd, StoreConfig::Embedded { path: "a".into() })).unwrap();
        let failure = own.for_reading().unwrap_err();
        assert_eq!(failure.hint.as_deref(), Some("add meta's configuration: --config FILE"));
        let mut shared = none();
        shared.add(named(ServiceKind::Meta, StoreConfig::Remote { address: "kv:7300".into() })).unwrap();
        shared.for_reading().unwrap();
        assert_eq!(shared.places[0].keys(), Keys::All);
    }
}
