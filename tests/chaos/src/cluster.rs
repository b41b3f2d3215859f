//! The cluster: a `catena dev` process and what it supervises, found by their process id files.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use catena_client::{Catena, ClusterFile, ConnectOptions};
use catena_proto::routing::PublicState;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::disks::NodeDisk;
use crate::journal::Journal;

/// Storage nodes: one more than there are replicas.
pub const NODES: usize = 4;
/// How long a service may be silent.
pub const LEASE: Duration = Duration::from_secs(2);
/// What one operation may take: more than any fault lasts, and a restart after several deaths.
const DEADLINE: Duration = Duration::from_secs(90);
const START: Duration = Duration::from_secs(90);

pub struct Cluster {
    root: PathBuf,
    dev: Child,
    pub disks: Vec<NodeDisk>,
    /// Services that are stopped just now.
    frozen: Mutex<Vec<u32>>,
}

impl Cluster {
    pub async fn start(catena: &Path, dir: &Path, journal: &Arc<Journal>) -> Result<Cluster, String> {
        let text = |error: std::io::Error| error.to_string();
        let root = dir.join(format!("catena-chaos-{}", std::process::id()));
        let cluster = root.join("cluster");
        std::fs::create_dir_all(&cluster).map_err(text)?;
        let disks = (1..=NODES).map(|node| NodeDisk::make(&root, cluster.join(format!("storage-{node}"))));
        let disks = disks.collect::<Result<Vec<_>, _>>().map_err(text)?;
        if !disks.iter().all(NodeDisk::fillable) {
            journal.say("no loop devices may be mounted here: disks are not filled in this run");
        }
        let out = |name: &str| std::fs::File::create(root.join(name)).map_err(text);
        let lease = format!("{}ms", LEASE.as_millis());
        let nodes = NODES.to_string();
        let dev = Command::new(catena)
            .args(["dev", "--nodes", &nodes, "--replicas", "3", "--lease", &lease, "--dir"])
            .arg(&cluster)
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
        let mut cluster = Cluster { root, dev, disks, frozen: Mutex::default() };
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
            pool_bytes: 64 << 20,
            in_flight_bytes: 16 << 20,
            deadline: DEADLINE,
            connect_deadline: Duration::from_secs(30),
            ..ConnectOptions::default()
        };
        Catena::connect(&file, options).await.map_err(|error| error.to_string())
    }

    /// The services' names, storage or the rest.
    pub fn names(&self, storage: bool) -> Vec<String> {
        let files = std::fs::read_dir(self.root.join("cluster/config")).into_iter().flatten().flatten();
        let names =
            files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".toml")?.to_owned()));
        let mut names: Vec<String> = names.filter(|name| name.starts_with("storage-") == storage).collect();
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

    /// False if it is not running just now.
    pub fn kill(&self, name: &str) -> bool {
        let pid = self.pid(name);
        pid.inspect(|&pid| Self::signal(pid, Signal::KILL)).is_some()
    }

    /// Stops a service's process where it is, for a while.
    pub async fn pause(&self, name: &str, time: Duration) -> bool {
        let Some(pid) = self.pid(name) else { return false };
        self.frozen.lock().push(pid);
        Self::signal(pid, Signal::STOP);
        sleep(time).await;
        // It may have been killed meanwhile and the number be another's.
        if self.pid(name) == Some(pid) {
            Self::signal(pid, Signal::CONT);
        }
        self.frozen.lock().retain(|&frozen| frozen != pid);
        true
    }

    /// Takes every fault back.
    pub async fn heal(&self, journal: &Journal) {
        for (node, disk) in self.disks.iter().enumerate() {
            disk.unfill();
            if disk.lockable {
                disk.lock(false);
            }
            let _ = node;
        }
        for name in self.names(true).into_iter().chain(self.names(false)) {
            if let Some(pid) = self.pid(&name) {
                Self::signal(pid, Signal::CONT);
            }
        }
        self.frozen.lock().clear();
        journal.say("healed");
    }

    /// Waits until every replica of every chain serves.
    pub async fn full_strength(&self, patience: Duration) -> Result<(), String> {
        let catena = self.client().await?;
        let deadline = Instant::now() + patience;
        loop {
            let routing = catena.routing().current();
            let wanting: Vec<String> = routing
                .targets
                .values()
                .filter(|target| target.state != PublicState::Serving)
                .map(|target| {
                    format!("{} of {} on {} is {:?}", target.id, target.chain, target.node, target.state)
                })
                .collect();
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
        for name in self.names(true).into_iter().chain(self.names(false)) {
            if let Some(pid) = self.pid(&name) {
                Self::signal(pid, Signal::CONT);
            }
        }
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
