//! A double of RDMA devices in software: queue pairs of one process that reach each other, for tests that run on every machine.
//!
//! It keeps to what the specification promises and to nothing more: requests of a queue pair are carried out in order, a completion
//! that was not asked for is not made, places in the send queue come free with a later completion, a message without a receive is an error,
//! keys and access rights are checked, and an error flushes everything behind it. Work is carried out when it is posted, or, while the
//! fabric is [held](Fabric::hold), later: that is how packets that are late, and peers that die with packets under way, are made.

mod verbs;
mod world;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use parking_lot::Mutex;

use self::world::{LIMITS, State, World};
use crate::provider::{DeviceInfo, Gid, GidEntry, GidKind, LinkLayer, PortInfo};

/// Devices that reach each other. Clones are the same one.
#[derive(Clone, Default)]
pub struct Fabric(Arc<Mutex<World>>);

impl Fabric {
    /// With these devices, each with one port and the GID of an address.
    pub fn new(devices: &[(&str, IpAddr)]) -> Fabric {
        let info = |&(name, address): &(&str, IpAddr)| DeviceInfo {
            name: name.into(),
            firmware: String::new(),
            limits: LIMITS,
            ports: vec![PortInfo {
                number: 1,
                active: true,
                state: "ACTIVE",
                link: LinkLayer::Ethernet,
                lid: 0,
                mtu: 4096,
                bits_per_second: 100_000_000_000,
                gids: vec![GidEntry { index: 1, gid: Gid::of(address), kind: GidKind::RoceV2 }],
                pkey_index: 0,
            }],
        };
        let world = World { devices: devices.iter().map(info).collect(), ..World::default() };
        Fabric(Arc::new(Mutex::new(world)))
    }

    /// With one device, `soft0`, at 127.0.0.1.
    pub fn loopback() -> Fabric {
        Fabric::new(&[("soft0", Ipv4Addr::LOCALHOST.into())])
    }

    /// From now on nothing that is posted is carried out.
    pub fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Carries out what was held, in the order of the queue pairs' numbers, and from now on everything at once.
    pub fn release(&self) {
        let mut world = self.0.lock();
        world.held = false;
        let all: Vec<u32> = world.pairs.keys().copied().collect();
        all.into_iter().for_each(|number| world.run(number));
        world.wake();
    }

    /// Takes a device's link down, or up again. What is posted meanwhile fails as if all retries were used up.
    pub fn set_link(&self, device: &str, up: bool) {
        let mut world = self.0.lock();
        let at = world.devices.iter().position(|info| info.name == device);
        let Some(at) = at else { return };
        if up {
            world.down.remove(&at)
        } else {
            world.down.insert(at)
        };
        world.devices[at].ports[0].active = up;
        world.devices[at].ports[0].state = if up { "ACTIVE" } else { "DOWN" };
    }

    /// Takes a device away: what was made of it is dead, without a completion. It can be opened again once it is [back](Fabric::give_back).
    pub fn take_away(&self, device: &str) {
        let mut world = self.0.lock();
        let Some(at) = world.devices.iter().position(|info| info.name == device) else { return };
        world.absent.insert(at);
        *world.losses.entry(at).or_default() += 1;
        world.regions.retain(|_, region| region.device != at);
        for pair in world.pairs.values_mut().filter(|pair| pair.device == at) {
            pair.state = State::Error;
            pair.sends.clear();
            pair.receives.clear();
            pair.completions.clear();
            (pair.lost, pair.event) = (true, true);
        }
        world.wake();
    }

    /// A device that was taken away is there again, as after a reset: nobody has it open.
    pub fn give_back(&self, device: &str) {
        let mut world = self.0.lock();
        if let Some(at) = world.devices.iter().position(|info| info.name == device) {
            world.absent.remove(&at);
        }
    }

    /// A device is of a kind that cannot be opened: it is there and says that its port is up.
    pub fn make_foreign(&self, device: &str) {
        let mut world = self.0.lock();
        if let Some(at) = world.devices.iter().position(|info| info.name == device) {
            world.foreign.insert(at);
        }
    }

    /// A device does not say how it is, as long as this lasts: who asks waits.
    pub fn set_silent(&self, device: &str, silent: bool) {
        let mut world = self.0.lock();
        let Some(at) = world.devices.iter().position(|info| info.name == device) else { return };
        if silent {
            world.silent.insert(at)
        } else {
            world.silent.remove(&at)
        };
    }

    /// Of the next batch of more than one request the first is posted, and the rest is refused.
    pub fn fail_a_batch(&self) {
        self.0.lock().batch_fails = true;
    }

    /// From now on events come late: not before `false`. Completions do not.
    pub fn delay_events(&self, late: bool) {
        let mut world = self.0.lock();
        world.late = late;
        world.wake();
    }

    /// Requests carried out, and bytes that they moved.
    pub fn moved(&self) -> (u64, u64) {
        let world = self.0.lock();
        (world.works, world.bytes)
    }

    /// Queue pairs that exist.
    pub fn pairs(&self) -> usize {
        self.0.lock().pairs.len()
    }

    /// Memory regions that are registered.
    pub fn regions(&self) -> usize {
        self.0.lock().regions.len()
    }

    /// Takes all posted receives of all queue pairs away, as if they had been used.
    pub fn lose_receives(&self) {
        self.0.lock().pairs.values_mut().for_each(|pair| pair.receives.clear());
    }
}
