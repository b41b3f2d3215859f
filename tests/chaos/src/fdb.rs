//! FoundationDB below the cluster: where it is, its server as a victim, and the removal of what the cluster has put into it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use catena_client::ClusterFile;
use catena_kv::{FdbConfig, Jitter, Retry, StoreConfig, Tx, USER_KEY_END, transact};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

/// A database that does not take the keys back by then is down.
const CLEAR: Duration = Duration::from_secs(30);

/// What the command line says of FoundationDB.
#[derive(Clone, Default)]
pub struct Options {
    /// Its cluster file.
    pub cluster_file: PathBuf,
    /// Its client library, if the system does not find it.
    pub library: Option<PathBuf>,
    /// How to start its server in the foreground, for a shell; without this it is somebody else's and left alone.
    pub server: Option<String>,
}

impl Options {
    /// What `catena dev` is told.
    pub fn words(&self) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let mut words = vec!["--kv".into(), "fdb".into(), "--cluster-file".into(), text(&self.cluster_file)];
        words.extend(self.library.iter().flat_map(|library| ["--fdb-library".into(), text(library)]));
        words
    }

    /// Removes a cluster's keys.
    pub async fn forget(&self, cluster: &Path) -> Result<(), String> {
        let file = ClusterFile::load(cluster).map_err(|error| error.to_string())?;
        let (cluster_file, library) = (self.cluster_file.clone(), self.library.clone());
        let config = StoreConfig::Fdb(FdbConfig { cluster_file, prefix: None, library });
        let db =
            catena_kv_open::open(&config, file.cluster, &file.token).map_err(|error| error.to_string())?;
        let retry = Retry::default().within(CLEAR).idempotent();
        let all = |tx: Tx| async move { tx.clear_range(b"", USER_KEY_END) };
        transact(&*db, retry, &Jitter::new(1), all).await.map_err(|error| error.to_string())
    }
}

/// A server that this run has started.
pub struct Server {
    command: String,
    log: PathBuf,
    process: Mutex<Child>,
}

impl Server {
    /// Starts it; its output goes to `log`.
    pub fn start(command: &str, log: PathBuf) -> Result<Server, String> {
        let process = Mutex::new(spawn(command, &log)?);
        Ok(Server { command: command.to_owned(), log, process })
    }

    /// Kills it, and starts it again after a while. Fails if it had ended by itself.
    pub async fn kill(&self, down: Duration) -> Result<(), String> {
        {
            let mut process = self.process.lock();
            if let Ok(Some(status)) = process.try_wait() {
                return Err(format!(
                    "{}: ended by itself: {status}; see {}",
                    self.command,
                    self.log.display()
                ));
            }
            let killed = process.kill().and_then(|()| process.wait());
            killed.map_err(|error| format!("{}: {error}", self.command))?;
        }
        sleep(down).await;
        *self.process.lock() = spawn(&self.command, &self.log)?;
        Ok(())
    }

    /// Stops it where it is, for a while.
    pub async fn pause(&self, time: Duration) {
        self.signal(Signal::STOP);
        sleep(time).await;
        self.signal(Signal::CONT);
    }

    /// It is this process's own child, and nobody has waited for it: the number is still its.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.process.lock().id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Lets it go on if it was stopped.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let process = self.process.get_mut();
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// The shell becomes the server, so that what is killed is the server.
fn spawn(command: &str, log: &Path) -> Result<Child, String> {
    let log = std::fs::File::options().create(true).append(true).open(log);
    let log = log.map_err(|error| error.to_string())?;
    let errors = log.try_clone().map_err(|error| error.to_string())?;
    Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("{command}: {error}"))
}
