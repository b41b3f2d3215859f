//! What mgmtd counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::chain::state_name;
use crate::cluster::Counts;
use catena_proto::routing::PublicState::*;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CallLabel {
    call: &'static str,
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct FailureLabel {
    call: &'static str,
    status: String,
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct NodeLabel {
    kind: &'static str,
    state: &'static str,
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// Counters and gauges of one mgmtd.
pub struct Metrics {
    calls: Family<CallLabel, Counter>,
    failures: Family<FailureLabel, Counter>,
    role: Family<RoleLabel, Gauge>,
    /// Times that this mgmtd became primary.
    pub takeovers: Counter,
    /// Long polls that are waiting.
    pub polls: Gauge,
    /// Chain changes written.
    pub chain_changes: Counter,
    /// Services declared failed.
    pub nodes_failed: Counter,
    /// Time that a write to the store took.
    pub commit: Histogram,
    routing_version: Gauge<u64, AtomicU64>,
    nodes: Family<NodeLabel, Gauge>,
    targets: Family<StateLabel, Gauge>,
    chains: Gauge,
    chains_down: Gauge,
    chains_held: Gauge,
    /// Clients with a session.
    pub sessions: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            calls: Family::default(),
            failures: Family::default(),
            role: Family::default(),
            takeovers: Counter::default(),
            polls: Gauge::default(),
            chain_changes: Counter::default(),
            nodes_failed: Counter::default(),
            commit: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            routing_version: Gauge::default(),
            nodes: Family::default(),
            targets: Family::default(),
            chains: Gauge::default(),
            chains_down: Gauge::default(),
            chains_held: Gauge::default(),
            sessions: Gauge::default(),
        }
    }
}

impl Metrics {
    /// One answered call.
    pub fn called(&self, call: &'static str, failure: Option<catena_proto::status::Status>) {
        self.calls.get_or_create(&CallLabel { call }).inc();
        if let Some(status) = failure {
            self.failures.get_or_create(&FailureLabel { call, status: format!("{status:?}") }).inc();
        }
    }

    /// Whether this mgmtd is primary.
    pub fn role(&self, primary: bool) {
        for (role, is) in [("primary", primary), ("stand-by", !primary)] {
            self.role.get_or_create(&RoleLabel { role }).set(is.into());
        }
    }

    /// Takes back what only a primary knows, so that nobody is alarmed by what a stand-by remembers.
    pub fn forget(&self) {
        for gauge in [&self.chains, &self.chains_down, &self.chains_held, &self.sessions] {
            gauge.set(0);
        }
        self.nodes.clear();
        self.targets.clear();
    }

    /// The cluster as it is now.
    pub fn show(&self, version: u64, counts: &Counts) {
        self.routing_version.set(version);
        for kind in ["storage", "meta", "mgmtd"] {
            for (state, up) in [("up", true), ("down", false)] {
                let count = counts.nodes.get(&(kind, up)).copied().unwrap_or(0);
                self.nodes.get_or_create(&NodeLabel { kind, state }).set(count as i64);
            }
        }
        for state in [Serving, Syncing, Waiting, Lastsrv, Offline].map(state_name) {
            let count = counts.targets.get(state).copied().unwrap_or(0);
            self.targets.get_or_create(&StateLabel { state }).set(count as i64);
        }
        self.chains.set(counts.chains as i64);
        self.chains_down.set(counts.chains_down as i64);
        self.chains_held.set(counts.chains_held as i64);
    }

    /// Puts everything under `mgmtd_` into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("mgmtd");
        registry.register("calls", "Calls answered", self.calls.clone());
        registry.register("failures", "Calls answered with a failure", self.failures.clone());
        registry.register("role", "1 for the role that this mgmtd has", self.role.clone());
        registry.register("takeovers", "Times that this mgmtd became primary", self.takeovers.clone());
        registry.register(
            "polls_waiting",
            "Long polls for routing information that wait",
            self.polls.clone(),
        );
        registry.register("chain_changes", "Changes of chains", self.chain_changes.clone());
        registry.register("nodes_failed", "Services declared failed", self.nodes_failed.clone());
        registry.register_with_unit(
            "commit",
            "Time to write to the store",
            Unit::Seconds,
            self.commit.clone(),
        );
        registry.register(
            "routing_version",
            "Version of the routing information",
            self.routing_version.clone(),
        );
        registry.register("nodes", "Services by kind and state", self.nodes.clone());
        registry.register("targets", "Targets by public state", self.targets.clone());
        registry.register("chains", "Chains", self.chains.clone());
        registry.register("chains_down", "Chains that nobody serves", self.chains_down.clone());
        registry.register(
            "chains_held",
            "Chains that wait for word from their members",
            self.chains_held.clone(),
        );
        registry.register("client_sessions", "Clients with a session", self.sessions.clone());
    }
}
