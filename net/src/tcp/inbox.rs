//! The incoming half of a connection: frames through a small buffer, bulk data straight to where it belongs.
//!
//! How much is received ahead of what is needed decides between system calls and copies. While messages are small, as much as the buffer
//! takes: one system call brings many. Once bulk data comes in larger parts, only as much as the next frame's header is expected to be,
//! in the same system call as the end of the data before it: then next to none of the bulk data arrives in the buffer, from where it
//! would have to be copied.

use std::io::{self, IoSliceMut};
use std::sync::Arc;

use catena_buf::IoBuf;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::outbox::Outbox;
use crate::frame::{Broken, Entry, HEADER, Header};
use crate::stats::{Counters, add};

/// The buffer.
const BUFFER: usize = 64 << 10;
/// Bulk data in parts up to this long is cheaper copied than received by a system call of its own.
const SMALL: usize = 8 << 10;
/// Most bytes received ahead between large parts.
const AHEAD: usize = 4 << 10;
/// So many frames without large parts, and small messages are the rule again.
const PATIENCE: u32 = 16;
/// Slices in one system call.
const SLICES: usize = 64;

/// Where bulk data goes.
#[derive(Default)]
pub(crate) struct Landing {
    bufs: Vec<IoBuf>,
    /// Per buffer: first byte and end.
    places: Vec<(usize, usize)>,
    /// The buffer that is being filled, and how much of it is.
    at: usize,
    done: usize,
}

impl Landing {
    pub fn new(bufs: Vec<IoBuf>, places: Vec<(usize, usize)>) -> Landing {
        debug_assert!(bufs.len() >= places.len());
        Landing { bufs, places, at: 0, done: 0 }
    }

    /// Nobody wants it.
    pub fn is_nowhere(&self) -> bool {
        self.bufs.is_empty()
    }

    /// The buffers, filled, with their lengths set.
    pub fn finish(mut self) -> Vec<IoBuf> {
        for (buf, (_, end)) in self.bufs.iter_mut().zip(self.places) {
            buf.set_len(end);
        }
        self.bufs
    }

    /// The buffers, filled, with nothing of their last owner in the first and last page of each.
    pub fn finish_clean(mut self) -> Vec<IoBuf> {
        let places = std::mem::take(&mut self.places);
        for (buf, (start, end)) in self.bufs.iter_mut().zip(places) {
            buf.set_len(end);
            buf.zero_around(start);
        }
        self.bufs
    }

    /// The next spaces to fill, in order, of at most `len` bytes in all. Returns how many bytes they are.
    fn spaces<'a>(&'a mut self, len: usize, slices: &mut Vec<IoSliceMut<'a>>) -> usize {
        let mut left = len;
        let mut done = self.done;
        for (buf, &(start, end)) in self.bufs[self.at..].iter_mut().zip(&self.places[self.at..]) {
            let start = start + std::mem::take(&mut done);
            let take = left.min(end - start);
            if take > 0 {
                slices.push(IoSliceMut::new(&mut buf.whole_mut()[start..start + take]));
            }
            left -= take;
            if left == 0 || slices.len() == SLICES {
                break;
            }
        }
        len - left
    }

    fn copy(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (start, end) = self.places[self.at];
            let space = &mut self.bufs[self.at].whole_mut()[start + self.done..end];
            let take = space.len().min(bytes.len());
            space[..take].copy_from_slice(&bytes[..take]);
            self.advance(take);
            bytes = &bytes[take..];
        }
    }

    fn advance(&mut self, mut len: usize) {
        loop {
            let (start, end) = self.places[self.at];
            let space = end - start - self.done;
            if len < space {
                self.done += len;
                return;
            }
            len -= space;
            (self.at, self.done) = (self.at + 1, 0);
            if len == 0 {
                return;
            }
        }
    }
}

/// The receiver.
pub(crate) struct Inbox {
    stream: Arc<TcpStream>,
    /// Corked while frames are being handled, so that what they cause to be sent leaves together.
    outbox: Option<Arc<Outbox>>,
    counters: Arc<Counters>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Length of the last frame that announced bulk data in large parts.
    announced: usize,
    /// Frames since then.
    since: u32,
}

impl Inbox {
    pub fn new(stream: Arc<TcpStream>, outbox: Option<Arc<Outbox>>, counters: Arc<Counters>) -> Inbox {
        let buffer = vec![0; BUFFER];
        Inbox { stream, outbox, counters, buffer, start: 0, end: 0, announced: 0, since: PATIENCE }
    }

