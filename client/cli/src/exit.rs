//! How a command ends: the exit codes that scripts rely on (documented in `docs/cli.md`) and the one error type of the binary, which
//! carries what failed and what to do about it.

use std::fmt;
use std::process::ExitCode;

use catena_proto::rpc;
use catena_proto::status::Status;

/// Exit codes. Numbers never change their meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Something failed that has no code of its own.
    Failed = 1,
    /// The command line or a configuration file is wrong.
    Usage = 2,
    /// No such file, directory, chain or cluster file.
    NotFound = 3,
    /// The cluster does not answer, or not in time.
    Unreachable = 4,
    /// Permissions, or a token that is not the cluster's.
    Denied = 5,
    /// It is there already.
    Exists = 6,
    /// The cluster's disks are full.
    NoSpace = 7,
    /// What was read is not what was written.
    Corrupt = 8,
    /// Stopped by Ctrl-C or SIGTERM.
    Interrupted = 130,
}

impl Exit {
    /// The code for a status from a service.
    pub fn of(status: Status) -> Exit {
        match status {
            Status::NotFound | Status::NoAttribute => Exit::NotFound,
            Status::Exists | Status::NotEmpty => Exit::Exists,
            Status::AccessDenied | Status::NotPermitted | Status::BadToken | Status::WrongCluster => {
                Exit::Denied
            }
            Status::NoSpace => Exit::NoSpace,
            Status::Corrupt | Status::Damaged => Exit::Corrupt,
            Status::TimedOut | Status::Disconnected | Status::NoPrimary | Status::ShuttingDown => {
                Exit::Unreachable
            }
            Status::NotServing | Status::NoLease | Status::StaleRouting | Status::NotYet | Status::Busy => {
                Exit::Unreachable
            }
            Status::Invalid | Status::NameTooLong | Status::TooLarge => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

/// A command's failure: one line that says what, a hint that says what next.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed, without the program's name.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// It was printed when it happened; only the exit code is left to give.
    pub shown: bool,
    /// What a program reads was printed already, and says more than this does.
    pub told: bool,
}

/// What commands return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure with a code and a line.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), hint: None, shown: false, told: false }
    }
    /// A failure without a code of its own.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, message)
    }
    /// A mistake in the command line.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }
    /// The user stopped it.
    pub fn interrupted() -> Failure {
        Failure::new(Exit::Interrupted, "interrupted")
    }
    /// Adds what to do next; the first hint, nearest to the cause, stays.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }
    /// The last line of stdout, which a program reads, is the command's result and stays that.
    pub fn told(mut self) -> Failure {
        self.told = true;
        self
    }
    /// Says what it was about: `subject: message`.
    pub fn about(mut self, subject: impl fmt::Display) -> Failure {
        self.message = format!("{subject}: {}", self.message);
        self
    }
    /// An error of the operating system about `subject`.
    pub fn io(subject: impl fmt::Display, error: std::io::Error) -> Failure {
        use std::io::ErrorKind::*;
        let exit = match error.kind() {
            NotFound => Exit::NotFound,
            AlreadyExists => Exit::Exists,
            PermissionDenied => Exit::Denied,
            StorageFull | QuotaExceeded => Exit::NoSpace,
            _ => Exit::Failed,
        };
        Failure::new(exit, format!("{subject}: {}", os_text(&error)))
    }
}

/// The error without Rust's ` (os error 2)`, and in lower case, as Unix tools say it.
pub fn os_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !text.starts_with("I/O") => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// What a person can do about a status, where that is not obvious from its name.
pub fn advice(status: Status) -> Option<&'static str> {
    Some(match status {
        Status::Disconnected | Status::NoPrimary | Status::ShuttingDown => {
            "is the cluster running? start it with `catena dev --dir DIR`, or name another with --cluster FILE"
        }
        Status::TimedOut | Status::NotServing | Status::NoLease => {
            "`catena admin chains` shows whether every chain has a serving target"
        }
        Status::BadToken | Status::WrongCluster => {
            "the cluster file belongs to another cluster: copy cluster.toml of this one, or name it with --cluster FILE"
        }
        Status::WrongProtocol => "run the same release of catena on both ends",
        Status::NoSpace => "`catena admin nodes` and `catena fs df` show how full the disks are",
        Status::IsDirectory => "for a whole directory add -r",
        Status::NotEmpty => "`catena fs rm -r` removes a directory with all that is in it",
        Status::Corrupt => {
            "`catena admin targets` shows the replicas; the storage service's log names the chunk"
        }
        _ => return None,
    })
}

impl From<rpc::Failure> for Failure {
    fn from(failure: rpc::Failure) -> Failure {
        let mapped = Failure::new(Exit::of(failure.status), failure.message);
        match advice(failure.status) {
            Some(hint) => mapped.hint(hint),
            None => mapped,
        }
    }
}

/// A path that fits into a message: of a very long one, its beginning and its end.
fn shortened(path: &str) -> String {
    const MOST: usize = 160;
    let characters = path.chars().count();
    if characters <= MOST {
        return path.to_owned();
    }
    let head: String = path.chars().take(MOST / 2).collect();
    let tail: String = path.chars().skip(characters - MOST / 2).collect();
    format!("{head}…{tail}")
}

impl From<catena_client::Error> for Failure {
    fn from(error: catena_client::Error) -> Failure {
        let status = error.status();
        let reason = match error.detail() {
            "" => status.text(),
            detail => detail,
        };
        // Services name the path in their sentences where that helps; it is not said twice.
        let message = match error.path() {
            "" => reason.to_owned(),
            path if reason.contains(path) => reason.to_owned(),
            path => format!("{}: {reason}", shortened(path)),
        };
        // A sentence that names a command says what to do by itself.
        let told = reason.contains('`');
        let mapped = Failure::new(Exit::of(status), message);
        match advice(status).or(error.next_step()) {
            Some(hint) if !told => mapped.hint(hint),
            _ => mapped,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Failures of single arguments, of a command that goes on with the others.
pub struct Failures {
    command: &'static str,
    first: Option<Failure>,
}

impl Failures {
    /// None yet.
    pub fn of(command: &'static str) -> Failures {
        Failures { command, first: None }
    }
    /// Prints a failure now; the first decides how the command ends.
    pub fn note(&mut self, mut failure: Failure) {
        show(self.command, &failure);
        failure.shown = true;
        self.first.get_or_insert(failure);
    }
    /// Notes the failure of an outcome; gives its value.
    pub fn check<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|failure| self.note(failure)).ok()
    }
    /// How the command ends.
    pub fn end(self) -> Result<()> {
        self.first.map_or(Ok(()), Err)
    }
}

fn show(command: &str, failure: &Failure) {
    let prefix = if command.is_empty() { String::new() } else { format!("{command}: ") };
    eprintln!("catena: {prefix}{}", failure.message);
    if let Some(hint) = &failure.hint {
        eprintln!("  hint: {hint}");
    }
}

/// Prints the failure of `command` and gives its exit code. With `--json` a program reads the last line of stdout, so it is told there too.
pub fn report(command: &str, json: bool, failure: &Failure) -> ExitCode {
    if !failure.shown {
        show(command, failure);
    }
    if json && !failure.told {
        let object = serde_json::json!({
            "ok": false, "error": failure.message, "hint": failure.hint, "exit": failure.exit as u8,
        });
        println!("{object}");
    }
    ExitCode::from(failure.exit as u8)
}
