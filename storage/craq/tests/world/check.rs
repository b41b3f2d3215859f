//! The invariants of the design, by name: durable, linearizable, converged, once, live.

use catena_proto::ids::ChunkVersion;

use super::{Action, State, Violation, World, WriteState, role_is_serving};

pub fn checksum(contents: &[u8]) -> u32 {
    contents.iter().fold(17, |sum: u32, &write| sum.wrapping_mul(31).wrapping_add(u32::from(write)))
}

impl World {
    /// Somebody is shown `seen`: it must extend everything that was seen before the read began, and hold no write twice.
    pub(super) fn show(&mut self, seen: Vec<u8>, floor: &[u8], what: &str) -> Result<(), Violation> {
        if !seen.starts_with(floor) {
            return Err(format!("linearizable: {what} shows {seen:?}; {floor:?} had been shown before"));
        }
        let mut once = seen.clone();
        once.sort_unstable();
        once.dedup();
        if once.len() != seen.len() {
            return Err(format!("once: {what} shows {seen:?}"));
        }
        if seen.len() > self.floor.len() {
            if !seen.starts_with(&self.floor) {
                return Err(format!(
                    "linearizable: {what} shows {seen:?}; meanwhile {:?} was shown",
                    self.floor
                ));
            }
            self.floor = seen;
        } else if !self.floor.starts_with(&seen) {
            return Err(format!("linearizable: {what} shows {seen:?}; meanwhile {:?} was shown", self.floor));
        }
        Ok(())
    }

    /// A write is acknowledged: it is part of what everybody sees from now on.
    pub(super) fn acknowledge(&mut self, node: usize, write: usize) -> Result<(), Violation> {
        self.writes[write] = WriteState::Acked;
        let seen = self.nodes[node].store.committed_contents();
        let Some(place) = seen.iter().position(|&known| known == write as u8 + 1) else {
            return Err(format!("durable: write {write} is acknowledged by a head that has {seen:?}"));
        };
        // The head may have committed more by now; only the part up to this write is promised.
        let promised = seen[..=place].to_vec();
        let floor = self.floor.clone();
        if promised.len() <= floor.len() {
            return match floor.starts_with(&promised) {
                true => Ok(()),
                false => Err(format!("linearizable: {promised:?} is promised, {floor:?} was shown")),
            };
        }
        self.show(promised, &floor, "an acknowledgement")
    }

    /// What is durable on the serving replicas of mgmtd's newest view covers what was shown: if they all lost power now, nothing that
    /// anyone has seen would be taken back (invariant 1). Cheap enough for every step.
    pub(super) fn check_path(&self) -> Result<(), Violation> {
        for (node, state) in &self.order {
            if !matches!(state, State::Serving | State::Lastsrv) {
                continue;
            }
            let mut disk = self.nodes[*node].store.clone();
            disk.power_loss();
            if let Some(last) = disk.pendings().last() {
                disk.commit(last.id)?;
            }
            let kept = disk.committed_contents();
            if !kept.starts_with(&self.floor) {
                return Err(format!("durable: node {node} would keep {kept:?}; {:?} was shown", self.floor));
            }
        }
        Ok(())
    }

    /// Faults stop. Everything must come to rest with all replicas serving, equal, and complete (invariants 1, 3, 5, 6).
    pub fn settle(mut self) -> Result<(), Violation> {
        for _ in 0..400 {
            let Some(action) = self.next_helpful() else { break };
            self.spent.dumps += u32::from(matches!(action, Action::SendDump(_)));
            self.apply(&action)?;
        }
        let stuck = |world: &World, why: &str| {
            Err(format!(
                "live: {why}; states {:?}, net {:?}, nodes {:?}",
                world.order, world.net, world.nodes
            ))
        };
        if self.order.iter().any(|(_, state)| *state != State::Serving) {
            return stuck(&self, "not at full strength");
        }
        for node in 0..self.nodes.len() {
            self.apply(&Action::Read(node))?;
            if self.waiting.is_some() || !role_is_serving(self.nodes[node].replica.role()) {
                return stuck(&self, "a replica does not answer");
            }
        }
        let first = &self.nodes[0].store;
        for node in &self.nodes[1..] {
            if (node.store.committed_id(), node.store.committed_contents())
                != (first.committed_id(), first.committed_contents())
            {
                return Err(format!("converged: {:?} and {:?}", node.store, first));
            }
        }
        for (write, state) in self.writes.iter().enumerate() {
            if *state != WriteState::Unsent && *state != WriteState::Acked {
                return stuck(&self, &format!("write {write} is not answered"));
            }
        }
        Ok(())
    }

    /// The next thing that brings the world nearer to rest.
    fn next_helpful(&self) -> Option<Action> {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].alive {
                return Some(Action::Restart(node));
            }
            if !self.nodes[node].lease {
                return Some(Action::LeaseBack(node));
            }
        }
        let newest = self.views.len() - 1;
        for (index, node) in self.nodes.iter().enumerate() {
            if node.replica.view().version < self.views[newest].version {
                return Some(Action::Adopt(index, newest));
            }
            if let Some(&id) = node.staging.iter().next() {
                return Some(Action::Staged(index, id));
            }
            if node.beginning.is_some() {
                return Some(Action::SessionReady(index));
            }
        }
        if !self.net.is_empty() {
            return Some(Action::Deliver(0));
        }
        if let Some(action) = self.membership().into_iter().next() {
            return Some(action);
        }
        // What is stuck is pushed in turn: a replica resends, a client retries, a dump is asked for again.
        let turn = self.spent.dumps + self.spent.ticks + self.spent.sends;
        let busy = |node: &usize| self.nodes[*node].replica.pending_versions() > 0;
        let pending: Vec<usize> = (0..self.nodes.len()).filter(busy).collect();
        let pending = pending.get(self.spent.ticks as usize % pending.len().max(1)).copied();
        let unanswered = self.writes.iter().position(|state| *state == WriteState::Sent);
        let syncing = self.order.iter().find(|(_, state)| *state == State::Syncing);
        let choices = [
            pending.map(Action::Tick),
            unanswered.map(|write| Action::Write { write, view: newest }),
            syncing.map(|&(node, _)| Action::SendDump(node)),
        ];
        (0..3).filter_map(|offset| choices[(turn as usize + offset) % 3].clone()).next()
    }

    /// What mgmtd may do now, by the transition table.
    pub fn membership(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        let newest = self.views.last().expect("the first view is made with the world");
        let serving = self.order.iter().any(|(_, state)| *state == State::Serving);
        let syncing = self.order.iter().any(|(_, state)| *state == State::Syncing);
        for &(index, state) in &self.order {
            let node = &self.nodes[index];
            let knows =
                node.alive && node.lease && !node.fresh && node.replica.view().version == newest.version;
            match state {
                State::Serving | State::Syncing if !node.alive || !node.lease => {
                    actions.push(Action::TakeOut(index))
                }
                State::Syncing if knows && node.replica.finished_session() == Some(newest.joined_at) => {
                    actions.push(Action::Promote(index));
                }
                State::Lastsrv if knows && !serving => actions.push(Action::BringBack(index)),
                State::Offline | State::Waiting if knows && serving && !syncing => {
                    actions.push(Action::BringBack(index))
                }
                _ => {}
            }
        }
        actions
    }

    /// Some version is still on its way somewhere.
    pub fn is_busy(&self) -> bool {
        self.nodes.iter().any(|node| {
            node.replica.pending_versions() > 0 || node.store.committed_id().version == ChunkVersion(u64::MAX)
        })
    }
}
