//! A local cluster's directory: identity, ports and shape in files that survive restarts, one process at a time, services'
//! configuration written from them at every start.
//!
//! ```text
//! D/cluster.toml        for clients; has the token (0600)
//! D/dev.toml            shape and ports; its presence says that the directory is complete
//! D/lock                held by the `catena dev` or `demo` that runs it
//! D/config/NAME.toml    D/logs/NAME.log    D/run/NAME.pid
//! D/mgmtd/  D/meta/     stores; with several mgmtd or meta one that they share, D/kv/; none if FoundationDB has the data
//! D/storage-1/disk-1/   chunks
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use catena_kv::StoreConfig;
use catena_net::TransportConfig;
use catena_proto::ids::ClusterId;
use catena_proto::token::Token;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::args::ServiceKind;
use crate::cluster_file::{Cluster, write_private};
use crate::exit::{Exit, Failure, Result};
use crate::local::ports;
use crate::local::shape::{Shape, Wish};
use crate::local::store::Store;
use crate::local::transport::LocalTransport;
use crate::toml_file;

/// Node numbers: storage nodes count from 1, so that `storage-2` is node 2. The only mgmtd:
pub const MGMTD_NODE: u32 = 1001;
/// The only metadata service's.
pub const META_NODE: u32 = 1002;
/// One of several: `mgmtd-1` is node 1101.
const MGMTD_NODES: u32 = 1100;
/// One of several: `meta-1` is node 1201.
const META_NODES: u32 = 1200;
/// The key-value service is no node of the cluster: mgmtd depends on it.
pub const NO_NODE: u32 = 0;

/// A service of a local cluster.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `mgmtd`, `meta`, `storage-1`, ...; of several `mgmtd-1`, `meta-1`, and `kv`.
    pub name: String,
    /// What it is.
    pub kind: ServiceKind,
    /// Its node number, or [`NO_NODE`].
    pub node: u32,
    /// Its configuration.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its process id, while it runs.
    pub pid: PathBuf,
}

/// A directory that this process has locked.
pub struct Directory {
    root: PathBuf,
    shape: Shape,
    ports: BTreeMap<String, u16>,
    cluster: Cluster,
    /// Whether this call made it.
    pub fresh: bool,
    /// How long a service may be silent before it counts as failed; mgmtd's default if nothing is said.
    pub lease: Option<Duration>,
    transport: LocalTransport,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    shape: Shape,
    #[serde(default)]
    ports: BTreeMap<String, u16>,
}

const FORMAT: u32 = 1;

impl Directory {
    /// Opens the cluster in `root`, or makes one.
    pub fn open(root: &Path, wish: &Wish) -> Result<Directory> {
        let state_file = root.join("dev.toml");
        // Refuse an impossible shape before anything is made.
        let known = state_file.exists();
        let wanted = if known { None } else { Some(wish.shape()?) };
        std::fs::create_dir_all(root).map_err(|error| Failure::io(root.display(), error))?;
        let root = root.canonicalize().map_err(|error| Failure::io(root.display(), error))?;
        let lock = lock(&root)?;
        let state_file = root.join("dev.toml");
        let (shape, mut ports, cluster) = match wanted {
            None => {
                let state: State = toml_file::parse(&state_file, &toml_file::read(&state_file)?)?;
                if state.format != FORMAT {
                    let message = format!(
                        "{} has format {}, this catena knows {FORMAT}",
                        state_file.display(),
                        state.format
                    );
                    return Err(Failure::failed(message).hint("use the release that made it"));
                }
                state.shape.validate().map_err(|failure| failure.about(state_file.display()))?;
                wish.check_against(&state.shape, &root.display().to_string())?;
                state.shape.store.check()?;
                (state.shape, state.ports, Some(Cluster::load(&root.join("cluster.toml"))?))
            }
            Some(shape) => {
                refuse_strangers(&root)?;
                (shape, BTreeMap::new(), None)
            }
        };
        let names = port_names(&shape);
        let managers = names_of(&shape).into_iter().filter(|(_, kind, _)| *kind == ServiceKind::Mgmtd);
        if names.iter().any(|name| !ports.contains_key(name)) {
            let chosen = ports::choose(names.len(), &mut rand::rng())?;
            ports = names.into_iter().zip(chosen).collect();
        }
        let fresh = cluster.is_none();
        let mgmtd = managers.map(|(name, ..)| format!("127.0.0.1:{}", ports[&name])).collect();
        let cluster = match cluster {
            Some(cluster) => Cluster { mgmtd, transport: TransportConfig::default(), ..cluster },
            None => {
                let (id, token) = (ClusterId(rand::random::<u128>().max(1)), Token(rand::random()));
                Cluster { id, token, mgmtd, transport: TransportConfig::default() }
            }
        };
        let directory = Directory {
            root,
            shape,
            ports,
            cluster,
            fresh,
            lease: None,
            transport: LocalTransport::default(),
            _lock: lock,
        };
        directory.write()?;
        Ok(directory)
    }

