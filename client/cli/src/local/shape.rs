//! What a local cluster looks like: chosen when its directory is made, then fixed.

use serde::{Deserialize, Serialize};

use crate::args::local::StoreArgs;
use crate::exit::{Failure, Result};
use crate::local::store::Store;
use crate::units;

/// More processes than this on one machine is a mistake in the command line.
const MAX_NODES: u32 = 64;
const MAX_DISKS: u32 = 32;
const MAX_MGMTD: u32 = 7;
const MAX_META: u32 = 16;

/// A local cluster's shape.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Storage nodes.
    pub nodes: u32,
    /// Cluster managers.
    #[serde(default = "one")]
    pub mgmtd: u32,
    /// Metadata services.
    #[serde(default = "one")]
    pub meta: u32,
    /// Copies of every chunk.
    pub replicas: u32,
    /// Disk directories of a node.
    pub disks_per_node: u32,
    /// Bytes in a chunk of new files.
    pub chunk_size: u32,
    /// Bytes that a disk may use; 0 is what the file system has.
    pub disk_capacity: u64,
    /// Where mgmtd and meta keep their data. Clusters made before there was a choice have an embedded store.
    #[serde(default)]
    pub store: Store,
}

/// Clusters made before there could be several have one.
fn one() -> u32 {
    1
}

/// What the command line says of a shape; nothing where it is silent.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `--nodes`
    pub nodes: Option<u32>,
    /// `--mgmtd`
    pub mgmtd: Option<u32>,
    /// `--meta`
    pub meta: Option<u32>,
    /// `--replicas`
    pub replicas: Option<u32>,
    /// `--disks-per-node`
    pub disks_per_node: Option<u32>,
    /// `--chunk-size`
    pub chunk_size: Option<u32>,
    /// `--disk-capacity`
    pub disk_capacity: Option<u64>,
    /// `--kv` and what belongs to it
    pub store: StoreArgs,
}

impl Wish {
    /// The shape of a new cluster.
    pub fn shape(&self) -> Result<Shape> {
        let nodes = self.nodes.unwrap_or(3);
        let shape = Shape {
            nodes,
            mgmtd: self.mgmtd.unwrap_or(1),
            meta: self.meta.unwrap_or(1),
            replicas: self.replicas.unwrap_or(nodes.clamp(1, 3)),
            disks_per_node: self.disks_per_node.unwrap_or(1),
            chunk_size: self.chunk_size.unwrap_or(catena_proto::layout::DEFAULT_CHUNK_SIZE),
            disk_capacity: self.disk_capacity.unwrap_or(0),
            store: Store::wished(&self.store)?,
        };
        shape.validate()?;
        Ok(shape)
    }

    /// Refuses what a cluster that exists is not.
    pub fn check_against(&self, shape: &Shape, directory: &str) -> Result<()> {
        let sizes = |wanted: u64, is: u64| (units::size(wanted), units::size(is));
        let numbers = |wanted: u32, is: u32| (wanted.to_string(), is.to_string());
        let differs = [
            ("--nodes", self.nodes.filter(|n| *n != shape.nodes).map(|n| numbers(n, shape.nodes))),
            ("--mgmtd", self.mgmtd.filter(|n| *n != shape.mgmtd).map(|n| numbers(n, shape.mgmtd))),
            ("--meta", self.meta.filter(|n| *n != shape.meta).map(|n| numbers(n, shape.meta))),
            (
                "--replicas",
                self.replicas.filter(|n| *n != shape.replicas).map(|n| numbers(n, shape.replicas)),
            ),
            (
                "--disks-per-node",
                self.disks_per_node
                    .filter(|n| *n != shape.disks_per_node)
                    .map(|n| numbers(n, shape.disks_per_node)),
            ),
            (
                "--chunk-size",
                self.chunk_size
                    .filter(|n| *n != shape.chunk_size)
                    .map(|n| sizes(u64::from(n), u64::from(shape.chunk_size))),
            ),
            (
                "--disk-capacity",
                self.disk_capacity
                    .filter(|n| *n != shape.disk_capacity)
                    .map(|n| sizes(n, shape.disk_capacity)),
            ),
        ];
        let differs =
            differs.into_iter().find_map(|(option, values)| values.map(|(wanted, is)| (option, wanted, is)));
        match differs.or_else(|| shape.store.differs(&self.store)) {
            None => Ok(()),
            Some((option, wanted, is)) => {
                let message = format!("{directory} holds a cluster made with {option} {is}, not {wanted}");
                let hint = format!("leave {option} out to start that cluster, or choose another directory");
                Err(Failure::usage(message).hint(hint))
            }
        }
    }
}

