//! A target's life in its chain: adopting chain versions, going out of service and coming back, and what mgmtd is told of it.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use catena_craq::{ChainView, Replica, Role};
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{LocalState, PublicState, RoutingInfo};
use catena_rt::time::sleep;
use tracing::{error, info, warn};

use crate::node::Node;
use crate::resync;
use crate::target::{ReadWake, State, StoreView, Target};

/// What the routing information says of a target, as of one chain version. Adopted as a whole, so that a report never mixes two.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub view: ChainView,
    /// The target's own public state and the session or membership that it belongs to.
    pub state: PublicState,
    pub joined_at: ChainVersion,
}

impl Membership {
    /// From routing information; `None` if it does not know the target or its chain.
    pub fn of(info: &RoutingInfo, target: TargetId, chain: ChainId) -> Option<Membership> {
        let version = info.chains.get(&chain)?.version;
        let own = info.targets.get(&target)?;
        let path = info.path(chain);
        let syncing = path.last().filter(|target| target.state == PublicState::Syncing);
        let view = ChainView {
            version,
            path: path.iter().map(|target| target.id).collect(),
            syncing: syncing.is_some(),
            joined_at: syncing.map_or(ChainVersion(0), |target| target.joined_at),
        };
        Some(Membership { view, state: own.state, joined_at: own.joined_at })
    }
}

impl Target {
    /// The chain as it is now. Older versions change nothing; true if this one was new.
    pub fn adopt(self: &Arc<Self>, node: &Arc<Node>, membership: Membership) -> bool {
        let Membership { view, state: public, joined_at } = membership;
        let version = view.version;
        let adopted = self.act(node, |state| {
            if view.version <= state.replica.view().version {
                return None;
            }
            let before = state.replica.role();
            (state.public, state.joined_at) = (public, joined_at);
            state.successor_short = false;
            state.resync = None;
            state.replica.adopt(view, &mut state.out);
            self.note_adopted(version);
            Some((before, state.replica.role(), state.replica.view().clone()))
        });
        let Some((before, role, view)) = adopted else { return false };
        info!(
            target = %self.id, chain = %self.chain, chain_version = version.0, ?public, ?role, ?before,
            path = ?view.path, syncing = view.syncing, "chain version adopted"
        );
        let mut state = self.state();
        match view.successor(self.id) {
            Some((to, true)) if state.outage.is_none() && matches!(role, Role::Serving(_)) => {
                state.resync = Some(resync::drive(self, node, to, version, view.joined_at));
            }
            _ => {}
        }
        if role == Role::Outside && state.outage.is_some() {
            // The chain goes on without it, so it may come back.
            catena_rt::spawn(self.clone().recover(node.clone()));
        }
        true
    }

    /// The target takes no further part until the chain has gone on without it.
    pub fn take_offline(self: &Arc<Self>, node: &Arc<Node>, reason: &'static str) {
        let mut state = self.state();
        self.go_offline(node, &mut state, reason);
    }

    pub(crate) fn go_offline(&self, node: &Arc<Node>, state: &mut State, reason: &'static str) {
        if state.outage.is_some() {
            return;
        }
        error!(target = %self.id, chain = %self.chain, disk = %self.disk.path(), reason, "the target goes offline");
        state.outage = Some(reason);
        self.stopped.store(true, Ordering::Release);
        state.resync = None;
        state.dismiss(Err(catena_proto::status::Status::NotServing));
        node.kick_heartbeat();
    }

    /// Comes back after an outage, once out of the chain: as after a restart, from what the store has. What the protocol had under way
    /// is of no use any more, because effects were not carried out.
    async fn recover(self: Arc<Self>, node: Arc<Node>) {
        while self.is_staging() {
            sleep(Duration::from_millis(1)).await;
        }
        if self.disk.has_failed() {
            return;
        }
        let reason = self.act(&node, |state| {
            if state.retired || state.replica.role() != Role::Outside {
                return None;
            }
            let reason = state.outage.take()?;
            self.stopped.store(false, Ordering::Release);
            let mut replica = Replica::new(self.id);
            replica.restore(self.disk.restored(self.id), &StoreView::new(&self.disk, self.id));
            replica.adopt(state.replica.view().clone(), &mut state.out);
            state.replica = replica;
            Some(reason)
        });
        if let Some(reason) = reason {
            info!(target = %self.id, chain = %self.chain, reason, "the target may come back");
            node.kick_heartbeat();
        }
    }

