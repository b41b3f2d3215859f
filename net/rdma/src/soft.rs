//! A double of RDMA devices in software: queue pairs of one process that reach each other, for tests that run on every machine.
//!
//! It keeps to what the specification promises and to nothing more: requests of a queue pair are carried out in order, a completion
//! that was not asked for is not made, places in the send queue come free with a later completion, a message without a receive is an error,
//! keys and access rights are checked, and an error flushes everything behind it. Work is carried out when it is posted, or, while the
//! fabric is [held](Fabric::hold), later: that is how packets that are late, and peers that die with packets under way, are made.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{CompletionError, VerbsError};
use crate::provider::{
    Access, Completion, Depths, Device, DeviceInfo, DeviceLimits, Endpoint, Gid, GidEntry, GidKind, Keys,
    LinkLayer, Op, Path, PeerAddress, PortInfo, Provider, RECEIVED, Receive, Registration, Work,
};

const LIMITS: DeviceLimits = DeviceLimits {
    queue_depth: 4096,
    completions: 1 << 16,
    reads_out: 16,
    reads_in: 16,
    queue_pairs: 1 << 16,
    regions: 1 << 16,
};
/// Bytes that fit into a work request.
const INLINE: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    Error,
}

struct Pair {
    device: usize,
    /// Its device was lost: nothing is completed any more.
    lost: bool,
    state: State,
    access: Access,
    depths: Depths,
    peer: Option<u32>,
    receives: VecDeque<Receive>,
    /// Posted and not carried out.
    sends: VecDeque<Work>,
    /// Carried out without a completion of their own; they hold their places.
    silent: usize,
    /// Places in the send queue that are taken.
    taken: usize,
    /// Completions, and how many places each frees.
    completions: VecDeque<(Completion, usize)>,
    armed: bool,
    event: bool,
    waker: Option<Waker>,
}

struct Region {
    device: usize,
    address: usize,
    length: usize,
}

#[derive(Default)]
struct World {
    devices: Vec<DeviceInfo>,
    pairs: BTreeMap<u32, Pair>,
    regions: BTreeMap<u32, Region>,
    last_pair: u32,
    last_key: u32,
    held: bool,
    down: BTreeSet<usize>,
    /// Devices that were lost and are not back.
    absent: BTreeSet<usize>,
    /// How often each was lost.
    losses: BTreeMap<usize, u32>,
    /// Devices of a kind that is of no use.
    foreign: BTreeSet<usize>,
    /// Devices that do not say how they are.
    silent: BTreeSet<usize>,
    /// The next batch is refused in its middle.
    batch_fails: bool,
    /// Events are late.
    late: bool,
    works: u64,
    bytes: u64,
}

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

impl World {
    fn holds(&self, device: usize, key: u32, address: u64, len: u32) -> bool {
        let end = address.checked_add(len.into());
        self.regions.get(&key).zip(end).is_some_and(|(region, end)| {
            let (start, length) = (region.address as u64, region.length as u64);
            region.device == device && start <= address && end <= start + length
        })
    }

    /// Carries out what a queue pair has posted, as far as that is possible now.
    fn run(&mut self, number: u32) {
        while !self.held {
            let Some(pair) = self.pairs.get_mut(&number) else { return };
            let Some(work) = pair.sends.pop_front() else { return };
            let failed = match pair.state {
                State::ReadyToSend => self.carry_out(number, &work).err(),
                _ => Some(CompletionError::FLUSHED),
            };
            let Some(pair) = self.pairs.get_mut(&number) else { return };
            if failed.is_none() && !work.signalled {
                pair.silent += 1;
                continue;
            }
            let frees = std::mem::take(&mut pair.silent) + 1;
            let result = failed.map_or(Ok(0), Err);
            pair.completions.push_back((Completion { id: work.id, result }, frees));
            pair.notify();
            if failed.is_some_and(|error| error != CompletionError::FLUSHED) {
                self.fail(number);
            }
        }
    }

