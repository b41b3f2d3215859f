//! What there is, and what becomes of the work that is posted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Waker;

use crate::error::{CompletionError, VerbsError};
use crate::provider::{Access, Completion, Depths, DeviceInfo, DeviceLimits, Op, RECEIVED, Receive, Work};

pub(super) const LIMITS: DeviceLimits = DeviceLimits {
    queue_depth: 4096,
    completions: 1 << 16,
    reads_out: 16,
    reads_in: 16,
    queue_pairs: 1 << 16,
    regions: 1 << 16,
};
/// Bytes that fit into a work request.
pub(super) const INLINE: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    Error,
}

pub(super) struct Pair {
    pub(super) device: usize,
    /// Its device was lost: nothing is completed any more.
    pub(super) lost: bool,
    pub(super) state: State,
    pub(super) access: Access,
    pub(super) depths: Depths,
    pub(super) peer: Option<u32>,
    pub(super) receives: VecDeque<Receive>,
    /// Posted and not carried out.
    pub(super) sends: VecDeque<Work>,
    /// Carried out without a completion of their own; they hold their places.
    pub(super) silent: usize,
    /// Places in the send queue that are taken.
    pub(super) taken: usize,
    /// Completions, and how many places each frees.
    pub(super) completions: VecDeque<(Completion, usize)>,
    pub(super) armed: bool,
    pub(super) event: bool,
    pub(super) waker: Option<Waker>,
}

pub(super) struct Region {
    pub(super) device: usize,
    pub(super) address: usize,
    pub(super) length: usize,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) devices: Vec<DeviceInfo>,
    pub(super) pairs: BTreeMap<u32, Pair>,
    pub(super) regions: BTreeMap<u32, Region>,
    pub(super) last_pair: u32,
    pub(super) last_key: u32,
    pub(super) held: bool,
    pub(super) down: BTreeSet<usize>,
    /// Devices that were lost and are not back.
    pub(super) absent: BTreeSet<usize>,
    /// How often each was lost.
    pub(super) losses: BTreeMap<usize, u32>,
    /// Devices of a kind that is of no use.
    pub(super) foreign: BTreeSet<usize>,
    /// Devices that do not say how they are.
    pub(super) silent: BTreeSet<usize>,
    /// The next batch is refused in its middle.
    pub(super) batch_fails: bool,
    /// Events are late.
    pub(super) late: bool,
    pub(super) works: u64,
    pub(super) bytes: u64,
}

impl World {
    pub(super) fn holds(&self, device: usize, key: u32, address: u64, len: u32) -> bool {
        let end = address.checked_add(len.into());
        self.regions.get(&key).zip(end).is_some_and(|(region, end)| {
            let (start, length) = (region.address as u64, region.length as u64);
            region.device == device && start <= address && end <= start + length
        })
    }

    /// Carries out what a queue pair has posted, as far as that is possible now.
    pub(super) fn run(&mut self, number: u32) {
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

    pub(super) fn carry_out(&mut self, number: u32, work: &Work) -> Result<(), CompletionError> {
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
    pub(super) fn fail(&mut self, number: u32) {
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

    pub(super) fn wake(&mut self) {
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
    pub(super) fn alive(&self) -> Result<(), VerbsError> {
        if self.lost { Err(VerbsError::Lost { device: "a soft device".into() }) } else { Ok(()) }
    }

    pub(super) fn notify(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.event = true;
        }
    }
}
