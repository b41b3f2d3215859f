//! Running the binary.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The binary, not yet started. It inherits no cluster and no log level.
pub fn catena(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_catena"));
    command.args(args).env_remove("CATENA_CLUSTER").env_remove("CATENA_LOG").stdin(Stdio::null());
    command
}

/// What a command left.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// The JSON value on the last line of stdout.
    pub fn json(&self) -> Value {
        let last = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {last:?}; {self:?}"))
    }
    /// It must have worked.
    pub fn good(self) -> Ended {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
    /// It must have ended with `code`, saying `words`.
    pub fn bad(self, code: i32, words: &str) -> Ended {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(words), "no {words:?} in {self:?}");
        self
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory on a disk: the system's temporary directory may be in memory, which has no O_DIRECT.
pub fn disk_directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A running `catena dev`.
pub struct Dev {
    child: Child,
    pub directory: PathBuf,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Dev {
    /// Starts it and waits until it is ready.
    pub fn start(directory: &Path, options: &[&str]) -> Dev {
        let mut command = catena(["dev", "--json", "--dir"]);
        command.arg(directory).args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            let mut errors = String::new();
            let _ = std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut errors);
            panic!("catena dev did not get ready: {line}{errors}");
        };
        // Nobody reads what it says from now on, and it must not block on that.
        let mut errors = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Dev { child, directory: directory.to_owned(), ready }
    }

    /// A client command on this cluster.
    pub fn catena(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = catena(args);
        command.env("CATENA_CLUSTER", self.directory.join("cluster.toml"));
        command
    }

    /// Runs `catena WORDS...`.
    pub fn run(&self, words: &str) -> Ended {
        run(&mut self.catena(words.split_whitespace()))
    }

    /// The services' process ids.
    pub fn pids(&self) -> Vec<u32> {
        let services = self.ready["services"].as_array().unwrap();
        services.iter().map(|service| service["pid"].as_u64().unwrap() as u32).collect()
    }

    /// Stops it as Ctrl-C does.
    pub fn stop(mut self) {
        signal(self.child.id(), Signal::INT);
        assert!(self.child.wait().unwrap().success());
        assert!(self.pids().into_iter().all(gone), "services outlived `catena dev`");
    }

    /// Power failure: everything ends at once.
    pub fn kill_all(mut self) {
        let pids = self.pids();
        signal(self.child.id(), Signal::KILL);
        pids.iter().for_each(|pid| signal(*pid, Signal::KILL));
        self.child.wait().unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // A test that failed. The services end when their supervisor does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process has ended.
pub fn gone(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}
