//! Child processes: started, watched, restarted when they die, stopped in time.
//!
//! A child is in a process group of its own, so that Ctrl-C reaches only the supervisor, which stops its children in order; and its
//! stdin is a pipe from the supervisor, whose end tells the child to stop should the supervisor be killed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use catena_rt::time::{Instant, sleep, timeout};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::exit::{Failure, Result};
use crate::local::directory::Spec;

/// A service that stops cleanly has this long to do so.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A child that lived this long starts over with the first pause.
const SETTLED: Duration = Duration::from_secs(60);
/// A log larger than this is set aside at the next start.
const LOG_LIMIT: u64 = 64 << 20;

/// What happened to a child.
#[derive(Debug, Clone)]
pub enum Event {
    /// It died and will be started again.
    Died {
        /// Which.
        name: String,
        /// How it ended.
        how: String,
        /// When it will be started again.
        again_in: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// It runs again.
    Restarted {
        /// Which.
        name: String,
        /// Its new process id.
        pid: u32,
    },
}

/// The state of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs as this process.
    Running(u32),
    /// It is not running; how it ended.
    Down(String),
}

/// A running child and the pipe whose end tells it that its supervisor is gone. Waiting for a child closes a stdin that is still in
/// it, so the pipe is kept beside it.
struct Leashed {
    child: Child,
    _leash: Option<ChildStdin>,
}

/// A supervised service.
pub struct Service {
    /// What it is.
    pub spec: Spec,
    state: watch::Receiver<State>,
    stop: watch::Sender<bool>,
    keep: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Service {
    /// Starts it. Until [`Service::keep_alive`] it is not restarted when it dies.
    pub fn start(spec: Spec, events: mpsc::UnboundedSender<Event>) -> Result<Service> {
        let child = spawn(&spec)?;
        let (set_state, state) = watch::channel(State::Running(child.child.id().unwrap_or(0)));
        let (stop, stopped) = watch::channel(false);
        let (keep, kept) = watch::channel(false);
        let task = tokio::spawn(supervise(spec.clone(), child, set_state, stopped, kept, events));
        Ok(Service { spec, state, stop, keep, task })
    }

    /// Its process id while it runs; how it ended if it does not.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// From now on it is restarted when it dies.
    pub fn keep_alive(&self) {
        self.keep.send_replace(true);
    }

    /// Kills it as a power cut would, and leaves it dead. Returns its process id.
    pub async fn kill(&self) -> Option<u32> {
        self.keep.send_replace(false);
        let State::Running(pid) = self.state() else { return None };
        signal(Some(pid), Signal::KILL);
        let _ = self.state.clone().wait_for(|state| matches!(state, State::Down(_))).await;
        Some(pid)
    }

    /// Stops its process where it is, without a word to anyone, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        if let State::Running(pid) = self.state() {
            signal(Some(pid), if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Asks it to stop; does not wait.
    pub fn begin_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Stops it: SIGTERM, and SIGKILL past the limit.
    pub async fn stop(self) {
        self.begin_stop();
        let _ = self.task.await;
    }

    /// The failure to report when it has died during start-up.
    pub fn start_failure(&self, how: &str) -> Failure {
        let message = format!("{} {how} while starting{}", self.spec.name, last_words(&self.spec.log));
        Failure::failed(message).hint(format!("the whole log is {}", self.spec.log.display()))
    }
}

async fn supervise(
    spec: Spec,
    mut running: Leashed,
    state: watch::Sender<State>,
    mut stop: watch::Receiver<bool>,
    keep: watch::Receiver<bool>,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let status = tokio::select! {
            status = running.child.wait() => status,
            () = told(&mut stop) => {
                end(&spec, &mut running.child).await;
                let _ = std::fs::remove_file(&spec.pid);
                state.send_replace(State::Down("stopped".into()));
                return;
            }
        };
        let killed = status.as_ref().is_ok_and(was_killed);
        let how = status.map_or_else(|error| error.to_string(), describe);
        let _ = std::fs::remove_file(&spec.pid);
        state.send_replace(State::Down(how.clone()));
        if !*keep.borrow() {
            return;
        }
        if killed || started.elapsed() > SETTLED {
            pause = FIRST_PAUSE;
        }
        let mut how = how;
        running = loop {
            let again_in = pause;
            let _ =
                events.send(Event::Died { name: spec.name.clone(), how, again_in, log: spec.log.clone() });
            pause = (pause * 2).min(LAST_PAUSE);
            tokio::select! {
                () = sleep(again_in) => {}
                () = told(&mut stop) => return,
            }
            match spawn(&spec) {
                Ok(again) => break again,
                Err(failure) => how = failure.message,
            }
        };
        let pid = running.child.id().unwrap_or(0);
        state.send_replace(State::Running(pid));
        let _ = events.send(Event::Restarted { name: spec.name.clone(), pid });
    }
}

/// Waits until the service shall stop; a supervisor that is gone means that too.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Lets a child finish, for a while.
async fn end(spec: &Spec, child: &mut Child) {
    signal(child.id(), Signal::TERM);
    if timeout(STOP_LIMIT, child.wait()).await.is_err() {
        eprintln!("catena: {} does not stop within {} s and is killed", spec.name, STOP_LIMIT.as_secs());
        let _ = child.start_kill();
        let _ = child.wait().await;
    }
}

fn spawn(spec: &Spec) -> Result<Leashed> {
    let about = |error| Failure::io(format_args!("cannot start {}", spec.name), error);
    let set_aside = std::fs::metadata(&spec.log).is_ok_and(|meta| meta.len() > LOG_LIMIT);
    if set_aside {
        std::fs::rename(&spec.log, spec.log.with_extension("log.old")).map_err(about)?;
    }
    let log = File::options().create(true).append(true).open(&spec.log).map_err(about)?;
    // A rebuilt binary leaves a running supervisor without a path to itself.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut child = Command::new(program)
        .arg0("catena")
        .args(["serve", spec.kind.name(), "--supervised", "--config"])
        .arg(&spec.config)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().map_err(about)?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(about)?;
    let pid = child.id().unwrap_or(0);
    // In one step: whoever reads it finds a whole number or no file.
    let draft = spec.pid.with_extension("new");
    std::fs::write(&draft, pid.to_string())
        .and_then(|()| std::fs::rename(&draft, &spec.pid))
        .map_err(|error| Failure::io(spec.pid.display(), error))?;
    Ok(Leashed { _leash: child.stdin.take(), child })
}

fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid as i32)) {
        let _ = kill_process(pid, signal);
    }
}

