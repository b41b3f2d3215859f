//! One end's queue pair with what waits to go out on it. Both ends of a connection have the same.
//!
//! Frames form a stream of bytes that is cut into packets of one SEND each: several small frames share one, a large one takes several. A
//! packet needs a receive at the other end, so each end knows how many the other has posted (`credits`), and every packet gives back
//! those that were posted again. When there is nothing to say, a packet that brings only credits goes out once half of them are owed; it
//! is allowed to use the few receives ([`SPARE`]) that credits do not count, so the two ends never wait for each other's.
//!
//! Bulk data moves in parts, so that small frames pass between them. A reply's frame goes out behind its last WRITE, on the same queue
//! pair: that order is what makes the data be there when the reply is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use catena_buf::Buf;
use catena_verbs::queue_pair::{self, Event, QueuePair, Reading, ReadyToSend, SLOT};
use catena_verbs::{Nic, Remote};
use parking_lot::Mutex;
use tokio::sync::Notify;
use zerocopy::{FromBytes, IntoBytes};

use super::wire::{Packet, flag};
use crate::frame::{Broken, Garbled};
use crate::stats::{Counters, add};

/// Receives that credits do not count.
pub(super) const SPARE: u16 = 4;
/// Bytes of frames in a packet.
const LOAD: usize = SLOT - size_of::<Packet>();
/// Bytes of one WRITE,
const WRITE_PART: usize = 128 << 10;
/// and of one READ.
const READ_PART: usize = 64 << 10;
/// The last READ of a large transfer fits into one packet. Soft-RoCE notices that a response was lost when one of a later request comes,
/// and without a later request only by its time-out.
const LAST_READ: usize = 4 << 10;
/// Bytes of WRITEs under way, and of READs: more than a 400 Gbit/s port moves in ten microseconds. Not more than that, because a reliable
/// connection goes back to the packet that was lost and sends again all that came behind it.
const WINDOW: usize = 512 << 10;
/// Bytes of frames that are kept, sent ones or room for more.
const KEEP: usize = 64 << 10;
/// Completions taken at a time.
const HARVEST: usize = 64;

/// A reply whose data goes first.
struct Bulk {
    writes: VecDeque<(Buf, Remote)>,
    frame: Vec<u8>,
}

/// READs of so many bytes: where each begins, and its length.
fn read_parts(len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let part = match len - start {
            0 => return None,
            left if left > READ_PART => READ_PART,
            left if start > 0 && left > LAST_READ => left - LAST_READ,
            left => left,
        };
        start += part;
        Some((start - part, part))
    })
}

/// A part of a READ.
pub(super) struct Part {
    pub reading: Arc<Reading>,
    pub buf: usize,
    pub at: usize,
    pub len: usize,
    pub from: Remote,
}

struct State {
    pair: QueuePair<ReadyToSend>,
    /// Bytes of frames, from `sent` on still to go.
    frames: Vec<u8>,
    sent: usize,
    bulks: VecDeque<Bulk>,
    reads: VecDeque<Part>,
    /// Receives of the peer,
    credits: u16,
    /// and ours that it does not know of.
    owed: u16,
    /// Bits for a packet of its own.
    signal: u16,
    writing: usize,
    reading: usize,
    reads_under_way: usize,
    /// From now on every batch ends with a completion, so that it is known when the last one is done.
    draining: bool,
    /// A post failed, and what it posted is unknown: what would come behind it could say what is not so.
    broken: bool,
}

/// Sizes that both ends agreed on, or that are this end's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The peer's receives, credits and spare ones.
    pub peer_receives: u16,
    /// This end's.
    pub receives: u16,
    /// READs under way.
    pub reads: usize,
}

/// A queue pair with what waits to go out.
pub(crate) struct Link {
    state: Mutex<Option<State>>,
    nic: Arc<Nic>,
    terms: Terms,
    /// It was closed, or posting failed.
    ended: Notify,
    failure: Mutex<Option<String>>,
    /// Says which way messages take, for logs.
    pub path: String,
}

/// What came in.
#[derive(Default)]
pub(super) struct Harvest {
    /// Bytes of frames, behind those that were there.
    pub frames: Vec<u8>,
    /// READs that are done, by their tag and bytes. The buffers' references are gone.
    pub reads: Vec<(u64, usize)>,
    pub ping: bool,
    pub pong: bool,
}

impl Link {
    pub(super) fn new(pair: QueuePair<ReadyToSend>, terms: Terms, path: String) -> Link {
        let nic = pair.nic().clone();
        let state = State {
            pair,
            frames: Vec::new(),
            sent: 0,
            bulks: VecDeque::new(),
            reads: VecDeque::new(),
            credits: terms.peer_receives.saturating_sub(SPARE),
            owed: 0,
            signal: 0,
            writing: 0,
            reading: 0,
            reads_under_way: 0,
            draining: false,
            broken: false,
        };
        let (ended, failure) = (Notify::new(), Mutex::default());
        Link { state: Mutex::new(Some(state)), nic, terms, ended, failure, path }
    }

    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// Destroys the queue pair, under the lock: whoever comes second waits until it is gone. After this, no device reads or writes memory
    /// on its behalf.
    pub fn close(&self) {
        let mut state = self.state.lock();
        *state = None;
        drop(state);
        self.ended.notify_one();
    }

