//! A reliable queue pair: its states are types, and it owns the memory of what it has posted.
//!
//! ```text
//!  new -> Reset --init--> Init --ready_to_receive--> ReadyToReceive --ready_to_send--> ReadyToSend
//!         (nothing)       (receives posted)          (takes packets)                   (sends, READs, WRITEs)
//! ```
//! Each step consumes the state before it, so work cannot be posted too early and no step can be forgotten:
//! ```compile_fail
//! # use catena_verbs::queue_pair::*;
//! fn too_early(mut pair: QueuePair<Init>) { pair.batch(); }
//! ```
//! ```compile_fail
//! # use catena_verbs::{queue_pair::*, Path};
//! fn a_step_left_out(pair: QueuePair<Init>, path: &Path) { pair.ready_to_send(path, 1); }
//! ```
//! ```compile_fail
//! # use catena_verbs::{queue_pair::*, Access};
//! fn used_twice(pair: QueuePair<Reset>) { pair.init(1, 0, Access::None); pair.init(1, 0, Access::None); }
//! ```
//! ```compile_fail
//! # use catena_verbs::{queue_pair::*, Remote};
//! # use catena_buf::Buf;
//! // A buffer that the device reads from cannot be kept to be written into meanwhile: the batch takes it.
//! fn written_under_way(batch: &mut Batch<'_>, mut buf: catena_buf::IoBuf, to: Remote) { batch.write(buf.freeze(), to); buf[0] = 1; }
//! ```
//!
//! **Who owns memory when.** A buffer that is given to [`Batch::write`] or [`Batch::read`] belongs to the queue pair until its completion
//! has been polled. Completions of the send queue come in order, so one that was asked for stands for all before it (*selective
//! signalling*). If the queue pair fails, nothing comes back: the buffers are freed when it is dropped, which first destroys it, so that no
//! device reads from or writes into a buffer that has a new owner. Memory that *peers* were told of follows the same rule, and keeping
//! it is the part of the connection that told them: it drops its queue pair first.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use catena_buf::{Buf, BufPool, IoBuf, PoolClass};

use crate::error::{CompletionError, VerbsError};
use crate::nic::Nic;
use crate::provider::{
    Access, Completion, Depths, Endpoint, Local, Op, Path, PeerAddress, RECEIVED, Receive, Remote, Work,
};

/// Bytes of a message's slot.
pub const SLOT: usize = 4096;

/// Sizes of a queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Work requests under way.
    pub works: usize,
    /// Messages of [`SLOT`] bytes that can arrive before they are looked at,
    pub receives: usize,
    /// and that can be on their way.
    pub sends: usize,
    /// Bytes of a message that should travel in its work request.
    pub inline: usize,
}

/// State RESET.
#[derive(Debug)]
pub struct Reset;
/// State INIT.
#[derive(Debug)]
pub struct Init;
/// State RTR.
#[derive(Debug)]
pub struct ReadyToReceive;
/// State RTS.
#[derive(Debug)]
pub struct ReadyToSend;

/// Buffers that are being filled by READs. Each READ under way holds a reference; the last one out gives the buffers back
/// ([`Arc::into_inner`], [`Reading::finish`]).
pub struct Reading {
    addresses: Box<[usize]>,
    bufs: Vec<IoBuf>,
    /// Whoever asked.
    pub tag: u64,
}

impl Reading {
    /// Into these buffers.
    pub fn new(mut bufs: Vec<IoBuf>, tag: u64) -> Arc<Reading> {
        let addresses = bufs.iter_mut().map(|buf| buf.as_io_ptr() as usize).collect();
        Arc::new(Reading { addresses, bufs, tag })
    }

    /// The buffers. That this takes the value proves that no READ into them is under way.
    pub fn finish(self) -> Vec<IoBuf> {
        self.bufs
    }
}

/// What a request of the send queue keeps until it is done.
enum Keep {
    Slot(u16),
    /// A slot that a WRITE was copied into.
    Copied(u16, usize),
    Buf(Buf),
    Reading(Arc<Reading>, usize),
}

/// Something that happened, for who polls.
pub enum Event<'a> {
    /// A message.
    Message(&'a [u8]),
    /// A READ of so many bytes is done.
    Read(Arc<Reading>, usize),
    /// A WRITE of so many bytes is done.
    Written(usize),
}

/// Why a queue pair is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A work request failed.
    #[error(transparent)]
    Completion(CompletionError),
    /// A verb failed.
    #[error(transparent)]
    Verb(VerbsError),
}