    fn carry_out(&mut self, number: u32, work: &Work) -> Result<(), CompletionError> {
        let pair = &self.pairs[&number];
        let (device, peer) = (pair.device, pair.peer);
        let local = work.local;
        if !work.inline && local.len > 0 && !self.holds(device, local.key, local.address, local.len) {
            return Err(CompletionError::LOCAL_PROTECTION);
        }
        let there = peer.and_then(|peer| self.pairs.get(&peer)).filter(|there| {
            let takes = matches!(there.state, State::ReadyToReceive | State::ReadyToSend);
            takes && there.peer == Some(number)
        });
        let (Some(peer), Some(there)) = (peer, there) else { return Err(CompletionError::RETRY_EXCEEDED) };
        if self.down.contains(&device) || self.down.contains(&there.device) {
            return Err(CompletionError::RETRY_EXCEEDED);
        }
        self.works += 1;
        self.bytes += u64::from(local.len);
        let copy = |from: u64, to: u64, len: u32| {
            // SAFETY: both were checked to be registered memory (or are inline bytes, which the poster vouches for), and whoever
            // registered or posted it promised that it is mapped and left alone. `copy`: a test may talk to itself.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len as usize) };
        };
        match work.op {
            Op::Write(to) | Op::Read(to) => {
                let allowed = there.access == Access::ReadWrite;
                if !allowed || !self.holds(there.device, to.key, to.address, local.len) {
                    self.fail(peer);
                    return Err(CompletionError::REMOTE_ACCESS);
                }
                match work.op {
                    Op::Write(_) => copy(local.address, to.address, local.len),
                    _ => copy(to.address, local.address, local.len),
                }
            }
            Op::Send => {
                let Some(there) = self.pairs.get_mut(&peer) else {
                    return Err(CompletionError::RETRY_EXCEEDED);
                };
                let Some(receive) = there.receives.pop_front() else {
                    return Err(CompletionError::RNR_EXCEEDED);
                };
                let id = receive.id | RECEIVED;
                if receive.local.len < local.len {
                    there
                        .completions
                        .push_back((Completion { id, result: Err(CompletionError::LOCAL_LENGTH) }, 0));
                    there.notify();
                    self.fail(peer);
                    return Err(CompletionError::REMOTE_INVALID);
                }
                copy(local.address, receive.local.address, local.len);
                there.completions.push_back((Completion { id, result: Ok(local.len) }, 0));
                there.notify();
            }
        }
        Ok(())
    }