    /// Appends a frame. False if the link is closed.
    pub fn push(&self, put: impl FnOnce(&mut Vec<u8>)) -> bool {
        match &mut *self.state.lock() {
            Some(state) => {
                put(&mut state.frames);
                true
            }
            None => false,
        }
    }

    /// Queues WRITEs and the frame that follows them.
    pub fn push_bulk(&self, writes: VecDeque<(Buf, Remote)>, frame: Vec<u8>) {
        if let Some(state) = &mut *self.state.lock() {
            state.bulks.push_back(Bulk { writes, frame });
        }
    }

    /// Queues READs into a request's buffers, in parts: into each from byte `at` on, `len` of them. The reference is given up under the
    /// lock: whoever hears that all parts are done holds the last one, on whatever thread. False if the link is closed.
    pub fn push_reads(
        &self,
        reading: Arc<Reading>,
        places: impl Iterator<Item = (usize, usize, Remote)>,
    ) -> bool {
        let mut state = self.state.lock();
        let Some(state) = &mut *state else { return false };
        for (buf, (at, len, from)) in places.enumerate() {
            for (start, len) in read_parts(len) {
                let from = Remote { address: from.address.wrapping_add(start as u64), ..from };
                state.reads.push_back(Part { reading: reading.clone(), buf, at: at + start, len, from });
            }
        }
        drop(reading);
        true
    }

    /// Takes back what of a request's data was not yet asked for. Says how many bytes that is.
    pub fn drop_reads(&self, tag: u64) -> usize {
        let mut state = self.state.lock();
        let Some(state) = &mut *state else { return 0 };
        let mut dropped = 0;
        state.reads.retain(|part| {
            let stays = part.reading.tag != tag;
            dropped += if stays { 0 } else { part.len };
            stays
        });
        dropped
    }

    /// Queues a packet of its own.
    pub fn signal(&self, bits: u16) {
        if let Some(state) = &mut *self.state.lock() {
            state.signal |= bits;
        }
    }

    /// Posts what can go out now.
    pub fn flush(&self, counters: &Counters) {
        let mut state = self.state.lock();
        let Some(state) = state.as_mut().filter(|state| !state.broken) else { return };
        if let Err(error) = state.pump(&self.nic, self.terms, counters) {
            state.broken = true;
            self.failure.lock().get_or_insert(error.to_string());
            self.ended.notify_one();
        }
    }

    /// From now on [`Link::is_idle`] comes true: the peer has acknowledged everything. Small messages ask for no completions otherwise;
    /// one that brings nothing goes behind them and does.
    pub fn drain(&self, counters: &Counters) {
        if let Some(state) = &mut *self.state.lock() {
            state.draining = true;
            state.signal |= flag::FREE;
        }
        self.flush(counters);
    }

    /// Nothing waits to go out, and everything posted is known to be done.
    pub fn is_idle(&self) -> bool {
        self.state.lock().as_ref().is_none_or(|state| state.is_empty() && state.pair.under_way() == 0)
    }

    /// Takes in what has come. Says how many completions there were.
    pub(super) fn harvest(&self, harvest: &mut Harvest, counters: &Counters) -> Result<usize, Broken> {
        let mut state = self.state.lock();
        let Some(state) = state.as_mut().filter(|state| !state.broken) else { return Err(self.closed()) };
        let State { pair, credits, owed, writing, reading, reads_under_way, .. } = state;
        let mut garbled = false;
        let taken = pair.poll(HARVEST, |event| match event {
            Event::Message(bytes) => match Packet::read_from_prefix(bytes) {
                Ok((packet, frames)) => {
                    let flags = packet.flags.get();
                    *credits = credits.saturating_add(packet.credits.get());
                    *owed += u16::from(flags & flag::FREE == 0);
                    harvest.ping |= flags & flag::PING != 0;
                    harvest.pong |= flags & flag::PONG != 0;
                    harvest.frames.extend_from_slice(frames);
                    add(&counters.wire_received, bytes.len() as u64);
                }
                Err(_) => garbled = true,
            },
            Event::Read(part, len) => {
                *reading -= len;
                *reads_under_way -= 1;
                harvest.reads.push((part.tag, len));
                add(&counters.wire_received, len as u64);
            }
            Event::Written(len) => *writing -= len,
        });
        match taken {
            Ok(_) if garbled => Err(Garbled("a packet without a head").into()),
            Ok(_) if state.credits > self.terms.peer_receives => {
                Err(Garbled("more credits than there are receives").into())
            }
            Ok(taken) => Ok(taken),
            Err(queue_pair::Broken::Completion(error)) => Err(Broken::QueuePair(error.to_string())),
            Err(queue_pair::Broken::Verb(error)) => Err(Broken::QueuePair(error.to_string())),
        }
    }

