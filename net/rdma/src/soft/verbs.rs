//! The verbs, as processes call them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::MutexGuard;

use super::Fabric;
use super::world::{INLINE, LIMITS, Pair, Region, State, World};
use crate::error::{CompletionError, VerbsError};
use crate::provider::{
    Access, Completion, Depths, Device, DeviceInfo, Endpoint, Keys, Path, PeerAddress, Provider, RECEIVED,
    Receive, Registration, Work,
};

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