    /// Into state ERR: everything posted is flushed.
    fn fail(&mut self, number: u32) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        pair.state = State::Error;
        let flushed = Err(CompletionError::FLUSHED);
        for work in std::mem::take(&mut pair.sends) {
            pair.completions.push_back((Completion { id: work.id, result: flushed }, 1));
        }
        for receive in std::mem::take(&mut pair.receives) {
            pair.completions.push_back((Completion { id: receive.id | RECEIVED, result: flushed }, 0));
        }
        pair.notify();
    }

    fn wake(&mut self) {
        if self.late {
            return;
        }
        for pair in self.pairs.values_mut().filter(|pair| pair.event) {
            if let Some(waker) = pair.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Pair {
    fn alive(&self) -> Result<(), VerbsError> {
        if self.lost { Err(VerbsError::Lost { device: "a soft device".into() }) } else { Ok(()) }
    }

    fn notify(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.event = true;
        }
    }
}

fn refused(what: &'static str, kind: io::ErrorKind) -> VerbsError {
    VerbsError::Verb { what, device: "a soft device".into(), source: kind.into() }
}

impl Provider for Fabric {
    fn devices(&self) -> Result<Vec<DeviceInfo>, VerbsError> {
        let world = self.0.lock();
        let there = |(at, info): (usize, &DeviceInfo)| (!world.absent.contains(&at)).then(|| info.clone());
        Ok(world.devices.iter().enumerate().filter_map(there).collect())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>, VerbsError> {
        let world = self.0.lock();
        match world.devices.iter().position(|info| info.name == name) {
            Some(index) if world.foreign.contains(&index) => {
                let what = "queue pairs as there are on the others".into();
                Err(VerbsError::Limit { device: name.into(), what })
            }
            Some(index) if !world.absent.contains(&index) => {
                let losses = world.losses.get(&index).copied().unwrap_or_default();
                Ok(Arc::new(SoftDevice { fabric: self.clone(), index, losses }))
            }
            _ => {
                let known: Vec<&str> = world.devices.iter().map(|info| &*info.name).collect();
                Err(VerbsError::UnknownDevice { name: name.into(), known: known.join(", ") })
            }
        }
    }
}

struct SoftDevice {
    fabric: Fabric,
    index: usize,
    /// How often it had been lost when it was opened.
    losses: u32,
}

impl SoftDevice {
    fn alive(&self, world: &World) -> Result<(), VerbsError> {
        match world.losses.get(&self.index).copied().unwrap_or_default() == self.losses {
            true => Ok(()),
            false => Err(VerbsError::Lost { device: world.devices[self.index].name.clone() }),
        }
    }
}

struct SoftRegistration {
    fabric: Fabric,
    key: u32,
}

impl Registration for SoftRegistration {
    fn keys(&self) -> Keys {
        Keys { local: self.key, remote: self.key }
    }
}

impl Drop for SoftRegistration {
    fn drop(&mut self) {
        self.fabric.0.lock().regions.remove(&self.key);
    }
}

impl Device for SoftDevice {
    fn info(&self) -> Result<DeviceInfo, VerbsError> {
        let mut world = self.fabric.0.lock();
        while world.silent.contains(&self.index) {
            MutexGuard::unlocked(&mut world, || std::thread::sleep(Duration::from_millis(5)));
        }
        self.alive(&world)?;
        Ok(world.devices[self.index].clone())
    }

    fn lost(&self) -> bool {
        self.alive(&self.fabric.0.lock()).is_err()
    }

    unsafe fn register(&self, address: usize, length: usize) -> Result<Box<dyn Registration>, VerbsError> {
        let mut world = self.fabric.0.lock();
        self.alive(&world)?;
        world.last_key += 1;
        // Nothing that a peer could take for an offset or a small number.
        let key = 0x5000_0000 | world.last_key;
        world.regions.insert(key, Region { device: self.index, address, length });
        Ok(Box::new(SoftRegistration { fabric: self.fabric.clone(), key }))
    }

    fn endpoint(&self, depths: Depths) -> Result<Box<dyn Endpoint>, VerbsError> {
        if depths.sends > LIMITS.queue_depth || depths.receives > LIMITS.queue_depth {
            return Err(refused("ibv_create_qp_ex", io::ErrorKind::InvalidInput));
        }
        let mut world = self.fabric.0.lock();
        self.alive(&world)?;
        world.last_pair += 1;
        let number = world.last_pair;
        let pair = Pair {
            device: self.index,
            lost: false,
            state: State::Reset,
            access: Access::None,
            depths,
            peer: None,
            receives: VecDeque::new(),
            sends: VecDeque::new(),
            silent: 0,
            taken: 0,
            completions: VecDeque::new(),
            armed: false,
            event: false,
            waker: None,
        };
        world.pairs.insert(number, pair);
        Ok(Box::new(SoftEndpoint { fabric: self.fabric.clone(), number, inline: depths.inline as usize }))
    }
}

struct SoftEndpoint {
    fabric: Fabric,
    number: u32,
    inline: usize,
}

impl SoftEndpoint {
    fn step(&self, what: &'static str, from: State, to: State) -> Result<(), VerbsError> {
        self.with(|pair| {
            if pair.state != from {
                return Err(refused(what, io::ErrorKind::InvalidInput));
            }
            pair.state = to;
            Ok(())
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut Pair) -> R) -> R {
        f(self.fabric.0.lock().pairs.get_mut(&self.number).expect("it is removed when this is dropped"))
    }
}

impl Drop for SoftEndpoint {
    fn drop(&mut self) {
        self.fabric.0.lock().pairs.remove(&self.number);
    }
}

impl Endpoint for SoftEndpoint {
    fn number(&self) -> u32 {
        self.number
    }

    fn inline(&self) -> usize {
        self.inline.min(INLINE)
    }

    fn init(&self, _port: u8, _pkey: u16, access: Access) -> Result<(), VerbsError> {
        self.step("ibv_modify_qp to INIT", State::Reset, State::Init)?;
        self.with(|pair| pair.access = access);
        Ok(())
    }

    fn ready_to_receive(&self, _path: &Path, peer: &PeerAddress) -> Result<(), VerbsError> {
        self.step("ibv_modify_qp to RTR", State::Init, State::ReadyToReceive)?;
        self.with(|pair| pair.peer = Some(peer.number));
        Ok(())
    }

    fn ready_to_send(&self, _path: &Path, _psn: u32) -> Result<(), VerbsError> {
        self.step("ibv_modify_qp to RTS", State::ReadyToReceive, State::ReadyToSend)
    }

    unsafe fn post_receives(&self, receives: &[Receive]) -> Result<(), VerbsError> {
        self.with(|pair| {
            let full = pair.receives.len() + receives.len() > pair.depths.receives as usize;
            match pair.state {
                State::Reset => Err(refused("ibv_post_recv", io::ErrorKind::InvalidInput)),
                _ if full => Err(refused("ibv_post_recv", io::ErrorKind::OutOfMemory)),
                State::Error => {
                    let flushed = Err(CompletionError::FLUSHED);
                    let flush =
                        |receive: &Receive| (Completion { id: receive.id | RECEIVED, result: flushed }, 0);
                    pair.completions.extend(receives.iter().map(flush));
                    Ok(())
                }
                _ => {
                    pair.receives.extend(receives);
                    Ok(())
                }
            }
        })
    }

    unsafe fn post(&self, works: &[Work]) -> Result<(), VerbsError> {
        let mut world = self.fabric.0.lock();
        let refused_from = if works.len() > 1 && world.batch_fails { 1 } else { works.len() };
        let pair = world.pairs.get_mut(&self.number).expect("it is removed when this is dropped");
        if !matches!(pair.state, State::ReadyToSend | State::Error) {
            return Err(refused("ibv_wr_complete", io::ErrorKind::InvalidInput));
        }
        if pair.taken + works.len() > pair.depths.sends as usize {
            return Err(refused("ibv_wr_complete", io::ErrorKind::OutOfMemory));
        }
        if works.iter().any(|work| work.inline && work.local.len as usize > self.inline()) {
            return Err(refused("ibv_wr_complete", io::ErrorKind::InvalidInput));
        }
        pair.taken += refused_from;
        pair.sends.extend(&works[..refused_from]);
        world.run(self.number);
        world.wake();
        if refused_from < works.len() {
            world.batch_fails = false;
            return Err(refused("ibv_wr_complete", io::ErrorKind::OutOfMemory));
        }
        Ok(())
    }

    fn poll(&self, completions: &mut Vec<Completion>, at_most: usize) -> Result<(), VerbsError> {
        self.with(|pair| {
            pair.alive()?;
            let count = at_most.min(pair.completions.len());
            for (completion, frees) in pair.completions.drain(..count) {
                pair.taken -= frees;
                completions.push(completion);
            }
            Ok(())
        })
    }

    fn arm(&self) -> Result<(), VerbsError> {
        self.with(|pair| pair.armed = true);
        Ok(())
    }

    fn poll_event(&self, context: &mut Context<'_>) -> Poll<Result<(), VerbsError>> {
        let late = self.fabric.0.lock().late;
        self.with(|pair| {
            if !late && std::mem::take(&mut pair.event) {
                return Poll::Ready(pair.alive());
            }
            pair.waker = Some(context.waker().clone());
            Poll::Pending
        })
    }
}
