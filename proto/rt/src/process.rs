//! Which process a task belongs to.

use crate::task::JoinHandle;

/// A process whose tasks die, stop and go on together. Outside the simulator there is only one.
#[derive(Clone, Debug)]
pub struct Process {
    #[cfg(feature = "sim")]
    pub(crate) sim: Option<crate::sim::Owner>,
}

impl Process {
    /// The one that is running.
    pub fn current() -> Process {
        Process {
            #[cfg(feature = "sim")]
            sim: crate::sim::Owner::current(),
        }
    }

    /// Nobody's: the network, which goes on while processes stop and die.
    pub fn world() -> Process {
        Process {
            #[cfg(feature = "sim")]
            sim: crate::sim::Owner::world(),
        }
    }

    /// Starts a task of this process.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        #[cfg(feature = "sim")]
        if let Some(owner) = &self.sim {
            return JoinHandle::simulated(owner.spawn(future));
        }
        JoinHandle::tokio(tokio::spawn(future))
    }
}