/// Slots of messages in registered memory.
struct Slots {
    base: usize,
    /// The memory: held, never looked at; the device writes into it.
    _memory: IoBuf,
    local_key: u32,
    receives: usize,
    /// Send slots that nobody uses.
    free: Vec<u16>,
}

impl Slots {
    fn local(&self, slot: usize, len: usize) -> Local {
        Local { address: (self.base + slot * SLOT) as u64, len: len as u32, key: self.local_key }
    }
}

/// A queue pair.
pub struct QueuePair<State> {
    // First, so that it is destroyed before the memory below is given up.
    endpoint: Box<dyn Endpoint>,
    flight: VecDeque<(u64, Keep)>,
    slots: Slots,
    serial: u64,
    /// Requests and slots since the last one whose completion was asked for.
    silent: (usize, usize),
    sizes: Sizes,
    works: Vec<Work>,
    completions: Vec<Completion>,
    nic: Arc<Nic>,
    state: PhantomData<State>,
}

impl<State> QueuePair<State> {
    fn enter<Next>(self) -> QueuePair<Next> {
        let QueuePair { endpoint, flight, slots, serial, silent, sizes, works, completions, nic, .. } = self;
        QueuePair {
            endpoint,
            flight,
            slots,
            serial,
            silent,
            sizes,
            works,
            completions,
            nic,
            state: PhantomData,
        }
    }

    /// Its number, for the peer.
    pub fn number(&self) -> u32 {
        self.endpoint.number()
    }

    /// Its device.
    pub fn nic(&self) -> &Arc<Nic> {
        &self.nic
    }
}

impl QueuePair<Reset> {
    /// On a device. Its messages lie in `messages`, which was registered with the device; the class for that is
    /// [`PoolClass::Local`].
    pub fn new(nic: Arc<Nic>, messages: &BufPool, sizes: Sizes) -> Result<QueuePair<Reset>, VerbsError> {
        let limit = |what: String| VerbsError::Limit { device: nic.name().into(), what };
        let bytes = (sizes.receives + sizes.sends) * SLOT;
        let Some(mut memory) = messages.try_alloc(bytes, PoolClass::Local) else {
            let total = messages.stats().classes[PoolClass::Local as usize].total;
            return Err(limit(format!(
                "another connection: its messages take {bytes} bytes, and all {total} are in use; raise `message_memory`"
            )));
        };
        let base = memory.as_io_ptr() as usize;
        let local = nic.local(base, bytes).ok_or_else(|| limit("memory that is not registered".into()))?;
        let (sends, receives) = (sizes.works as u32, sizes.receives as u32);
        let endpoint = nic.device().endpoint(Depths { sends, receives, inline: sizes.inline as u32 })?;
        let free = (0..sizes.sends).map(|slot| (sizes.receives + slot) as u16).collect();
        let slots = Slots { base, _memory: memory, local_key: local.key, receives: sizes.receives, free };
        Ok(QueuePair {
            endpoint,
            flight: VecDeque::with_capacity(sizes.works),
            slots,
            serial: 0,
            silent: (0, 0),
            sizes,
            works: Vec::new(),
            completions: Vec::new(),
            nic,
            state: PhantomData,
        })
    }

    /// Binds it to a port and a partition (an entry of the port's table, 0 on Ethernet), says what the peer may do, and posts the receives.
    pub fn init(self, port: u8, pkey: u16, access: Access) -> Result<QueuePair<Init>, VerbsError> {
        self.endpoint.init(port, pkey, access)?;
        let all: Vec<Receive> = (0..self.slots.receives).map(|slot| self.receive(slot)).collect();
        // SAFETY: slots of registered memory that this queue pair owns and that nobody reads before their completions.
        unsafe { self.endpoint.post_receives(&all) }?;
        Ok(self.enter())
    }
}

impl<State> QueuePair<State> {
    fn receive(&self, slot: usize) -> Receive {
        Receive { id: slot as u64, local: self.slots.local(slot, SLOT) }
    }
}

impl QueuePair<Init> {
    /// Connects it to its peer; from now on it takes packets.
    pub fn ready_to_receive(
        self,
        path: &Path,
        peer: &PeerAddress,
    ) -> Result<QueuePair<ReadyToReceive>, VerbsError> {
        self.endpoint.ready_to_receive(path, peer)?;
        Ok(self.enter())
    }
}

