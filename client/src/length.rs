//! What this process knows of a file's length, shared by all its open handles.
//!
//! The metadata service knows the *settled* length: what writers reported on their last fsync or close. This process also knows what
//! it *wrote* since. A shortening by anyone moves the file's *epoch* and with it what was written before stops counting.

use std::sync::Arc;
use std::time::Duration;

use catena_proto::ids::InodeId;
use catena_rt::time::Instant;
use parking_lot::Mutex;
use tokio::sync::RwLock;

use crate::attributes::Stat;
use crate::connect::Catena;

/// How long a length from the metadata service is believed when a read meets a hole.
const FRESH: Duration = Duration::from_secs(1);

pub(crate) struct Length {
    state: Mutex<State>,
    /// Held shared by writes under way, exclusively while the length is cut or a handle is closed.
    pub gate: Arc<RwLock<()>>,
}

struct State {
    settled: u64,
    epoch: u64,
    written: u64,
    asked: Instant,
    /// Where the next append goes while others are under way.
    reserved: u64,
    appends: u32,
}

impl Length {
    /// The one of this inode, with what `stat` says.
    pub fn of(catena: &Catena, stat: &Stat) -> Arc<Length> {
        let mut lengths = catena.shared.lengths.lock();
        if let Some(length) = lengths.get(&stat.inode).and_then(std::sync::Weak::upgrade) {
            drop(lengths);
            length.learn(stat);
            return length;
        }
        // Now and then, forget what nobody holds any more.
        if lengths.len() >= 64 && lengths.len().is_power_of_two() {
            lengths.retain(|_, length| length.strong_count() > 0);
        }
        let state = State {
            settled: stat.length,
            epoch: stat.truncate_epoch,
            written: 0,
            asked: Instant::now(),
            reserved: 0,
            appends: 0,
        };
        let length = Arc::new(Length { state: Mutex::new(state), gate: Arc::default() });
        lengths.insert(stat.inode, Arc::downgrade(&length));
        length
    }

    /// Forgets an inode whose last handle goes.
    pub fn forget(catena: &Catena, inode: InodeId) {
        let mut lengths = catena.shared.lengths.lock();
        if lengths.get(&inode).is_some_and(|length| length.strong_count() <= 1) {
            lengths.remove(&inode);
        }
    }

    /// The end of the file as far as this process knows.
    pub fn known(&self) -> u64 {
        let state = self.state.lock();
        state.settled.max(state.written)
    }

    pub fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Takes in what the metadata service said. Answers may overtake each other: what is older says nothing.
    pub fn learn(&self, stat: &Stat) {
        let mut state = self.state.lock();
        if stat.truncate_epoch < state.epoch {
            return;
        }
        if stat.truncate_epoch > state.epoch {
            state.epoch = stat.truncate_epoch;
            state.written = 0;
            state.settled = 0;
        }
        // Within an epoch a file only grows.
        state.settled = state.settled.max(stat.length);
        state.asked = Instant::now();
    }

    /// A write that began in `epoch` was acknowledged.
    pub fn wrote(&self, end: u64, epoch: u64) {
        let mut state = self.state.lock();
        if epoch == state.epoch {
            state.written = state.written.max(end);
        }
    }

    /// Whether the metadata service was asked a moment ago.
    pub fn is_fresh(&self) -> bool {
        self.state.lock().asked.elapsed() < FRESH
    }

    /// A place behind the end, and behind all appends under way, for `bytes` more. Dropped when the append is over.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Reserved {
        let mut state = self.state.lock();
        let known = state.settled.max(state.written);
        let offset = if state.appends == 0 { known } else { known.max(state.reserved) };
        state.reserved = offset.saturating_add(bytes);
        state.appends += 1;
        drop(state);
        Reserved { length: self.clone(), offset }
    }
}

/// A place for an append.
pub(crate) struct Reserved {
    length: Arc<Length>,
    pub offset: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.length.state.lock().appends -= 1;
    }
}