    /// From the next start on data goes over this; clients are told too.
    pub fn set_transport(&mut self, transport: LocalTransport) -> Result<()> {
        self.cluster.transport = transport.of_clients(self.shape.nodes);
        self.transport = transport;
        self.write()
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// What it looks like.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    /// How clients find it.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
    /// The file that clients are given.
    pub fn cluster_file(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    /// Where a service listens.
    pub fn address(&self, name: &str) -> String {
        self.ports.get(name).map_or_else(String::new, |port| format!("127.0.0.1:{port}"))
    }

    /// Where a node's metrics are, `host:port/metrics`.
    pub fn metrics_address(&self, node: u32) -> String {
        let spec = self.services().into_iter().find(|spec| spec.node == node);
        let port = spec.and_then(|spec| self.ports.get(&format!("{}-metrics", spec.name)).copied());
        port.map_or_else(String::new, |port| format!("127.0.0.1:{port}/metrics"))
    }

    /// All services, mgmtd first.
    pub fn services(&self) -> Vec<Spec> {
        services_of(&self.root, &self.shape)
    }

    /// The services of the cluster in `root`, which another process may be running.
    pub fn services_in(root: &Path) -> Result<Vec<Spec>> {
        let file = root.join("dev.toml");
        let state: State = toml_file::parse(&file, &toml_file::read(&file)?)?;
        Ok(services_of(root, &state.shape))
    }

    /// Where mgmtd and meta keep their data, or would with another `store`: for whom (`Kv` is for both), and where.
    pub fn stores(&self, store: &Store) -> Vec<(ServiceKind, StoreConfig)> {
        let embedded = |name: &str| StoreConfig::Embedded { path: self.root.join(name) };
        let shape = Shape { store: store.clone(), ..self.shape.clone() };
        match store.shared(None) {
            Some(shared) => vec![(ServiceKind::Kv, shared)],
            None if shape.shares_store() => vec![(ServiceKind::Kv, embedded("kv"))],
            None => {
                vec![(ServiceKind::Mgmtd, embedded("mgmtd")), (ServiceKind::Meta, embedded("meta"))]
            }
        }
    }

    /// From its next start on the cluster uses `store`.
    pub fn move_to(&mut self, store: Store) -> Result<()> {
        self.shape.store = store;
        // Services that this shape has and the one before had not get their ports when the cluster starts.
        self.write()
    }

    /// Fails if somebody listens on one of the cluster's ports.
    pub fn check_ports(&self) -> Result<()> {
        let state = self.root.join("dev.toml");
        self.ports.iter().try_for_each(|(name, port)| ports::check_free(*port, name, &state))
    }

    /// Writes the services' configuration.
    pub fn write_configs(&self, log_level: &str) -> Result<()> {
        for spec in self.services() {
            write_private(&spec.config, &self.config(&spec, log_level))?;
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        for name in ["config", "logs", "run"] {
            make_dir(&self.root.join(name))?;
        }
        for node in 1..=self.shape.nodes {
            for disk in 1..=self.shape.disks_per_node {
                make_dir(&self.root.join(format!("storage-{node}/disk-{disk}")))?;
            }
        }
        self.cluster.save(&self.cluster_file())?;
        let state = State { format: FORMAT, shape: self.shape.clone(), ports: self.ports.clone() };
        let text = toml::to_string(&state).map_err(|error| Failure::failed(error.to_string()))?;
        write_private(
            &self.root.join("dev.toml"),
            &format!("# Made by `catena dev`; the shape is fixed, ports may be changed.\n{text}"),
        )
    }

    fn config(&self, spec: &Spec, log_level: &str) -> String {
        let quote = |text: &str| toml::Value::from(text).to_string();
        let path = |tail: &str| quote(&self.root.join(tail).display().to_string());
        let address = |name: &str| quote(&format!("127.0.0.1:{}", self.ports[name]));
        let name = &spec.name;
        let mut text = format!(
            "# Written by `catena dev` at every start.\ncluster = \"{}\"\ntoken = \"{}\"\nlisten = {}\nmetrics = {}\n",
            self.cluster.id,
            self.cluster.token.to_hex(),
            address(name),
            address(&format!("{name}-metrics")),
        );
        if let Some(lease) = self.lease.filter(|_| spec.kind == ServiceKind::Mgmtd) {
            text += &format!("lease = \"{} ms\"\n", lease.as_millis());
        }
        if !matches!(spec.kind, ServiceKind::Mgmtd | ServiceKind::Kv) {
            let all: Vec<_> = self.cluster.mgmtd.iter().map(|address| quote(address)).collect();
            text += &format!("mgmtd = [{}]\n", all.join(", "));
        }
        if spec.node != NO_NODE {
            text += &format!("node = {}\n", spec.node);
        }
        let store = || match self.shape.store.table() {
            Some(table) => table,
            None if self.shape.shares_store() && spec.kind != ServiceKind::Kv => {
                format!("\n[store]\nkind = \"remote\"\naddress = {}\n", address("kv"))
            }
            None => format!("\n[store]\nkind = \"embedded\"\npath = {}\n", path(name)),
        };
        let Shape { disks_per_node, chunk_size, disk_capacity, .. } = self.shape;
        text += &match spec.kind {
            ServiceKind::Mgmtd | ServiceKind::Kv => store(),
            ServiceKind::Meta => {
                // The first user owns the root, so that `fs mkdir /x` works without being root.
                let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
                format!(
                    "{}\n[root]\nuid = {uid}\ngid = {gid}\n\n[layout]\nchunk_size = {chunk_size}\n",
                    store()
                )
            }
            ServiceKind::Storage => {
                let disks: Vec<_> =
                    (1..=disks_per_node).map(|disk| path(&format!("{name}/disk-{disk}"))).collect();
                format!("disks = [{}]\ncapacity = {disk_capacity}\npool = \"256 MiB\"\n", disks.join(", "))
            }
        };
        let transport = match spec.kind {
            ServiceKind::Storage => self.transport.of_node(spec.node),
            ServiceKind::Meta => self.transport.of_clients(self.shape.nodes),
            ServiceKind::Mgmtd | ServiceKind::Kv => TransportConfig::default(),
        };
        if transport != TransportConfig::default() {
            text += "\n[transport]\n";
            text += &toml::to_string(&transport).unwrap_or_default();
        }
        text + &format!("\n[log]\nformat = \"human\"\nlevel = {}\n", quote(log_level))
    }
}

fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| Failure::io(path.display(), error))
}

fn services_of(root: &Path, shape: &Shape) -> Vec<Spec> {
    let spec = |name: String, kind, node| Spec {
        config: root.join(format!("config/{name}.toml")),
        log: root.join(format!("logs/{name}.log")),
        pid: root.join(format!("run/{name}.pid")),
        name,
        kind,
        node,
    };
    names_of(shape).into_iter().map(|(name, kind, node)| spec(name, kind, node)).collect()
}

/// The names of the ports that a shape needs.
fn port_names(shape: &Shape) -> Vec<String> {
    let services = names_of(shape).into_iter();
    services.flat_map(|(name, ..)| [format!("{name}-metrics"), name]).collect()
}

/// The services of a shape, in the order in which they start: names, kinds, node numbers.
fn names_of(shape: &Shape) -> Vec<(String, ServiceKind, u32)> {
    let several = |kind: ServiceKind, count: u32, only: u32, first: u32| {
        (1..=count).map(move |n| match count {
            1 => (kind.name().to_owned(), kind, only),
            _ => (format!("{}-{n}", kind.name()), kind, first + n),
        })
    };
    let kv = shape.shares_store().then(|| ("kv".to_owned(), ServiceKind::Kv, NO_NODE));
    let storage = (1..=shape.nodes).map(|n| (format!("storage-{n}"), ServiceKind::Storage, n));
    kv.into_iter()
        .chain(several(ServiceKind::Mgmtd, shape.mgmtd, MGMTD_NODE, MGMTD_NODES))
        .chain(several(ServiceKind::Meta, shape.meta, META_NODE, META_NODES))
        .chain(storage)
        .collect()
}

/// One process at a time. The lock goes with the process, however it ends.
fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| Failure::io(path.display(), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let message = match owner.trim() {
                "" => format!("{} is in use by another catena dev", root.display()),
                pid => format!("{} is in use by another catena dev (process {pid})", root.display()),
            };
            return Err(
                Failure::new(Exit::Exists, message).hint("stop that one, or choose another directory")
            );
        }
        Err(error) => return Err(Failure::io(path.display(), error.into())),
    }
    let note =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    note.map_err(|error| Failure::io(path.display(), error))?;
    Ok(file)
}