impl Shape {
    /// Whether mgmtd and meta keep their data in a key-value service: an embedded store belongs to one process.
    pub fn shares_store(&self) -> bool {
        self.store == Store::Embedded && (self.mgmtd > 1 || self.meta > 1)
    }

    /// Refuses shapes that cannot work, before anything is made.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: String, hint: &str| Err(Failure::usage(message).hint(hint));
        if self.nodes == 0 || self.nodes > MAX_NODES {
            return refuse(
                format!("--nodes {}: a local cluster has 1 to {MAX_NODES} storage nodes", self.nodes),
                "try --nodes 3",
            );
        }
        for (option, count, most) in [("--mgmtd", self.mgmtd, MAX_MGMTD), ("--meta", self.meta, MAX_META)] {
            if count == 0 || count > most {
                return refuse(
                    format!("{option} {count}: a local cluster has 1 to {most} of them"),
                    &format!("try {option} {}", if count == 0 { 1 } else { most }),
                );
            }
        }
        if self.disks_per_node == 0 || self.disks_per_node > MAX_DISKS {
            let message =
                format!("--disks-per-node {}: a node has 1 to {MAX_DISKS} disks here", self.disks_per_node);
            return refuse(message, "try --disks-per-node 1");
        }
        if self.replicas == 0 {
            return refuse("--replicas 0: there is at least one copy".into(), "try --replicas 3");
        }
        if self.replicas > self.nodes {
            return refuse(
                format!(
                    "{} replicas need at least {} storage nodes, not {}",
                    self.replicas, self.replicas, self.nodes
                ),
                &format!(
                    "use --nodes {} or --replicas {}: two copies on one node would be lost together",
                    self.replicas, self.nodes
                ),
            );
        }
        if self.disk_capacity != 0 && self.disk_capacity < 64 << 20 {
            return refuse(
                "--disk-capacity: a disk needs at least 64 MiB".into(),
                "try --disk-capacity 1GiB",
            );
        }
        catena_proto::layout::check_chunk_size(self.chunk_size)
            .map_err(|error| Failure::usage(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::store::Kind;

    #[test]
    fn defaults_fit_small_clusters() {
        assert_eq!(Wish::default().shape().unwrap().replicas, 3);
        assert_eq!(Wish { nodes: Some(2), ..Wish::default() }.shape().unwrap().replicas, 2);
    }

    #[test]
    fn more_replicas_than_nodes_are_refused_with_both_ways_out() {
        let failure = Wish { nodes: Some(2), replicas: Some(3), ..Wish::default() }.shape().unwrap_err();
        assert_eq!(failure.message, "3 replicas need at least 3 storage nodes, not 2");
        assert!(failure.hint.unwrap().contains("--nodes 3 or --replicas 2"));
    }

    #[test]
    fn another_shape_is_refused_by_its_option() {
        let shape = Wish::default().shape().unwrap();
        assert!(Wish::default().check_against(&shape, "D").is_ok());
        assert!(Wish { nodes: Some(3), ..Wish::default() }.check_against(&shape, "D").is_ok());
        let failure = Wish { nodes: Some(5), ..Wish::default() }.check_against(&shape, "D").unwrap_err();
        assert_eq!(failure.message, "D holds a cluster made with --nodes 3, not 5");
        let failure = Wish { mgmtd: Some(3), ..Wish::default() }.check_against(&shape, "D").unwrap_err();
        assert_eq!(failure.message, "D holds a cluster made with --mgmtd 1, not 3");
    }

    #[test]
    fn another_store_is_refused_by_its_option() {
        let shape = |store| Shape { store, ..Wish::default().shape().unwrap() };
        let fdb = |file: &str| Store::Fdb { cluster_file: file.into(), library: None };
        let wish = |kv, file: Option<&str>| Wish {
            store: StoreArgs { kv, cluster_file: file.map(Into::into), fdb_library: None },
            ..Wish::default()
        };
        let refused =
            |wish: Wish, store| wish.check_against(&shape(store), "D").err().map(|failure| failure.message);
        assert_eq!(refused(wish(None, None), fdb("/a")), None);
        assert_eq!(refused(wish(Some(Kind::Fdb), Some("/a")), fdb("/a")), None);
        let told = |what: &str| Some(format!("D holds a cluster made with {what}"));
        assert_eq!(refused(wish(Some(Kind::Fdb), None), Store::Embedded), told("--kv embedded, not fdb"));
        assert_eq!(refused(wish(Some(Kind::Embedded), None), fdb("/a")), told("--kv fdb, not embedded"));
        assert_eq!(refused(wish(None, Some("/b")), fdb("/a")), told("--cluster-file /a, not /b"));
        assert_eq!(refused(wish(None, Some("/b")), Store::Embedded), told("--cluster-file none, not /b"));
    }
}
