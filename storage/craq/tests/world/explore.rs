//! Two ways through the worlds: every schedule within small limits, and long random walks.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Action, State, Violation, World, WriteState, canonical};

/// How much of each kind of trouble there may be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Limits {
    pub sends: u32,
    pub crashes: u32,
    pub leases: u32,
    pub doubles: u32,
    pub losses: u32,
    pub ticks: u32,
    pub views: usize,
    pub dumps: u32,
    pub reads: u64,
}

impl World {
    /// Everything that may happen within the limits.
    pub fn actions(&self, limits: &Limits) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, packet) in self.net.iter().enumerate() {
            if at > 0 && self.net[at - 1] == *packet {
                continue;
            }
            actions.push(Action::Deliver(at));
            if self.spent.doubles < limits.doubles {
                actions.push(Action::Double(at));
            }
            if self.spent.losses < limits.losses {
                actions.push(Action::Lose(at));
            }
        }
        let newest = self.views.len() - 1;
        for (index, node) in self.nodes.iter().enumerate() {
            if !node.alive {
                actions.push(Action::Restart(index));
                continue;
            }
            actions.extend(node.staging.iter().map(|&id| Action::Staged(index, id)));
            if node.beginning.is_some() {
                actions.push(Action::SessionReady(index));
            }
            let known = node.replica.view().version.0 as usize;
            if known <= newest {
                actions.push(Action::Adopt(index, newest));
                if known != newest && known >= node.born {
                    actions.push(Action::Adopt(index, known));
                }
            }
            if self.waiting.is_none() && !node.fresh && self.reads < limits.reads {
                actions.push(Action::Read(index));
            }
            if self.spent.crashes < limits.crashes {
                actions.push(Action::Crash(index));
            }
            if node.lease && self.spent.leases < limits.leases {
                actions.push(Action::LeaseOut(index));
            }
            if !node.lease && known == newest + 1 {
                actions.push(Action::LeaseBack(index));
            }
            if self.spent.ticks < limits.ticks && node.replica.pending_versions() > 0 {
                actions.push(Action::Tick(index));
            }
            let syncs = self.state(index) == State::Syncing;
            let under_way = self
                .net
                .iter()
                .any(|packet| !matches!(packet.wire, super::Wire::Peer(_) | super::Wire::Refused(_)));
            if syncs && !under_way {
                actions.push(Action::SendDump(index));
            }
        }
        if self.views.len() < limits.views {
            actions.extend(self.membership());
        }
        let asked = self.net.iter().any(|packet| {
            matches!(
                packet.wire,
                super::Wire::Peer(catena_craq::Msg::Query { .. } | catena_craq::Msg::QueryReply { .. })
            )
        });
        if self.waiting.is_some() && !asked {
            actions.push(Action::QueryTail);
        }
        if self.spent.sends < limits.sends {
            let sent = self.writes.iter().position(|state| *state == WriteState::Unsent);
            for write in 0..self.writes.len() {
                if self.writes[write] == WriteState::Sent || sent == Some(write) {
                    actions.push(Action::Write { write, view: newest });
                    if newest > 0 {
                        actions.push(Action::Write { write, view: newest - 1 });
                    }
                }
            }
        }
        actions
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Visits every world within `limits`, breadth first, at most `most` of them. Returns how many there were, and whether that is all.
pub fn exhaust(start: World, limits: &Limits, most: usize) -> Result<(usize, bool), Violation> {
    let mut seen = HashSet::new();
    let mut queue = VecDeque::from([start]);
    while let Some(world) = queue.pop_front() {
        for action in world.actions(limits) {
            let mut next = world.clone();
            next.apply(&action)?;
            canonical(&mut next);
            // A query or a read that changes nothing is no new world.
            if seen.insert(fingerprint(&next)) {
                if seen.len() >= most {
                    return Ok((seen.len(), false));
                }
                queue.push_back(next);
            }
        }
        // Where nothing more can happen, everything must be well.
        if world.net.is_empty() && world.spent.crashes + world.spent.leases >= limits.crashes + limits.leases
        {
            world.settle()?;
        }
    }
    Ok((seen.len(), true))
}

/// One random walk of `steps` within `limits`, then rest. The seed decides everything.
pub fn wander(mut world: World, limits: &Limits, seed: u64, steps: usize) -> Result<(), Violation> {
    let mut random = seed;
    let mut next = move || {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut trace = Vec::new();
    for _ in 0..steps {
        let actions = world.actions(limits);
        // Rare things stay rare, so that the common ones get somewhere between them.
        let weight = |action: &Action| match action {
            Action::Crash(_) | Action::LeaseOut(_) | Action::Lose(_) | Action::Double(_) => 1,
            Action::Tick(_) | Action::QueryTail | Action::Write { .. } => 3,
            Action::Read(_) => 4,
            _ => 8,
        };
        let total: u64 = actions.iter().map(weight).sum();
        if total == 0 {
            break;
        }
        let mut pick = next() % total;
        let chosen = actions.into_iter().find(|action| {
            let w = weight(action);
            if pick < w {
                return true;
            }
            pick -= w;
            false
        });
        let Some(action) = chosen else { break };
        let before = format!(
            "{action:?} {:?}",
            if let Action::Deliver(at) = action { Some(&world.net[at]) } else { None }
        );
        trace.push(before);
        world
            .apply(&action)
            .map_err(|violation| format!("seed {seed}: {violation}\n{}", trace.join("\n")))?;
    }
    world.settle().map_err(|violation| format!("seed {seed}, at rest: {violation}\n{}", trace.join("\n")))
}
