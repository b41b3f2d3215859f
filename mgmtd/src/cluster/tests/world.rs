//! A cluster of pretended services.

use std::collections::BTreeMap;
use std::time::Duration;

use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_proto::pb::{self, CreateTableRequest, HeartbeatReply, HeartbeatRequest};
use catena_proto::routing::{LocalState, NodeKind, NodeState, PublicState, wide_bytes};
use catena_proto::rpc::Failure;

use super::super::*;
use crate::changes::{Changes, Event};
use crate::record::IdsRecord;
use crate::store::Loaded;

pub const TERM: Duration = Duration::from_secs(8);

/// A pretended storage service with one disk, whose number is the node's.
#[derive(Clone)]
pub struct Service {
    pub node: pb::Node,
    pub alive: bool,
    pub sequence: u64,
    /// Whether resync sessions of its targets finish by themselves.
    pub syncs: bool,
}

pub struct World {
    pub cluster: Cluster,
    pub now: Monotonic,
    pub services: BTreeMap<u32, Service>,
    pub events: Vec<Event>,
    incarnations: u64,
}

impl World {
    pub fn new() -> World {
        let loaded = Loaded { ids: IdsRecord { target: 1, chain: 1 }, ..Default::default() };
        World {
            cluster: Cluster::new(loaded, NodeId(100), TERM, Monotonic(TERM)),
            now: Monotonic::default(),
            services: BTreeMap::new(),
            events: Vec::new(),
            incarnations: 0,
        }
    }

    /// `nodes` storage services that are up, with `chains` chains of `replicas`.
    pub fn with_chains(nodes: u32, replicas: u32, targets_per_disk: u32) -> World {
        let mut world = World::new();
        for node in 1..=nodes {
            world.start(node).unwrap();
        }
        let request = CreateTableRequest { replicas, targets_per_disk, seed: 1, ..Default::default() };
        let (changes, _) = world.cluster.create_table(world.now, &request).unwrap();
        world.write(changes);
        world.beat_all();
        world
    }

    pub fn write(&mut self, changes: Changes) {
        self.cluster.apply(&changes);
        self.events.extend(changes.events);
    }

    /// A new start of a service; with its disk and address unless they were changed.
    pub fn start(&mut self, node: u32) -> Result<Registration, Failure> {
        self.incarnations += 1;
        let incarnation = self.incarnations;
        let service = self.services.entry(node).or_insert_with(|| Service {
            node: storage(node),
            alive: true,
            sequence: 0,
            syncs: true,
        });
        service.alive = false;
        service.sequence = 0;
        service.node.incarnation = incarnation;
        self.register(node)
    }

    /// The present start asks to be let in.
    pub fn register(&mut self, node: u32) -> Result<Registration, Failure> {
        let record = self.services[&node].node.clone();
        let incarnation = Incarnation(record.incarnation);
        let (changes, registration) = self.cluster.register(self.now, record)?;
        self.write(changes);
        if registration == Registration::Done {
            self.cluster.registered(self.now, NodeId(node), incarnation);
            let service = self.services.get_mut(&node).unwrap();
            service.alive = true;
            service.node.disks.iter_mut().for_each(|disk| disk.fresh = false);
        }
        Ok(registration)
    }

    /// The heartbeat that a service would send that knows the newest routing information.
    pub fn report(&mut self, node: u32) -> HeartbeatRequest {
        let service = self.services.get_mut(&node).unwrap();
        service.sequence += 1;
        let mine = self.cluster.info.targets.values().filter(|target| target.node == NodeId(node));
        let targets = mine.map(|target| {
            let local = match target.state {
                PublicState::Serving => LocalState::UpToDate,
                PublicState::Syncing if service.syncs => LocalState::UpToDate,
                _ => LocalState::Online,
            };
            pb::TargetReport {
                target: target.id.0,
                local: local.into(),
                known_version: self.cluster.info.chains[&target.chain].version.0,
                joined_at: target.joined_at.0,
                ..Default::default()
            }
        });
        HeartbeatRequest {
            node,
            incarnation: service.node.incarnation,
            targets: targets.collect(),
            disks: service.node.disks.clone(),
            sequence: service.sequence,
            ..Default::default()
        }
    }

    pub fn send(&mut self, request: &HeartbeatRequest) -> Result<HeartbeatReply, Failure> {
        let changes = self.cluster.heartbeat(self.now, request)?;
        self.write(changes);
        Ok(self.cluster.renew(self.now, request))
    }

    pub fn beat(&mut self, node: u32) -> Vec<u64> {
        let request = self.report(node);
        self.send(&request).unwrap().renewed
    }

    pub fn beat_all(&mut self) {
        let alive: Vec<u32> =
            self.services.iter().filter(|(_, service)| service.alive).map(|(&node, _)| node).collect();
        for node in alive {
            self.beat(node);
        }
    }

    pub fn kill(&mut self, node: u32) {
        self.services.get_mut(&node).unwrap().alive = false;
    }

    pub fn tick(&mut self) {
        let changes = self.cluster.tick(self.now);
        self.write(changes);
        self.cluster.schedule_tick(self.now);
    }

    /// Time passes while those who live send heartbeats every quarter of the lease.
    pub fn pass(&mut self, quarters: u32) {
        for _ in 0..quarters {
            self.now = self.now + TERM / 4;
            self.beat_all();
            self.tick();
        }
    }

    /// mgmtd is started anew: only what is recorded remains.
    pub fn restart_mgmtd(&mut self) {
        let old = &mut self.cluster;
        let loaded = Loaded {
            info: std::mem::take(&mut old.info),
            disks: std::mem::take(&mut old.disks),
            ids: old.ids,
            requests: std::mem::take(&mut old.requests),
            ..Default::default()
        };
        self.cluster = Cluster::new(loaded, NodeId(100), TERM, self.now + TERM);
        self.cluster.schedule_tick(self.now);
    }

    /// `1 serving, 2 offline, ...`: the first chain by nodes instead of targets.
    pub fn chain(&self) -> String {
        let info = &self.cluster.info;
        let chain = info.chains.values().next().expect("a chain");
        let member = |id: &TargetId| {
            let target = &info.targets[id];
            format!("{} {}", target.node.0, crate::chain::state_name(target.state))
        };
        chain.targets.iter().map(member).collect::<Vec<_>>().join(", ")
    }

    pub fn version(&self) -> u64 {
        self.cluster.info.version.0
    }

    pub fn is_up(&self, node: u32) -> bool {
        self.cluster.info.nodes[&NodeId(node)].state() == NodeState::Up
    }

    /// Every chain is whole again.
    pub fn assert_full_strength(&self) {
        for target in self.cluster.info.targets.values() {
            assert_eq!(target.state, PublicState::Serving, "{target:?}");
        }
    }
}

pub fn disk(id: u128, path: &str) -> pb::Disk {
    pb::Disk { id: wide_bytes(id), path: path.into(), capacity: 1 << 30, fresh: true, ..Default::default() }
}

pub fn storage(node: u32) -> pb::Node {
    pb::Node {
        id: node,
        kind: NodeKind::Storage.into(),
        data_address: format!("tcp://10.0.0.{node}:7500"),
        disks: vec![disk(node.into(), "/disk")],
        ..Default::default()
    }
}
