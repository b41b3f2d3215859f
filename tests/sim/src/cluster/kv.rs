//! The key-value store that mgmtd and meta share: one that never loses anything, behind a network and with answers that get lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::fault::{Fault, Faulty, Point};
use catena_kv::{Database, KvError, MemDatabase};
use catena_net::PeerId;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How the store answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    /// Reads and commits take up to this long.
    pub delay: Duration,
    /// Of a thousand commits, so many answer that nobody knows; half of them happened.
    pub unknown: u16,
    /// Of a thousand commits, so many conflict for no reason.
    pub conflict: u16,
    /// Of a thousand calls, so many fail.
    pub unavailable: u16,
}

struct Shared {
    mood: Mood,
    rng: StdRng,
    /// Processes that cannot reach it.
    cut: BTreeSet<PeerId>,
}

/// The store, for the whole cluster.
#[derive(Clone)]
pub struct SharedStore {
    /// One database for each user: they never meet in a transaction.
    db: [MemDatabase; 2],
    shared: Arc<Mutex<Shared>>,
}

impl SharedStore {
    /// An empty one.
    pub fn new(seed: u64) -> SharedStore {
        let rng = StdRng::seed_from_u64(seed);
        let shared = Shared { mood: Mood::default(), rng, cut: BTreeSet::new() };
        SharedStore { db: [MemDatabase::new(), MemDatabase::new()], shared: Arc::new(Mutex::new(shared)) }
    }

    /// One user's half, as `peer` reaches it.
    pub fn as_seen_by(&self, peer: PeerId, user: usize) -> Arc<dyn Database> {
        let shared = self.shared.clone();
        let hook = move |point| {
            let mut shared = shared.lock();
            let mood = shared.mood;
            if shared.cut.contains(&peer) {
                return Some(Fault::Fail(KvError::Unavailable("cut off".into())));
            }
            let draw = shared.rng.random_range(0..1000_u16);
            if draw < mood.unavailable {
                return Some(Fault::Fail(KvError::Unavailable("a moment".into())));
            }
            if point == Point::Commit {
                let draw = shared.rng.random_range(0..1000_u16);
                if draw < mood.unknown / 2 {
                    return Some(Fault::CommitThenUnknown);
                }
                if draw < mood.unknown {
                    return Some(Fault::Fail(KvError::CommitUnknown));
                }
                if draw < mood.unknown + mood.conflict {
                    return Some(Fault::Fail(KvError::Conflict));
                }
            }
            let most = mood.delay.as_nanos() as u64;
            (point != Point::Begin && most > 0)
                .then(|| Fault::Delay(Duration::from_nanos(shared.rng.random_range(0..most))))
        };
        Arc::new(Faulty::new(Arc::new(self.db[user].clone()), Box::new(hook)))
    }

    /// As a checker sees it: at once, without faults.
    pub fn truth(&self, user: usize) -> Arc<dyn Database> {
        Arc::new(self.db[user].clone())
    }

    /// From now on.
    pub fn set_mood(&self, mood: Mood) {
        self.shared.lock().mood = mood;
    }

    /// `peer` cannot reach it.
    pub fn cut(&self, peer: PeerId) {
        self.shared.lock().cut.insert(peer);
    }

    /// Everyone can.
    pub fn heal(&self) {
        self.shared.lock().cut.clear();
    }
}