    /// How much to receive that is not needed yet.
    fn ahead(&self) -> usize {
        if self.since < PATIENCE { (self.announced + 2 * HEADER).clamp(4 * HEADER, AHEAD) } else { BUFFER }
    }

    /// Receives the next frame's header and all that its checksum covers; [`Inbox::bytes`] are those.
    pub async fn frame(&mut self) -> Result<Header, Broken> {
        loop {
            let have = self.end - self.start;
            let need = if have < HEADER {
                HEADER
            } else {
                let header = Header::parse(&self.buffer[self.start..self.end])?;
                let need = HEADER + header.covered::<Entry>();
                if have >= need {
                    self.since = self.since.saturating_add(1);
                    return Ok(header);
                }
                need
            };
            self.more(need).await?;
        }
    }

    /// The frame that [`Inbox::frame`] found.
    pub fn bytes(&self, header: &Header) -> &[u8] {
        &self.buffer[self.start..][..HEADER + header.covered::<Entry>()]
    }

    /// It has been dealt with.
    pub fn consume(&mut self, header: &Header) {
        let len = HEADER + header.covered::<Entry>();
        if header.bulk_len.get() as usize > SMALL {
            self.announced = len;
        }
        self.start += len;
    }

    /// Makes at least `need` bytes available.
    async fn more(&mut self, need: usize) -> Result<(), Broken> {
        let have = self.end - self.start;
        if have == 0 || self.buffer.len() - self.start < need.max(BUFFER / 4) {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
        }
        if have == 0 && self.buffer.len() > BUFFER {
            // It was for one large message.
            self.buffer = vec![0; BUFFER];
        }
        if self.buffer.len() < need {
            self.buffer.resize(need, 0);
        }
        let limit = (self.end + (need - have).max(self.ahead())).min(self.buffer.len());
        let slices = &mut [IoSliceMut::new(&mut self.buffer[self.end..limit])];
        match receive(&self.stream, self.outbox.as_deref(), &self.counters, slices).await? {
            0 if have == 0 => Err(Broken::Closed),
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            got => {
                self.end += got;
                Ok(())
            }
        }
    }

    /// Receives `len` bytes of bulk data.
    pub async fn land(&mut self, landing: &mut Landing, mut len: usize) -> Result<(), Broken> {
        if len > SMALL {
            self.since = 0;
        }
        let here = len.min(self.end - self.start);
        if here > 0 {
            landing.copy(&self.buffer[self.start..][..here]);
            add(&self.counters.copied, here as u64);
            self.start += here;
            len -= here;
        }
        while len > 0 {
            (self.start, self.end) = (0, 0);
            let ahead = self.ahead();
            let mut slices = Vec::with_capacity(SLICES.min(landing.bufs.len()) + 1);
            let space = landing.spaces(len, &mut slices);
            if space == len {
                slices.push(IoSliceMut::new(&mut self.buffer[..ahead]));
            }
            let got = receive(&self.stream, self.outbox.as_deref(), &self.counters, &mut slices).await?;
            if got == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let landed = got.min(len);
            landing.advance(landed);
            len -= landed;
            self.end = got - landed;
        }
        Ok(())
    }

    /// Receives `len` bytes that nobody wants.
    pub async fn skip(&mut self, mut len: usize) -> Result<(), Broken> {
        loop {
            let here = len.min(self.end - self.start);
            self.start += here;
            len -= here;
            if len == 0 {
                return Ok(());
            }
            self.more(len.min(BUFFER)).await?;
        }
    }
}

/// One system call that receives something; 0 at the end of the stream.
async fn receive(
    stream: &TcpStream,
    outbox: Option<&Outbox>,
    counters: &Counters,
    slices: &mut [IoSliceMut<'_>],
) -> io::Result<usize> {
    if let Some(outbox) = outbox {
        // Before every receive, not only before a wait: data may keep coming for ever.
        outbox.uncork(counters);
    }
    tokio::task::coop::consume_budget().await;
    let want: usize = slices.iter().map(|slice| slice.len()).sum();
    loop {
        let mut short = 0;
        let result = stream.try_io(Interest::READABLE, || {
            let got = rustix::io::readv(stream, slices)?;
            // A short read means an empty socket: say so to the reactor now instead of asking the kernel again.
            if 0 < got && got < want {
                short = got;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(got)
        });
        let got = match result {
            Ok(got) => got,
            Err(_) if short > 0 => short,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.readable().await?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        add(&counters.reads, 1);
        add(&counters.wire_received, got as u64);
        if let Some(outbox) = outbox {
            outbox.cork();
        }
        return Ok(got);
    }
}
