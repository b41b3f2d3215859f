//! The mapped region, its runs, and the lines of those who wait for some: first come, first served.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::arena::Arena;
use crate::pool::{PoolClass, PoolError};
use crate::{MAX_BUF, PAGE};

/// Somebody who waits for runs of these orders, all at once.
struct Waiter {
    orders: Box<[u8]>,
    granted: oneshot::Sender<Vec<Run>>,
}

pub(crate) struct ClassState {
    pub arena: Arena,
    waiters: VecDeque<Waiter>,
}

pub(crate) struct Class {
    /// Offset of the arena in the region, and its length.
    start: usize,
    pub length: usize,
    pub state: Mutex<ClassState>,
}

pub(crate) struct Shared {
    base: NonNull<u8>,
    pub length: usize,
    pub classes: [Class; 5],
}

// SAFETY: `base` is a mapping that lives as long as `Shared`; disjoint parts of it are handed out, each to one owner at a time.
unsafe impl Send for Shared {}
// SAFETY: as above; what is shared is behind locks.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `BufPool::new` with this length, and every run holds an Arc of `Shared`: none is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length.max(MAX_BUF)) };
    }
}

/// A run of pages that belongs to its holder until dropped.
pub(crate) struct Run {
    pub shared: Arc<Shared>,
    pub class: PoolClass,
    pub page: u32,
    pub order: u8,
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
        self.shared.serve(self.class, Some((self.page, self.order)));
    }
}

impl ClassState {
    /// Nobody waits: a newcomer may take what there is.
    pub fn no_line(&self) -> bool {
        self.waiters.is_empty()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiters.iter().filter(|waiter| !waiter.granted.is_closed()).count()
    }

    /// All of these or none; the first pages go to `pages`.
    pub fn take(&mut self, orders: &[u8], pages: &mut Vec<u32>) -> bool {
        let pages_before = pages.len();
        for &order in orders {
            let Some(page) = self.arena.take(order) else {
                for (page, &order) in pages.drain(pages_before..).zip(orders) {
                    self.arena.give(page, order);
                }
                return false;
            };
            pages.push(page);
        }
        true
    }
}

impl Shared {
    /// A region with so many bytes per class.
    pub fn map(bytes: [usize; 5]) -> Result<Shared, PoolError> {
        let mut length = 0;
        let classes = bytes.map(|bytes| {
            let blocks = bytes.div_ceil(MAX_BUF);
            let start = length;
            length += blocks * MAX_BUF;
            let state = ClassState { arena: Arena::new(blocks as u32), waiters: VecDeque::new() };
            Class { start, length: blocks * MAX_BUF, state: Mutex::new(state) }
        });
        match map(length.max(MAX_BUF)) {
            Ok(base) => Ok(Shared { base, length, classes }),
            Err(error) => Err(PoolError::Map { bytes: length, error: error.to_string() }),
        }
    }

    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Takes a run back, if one is given, and hands out what can be had now to those who wait: strictly in order, so that a large request
    /// does not starve behind small ones.
    fn serve(self: &Arc<Self>, class: PoolClass, returned: Option<(u32, u8)>) {
        let mut granted: Vec<(Waiter, Vec<u32>)> = Vec::new();
        {
            let mut state = self.classes[class as usize].state.lock();
            if let Some((page, order)) = returned {
                state.arena.give(page, order);
            }
            while let Some(waiter) = state.waiters.pop_front() {
                if waiter.granted.is_closed() {
                    continue;
                }
                let mut pages = Vec::with_capacity(waiter.orders.len());
                if !state.take(&waiter.orders, &mut pages) {
                    state.waiters.push_front(waiter);
                    break;
                }
                granted.push((waiter, pages));
            }
        }
        // Outside the lock: a waiter that has just gone hands its runs back, through here again.
        for (waiter, pages) in granted {
            let run = |(page, &order)| Run { shared: self.clone(), class, page, order };
            let runs = pages.into_iter().zip(&waiter.orders).map(run).collect();
            drop(waiter.granted.send(runs));
        }
    }
}

/// A place in a class's line. Who leaves it early lets the next ones through.
pub(crate) struct Place<'a> {
    shared: &'a Arc<Shared>,
    class: PoolClass,
    granted: Option<oneshot::Receiver<Vec<Run>>>,
}

impl<'a> Place<'a> {
    /// At the end of the line.
    pub fn queue(
        shared: &'a Arc<Shared>,
        state: &mut ClassState,
        class: PoolClass,
        orders: Box<[u8]>,
    ) -> Place<'a> {
        let (granted, grant) = oneshot::channel();
        state.waiters.push_back(Waiter { orders, granted });
        Place { shared, class, granted: Some(grant) }
    }

    pub async fn wait(mut self) -> Option<Vec<Run>> {
        let runs = self.granted.as_mut()?.await.ok();
        self.granted = None;
        runs
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(granted) = self.granted.take() {
            // Closed first, so that it is seen to have gone.
            drop(granted);
            self.shared.serve(self.class, None);
        }
    }
}

/// Anonymous memory aligned to [`MAX_BUF`], in huge pages where the system has them: fewer faults, fewer TLB misses, and fewer
/// entries for whoever registers it.
fn map(length: usize) -> std::io::Result<NonNull<u8>> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), length + MAX_BUF, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    let start = address as usize;
    let base = start.next_multiple_of(MAX_BUF);
    let trim = |from: usize, to: usize| {
        if to > from {
            // SAFETY: a page-aligned part of the mapping made above that nobody has been told of. If it fails, address space is lost.
            unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
        }
    };
    trim(start, base);
    trim(base + length, start + length + MAX_BUF);
    // SAFETY: advice on a mapping of ours; it does not change what the memory holds. Where it is refused, small pages serve.
    unsafe { libc::madvise(base as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
    NonNull::new(base as *mut u8).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}
