//! A batch of I/O that is submitted in one hop and completes once, and the future that waits for it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use catena_buf::{Buf, IoBuf};
use parking_lot::Mutex;

use super::File;

/// One operation of a batch.
#[derive(Debug)]
pub enum Io {
    /// Reads `len` bytes at `offset` into `bufs[buf]` at byte `at`. A read behind the file's end is an error.
    Read {
        /// From.
        file: File,
        /// Where in the file.
        offset: u64,
        /// Which of the batch's buffers.
        buf: usize,
        /// Where in the buffer, whatever its length, within its capacity.
        at: usize,
        /// Bytes.
        len: usize,
    },
    /// Writes parts one after the other.
    Write {
        /// To.
        file: File,
        /// Where in the file.
        offset: u64,
        /// What; each part's address and length are multiples of 512.
        data: Vec<Buf>,
    },
    /// Makes the file at least `length` bytes long, with space behind every byte of it.
    Allocate {
        /// Which.
        file: File,
        /// Bytes.
        length: u64,
    },
}

/// Operations that run side by side, then a sync.
#[derive(Debug, Default)]
pub struct Batch {
    /// Buffers that reads fill; they come back in [`Done`].
    pub bufs: Vec<IoBuf>,
    /// What to do, in any order.
    pub ios: Vec<Io>,
    /// When all have succeeded: make these files' writes, also earlier completed ones, durable (fdatasync).
    pub sync: Vec<File>,
}

/// A batch's buffers and how it ended: the first error, naming what failed.
#[derive(Debug)]
pub struct Done {
    /// The batch's buffers.
    pub bufs: Vec<IoBuf>,
    /// All succeeded, or why not.
    pub result: io::Result<()>,
}

#[derive(Default)]
struct Slot {
    done: Option<Done>,
    waker: Option<Waker>,
}

/// Resolves when every operation of a batch has ended.
pub struct Completion(Arc<Mutex<Slot>>);

/// The backend's end of a [`Completion`].
pub struct Completer(Arc<Mutex<Slot>>);

/// A completion and what resolves it.
pub fn completion() -> (Completer, Completion) {
    let slot = Arc::new(Mutex::new(Slot::default()));
    (Completer(slot.clone()), Completion(slot))
}

impl Completer {
    /// Resolves the completion.
    pub fn complete(self, done: Done) {
        let waker = {
            let mut slot = self.0.lock();
            slot.done = Some(done);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        let waker = {
            let mut slot = self.0.lock();
            if slot.done.is_none() {
                let result = Err(io::Error::other("the disk's thread is gone"));
                slot.done = Some(Done { bufs: Vec::new(), result });
            }
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Completion {
    type Output = Done;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done> {
        let mut slot = self.0.lock();
        match slot.done.take() {
            Some(done) => Poll::Ready(done),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
