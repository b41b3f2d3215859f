//! The pool: one mapped region, an arena per class, first come first served.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::arena::{Arena, MAX_ORDER};
use crate::buf::IoBuf;
use crate::{MAX_BUF, PAGE};

/// Whose budget a buffer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PoolClass {
    /// Data of clients' requests.
    Client = 0,
    /// Data forwarded to the second replica of a chain.
    Hop1 = 1,
    /// To the third,
    Hop2 = 2,
    /// and to all further ones, which a resync also uses.
    Hop3 = 3,
    /// This process's own disk work.
    Local = 4,
}

impl PoolClass {
    /// All of them.
    pub const ALL: [PoolClass; 5] =
        [PoolClass::Client, PoolClass::Hop1, PoolClass::Hop2, PoolClass::Hop3, PoolClass::Local];

    /// The class for data that a replica at `place` of the path (0 is the head) receives.
    pub fn hop(place: usize) -> PoolClass {
        match place {
            0 => PoolClass::Client,
            1 => PoolClass::Hop1,
            2 => PoolClass::Hop2,
            _ => PoolClass::Hop3,
        }
    }
}

/// Bytes per class, each rounded up to whole [`MAX_BUF`]s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolConfig {
    /// In the order of [`PoolClass::ALL`]. A class with 0 bytes refuses every request.
    pub bytes: [usize; 5],
}

impl PoolConfig {
    /// A storage service's division of `total` bytes.
    pub fn service(total: usize) -> PoolConfig {
        let part = |of_16: usize| (total / 16 * of_16).max(MAX_BUF);
        PoolConfig { bytes: [part(5), part(3), part(3), part(2), part(3)] }
    }
    /// A client's: nobody forwards through it.
    pub fn client(total: usize) -> PoolConfig {
        PoolConfig {
            bytes: [total / 4 * 3, 0, 0, 0, total / 4]
                .map(|bytes| if bytes == 0 { 0 } else { bytes.max(MAX_BUF) }),
        }
    }
}

/// A buffer that cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// Longer than any buffer.
    #[error("a buffer of {0} bytes was asked for; the longest is {MAX_BUF}")]
    TooLarge(usize),
    /// The class was given no memory.
    #[error("this process has no buffers for {0:?}")]
    NoSuchClass(PoolClass),
    /// The region cannot be mapped.
    #[error("cannot map {bytes} bytes for the buffer pool: {error}; configure a smaller pool")]
    Map {
        /// What was asked for.
        bytes: usize,
        /// What the kernel said.
        error: String,
    },
}

/// The pool's memory, for registration with io_uring or an RDMA device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Address of its first byte, page-aligned.
    pub address: usize,
    /// Bytes.
    pub length: usize,
}

/// Use of one class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClassStats {
    /// Bytes in all.
    pub total: usize,
    /// Bytes in use.
    pub used: usize,
    /// Callers that wait for a buffer.
    pub waiting: usize,
}

/// Use of the pool, in the order of [`PoolClass::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Per class.
    pub classes: [ClassStats; 5],
}

struct Waiter {
    order: u8,
    granted: oneshot::Sender<Run>,
}

struct ClassState {
    arena: Arena,
    waiters: VecDeque<Waiter>,
}

struct Class {
    /// Offset of the arena in the region, and its length.
    start: usize,
    length: usize,
    state: Mutex<ClassState>,
}

pub(crate) struct Shared {
    base: NonNull<u8>,
    length: usize,
    classes: [Class; 5],
}

// SAFETY: `base` is a mapping that lives as long as `Shared`; disjoint parts of it are handed out, each to one owner at a time.
unsafe impl Send for Shared {}
// SAFETY: as above; what is shared is behind locks.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `BufPool::new` with this length, and every run holds an Arc of `Shared`: none is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length.max(PAGE)) };
    }
}

