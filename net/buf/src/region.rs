//! The mapped region, its runs, and the lines of those who wait for some: first come, first served.
#![allow(unsafe_code)]

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
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

/// Something that lives as long as the memory does.
pub(crate) type Attachment = Box<dyn Any + Send + Sync>;

pub(crate) struct Shared {
    base: NonNull<u8>,
    pub length: usize,
    pub classes: [Class; 5],
    /// Parts that are out by themselves, first byte to end. They do not overlap.
    claims: Mutex<BTreeMap<usize, usize>>,
    /// What has to end before the memory does.
    pub attached: Mutex<Vec<Attachment>>,
    /// Whose memory it is; `None`: mapped here.
    owner: Option<Attachment>,
}

// SAFETY: `base` is a mapping that lives as long as `Shared`; disjoint parts of it are handed out, each to one owner at a time.
unsafe impl Send for Shared {}
// SAFETY: as above; what is shared is behind locks.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        self.attached.get_mut().clear();
        if self.owner.is_none() {
            // SAFETY: the mapping was made by `Shared::map` with this length, and every run holds an Arc of `Shared`: none is left.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.length.max(MAX_BUF)) };
        }
    }
}

/// Where a run lies.
pub(crate) enum Extent {
    /// In a class's arena.
    Pages { class: PoolClass, page: u32, order: u8 },
    /// Where its holder asked for: first byte and length.
    Claim { start: usize, length: usize },
}

/// A run of pages that belongs to its holder until dropped.
pub(crate) struct Run {
    pub shared: Arc<Shared>,
    pub extent: Extent,
}

impl Run {
    pub fn capacity(&self) -> usize {
        match self.extent {
            Extent::Pages { order, .. } => PAGE << order,
            Extent::Claim { length, .. } => length,
        }
    }
    pub fn region_offset(&self) -> usize {
        match self.extent {
            Extent::Pages { class, page, .. } => {
                self.shared.classes[class as usize].start + page as usize * PAGE
            }
            Extent::Claim { start, .. } => start,
        }
    }
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the offset lies within the mapping by construction.
        unsafe { self.shared.base.as_ptr().add(self.region_offset()) }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        match self.extent {
            Extent::Pages { class, page, order } => self.shared.serve(class, Some((page, order))),
            Extent::Claim { start, .. } => drop(self.shared.claims.lock().remove(&start)),
        }
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
            Ok(base) => Ok(Shared::over(base, length, classes, None)),
            Err(error) => Err(PoolError::Map { bytes: length, error: error.to_string() }),
        }
    }

    fn over(base: NonNull<u8>, length: usize, classes: [Class; 5], owner: Option<Attachment>) -> Shared {
        let (claims, attached) = (Mutex::default(), Mutex::default());
        Shared { base, length, classes, claims, attached, owner }
    }

    /// Memory that is handed out in claims alone: `owner`'s, or a mapping of its own.
    ///
    /// # Safety
    /// As [`crate::BufPool::adopt`], where `owner` is given.
    pub unsafe fn for_claims(base: NonNull<u8>, length: usize, owner: Option<Attachment>) -> Shared {
        let none = || ClassState { arena: Arena::new(0), waiters: VecDeque::new() };
        let classes = std::array::from_fn(|_| Class { start: 0, length: 0, state: Mutex::new(none()) });
        Shared::over(base, length, classes, owner)
    }

    /// Takes the pages of a range out, unless a part of them is out already.
    pub fn claim(self: &Arc<Self>, start: usize, length: usize) -> Option<Run> {
        let mut claims = self.claims.lock();
        let before = claims.range(..start + length).next_back();
        if before.is_some_and(|(_, &end)| end > start) {
            return None;
        }
        claims.insert(start, start + length);
        Some(Run { shared: self.clone(), extent: Extent::Claim { start, length } })
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
            let run =
                |(page, &order)| Run { shared: self.clone(), extent: Extent::Pages { class, page, order } };
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
pub(crate) fn map(length: usize) -> std::io::Result<NonNull<u8>> {
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
