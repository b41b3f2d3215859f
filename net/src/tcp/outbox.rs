//! What waits to be sent on one connection, and the one way it goes out.
//!
//! Frames without bulk data are gathered in one byte string and go first. Bulk data goes in parts ([`PART`]) between them, so that a
//! small message never waits for more than one system call's worth of a large one ([`PLAN`]). Whoever has something to send may write
//! it itself if nobody else is at it: at low load a message leaves without a hop to another task. Otherwise the writer task is woken,
//! lets everybody who is ready add theirs, and sends all in one system call.
//!
//! The queue is bounded from outside: a request stands for a credit, and so does a reply.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use catena_buf::Buf;
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::frame::{self, Header, kind};
use crate::stats::{Counters, add};

/// Bytes of bulk data in one data frame if others wait.
const PART: usize = 128 << 10;
/// Bytes of bulk data in one plan, about one system call.
const PLAN: usize = 512 << 10;
/// Slices in one system call.
const SLICES: usize = 128;
/// Memory of a byte string that is kept for the next one.
const KEEP: usize = 64 << 10;

/// Bulk data of one message on its way.
struct Bulk {
    id: u64,
    flags: u8,
    left: usize,
    data: VecDeque<Buf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody writes.
    Idle,
    /// Somebody does, and will look again before going.
    Busy,
    /// The socket is full; the writer task waits for it.
    Blocked,
}

struct State {
    frames: Vec<u8>,
    bulks: VecDeque<Bulk>,
    phase: Phase,
    /// The writer task has been woken.
    woken: bool,
    /// The reader is at work and will flush before it waits.
    corked: bool,
    closed: bool,
}

enum Piece {
    /// Of the plan's bytes.
    Frames(Range<usize>),
    Data(Buf),
}

/// What is being written. Once part of it has left, all of it must, in this order.
#[derive(Default)]
struct Plan {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// First piece not yet sent, and how much of it is.
    at: usize,
    done: usize,
}

/// The outgoing half of a connection.
pub(crate) struct Outbox {
    stream: Arc<TcpStream>,
    /// Replies of one connection take turns; requests keep their order, so that writes begin in the order sent.
    turns: bool,
    state: Mutex<State>,
    plan: Mutex<Plan>,
    wake: Notify,
    /// Everything has been handed to the system, or the outbox was closed.
    idle: Notify,
}

enum Flushed {
    Done,
    Blocked,
}

impl Outbox {
    pub fn new(stream: Arc<TcpStream>, turns: bool) -> Outbox {
        let state = State {
            frames: Vec::new(),
            bulks: VecDeque::new(),
            phase: Phase::Idle,
            woken: false,
            corked: false,
            closed: false,
        };
        let (state, plan) = (Mutex::new(state), Mutex::default());
        Outbox { stream, turns, state, plan, wake: Notify::new(), idle: Notify::new() }
    }

    /// Queues a frame that `put` appends, and bulk data. False if the outbox is closed.
    pub fn push(&self, put: impl FnOnce(&mut Vec<u8>), bulk: Option<(u64, u8, Vec<Buf>)>) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        put(&mut state.frames);
        if let Some((id, flags, data)) = bulk {
            let left = data.iter().map(|buf| buf.len()).sum();
            // Of no bytes there are no frames.
            if left > 0 {
                state.bulks.push_back(Bulk { id, flags, left, data: data.into() });
            }
        }
        true
    }

    /// Takes back bulk data of which no more shall be sent.
    pub fn withdraw(&self, id: u64) {
        let withdrawn: Vec<Bulk> = {
            let mut state = self.state.lock();
            if state.bulks.iter().all(|bulk| bulk.id != id) {
                return;
            }
            let (withdrawn, kept): (Vec<_>, Vec<_>) = state.bulks.drain(..).partition(|bulk| bulk.id == id);
            state.bulks.extend(kept);
            withdrawn
        };
        drop(withdrawn);
    }

    /// Sends what is queued: now and here if `alone`, otherwise soon, together with what others are about to add.
    pub fn flush(&self, alone: bool, counters: &Counters) {
        let mut state = self.state.lock();
        if state.corked || state.phase != Phase::Idle {
            return;
        }
        if alone {
            drop(state);
            self.flush_here(counters);
        } else if !state.woken {
            state.woken = true;
            drop(state);
            self.wake.notify_one();
        }
    }

    /// The reader goes to work: what it causes to be sent is sent when it is done.
    pub fn cork(&self) {
        self.state.lock().corked = true;
    }

    pub fn uncork(&self, counters: &Counters) {
        self.state.lock().corked = false;
        self.flush_here(counters);
    }

    fn flush_here(&self, counters: &Counters) {
        {
            let mut state = self.state.lock();
            if state.phase != Phase::Idle || (state.frames.is_empty() && state.bulks.is_empty()) {
                return;
            }
            state.phase = Phase::Busy;
        }
        // Of an error the reader learns too, and it is the one that ends the connection.
        if !matches!(self.drive(counters), Ok(Flushed::Done)) {
            self.wake.notify_one();
        }
    }

    /// Nothing more goes out; what waits is dropped, the socket is shut down.
    pub fn close(&self) {
        let (frames, bulks) = {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            state.closed = true;
            (std::mem::take(&mut state.frames), std::mem::take(&mut state.bulks))
        };
        drop((frames, bulks));
        let _ = socket2::SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Both);
        self.wake.notify_one();
        self.idle.notify_waiters();
    }

    /// Until everything has been handed to the system.
    pub async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            {
                let state = self.state.lock();
                let empty = state.frames.is_empty() && state.bulks.is_empty() && state.phase == Phase::Idle;
                if state.closed || empty {
                    return;
                }
            }
            idle.await;
        }
    }

    /// The writer task: sends until the outbox closes or the socket breaks.
    pub async fn run(&self, counters: &Counters) -> io::Result<()> {
        loop {
            let take = {
                let mut state = self.state.lock();
                if state.closed {
                    return Ok(());
                }
                state.woken = false;
                let take = state.phase == Phase::Blocked || state.phase == Phase::Idle;
                if take {
                    state.phase = Phase::Busy;
                }
                take
            };
            if take && let Flushed::Blocked = self.drive(counters)? {
                self.stream.writable().await?;
                continue;
            }
            self.wake.notified().await;
            // Whoever is ready to send something more does it now, and it goes along.
            tokio::task::yield_now().await;
        }
    }

    /// Sends until nothing is left or the socket is full. Only for whoever made the phase `Busy`.
    fn drive(&self, counters: &Counters) -> io::Result<Flushed> {
        let mut plan = self.plan.lock();
        loop {
            if plan.at == plan.pieces.len() {
                plan.pieces.clear();
                (plan.at, plan.done) = (0, 0);
                let mut state = self.state.lock();
                if state.frames.is_empty() && state.bulks.is_empty() {
                    state.phase = Phase::Idle;
                    drop(state);
                    self.idle.notify_waiters();
                    return Ok(Flushed::Done);
                }
                plan.make(&mut state, self.turns);
            }
            match plan.send(&self.stream, counters) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.state.lock().phase = Phase::Blocked;
                    return Ok(Flushed::Blocked);
                }
                Err(error) => {
                    // The writer task tries again, and reports it.
                    self.state.lock().phase = Phase::Blocked;
                    return Err(error);
                }
            }
        }
    }
}

