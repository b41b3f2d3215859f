//! What can go wrong with devices, memory and queue pairs, each with the next step.

use std::io;

/// A verb that failed.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// libibverbs is not on this machine.
    #[error(
        "RDMA needs libibverbs, which cannot be loaded ({reason}); install it with the drivers (Debian, Ubuntu: `apt-get install ibverbs-providers`; RHEL: `dnf install libibverbs`), or set transport = \"tcp\""
    )]
    NoLibrary {
        /// What the loader said.
        reason: String,
    },
    /// It is there, and lacks a function.
    #[error("{library} has no function `{symbol}`; install rdma-core 28 or newer")]
    OldLibrary {
        /// Where it was found.
        library: String,
        /// What it lacks.
        symbol: &'static str,
    },
    /// There are no devices, or none is usable.
    #[error("no RDMA device: {0}; `catena rdma check` shows what there is")]
    NoDevice(String),
    /// A device of this name does not exist.
    #[error("there is no RDMA device `{name}`; there are: {known}")]
    UnknownDevice {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The limit of locked memory is too low.
    #[error(
        "cannot register {needed} bytes with {device}: the limit of locked memory is {limit}; raise it to at least {kib} KiB (`ulimit -l {kib}`, LimitMEMLOCK= in a systemd unit, `memlock` in /etc/security/limits.conf) or configure smaller buffers"
    )]
    MemoryLock {
        /// With what.
        device: String,
        /// Bytes to be registered.
        needed: usize,
        /// The limit, as text: bytes or "unlimited".
        limit: String,
        /// What it has to be, KiB.
        kib: usize,
    },
    /// A verb was refused by the driver.
    #[error("{what} failed on {device}: {source}")]
    Verb {
        /// Which.
        what: &'static str,
        /// Where.
        device: String,
        /// What the driver said.
        source: io::Error,
    },
    /// The device has failed for good: it was reset, or taken away. What was made of it is dead, and it has to be opened again.
    #[error("RDMA device {device} has failed, or was taken away; it is opened again as soon as it is back")]
    Lost {
        /// Which.
        device: String,
    },
    /// A queue pair, or its completion queue, has failed in a way that leaves its work without completions.
    #[error("{device} has given up queue pair {number}; it is made anew with the next connection")]
    PairFailed {
        /// On which device.
        device: String,
        /// Its number.
        number: u32,
    },
    /// The memory for messages cannot be had.
    #[error(transparent)]
    Pool(#[from] catena_buf::PoolError),
    /// A limit of the device.
    #[error("{device} cannot do it: {what}")]
    Limit {
        /// Which.
        device: String,
        /// What is beyond it.
        what: String,
    },
}

/// How a work request failed: `ibv_wc_status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompletionError(pub u32);

impl CompletionError {
    /// Length beyond the receive's buffer.
    pub const LOCAL_LENGTH: CompletionError = CompletionError(1);
    /// An lkey that is none, or memory outside of it.
    pub const LOCAL_PROTECTION: CompletionError = CompletionError(4);
    /// The queue pair was in error before it came to this request.
    pub const FLUSHED: CompletionError = CompletionError(5);
    /// The peer's receive was too short, or the operation is not allowed there.
    pub const REMOTE_INVALID: CompletionError = CompletionError(9);
    /// A bad rkey, or memory outside of it.
    pub const REMOTE_ACCESS: CompletionError = CompletionError(10);
    /// No acknowledgement after all retries.
    pub const RETRY_EXCEEDED: CompletionError = CompletionError(12);
    /// The peer had no receive posted.
    pub const RNR_EXCEEDED: CompletionError = CompletionError(13);
}

impl std::fmt::Display for CompletionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            1 => "a message was longer than the receive posted for it (status 1)",
            4 => "the device was given memory that is not registered (status 4)",
            5 => "the queue pair is in error (status 5)",
            6 => "a memory window is in error (status 6)",
            9 => "the peer takes no such request (status 9)",
            10 => "the peer refused access to its memory: bad key or address (status 10)",
            11 => "the peer could not complete the request (status 11)",
            12 => "no acknowledgement from the peer after all retries: it is gone, or the link is down (status 12)",
            13 => "the peer is out of receives (status 13)",
            status => return write!(f, "completion status {status}"),
        })
    }
}

impl std::error::Error for CompletionError {}
