//! FoundationDB's client in this process: the library, and the one thread on which its network runs. Started by whoever opens a database
//! first, stopped by [`stop`], or when the process exits.

#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use foundationdb::api::{FdbApiBuilder, NetworkStop, get_max_api_version};
use foundationdb::options::NetworkOption;
use parking_lot::Mutex;

use crate::error::OpenError;

/// What [`start`] came to; the client can be started once in a process.
static STARTED: Mutex<Option<Result<(), OpenError>>> = Mutex::new(None);
/// What has to be stopped.
static RUNNING: Mutex<Option<(NetworkStop, JoinHandle<()>)>> = Mutex::new(None);

/// Where FoundationDB's client writes its trace files, if anywhere: its environment variable, so that no configuration of Catena's is needed
/// for what only a hunt for a fault needs.
const TRACE: &str = "CATENA_FDB_TRACE";

/// Loads `library` and starts the network, unless that is done already.
pub(crate) fn start(library: Option<&Path>) -> Result<(), OpenError> {
    // A library that could not be loaded may be there at the next try; a network that did not start will not.
    foundationdb_sys::load(library)?;
    STARTED.lock().get_or_insert_with(boot).clone()
}

fn boot() -> Result<(), OpenError> {
    let found = get_max_api_version();
    if found < foundationdb_sys::FDB_API_VERSION as i32 {
        return Err(OpenError::Version { found });
    }
    let mut network = FdbApiBuilder::default().build()?;
    if let Some(directory) = std::env::var_os(TRACE).map(PathBuf::from) {
        network = network.set_option(NetworkOption::TraceEnable(directory.display().to_string()))?;
    }
    // Every transaction would otherwise leave samples in the database, for tools that only FoundationDB's developers use.
    network = network.set_option(NetworkOption::DisableClientStatisticsLogging)?;
    let (runner, wait) = network.build()?;
    let thread = std::thread::Builder::new().name("fdb-network".into()).spawn(move || {
        // SAFETY: `stop` runs before the process exits, see below.
        if let Err(error) = unsafe { runner.run() } {
            tracing::error!(%error, "FoundationDB's network has ended");
        }
    });
    let thread = thread.map_err(|error| OpenError::Client {
        code: 0,
        message: format!("no thread for its network: {error}"),
    })?;
    *RUNNING.lock() = Some((wait.wait(), thread));
    stop_at_exit();
    Ok(())
}

/// Stops FoundationDB's network in this process and waits for its thread; it cannot be started again. A program that used it calls this
/// before `main` returns. Does nothing if there is none.
pub fn stop() {
    let Some((network, thread)) = RUNNING.lock().take() else { return };
    // Waiting for oneself would be for ever.
    if thread.thread().id() != std::thread::current().id() && network.stop().is_ok() {
        let _ = thread.join();
    }
}

/// Stops the network when the process exits without having called [`stop`], as tests do. Exit handlers run in reverse order, and the
/// library's own, which take apart what its network uses, are registered whenever it first uses something. So this is called again when a
/// database is dropped, behind all that it has used.
pub(crate) fn stop_at_exit() {
    extern "C" fn at_exit() {
        stop();
    }
    // SAFETY: `stop` does not unwind.
    if unsafe { libc::atexit(at_exit) } != 0 {
        tracing::warn!("FoundationDB's network may not be stopped at exit: no room for another exit handler");
    }
}