impl QueuePair<ReadyToReceive> {
    /// From now on it may send.
    pub fn ready_to_send(self, path: &Path, psn: u32) -> Result<QueuePair<ReadyToSend>, VerbsError> {
        self.endpoint.ready_to_send(path, psn)?;
        Ok(self.enter())
    }
}

impl QueuePair<ReadyToSend> {
    /// Work requests that can be posted now.
    pub fn room(&self) -> usize {
        self.sizes.works - self.flight.len()
    }

    /// Messages that can be posted now.
    pub fn message_room(&self) -> usize {
        self.slots.free.len().min(self.room())
    }

    /// Work requests under way, done or not, whose completion nobody has seen.
    pub fn under_way(&self) -> usize {
        self.flight.len()
    }

    /// Starts a batch: requests that are posted together.
    pub fn batch(&mut self) -> Batch<'_> {
        self.works.clear();
        Batch { pair: self, sent: 0, wakes: false }
    }

    /// Takes up to `at_most` completions and tells of what they mean. Says how many there were.
    pub fn poll(&mut self, at_most: usize, mut tell: impl FnMut(Event<'_>)) -> Result<usize, Broken> {
        let mut completions = std::mem::take(&mut self.completions);
        completions.clear();
        self.endpoint.poll(&mut completions, at_most).map_err(Broken::Verb)?;
        let mut again = Vec::new();
        for completion in &completions {
            let bytes = completion.result.map_err(Broken::Completion)?;
            let id = completion.id & !RECEIVED;
            if completion.id & RECEIVED == 0 {
                self.done(id, &mut tell);
                continue;
            }
            let (slot, len) = (id as usize, (bytes as usize).min(SLOT));
            debug_assert!(slot < self.slots.receives);
            // SAFETY: a receive slot whose completion is here belongs to us until it is posted again, below. It is initialised memory
            // (of the pool).
            let message =
                unsafe { std::slice::from_raw_parts((self.slots.base + slot * SLOT) as *const u8, len) };
            tell(Event::Message(message));
            again.push(self.receive(slot));
        }
        if !again.is_empty() {
            // SAFETY: as when they were first posted; the slices over them have ended.
            unsafe { self.endpoint.post_receives(&again) }.map_err(Broken::Verb)?;
        }
        let count = completions.len();
        self.completions = completions;
        Ok(count)
    }

    /// Request `id` and all before it are done.
    fn done(&mut self, id: u64, tell: &mut impl FnMut(Event<'_>)) {
        while self.flight.front().is_some_and(|&(first, _)| first <= id) {
            match self.flight.pop_front() {
                Some((_, Keep::Slot(slot))) => self.slots.free.push(slot),
                Some((_, Keep::Copied(slot, len))) => {
                    self.slots.free.push(slot);
                    tell(Event::Written(len));
                }
                Some((_, Keep::Reading(reading, len))) => tell(Event::Read(reading, len)),
                Some((_, Keep::Buf(buf))) => tell(Event::Written(buf.len())),
                None => {}
            }
        }
    }

    /// The next completion makes an event; look with [`QueuePair::poll`] once more after this.
    pub fn arm(&self) -> Result<(), VerbsError> {
        self.endpoint.arm()
    }

    /// Waits for an event. Only the last caller's waker is kept.
    pub fn poll_event(&self, context: &mut Context<'_>) -> Poll<Result<(), VerbsError>> {
        self.endpoint.poll_event(context)
    }
}

/// Requests that are posted together, with one doorbell. Dropped without [`Batch::post`], it leaves nothing behind.
pub struct Batch<'a> {
    pair: &'a mut QueuePair<ReadyToSend>,
    sent: usize,
    wakes: bool,
}

