//! How a storage client behaves.

use std::time::Duration;

/// How a [`crate::StorageClient`] behaves. The defaults fit a local network.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time that [`crate::StorageClient::deadline`] gives a call, retries included. Default 30 s.
    pub deadline: Duration,
    /// Longest wait for one answer to a write before it is sent again. Default 10 s: long enough for a busy disk.
    pub write_attempt: Duration,
    /// Longest wait for one answer to a read before another replica is asked. Default 3 s.
    pub read_attempt: Duration,
    /// A read that has waited so long is asked of another replica too, and the first answer counts: a node that hangs with its connections
    /// open costs this once, and then nothing for as long as it is suspect. Default 250 ms.
    pub read_hedge: Duration,
    /// Longest wait for a connection. Default 2 s.
    pub connect: Duration,
    /// Connections to each node, used in turn. Default 1.
    pub connections: usize,
    /// Mutations in flight at once: each occupies a channel. Default 256, as many as a connection has credits.
    pub channels: usize,
    /// Most bulk bytes in one read message. Default 4 MiB, at most 16 MiB.
    pub message_bytes: u32,
    /// First pause before a mutation or a round of reads is repeated; it doubles up to `longest_pause`. Default 2 ms.
    pub first_pause: Duration,
    /// Default 500 ms.
    pub longest_pause: Duration,
    /// All randomness (replica choice, spread of pauses) derives from it: pass something that differs between processes.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: Duration::from_secs(30),
            write_attempt: Duration::from_secs(10),
            read_attempt: Duration::from_secs(3),
            read_hedge: Duration::from_millis(250),
            connect: Duration::from_secs(2),
            connections: 1,
            channels: 256,
            message_bytes: 4 << 20,
            first_pause: Duration::from_millis(2),
            longest_pause: Duration::from_millis(500),
            seed: 0,
        }
    }
}
