//! A FoundationDB server for tests that take it away: one process on a port of its own, its data in a temporary directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the server's program.
pub const SERVER: &str = "CATENA_TEST_FDBSERVER";
/// Names `fdbcli`.
pub const CLI: &str = "CATENA_TEST_FDBCLI";

/// A server process, killed when this is dropped. Its data survives [`Server::kill`] and [`Server::start`].
pub struct Server {
    directory: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// A cluster of one process that is not started yet, in `directory`.
    pub fn new(directory: &Path) -> Server {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let server = Server { directory: directory.to_owned(), port, child: None };
        let line = format!("test:{:08x}@127.0.0.1:{port}\n", rand::random::<u32>());
        std::fs::write(server.cluster_file(), line).expect("a cluster file");
        server
    }

    /// Its cluster file.
    pub fn cluster_file(&self) -> PathBuf {
        self.directory.join("fdb.cluster")
    }

    /// Starts the process.
    pub fn start(&mut self) {
        let address = format!("127.0.0.1:{}", self.port);
        let data = self.directory.join("data");
        std::fs::create_dir_all(&data).expect("a data directory");
        let child = Command::new(program(SERVER))
            .args(["--listen-address", &address, "--public-address", &address, "--cluster-file"])
            .arg(self.cluster_file())
            .arg("--datadir")
            .arg(&data)
            .arg("--logdir")
            .arg(&self.directory)
            .args(["--memory", "4GiB", "--storage-memory", "1GiB"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the FoundationDB server"));
    }

    /// Makes an empty database of it, once.
    pub fn configure(&self) {
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let done = Command::new(program(CLI))
                .arg("-C")
                .arg(self.cluster_file())
                .args(["--timeout", "20", "--exec", "configure new single memory"])
                .output()
                .expect("fdbcli");
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            if done.status.success() || said.contains("already exists") {
                return;
            }
            assert!(Instant::now() < limit, "fdbcli: {said}{}", String::from_utf8_lossy(&done.stderr));
        }
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal by its name, as `STOP` and `CONT`.
    pub fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("a running server");
        let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names no program; run ci/fdb")).into()
}