    fn closed(&self) -> Broken {
        self.failure.lock().clone().map_or(Broken::Closed, Broken::QueuePair)
    }

    /// The next completion makes an event.
    pub fn arm(&self) -> Result<(), Broken> {
        match &*self.state.lock() {
            Some(state) => state.pair.arm().map_err(|error| Broken::QueuePair(error.to_string())),
            None => Err(self.closed()),
        }
    }

    /// Waits for an event, or for the link's end.
    pub async fn event(&self) -> Result<(), Broken> {
        let event = std::future::poll_fn(|context: &mut Context<'_>| match &*self.state.lock() {
            Some(state) => state.pair.poll_event(context),
            None => Poll::Ready(Ok(())),
        });
        tokio::select! {
            biased;
            event = event => event.map_err(|error| Broken::QueuePair(error.to_string())),
            () = self.ended.notified() => Err(self.closed()),
        }
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.sent == self.frames.len() && self.bulks.is_empty() && self.reads.is_empty() && self.signal == 0
    }

    /// Posts what can go out now, in one batch after the other.
    fn pump(&mut self, nic: &Nic, terms: Terms, counters: &Counters) -> Result<(), catena_verbs::VerbsError> {
        loop {
            let State { pair, frames, sent, bulks, reads, credits, owed, signal, draining, .. } = self;
            let mut batch = pair.batch();
            let mut wire = 0;
            // Frames that waited go before bulk data, those that it releases behind it.
            for round in 0..2 {
                while *sent < frames.len() && *credits > 0 && batch.message_room() > 0 {
                    let take = LOAD.min(frames.len() - *sent);
                    let packet = Packet { credits: std::mem::take(owed).into(), ..Packet::default() };
                    batch.send(&[packet.as_bytes(), &frames[*sent..*sent + take]]);
                    wire += size_of::<Packet>() + take;
                    *sent += take;
                    *credits -= 1;
                }
                if *sent == frames.len() || *sent > KEEP {
                    frames.drain(..std::mem::take(sent));
                    frames.shrink_to(KEEP);
                }
                if round == 1 {
                    break;
                }
                while let Some(part) = reads.front()
                    && batch.room() > 1
                    && self.reads_under_way < terms.reads
                    && (self.reading == 0 || self.reading + part.len <= WINDOW)
                    && let Some(part) = reads.pop_front()
                {
                    batch.read(&part.reading, part.buf, part.at, part.len, part.from);
                    self.reading += part.len;
                    self.reads_under_way += 1;
                }
                while let Some(mut bulk) = bulks.pop_front() {
                    let Some((buf, to)) = bulk.writes.pop_front() else {
                        frames.extend_from_slice(&bulk.frame);
                        continue;
                    };
                    let registered = nic.reaches(&buf);
                    let take = buf.len().min(if registered { WRITE_PART } else { SLOT });
                    let room = batch.room() > 1 && (registered || batch.message_room() > 1);
                    if !room || self.writing > 0 && self.writing + take > WINDOW {
                        bulk.writes.push_front((buf, to));
                        bulks.push_front(bulk);
                        break;
                    }
                    if registered {
                        batch.write(buf.slice(0..take), to);
                    } else {
                        batch.write_copied(&buf[..take], to);
                        add(&counters.copied, take as u64);
                    }
                    self.writing += take;
                    wire += take;
                    if take < buf.len() {
                        let rest = buf.slice(take..buf.len());
                        let to = Remote { address: to.address.wrapping_add(take as u64), ..to };
                        bulk.writes.push_front((rest, to));
                    }
                    if bulk.writes.is_empty() {
                        frames.extend_from_slice(&bulk.frame);
                    } else {
                        // Replies take turns.
                        bulks.push_back(bulk);
                    }
                }
            }
            if (*owed >= terms.receives / 2 || *signal != 0) && batch.message_room() > 0 {
                let flags = (std::mem::take(signal) | flag::FREE).into();
                let packet = Packet { credits: std::mem::take(owed).into(), flags, ..Packet::default() };
                batch.send(&[packet.as_bytes()]);
                wire += size_of::<Packet>();
            }
            if *draining {
                batch.ask();
            }
            if batch.post()? == 0 {
                return Ok(());
            }
            add(&counters.writes, 1);
            add(&counters.wire_sent, wire as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cover_everything_once_and_a_large_transfer_ends_with_a_packet() {
        for len in [0, 1, 4096, 65_536, 65_537, 100_000, 131_072, 1 << 20, 4 << 20] {
            let parts: Vec<_> = read_parts(len).collect();
            let mut next = 0;
            for &(start, part) in &parts {
                assert!(start == next && part > 0 && part <= READ_PART, "{len}: {parts:?}");
                next += part;
            }
            assert_eq!(next, len);
            assert!(
                len <= READ_PART || parts.last().is_some_and(|&(_, last)| last <= LAST_READ),
                "{parts:?}"
            );
        }
    }
}