/// A run of pages that belongs to its holder until dropped.
pub(crate) struct Run {
    shared: Arc<Shared>,
    class: PoolClass,
    page: u32,
    order: u8,
}

impl Run {
    pub fn capacity(&self) -> usize {
        PAGE << self.order
    }
    pub fn region_offset(&self) -> usize {
        self.shared.classes[self.class as usize].start + self.page as usize * PAGE
    }
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the offset lies within the mapping by construction.
        unsafe { self.shared.base.as_ptr().add(self.region_offset()) }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let class = &self.shared.classes[self.class as usize];
        let mut granted = Vec::new();
        {
            let mut state = class.state.lock();
            state.arena.give(self.page, self.order);
            // Strictly in order: a large request must not starve behind small ones.
            while let Some(waiter) = state.waiters.front() {
                let order = waiter.order;
                if waiter.granted.is_closed() {
                    state.waiters.pop_front();
                    continue;
                }
                let Some(page) = state.arena.take(order) else { break };
                let run = Run { shared: self.shared.clone(), class: self.class, page, order };
                granted.extend(state.waiters.pop_front().map(|waiter| (waiter, run)));
            }
        }
        // Outside the lock: a waiter that has just gone hands its run back, through here again.
        for (waiter, run) in granted {
            drop(waiter.granted.send(run));
        }
    }
}

/// The pool. Clones share it.
#[derive(Clone)]
pub struct BufPool {
    shared: Arc<Shared>,
}

impl BufPool {
    /// Maps the region. Its memory is zero at first and only touched when used.
    pub fn new(config: PoolConfig) -> Result<BufPool, PoolError> {
        let mut length = 0;
        let classes = config.bytes.map(|bytes| {
            let blocks = bytes.div_ceil(MAX_BUF);
            let start = length;
            length += blocks * MAX_BUF;
            let state = ClassState { arena: Arena::new(blocks as u32), waiters: VecDeque::new() };
            Class { start, length: blocks * MAX_BUF, state: Mutex::new(state) }
        });
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length.max(PAGE),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let base = (address != libc::MAP_FAILED).then(|| NonNull::new(address.cast::<u8>())).flatten();
        let Some(base) = base else {
            return Err(PoolError::Map { bytes: length, error: std::io::Error::last_os_error().to_string() });
        };
        Ok(BufPool { shared: Arc::new(Shared { base, length, classes }) })
    }

    /// A buffer of at least `len` bytes with `len` as its length. Waits, first come first served, while the class has none.
    pub async fn alloc(&self, len: usize, class: PoolClass) -> Result<IoBuf, PoolError> {
        let order = self.order(len, class)?;
        let granted = {
            let mut state = self.shared.classes[class as usize].state.lock();
            if state.waiters.is_empty()
                && let Some(page) = state.arena.take(order)
            {
                return Ok(IoBuf::new(self.run(class, page, order), len));
            }
            let (granted, grant) = oneshot::channel();
            state.waiters.push_back(Waiter { order, granted });
            grant
        };
        match granted.await {
            Ok(run) => Ok(IoBuf::new(run, len)),
            // The sender lives in the class's queue until it is served, and the queue lives as long as `self`.
            Err(_) => Err(PoolError::NoSuchClass(class)),
        }
    }

    /// A buffer, if there is one now and nobody waits.
    pub fn try_alloc(&self, len: usize, class: PoolClass) -> Option<IoBuf> {
        let order = self.order(len, class).ok()?;
        let page = {
            let mut state = self.shared.classes[class as usize].state.lock();
            state.waiters.retain(|waiter| !waiter.granted.is_closed());
            if !state.waiters.is_empty() {
                return None;
            }
            state.arena.take(order)?
        };
        Some(IoBuf::new(self.run(class, page, order), len))
    }

    fn run(&self, class: PoolClass, page: u32, order: u8) -> Run {
        Run { shared: self.shared.clone(), class, page, order }
    }