impl Plan {
    /// All frames that wait, then parts of bulk data.
    fn make(&mut self, state: &mut State, turns: bool) {
        self.bytes.clear();
        if self.bytes.capacity() > KEEP {
            self.bytes = Vec::new();
        }
        std::mem::swap(&mut self.bytes, &mut state.frames);
        self.frames(0);
        let mut room = PLAN;
        while room > 0
            && self.pieces.len() + 2 < SLICES
            && let Some(mut bulk) = state.bulks.pop_front()
        {
            let alone = state.bulks.is_empty() || !turns;
            let part = bulk.left.min(if alone { room } else { room.min(PART) });
            let start = self.bytes.len();
            let header = Header {
                flags: bulk.flags,
                body_len: (part as u32).into(),
                ..Header::bare(kind::DATA, bulk.id)
            };
            frame::put_bare(&mut self.bytes, header);
            self.frames(start);
            room -= part;
            bulk.left -= part;
            self.data(&mut bulk.data, part);
            if bulk.left == 0 {
                continue;
            }
            if turns {
                state.bulks.push_back(bulk);
            } else {
                state.bulks.push_front(bulk);
            }
        }
    }

    fn frames(&mut self, start: usize) {
        let range = start..self.bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Frames(last)) if last.end == start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.pieces.push(Piece::Frames(range)),
        }
    }

    fn data(&mut self, data: &mut VecDeque<Buf>, mut part: usize) {
        while part > 0
            && let Some(buf) = data.front_mut()
        {
            let take = part.min(buf.len());
            part -= take;
            if take == buf.len() {
                let whole = data.pop_front().filter(|buf| !buf.is_empty());
                self.pieces.extend(whole.map(Piece::Data));
            } else {
                self.pieces.push(Piece::Data(buf.slice(0..take)));
                *buf = buf.slice(take..buf.len());
            }
        }
    }

    /// Writes what is left of the plan. `WouldBlock` when the socket is full.
    fn send(&mut self, stream: &TcpStream, counters: &Counters) -> io::Result<()> {
        while self.at < self.pieces.len() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut want = 0;
            let pieces = self.pieces[self.at..].iter().take(SLICES);
            let count = pieces.len();
            for (index, (slice, piece)) in slices.iter_mut().zip(pieces).enumerate() {
                let bytes = match piece {
                    Piece::Frames(range) => &self.bytes[range.clone()],
                    Piece::Data(buf) => &buf[..],
                };
                let bytes = if index == 0 { &bytes[self.done..] } else { bytes };
                want += bytes.len();
                *slice = IoSlice::new(bytes);
            }
            let mut short = 0;
            let wrote = stream.try_io(Interest::WRITABLE, || {
                let wrote = rustix::io::writev(stream, &slices[..count])?;
                // A short write means a full socket: say so to the reactor now instead of asking the kernel again.
                if wrote < want {
                    short = wrote;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(wrote)
            });
            let sent = if short > 0 { short } else { *wrote.as_ref().unwrap_or(&0) };
            if sent > 0 {
                add(&counters.writes, 1);
                add(&counters.wire_sent, sent as u64);
                self.advance(sent);
            }
            wrote?;
        }
        Ok(())
    }

    fn advance(&mut self, mut sent: usize) {
        while sent > 0 {
            let len = match &self.pieces[self.at] {
                Piece::Frames(range) => range.len(),
                Piece::Data(buf) => buf.len(),
            };
            if sent < len - self.done {
                self.done += sent;
                return;
            }
            sent -= len - self.done;
            // What has been sent is not held until the rest has been too.
            self.pieces[self.at] = Piece::Frames(0..0);
            (self.at, self.done) = (self.at + 1, 0);
        }
    }
}
