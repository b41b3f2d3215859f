//! Alarms of the virtual clock.

use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{EPOCH, RUNNING, Shared};

/// Rings at its time. It is set by the first poll.
pub(crate) struct Alarm {
    sim: Weak<Shared>,
    at: Duration,
    set: Option<u64>,
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "alarm at {:?}", self.at)
    }
}

impl Alarm {
    /// `None` outside the simulator.
    pub fn at(deadline: Instant) -> Option<Alarm> {
        RUNNING.with_borrow(|owner| {
            let sim = Arc::downgrade(&owner.as_ref()?.sim);
            Some(Alarm { sim, at: deadline.saturating_duration_since(*EPOCH), set: None })
        })
    }

    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(sim) = self.sim.upgrade() else { return Poll::Pending };
        let mut state = sim.state.lock();
        if state.now >= self.at {
            return Poll::Ready(());
        }
        let serial = match self.set {
            Some(serial) => serial,
            None => state.serial(),
        };
        self.set = Some(serial);
        let before = state.alarms.insert((self.at, serial), context.waker().clone());
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let (Some(serial), Some(sim)) = (self.set, self.sim.upgrade()) {
            let waker = sim.state.lock().alarms.remove(&(self.at, serial));
            drop(waker);
        }
    }
}