    fn order(&self, len: usize, class: PoolClass) -> Result<u8, PoolError> {
        if len > MAX_BUF {
            return Err(PoolError::TooLarge(len));
        }
        if self.shared.classes[class as usize].length == 0 {
            return Err(PoolError::NoSuchClass(class));
        }
        let order = len.div_ceil(PAGE).next_power_of_two().trailing_zeros() as u8;
        debug_assert!(order <= MAX_ORDER);
        Ok(order)
    }

    /// The memory, for registration.
    pub fn region(&self) -> Region {
        Region { address: self.shared.base.as_ptr() as usize, length: self.shared.length }
    }

    /// Use per class.
    pub fn stats(&self) -> PoolStats {
        let classes = std::array::from_fn(|index| {
            let class = &self.shared.classes[index];
            let state = class.state.lock();
            ClassStats {
                total: class.length,
                used: class.length - state.arena.free_bytes(),
                waiting: state.waiters.len(),
            }
        });
        PoolStats { classes }
    }
}

impl std::fmt::Debug for BufPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BufPool({:?})", self.stats())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn small() -> BufPool {
        BufPool::new(PoolConfig { bytes: [MAX_BUF, MAX_BUF, 0, 0, 0] }).unwrap()
    }

    #[test]
    fn a_full_class_makes_its_own_callers_wait_and_no_others() {
        let pool = small();
        let all = pool.try_alloc(MAX_BUF, PoolClass::Client).unwrap();
        assert!(pool.try_alloc(1, PoolClass::Client).is_none());
        assert!(pool.try_alloc(1, PoolClass::Hop1).is_some());
        let mut waiting = pin!(pool.alloc(1, PoolClass::Client));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(all);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_large_request_is_served_before_later_small_ones() {
        let pool = small();
        let half = pool.try_alloc(MAX_BUF / 2, PoolClass::Client).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut large = pin!(pool.alloc(MAX_BUF, PoolClass::Client));
        assert!(large.as_mut().poll(&mut context).is_pending());
        let mut later = pin!(pool.alloc(1, PoolClass::Client));
        assert!(later.as_mut().poll(&mut context).is_pending());
        drop(half);
        let Poll::Ready(Ok(large)) = large.as_mut().poll(&mut context) else {
            panic!("the first in line was passed over")
        };
        assert!(later.as_mut().poll(&mut context).is_pending());
        drop(large);
        assert!(later.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_caller_that_gave_up_does_not_block_the_line_or_keep_memory() {
        let pool = small();
        let all = pool.try_alloc(MAX_BUF, PoolClass::Client).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut gone = pin!(pool.alloc(MAX_BUF, PoolClass::Client));
            assert!(gone.as_mut().poll(&mut context).is_pending());
        }
        let mut next = pin!(pool.alloc(1, PoolClass::Client));
        assert!(next.as_mut().poll(&mut context).is_pending());
        drop(all);
        assert!(next.as_mut().poll(&mut context).is_ready());
        {
            // Granted, but dropped before it looked.
            let all = pool.try_alloc(MAX_BUF, PoolClass::Client);
            let mut unlucky = pin!(pool.alloc(1, PoolClass::Client));
            let _ = unlucky.as_mut().poll(&mut context);
            drop(all);
        }
        assert_eq!(pool.stats().classes[0].used, 0);
    }

    #[test]
    fn impossible_requests_are_refused_at_once() {
        let pool = small();
        let mut context = Context::from_waker(Waker::noop());
        let mut refused = |len, class| match pin!(pool.alloc(len, class)).poll(&mut context) {
            Poll::Ready(Err(error)) => error,
            _ => panic!("not refused"),
        };
        assert_eq!(refused(MAX_BUF + 1, PoolClass::Client), PoolError::TooLarge(MAX_BUF + 1));
        assert_eq!(refused(1, PoolClass::Hop2), PoolError::NoSuchClass(PoolClass::Hop2));
    }
}