/// A directory that somebody uses for something else is not filled with a cluster.
fn refuse_strangers(root: &Path) -> Result<()> {
    // What an interrupted first start may have left.
    const OURS: [&str; 5] = ["lock", "config", "logs", "run", "cluster.toml"];
    let entries = std::fs::read_dir(root).map_err(|error| Failure::io(root.display(), error))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !OURS.contains(&&*name) && !name.starts_with("storage-") && !name.ends_with(".new") {
            let message = format!(
                "{} is not empty and is no directory of `catena dev` (it has `{name}`)",
                root.display()
            );
            return Err(Failure::new(Exit::Exists, message).hint("choose an empty or new directory"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::local::StoreArgs;
    use crate::local::store::Kind;

    fn wish(nodes: u32) -> Wish {
        Wish { nodes: Some(nodes), ..Wish::default() }
    }

    #[test]
    fn a_directory_keeps_identity_and_ports() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("d");
        let first = Directory::open(&root, &wish(2)).unwrap();
        assert!(first.fresh);
        let (id, ports) = (first.cluster().id, first.ports.clone());
        drop(first);
        let second = Directory::open(&root, &Wish::default()).unwrap();
        assert!(!second.fresh);
        assert_eq!((second.cluster().id, &second.ports, second.shape().nodes), (id, &ports, 2));
    }

    #[test]
    fn several_mgmtd_or_meta_share_a_store_and_one_of_each_has_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let wish = Wish { mgmtd: Some(3), meta: Some(2), ..wish(1) };
        let directory = Directory::open(&temp.path().join("several"), &wish).unwrap();
        let names: Vec<_> = directory.services().into_iter().map(|spec| spec.name).collect();
        assert_eq!(names, ["kv", "mgmtd-1", "mgmtd-2", "mgmtd-3", "meta-1", "meta-2", "storage-1"]);
        assert_eq!(directory.cluster().mgmtd.len(), 3);
        let nodes: std::collections::BTreeSet<_> =
            directory.services().into_iter().map(|spec| spec.node).collect();
        assert_eq!(nodes.len(), names.len());
        let kv = format!("address = \"127.0.0.1:{}\"", directory.ports["kv"]);
        for spec in directory.services() {
            let config = directory.config(&spec, "info");
            let shares = matches!(spec.kind, ServiceKind::Mgmtd | ServiceKind::Meta);
            assert_eq!(config.contains(&kv), shares, "{}: {config}", spec.name);
            let all = directory.cluster().mgmtd.iter().all(|address| config.contains(address));
            assert_eq!(all, matches!(spec.kind, ServiceKind::Meta | ServiceKind::Storage), "{config}");
        }
        let directory = Directory::open(&temp.path().join("one"), &super::tests::wish(1)).unwrap();
        let names: Vec<_> = directory.services().into_iter().map(|spec| spec.name).collect();
        assert_eq!(names, ["mgmtd", "meta", "storage-1"]);
    }

    #[test]
    fn with_foundationdb_nobody_has_a_store_here() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("fdb.cluster");
        std::fs::write(&file, "a:b@127.0.0.1:4500\n").unwrap();
        let store = StoreArgs { kv: Some(Kind::Fdb), cluster_file: Some(file.clone()), fdb_library: None };
        let wish = Wish { mgmtd: Some(3), meta: Some(2), store, ..wish(1) };
        let root = temp.path().join("d");
        let directory = Directory::open(&root, &wish).unwrap();
        assert!(directory.services().iter().all(|spec| spec.kind != ServiceKind::Kv));
        for spec in directory.services() {
            let config: toml::Table = toml::from_str(&directory.config(&spec, "info")).unwrap();
            match spec.kind {
                ServiceKind::Storage => assert!(!config.contains_key("store")),
                _ => assert_eq!(config["store"]["cluster_file"].as_str(), file.to_str()),
            }
        }
        drop(directory);
        // Found again without being told; and without its cluster file it does not start.
        let again = Directory::open(&root, &Wish::default()).unwrap();
        assert_eq!(again.shape().store.kind(), Kind::Fdb);
        drop(again);
        std::fs::remove_file(&file).unwrap();
        let failure = Directory::open(&root, &Wish::default()).err().unwrap();
        assert!(failure.message.contains(file.to_str().unwrap()), "{failure}");
    }

    #[test]
    fn a_directory_of_before_there_were_stores_to_choose_from_is_embedded() {
        let temp = tempfile::tempdir().unwrap();
        drop(Directory::open(temp.path(), &wish(1)).unwrap());
        let file = temp.path().join("dev.toml");
        let mut state: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert!(state["shape"].as_table_mut().unwrap().remove("store").is_some());
        std::fs::write(&file, toml::to_string(&state).unwrap()).unwrap();
        let directory = Directory::open(temp.path(), &Wish::default()).unwrap();
        assert_eq!(directory.shape().store.kind(), Kind::Embedded);
    }

    #[test]
    fn a_directory_in_use_names_the_process() {
        let temp = tempfile::tempdir().unwrap();
        let _held = Directory::open(temp.path(), &wish(1)).unwrap();
        let failure = Directory::open(temp.path(), &wish(1)).err().unwrap();
        assert!(
            failure
                .message
                .ends_with(&format!("in use by another catena dev (process {})", std::process::id()))
        );
    }

    #[test]
    fn somebody_elses_directory_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("thesis.tex"), "x").unwrap();
        let failure = Directory::open(temp.path(), &wish(1)).err().unwrap();
        assert!(failure.message.contains("thesis.tex"), "{failure}");
    }

    #[test]
    fn an_impossible_shape_makes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("d");
        assert!(
            Directory::open(&root, &Wish { nodes: Some(1), replicas: Some(2), ..Wish::default() }).is_err()
        );
        assert!(!root.exists());
    }

    #[test]
    fn the_token_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path(), &wish(1)).unwrap();
        directory.write_configs("info").unwrap();
        let configs = directory.services().into_iter().map(|spec| spec.config);
        for file in configs.chain([directory.cluster_file()]) {
            assert_eq!(
                std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                file.display()
            );
        }
    }
}