impl Batch<'_> {
    /// Requests that still fit.
    pub fn room(&self) -> usize {
        self.pair.room()
    }

    /// Messages that still fit.
    pub fn message_room(&self) -> usize {
        self.pair.message_room()
    }

    fn push(&mut self, op: Op, local: Local, keep: Keep) {
        assert!(self.pair.room() > 0, "more work than the queue takes");
        let id = self.pair.serial;
        self.pair.serial += 1;
        self.pair.works.push(Work { id, op, local, signalled: false, inline: false });
        self.pair.flight.push_back((id, keep));
    }

    /// A message, of at most [`SLOT`] bytes, from parts that follow each other.
    ///
    /// # Panics
    /// If there is no room ([`Batch::message_room`]) or it is too long: the caller's arithmetic is wrong.
    pub fn send(&mut self, message: &[&[u8]]) {
        let (slot, local) = self.copy(message);
        self.push(Op::Send, local, Keep::Slot(slot));
        let inline = local.len as usize <= self.pair.endpoint.inline();
        if let Some(work) = self.pair.works.last_mut() {
            work.inline = inline;
        }
    }

    /// Into a free slot.
    fn copy(&mut self, parts: &[&[u8]]) -> (u16, Local) {
        let len = parts.iter().map(|part| part.len()).sum();
        assert!(len <= SLOT, "a message of {len} bytes");
        let slot = self.pair.slots.free.pop().expect("a free slot, as `message_room` said");
        let local = self.pair.slots.local(slot.into(), len);
        let mut at = local.address as *mut u8;
        for part in parts {
            // SAFETY: a send slot that was on the free list is in no request, so nobody else reads or writes it; the parts fit into it.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                at = at.add(part.len());
            }
        }
        self.sent += 1;
        (slot, local)
    }

    /// Bytes of memory that is not registered into the peer's memory, at most [`SLOT`], through a message's slot.
    ///
    /// # Panics
    /// As [`Batch::send`].
    pub fn write_copied(&mut self, from: &[u8], to: Remote) {
        let (slot, local) = self.copy(&[from]);
        self.push(Op::Write(to), local, Keep::Copied(slot, from.len()));
        self.wakes = true;
    }

    /// Into the peer's memory. The buffer is kept until it is done.
    ///
    /// # Panics
    /// If it is not in registered memory: ask [`Nic::reaches`] first.
    pub fn write(&mut self, from: Buf, to: Remote) {
        if from.is_empty() {
            return;
        }
        let local = self.pair.nic.local(from.as_io_ptr() as usize, from.len());
        let local = local.expect("a buffer in registered memory, as `reaches` said");
        self.push(Op::Write(to), local, Keep::Buf(from));
        self.wakes = true;
    }

    /// From the peer's memory into bytes `at..at + len` of a buffer.
    ///
    /// # Panics
    /// If these lie outside of the buffer, or it is not registered.
    pub fn read(&mut self, into: &Arc<Reading>, buf: usize, at: usize, len: usize, from: Remote) {
        assert!(at + len <= into.bufs[buf].capacity(), "a READ beyond its buffer");
        let local = self.pair.nic.local(into.addresses[buf] + at, len);
        let local = local.expect("a buffer of a registered pool");
        self.push(Op::Read(from), local, Keep::Reading(into.clone(), len));
        self.wakes = true;
    }

    /// Asks for a completion of its last request.
    pub fn ask(&mut self) {
        self.wakes = true;
    }

    /// Posts it. How many requests it was.
    ///
    /// # Errors
    /// Some of it may have been posted, and nobody knows how much: the queue pair is good for nothing any more but its end.
    pub fn post(self) -> Result<usize, VerbsError> {
        let (sent, wakes) = (self.sent, self.wakes);
        let pair = &mut *self.pair;
        let count = pair.works.len();
        pair.silent.0 += count;
        pair.silent.1 += sent;
        // The completion of the last one stands for all. It is asked for where somebody waits for it, or where its place in the queue or
        // its slot will be needed.
        let due = pair.silent.0 > pair.sizes.works / 4 || pair.silent.1 > pair.sizes.sends / 4;
        if let Some(last) = pair.works.last_mut()
            && (wakes || due)
        {
            last.signalled = true;
            pair.silent = (0, 0);
        }
        let works = std::mem::take(&mut pair.works);
        // SAFETY: every address was looked up as registered memory. Buffers and slots are in `flight`, which is freed only by completions
        // or after the endpoint; nobody writes into a shared `Buf`, and nobody but the device reaches those of a `Reading`.
        let result = unsafe { pair.endpoint.post(&works) };
        // Also after an error: a beginning of it may be under way, so all of it is kept until the queue pair is gone.
        pair.works = works;
        pair.works.clear();
        result.map(|()| count)
    }
}

impl Drop for Batch<'_> {
    /// What was not posted is taken back.
    fn drop(&mut self) {
        for _ in 0..self.pair.works.len() {
            if let Some((_, Keep::Slot(slot) | Keep::Copied(slot, _))) = self.pair.flight.pop_back() {
                self.pair.slots.free.push(slot);
            }
        }
        self.pair.works.clear();
    }
}