/// Killed from outside, which says nothing about how it will fare next time: it starts again without a longer pause.
fn was_killed(status: &ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(Signal::KILL.as_raw())
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// What a service said last, indented, for an error message. Of a panic its reason, not its backtrace.
pub fn last_words(log: &Path) -> String {
    let lines = last_lines(log, 100);
    let panic = lines.iter().rposition(|line| line.contains("panicked at"));
    let shown = match panic {
        Some(at) => &lines[at..(at + 2).min(lines.len())],
        None => &lines[lines.len().saturating_sub(10)..],
    };
    shown.iter().map(|line| format!("\n    {line}")).collect()
}

/// The last `count` lines of a log, however long it is.
fn last_lines(log: &Path, count: usize) -> Vec<String> {
    let tail = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(32 << 10)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = tail().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// Waits for, and past a limit ends, a service that an earlier supervisor left behind. Only a process that verifiably is that service
/// is touched: its command line names the configuration file.
pub async fn clear_orphan(spec: &Spec) {
    let Some(pid) = std::fs::read_to_string(&spec.pid).ok().and_then(|text| text.trim().parse::<u32>().ok())
    else {
        return;
    };
    let config = spec.config.display().to_string();
    let is_ours = || {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == config.as_bytes())
    };
    if is_ours() {
        eprintln!("catena: {} (process {pid}) of an earlier run is still there; ending it", spec.name);
        signal(Some(pid), Signal::TERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while is_ours() && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        if is_ours() {
            signal(Some(pid), Signal::KILL);
            sleep(Duration::from_millis(100)).await;
        }
    }
    let _ = std::fs::remove_file(&spec.pid);
}
