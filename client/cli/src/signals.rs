//! Ctrl-C and its relatives, as something to wait for.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Failure, Result};

/// From its making on, the signals no longer end the process.
pub struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    /// Takes SIGINT, SIGTERM and SIGHUP.
    pub fn new() -> Result<Stop> {
        let take = |kind| signal(kind).map_err(|error| Failure::io("cannot handle signals", error));
        Ok(Stop {
            signals: [
                take(SignalKind::interrupt())?,
                take(SignalKind::terminate())?,
                take(SignalKind::hangup())?,
            ],
        })
    }

    /// Waits for any of them. Every call waits for another one.
    pub async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
