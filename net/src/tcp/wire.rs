//! A socket's two halves: whole frames in, whole frames out, bulk data straight between socket and pool buffers.
//!
//! Receiving goes through a small buffer, so that a run of small messages costs one system call. Of a frame with bulk data, at most
//! what came with its header in that buffer is copied ([`READ_AHEAD`] bytes); the rest is received where it belongs.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};

use bytes::{Bytes, BytesMut};
use catena_buf::{Buf, IoBuf};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::frame::{Garbled, HEADER, Header};

/// Most bytes received ahead of what was asked for.
const READ_AHEAD: usize = 4096;
/// Most slices in one system call.
const SLICES: usize = 64;
/// Small frames are gathered up to so many bytes for one system call.
const GATHER: usize = 64 << 10;

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum Broken {
    Closed,
    Io(io::Error),
    Garbled(Garbled),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Closed => f.write_str("closed by the peer"),
            Broken::Io(error) => error.fmt(f),
            Broken::Garbled(Garbled(what)) => write!(f, "garbled message: {what}"),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Broken::Closed,
            _ => Broken::Io(error),
        }
    }
}

impl From<Garbled> for Broken {
    fn from(garbled: Garbled) -> Broken {
        Broken::Garbled(garbled)
    }
}

/// The receiving half.
pub(crate) struct Receiver {
    socket: OwnedReadHalf,
    ahead: BytesMut,
}

impl Receiver {
    pub fn new(socket: OwnedReadHalf) -> Receiver {
        Receiver { socket, ahead: BytesMut::with_capacity(READ_AHEAD) }
    }

    /// Makes `len` bytes available in `ahead`.
    async fn fill(&mut self, len: usize) -> Result<(), Broken> {
        while self.ahead.len() < len {
            self.ahead.reserve((len - self.ahead.len()).max(READ_AHEAD));
            // `read_buf` takes whatever capacity there is; keep it to what is wanted, so that little bulk data comes along.
            let want = (len - self.ahead.len()).max(READ_AHEAD);
            let mut limited = bytes::BufMut::limit(&mut self.ahead, want);
            if self.socket.read_buf(&mut limited).await? == 0 {
                return Err(Broken::Closed);
            }
        }
        Ok(())
    }

    /// The next frame's header.
    pub async fn header(&mut self, kind: u8) -> Result<Header, Broken> {
        self.fill(HEADER).await?;
        let bytes: [u8; HEADER] =
            self.ahead.split_to(HEADER)[..].try_into().map_err(|_| Garbled("short header"))?;
        Ok(Header::parse(&bytes, kind)?)
    }

    /// What follows the header, up to the bulk data.
    pub async fn rest(&mut self, len: usize) -> Result<Bytes, Broken> {
        self.fill(len).await?;
        Ok(self.ahead.split_to(len).freeze())
    }

    /// Bulk data, straight into buffers: `(buffer, first byte, length)` each.
    pub async fn bulk(&mut self, into: &mut [(&mut IoBuf, usize, usize)]) -> Result<(), Broken> {
        let mut at = 0; // segment
        let mut done = 0; // bytes of it
        while at < into.len() {
            let (buf, start, len) = &mut into[at];
            if done == *len {
                (at, done) = (at + 1, 0);
            } else if self.ahead.is_empty() {
                break;
            } else {
                let take = self.ahead.len().min(*len - done);
                buf.whole_mut()[*start + done..][..take].copy_from_slice(&self.ahead.split_to(take));
                done += take;
            }
        }
        while at < into.len() {
            self.socket.readable().await?;
            let mut slices = Vec::with_capacity(SLICES.min(into.len() - at));
            for (index, (buf, start, len)) in into[at..].iter_mut().take(SLICES).enumerate() {
                let skip = if index == 0 { done } else { 0 };
                slices.push(IoSliceMut::new(&mut buf.whole_mut()[*start + skip..*start + *len]));
            }
            let mut received = match self.socket.try_read_vectored(&mut slices) {
                Ok(0) => return Err(Broken::Closed),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            while at < into.len() {
                let left = into[at].2 - done;
                if received < left {
                    done += received;
                    break;
                }
                received -= left;
                (at, done) = (at + 1, 0);
            }
        }
        Ok(())
    }

    /// Receives and throws away.
    pub async fn skip(&mut self, mut len: usize) -> Result<(), Broken> {
        while len > 0 {
            self.fill(len.min(READ_AHEAD)).await?;
            let take = self.ahead.len().min(len);
            drop(self.ahead.split_to(take));
            len -= take;
        }
        Ok(())
    }
}

/// A frame on its way out.
pub(crate) struct OutFrame {
    /// Header, table, body.
    pub head: Bytes,
    /// Bulk data.
    pub bulk: Vec<Buf>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<OutFrame>,
    closed: bool,
}

/// Frames that wait for the socket. Bounded by credits: a request waits for one, a reply stands for one.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    wake: Notify,
}

impl Outbox {
    /// False if the connection is gone.
    pub fn push(&self, frame: OutFrame) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed {
            return false;
        }
        let was_empty = queue.frames.is_empty();
        queue.frames.push_back(frame);
        drop(queue);
        if was_empty {
            self.wake.notify_one();
        }
        true
    }

    /// Nothing more goes out; what waits is dropped.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let frames = std::mem::take(&mut queue.frames);
        drop(queue);
        drop(frames);
        self.wake.notify_one();
    }

    pub fn is_empty(&self) -> bool {
        self.queue.lock().frames.is_empty()
    }

    /// Sends until the outbox closes or the socket breaks.
    pub async fn drain(&self, socket: OwnedWriteHalf) -> Result<(), Broken> {
        loop {
            let mut parts: Vec<Part> = Vec::new();
            {
                let mut queue = self.queue.lock();
                if queue.closed {
                    return Ok(());
                }
                let mut gathered = 0;
                while let Some(frame) = queue.frames.pop_front() {
                    gathered += frame.head.len();
                    parts.push(Part::Head(frame.head));
                    for buf in frame.bulk.into_iter().filter(|buf| !buf.is_empty()) {
                        gathered += buf.len();
                        parts.push(Part::Bulk(buf));
                    }
                    if gathered >= GATHER {
                        break;
                    }
                }
            }
            if parts.is_empty() {
                self.wake.notified().await;
                continue;
            }
            write_all(&socket, &parts).await?;
        }
    }
}

enum Part {
    Head(Bytes),
    Bulk(Buf),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Head(bytes) => bytes,
            Part::Bulk(buf) => buf,
        }
    }
}

async fn write_all(socket: &OwnedWriteHalf, parts: &[Part]) -> Result<(), Broken> {
    let (mut at, mut done) = (0, 0);
    while at < parts.len() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for (index, part) in parts[at..].iter().take(SLICES).enumerate() {
            let skip = if index == 0 { done } else { 0 };
            slices[index] = IoSlice::new(&part.bytes()[skip..]);
            count += 1;
        }
        let mut sent = match socket.try_write_vectored(&slices[..count]) {
            Ok(0) => return Err(Broken::Closed),
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.writable().await?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        while at < parts.len() {
            let left = parts[at].bytes().len() - done;
            if sent < left {
                done += sent;
                break;
            }
            sent -= left;
            (at, done) = (at + 1, 0);
        }
    }
    Ok(())
}
