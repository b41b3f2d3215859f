//! The cluster: a `catena dev` process and what it supervises, found by their process id files.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use catena_client::{Catena, ClusterFile, ConnectOptions};
use catena_proto::pb::{MgmtdRole, NodeState};
use catena_proto::routing::{PublicState, RoutingInfo, Target};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::disks::NodeDisk;
use crate::fdb::{Options, Server};
use crate::journal::Journal;

/// Storage nodes: one more than there are replicas.
pub const NODES: usize = 4;
/// Of which one is primary; two of the rest may be hurt at once.
const MGMTD: usize = 3;
const META: usize = 2;
/// How long a service may be silent.
pub const LEASE: Duration = Duration::from_secs(2);
/// What one operation may take: the default of every client.
const DEADLINE: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(90);

pub struct Cluster {
    root: PathBuf,
    dev: Child,
    pub disks: Vec<NodeDisk>,
    /// Disks that are full on purpose just now.
    pub full: Arc<AtomicUsize>,
    fdb: Option<Options>,
    /// FoundationDB's server, if it is this run's to hurt.
    pub server: Option<Server>,
}

impl Cluster {
    pub async fn start(
        catena: &Path,
        dir: &Path,
        fdb: Option<Options>,
        journal: &Arc<Journal>,
    ) -> Result<Cluster, String> {
        let text = |error: std::io::Error| error.to_string();
        let root = dir.join(format!("catena-chaos-{}", std::process::id()));
        let cluster = root.join("cluster");
        std::fs::create_dir_all(&cluster).map_err(text)?;
        let disks = (1..=NODES).map(|node| NodeDisk::make(&root, cluster.join(format!("storage-{node}"))));
        let disks = disks.collect::<Result<Vec<_>, _>>().map_err(text)?;
        if !disks.iter().all(NodeDisk::fillable) {
            journal.say("no loop devices may be mounted here: disks are not filled in this run");
        }
        if !disks.iter().all(|disk| disk.lockable) {
            journal.say("no files may be made immutable here: disks are not made read-only in this run");
        }
        let command = fdb.as_ref().and_then(|fdb| fdb.server.as_deref());
        let server = command.map(|command| Server::start(command, root.join("fdbserver.out"))).transpose()?;
        let out = |name: &str| std::fs::File::create(root.join(name)).map_err(text);
        let lease = format!("{}ms", LEASE.as_millis());
        let [nodes, mgmtd, meta] = [NODES, MGMTD, META].map(|count| count.to_string());
        let dev = Command::new(catena)
            .args(["dev", "--nodes", &nodes, "--replicas", "3", "--mgmtd", &mgmtd, "--meta", &meta])
            .args(["--lease", &lease, "--dir"])
            .arg(&cluster)
            .args(fdb.iter().flat_map(Options::words))
            .stdin(Stdio::null())
            .stdout(out("dev.out")?)
            .stderr(out("dev.err")?)
            .spawn();
        let dev = match dev {
            Ok(dev) => dev,
            Err(error) => {
                let mut disks = disks;
                disks.iter_mut().for_each(NodeDisk::unmount);
                let _ = std::fs::remove_dir_all(&root);
                return Err(format!("{}: {error}", catena.display()));
            }
        };
        let mut cluster = Cluster { root, dev, disks, full: Arc::default(), fdb, server };
        match cluster.up().await {
            Ok(()) => Ok(cluster),
            Err(what) => {
                let said = std::fs::read_to_string(cluster.root.join("dev.err")).unwrap_or_default();
                cluster.stop().await;
                cluster.clean(false);
                Err(format!("{what}\n{said}"))
            }
        }
    }

