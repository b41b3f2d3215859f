//! What no process can know but the simulator can: whether somebody else has gone on without the one that answers, and whether anybody
//! has seen what the protocol excludes.

use std::sync::Arc;

use catena_mgmtd::store::Store;
use catena_proto::ids::TargetId;
use catena_proto::routing::PublicState;
use catena_rt::sim::Sim;
use futures_util::FutureExt;
use parking_lot::Mutex;

use crate::cluster::{CLUSTER, MGMTD_PREFIX, kv::SharedStore};

/// More of one kind say nothing new.
const ENOUGH: usize = 3;

/// Sees every answer that is given to a read or to a question of another replica, and every impossible thing that a replica notices.
pub struct Witness {
    sim: Sim,
    store: Store,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    answers: u64,
    wrong: Vec<String>,
}

impl Witness {
    /// Watches `sim` from now on; `store` is where managers keep what they have decided.
    pub fn watch(sim: &Sim, store: &SharedStore) -> Arc<Witness> {
        let store = Store::new(store.truth(MGMTD_PREFIX), CLUSTER, 0);
        let witness = Arc::new(Witness { sim: sim.clone(), store, seen: Mutex::default() });
        let told = Arc::downgrade(&witness);
        sim.set_witness(Some(Arc::new(move |what, about| {
            if let (Some(witness), Some(&target)) = (told.upgrade(), about.first()) {
                witness.told(what, TargetId(target));
            }
        })));
        witness
    }

    fn told(&self, what: &str, target: TargetId) {
        match what {
            "answers" => self.answers(target),
            impossible => self.add(format!("durable: {target} says: {impossible}")),
        }
    }

    fn add(&self, wrong: String) {
        let mut seen = self.seen.lock();
        if seen.wrong.len() < ENOUGH {
            seen.wrong.push(format!("{wrong} (at {:?})", self.sim.now()));
        }
    }

    /// Invariant *fenced*: once it is decided that a target is out of its chain, it answers nothing any more. Decided is what the store
    /// has, whether or not anybody has heard of it.
    fn answers(&self, target: TargetId) {
        self.seen.lock().answers += 1;
        match self.store.load().now_or_never() {
            Some(Ok(loaded)) => {
                let Some(known) = loaded.info.targets.get(&target) else {
                    return self.add(format!("fenced: {target} answers, and nobody knows it"));
                };
                if !matches!(known.state, PublicState::Serving | PublicState::Syncing) {
                    self.add(format!(
                        "fenced: {target} of {} answers, and is {:?}",
                        known.chain, known.state
                    ));
                }
            }
            Some(Err(error)) => self.add(format!("fenced: what was decided cannot be read: {error}")),
            None => self.add("fenced: the store of the simulator makes one wait".into()),
        }
    }

    /// Answers that were looked at.
    pub fn answers_seen(&self) -> u64 {
        self.seen.lock().answers
    }

    /// What was wrong.
    pub fn wrong(&self) -> Vec<String> {
        self.seen.lock().wrong.clone()
    }
}