    /// The service ends: nothing more is begun.
    pub fn retire(&self) {
        let mut state = self.state();
        state.outage = Some("the service stops");
        self.stopped.store(true, Ordering::Release);
        state.retired = true;
        state.resync = None;
        state.dismiss(Err(catena_proto::status::Status::ShuttingDown));
    }

    /// Says so when the lease was lost or is back.
    pub fn watch_lease(&self, node: &Node) {
        let holds = self.lease_holds(node);
        let mut state = self.state();
        let serving = matches!(state.replica.role(), Role::Serving(_));
        if state.fenced == (serving && !holds) {
            return;
        }
        state.fenced = serving && !holds;
        if state.fenced {
            warn!(target = %self.id, chain = %self.chain, "the lease ran out: nothing is served until mgmtd renews it");
        } else {
            info!(target = %self.id, chain = %self.chain, "the target is no longer fenced");
        }
    }

    /// What mgmtd is told (R20, R24, R27): all of it as of one adopted chain version.
    pub fn report(&self) -> pb::TargetReport {
        let state = self.state();
        let (used, chunks) = self.usage();
        pb::TargetReport {
            target: self.id.0,
            local: self.local_state(&state) as i32,
            known_version: state.replica.view().version.0,
            joined_at: state.joined_at.0,
            used,
            chunks,
        }
    }

    fn local_state(&self, state: &State) -> LocalState {
        if state.outage.is_some() || self.disk.has_failed() {
            return LocalState::Offline;
        }
        match state.replica.role() {
            Role::Serving(_) => LocalState::UpToDate,
            Role::Syncing
                if state.synced == Some(state.joined_at)
                    || (state.synced.is_some()
                        && catena_rt::broken("15 up-to-date counts in any session")) =>
            {
                LocalState::UpToDate
            }
            // Contents of an unfinished resync are a mixture, and must never be the last word.
            Role::Outside if state.public == PublicState::Lastsrv && state.unsynced.is_some() => {
                LocalState::Offline
            }
            // Waiting too says online, or it would never leave waiting (R27).
            Role::Syncing | Role::Outside => LocalState::Online,
        }
    }

    /// Bytes and chunks, as last counted.
    pub fn usage(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.chunks.load(Ordering::Relaxed))
    }

    /// Counts them anew, if anything was written. A page at a time, so that nobody waits for the index.
    pub async fn count_usage(&self) {
        const PAGE: usize = 1024;
        let stages = self.disk.engine().stats().stages;
        if self.counted_at.swap(stages, Ordering::Relaxed) == stages {
            return;
        }
        let (mut used, mut chunks, mut from) = (0, 0, Bound::Unbounded);
        loop {
            let page = self.disk.engine().list(self.id, from, Bound::Unbounded, PAGE).unwrap_or_default();
            used += page.iter().map(|info| info.allocated).sum::<u64>();
            let live = page.iter().filter(|info| info.state.committed.is_some_and(|meta| !meta.tombstone));
            chunks += live.count() as u64;
            match page.last() {
                Some(last) if page.len() == PAGE => from = Bound::Excluded(last.chunk),
                _ => break,
            }
            catena_rt::yield_now().await;
        }
        self.used.store(used, Ordering::Relaxed);
        self.chunks.store(chunks, Ordering::Relaxed);
    }
}

impl State {
    /// Everyone who waits here is sent elsewhere.
    fn dismiss(&mut self, outcome: crate::target::WriteOutcome) {
        for waiter in std::mem::take(&mut self.writes).into_values() {
            let _ = waiter.answer.send(outcome);
        }
        for wake in std::mem::take(&mut self.reads).into_values() {
            let _ = wake.send(ReadWake::Again);
        }
    }
}