    async fn up(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START;
        // `catena dev` says what it made once everything serves.
        while std::fs::metadata(self.root.join("dev.out")).map_or(0, |meta| meta.len()) == 0 {
            if let Ok(Some(status)) = self.dev.try_wait() {
                return Err(format!("catena dev ended: {status}"));
            }
            if Instant::now() > deadline {
                return Err("catena dev is not up in time".into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A client of its own.
    pub async fn client(&self) -> Result<Catena, String> {
        let file =
            ClusterFile::load(self.root.join("cluster/cluster.toml")).map_err(|error| error.to_string())?;
        let options = ConnectOptions {
            // The shared namespace's files are told apart by their permission bits.
            umask: 0,
            pool_bytes: 64 << 20,
            in_flight_bytes: 16 << 20,
            deadline: DEADLINE,
            connect_deadline: Duration::from_secs(30),
            ..ConnectOptions::default()
        };
        Catena::connect(&file, options).await.map_err(|error| error.to_string())
    }

    /// The names of the services of a kind: `storage`, `mgmtd`, `meta`, `kv`.
    pub fn names(&self, kind: &str) -> Vec<String> {
        let of_kind = |name: &String| name.split('-').next() == Some(kind);
        self.all_names().into_iter().filter(of_kind).collect()
    }

    fn all_names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.root.join("cluster/config")).into_iter().flatten().flatten();
        let names =
            files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".toml")?.to_owned()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// The process id of a service that runs. Only a process that verifiably is that service counts.
    fn pid(&self, name: &str) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(self.root.join(format!("cluster/run/{name}.pid")))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let config = self.root.join(format!("cluster/config/{name}.toml")).display().to_string();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        line.split(|byte| *byte == 0).any(|word| word == config.as_bytes()).then_some(pid)
    }

    fn signal(pid: u32, signal: Signal) {
        if let Some(pid) = Pid::from_raw(pid as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// The mgmtd that answers, as far as it is known.
    pub async fn primary(&self, catena: &Catena) -> Option<String> {
        let routing = catena.routing().figures(Duration::ZERO).await;
        let primary = routing.nodes.values().find(|node| node.role() == MgmtdRole::Primary)?.pid;
        self.names("mgmtd").into_iter().find(|name| self.pid(name) == Some(primary))
    }

    /// False if it is not running just now.
    pub fn kill(&self, name: &str) -> bool {
        let pid = self.pid(name);
        pid.inspect(|&pid| Self::signal(pid, Signal::KILL)).is_some()
    }

    /// Stops a service's process where it is, for a while.
    pub async fn pause(&self, name: &str, time: Duration) {
        let Some(pid) = self.pid(name) else { return };
        Self::signal(pid, Signal::STOP);
        sleep(time).await;
        // It may have been killed meanwhile and the number be another's.
        if self.pid(name) == Some(pid) {
            Self::signal(pid, Signal::CONT);
        }
    }

    /// Takes every fault back.
    pub async fn heal(&self, journal: &Journal) {
        for disk in &self.disks {
            disk.unfill();
            if disk.lockable {
                disk.lock(false);
            }
        }
        self.full.store(0, Relaxed);
        self.thaw();
        journal.say("healed");
    }

    /// Removes what the cluster has put into a store outside of its directory. It must have stopped.
    pub async fn forget(&self) -> Result<(), String> {
        match &self.fdb {
            None => Ok(()),
            Some(fdb) => {
                let forgotten = fdb.forget(&self.root.join("cluster/cluster.toml")).await;
                forgotten.map_err(|error| format!("the cluster's keys stay in FoundationDB: {error}"))
            }
        }
    }

    fn thaw(&self) {
        self.server.iter().for_each(Server::thaw);
        for pid in self.all_names().iter().filter_map(|name| self.pid(name)) {
            Self::signal(pid, Signal::CONT);
        }
    }

    /// What is still wanting: a service that runs and has not registered, a target that does not serve. By process ids, because until a
    /// service that was started again has registered, routing information calls the targets of its last life serving.
    fn wanting(&self, routing: &RoutingInfo) -> Vec<String> {
        let nodes = self.all_names().into_iter().filter(|name| name != "kv").filter_map(|name| {
            let Some(pid) = self.pid(&name) else { return Some(format!("{name} does not run")) };
            let registered =
                routing.nodes.values().any(|node| node.state() == NodeState::Up && node.pid == pid);
            (!registered).then(|| format!("{name} (process {pid}) has not registered"))
        });
        let serving = |target: &&Target| target.state == PublicState::Serving;
        let targets = routing.targets.values().filter(|target| !serving(target)).map(|target| {
            format!("{} of {} on {} is {:?}", target.id, target.chain, target.node, target.state)
        });
        nodes.chain(targets).collect()
    }

    /// Waits until every service that runs has registered and every replica of every chain serves.
    pub async fn full_strength(&self, patience: Duration) -> Result<(), String> {
        let catena = self.client().await?;
        let deadline = Instant::now() + patience;
        loop {
            let routing = catena.routing().current();
            let wanting = self.wanting(&routing);
            if wanting.is_empty() && !routing.targets.is_empty() {
                catena.close().await;
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "no full strength after {} s: {}",
                    patience.as_secs(),
                    wanting.join(", ")
                ));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops it cleanly, and past a limit otherwise.
    pub async fn stop(&mut self) {
        self.thaw();
        Self::signal(self.dev.id(), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(40);
        while Instant::now() < deadline {
            if matches!(self.dev.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let _ = self.dev.kill();
        let _ = self.dev.wait();
    }

    /// Leaves nothing behind, or the evidence: of it the file systems are kept as images that can be mounted again.
    pub fn clean(&mut self, keep: bool) {
        self.server = None;
        if keep {
            for disk in &mut self.disks {
                disk.leave();
            }
            return;
        }
        self.disks.iter_mut().for_each(NodeDisk::unmount);
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            eprintln!("chaos: {}: {error}", self.root.display());
        }
    }
}
