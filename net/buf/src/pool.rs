//! The pool as its users see it: classes, lengths, errors, use.

use std::sync::{Arc, Weak};

use crate::arena::MAX_ORDER;
use crate::buf::IoBuf;
use crate::region::{Extent, Place, Run, Shared};
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
    /// Longer than any buffer, or more than the class has.
    #[error(
        "{0} bytes were asked for: more than a buffer ({MAX_BUF}) or its class can hold; ask for less or configure a larger pool"
    )]
    TooLarge(usize),
    /// The class was given no memory.
    #[error("this process has no buffers for {0:?}")]
    NoSuchClass(PoolClass),
    /// Memory that is not made of whole pages.
    #[error(
        "memory of {1} bytes at {0:#x} is not made of whole pages: both must be multiples of 4096, and some"
    )]
    Unaligned(usize, usize),
    /// A part that cannot be taken out.
    #[error(
        "bytes {0}..{1} of a region of {2} cannot be taken out: it must begin on a multiple of 4096, hold something and end within"
    )]
    NoSuchPlace(usize, usize, usize),
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

/// A pool, for as long as somebody else keeps it or a buffer of it. Clones share it.
#[derive(Clone)]
pub struct WeakPool(Weak<Shared>);

impl WeakPool {
    /// The pool, if its memory is still there.
    pub fn upgrade(&self) -> Option<BufPool> {
        self.0.upgrade().map(|shared| BufPool { shared })
    }
}

/// The pool. Clones share it.
#[derive(Clone)]
pub struct BufPool {
    pub(crate) shared: Arc<Shared>,
}

impl BufPool {
    /// Maps the region. Its memory is zero at first and only touched when used.
    pub fn new(config: PoolConfig) -> Result<BufPool, PoolError> {
        let shared = Shared::map(config.bytes)?;
        Ok(BufPool { shared: Arc::new(shared) })
    }

    /// A buffer of at least `len` bytes with `len` as its length. Waits, first come first served, while the class has none.
    pub async fn alloc(&self, len: usize, class: PoolClass) -> Result<IoBuf, PoolError> {
        let order = self.order(len, class)?;
        let place = {
            let mut state = self.shared.classes[class as usize].state.lock();
            if state.no_line()
                && let Some(page) = state.arena.take(order)
            {
                return Ok(IoBuf::new(self.run(class, page, order), len));
            }
            Place::queue(&self.shared, &mut state, class, Box::new([order]))
        };
        match place.wait().await.and_then(|mut runs| runs.pop()) {
            Some(run) => Ok(IoBuf::new(run, len)),
            // The sender lives in the class's queue until it is served, and the queue lives as long as `self`.
            None => Err(PoolError::NoSuchClass(class)),
        }
    }

    /// Buffers of all these lengths at once: two callers never hold halves of what the other waits for. They must fit in the class
    /// together ([`PoolError::TooLarge`] otherwise).
    pub async fn alloc_many(&self, lens: &[usize], class: PoolClass) -> Result<Vec<IoBuf>, PoolError> {
        let orders = self.orders(lens, class)?;
        let place = {
            let mut state = self.shared.classes[class as usize].state.lock();
            let mut pages = Vec::with_capacity(orders.len());
            if state.no_line() && state.take(&orders, &mut pages) {
                drop(state);
                return Ok(self.bufs(class, &pages, &orders, lens));
            }
            Place::queue(&self.shared, &mut state, class, orders)
        };
        match place.wait().await {
            Some(runs) => Ok(runs.into_iter().zip(lens).map(|(run, &len)| IoBuf::new(run, len)).collect()),
            None => Err(PoolError::NoSuchClass(class)),
        }
    }

    /// A buffer, if there is one now and nobody waits.
    pub fn try_alloc(&self, len: usize, class: PoolClass) -> Option<IoBuf> {
        let order = self.order(len, class).ok()?;
        let page = {
            let mut state = self.shared.classes[class as usize].state.lock();
            if !state.no_line() {
                return None;
            }
            state.arena.take(order)?
        };
        Some(IoBuf::new(self.run(class, page, order), len))
    }

    /// Buffers of all these lengths: `Ok(None)` if they cannot be had now, an error if they never can.
    pub fn try_alloc_many(&self, lens: &[usize], class: PoolClass) -> Result<Option<Vec<IoBuf>>, PoolError> {
        if let [len] = *lens {
            self.order(len, class)?;
            return Ok(self.try_alloc(len, class).map(|buf| vec![buf]));
        }
        let orders = self.orders(lens, class)?;
        let mut pages = Vec::with_capacity(orders.len());
        {
            let mut state = self.shared.classes[class as usize].state.lock();
            if !state.no_line() || !state.take(&orders, &mut pages) {
                return Ok(None);
            }
        }
        Ok(Some(self.bufs(class, &pages, &orders, lens)))
    }

    fn bufs(&self, class: PoolClass, pages: &[u32], orders: &[u8], lens: &[usize]) -> Vec<IoBuf> {
        let sizes = orders.iter().zip(lens);
        pages
            .iter()
            .zip(sizes)
            .map(|(&page, (&order, &len))| IoBuf::new(self.run(class, page, order), len))
            .collect()
    }

    fn orders(&self, lens: &[usize], class: PoolClass) -> Result<Box<[u8]>, PoolError> {
        let orders = lens.iter().map(|&len| self.order(len, class)).collect::<Result<Box<[u8]>, _>>()?;
        let bytes: usize = orders.iter().map(|&order| PAGE << order).sum();
        if bytes > self.shared.classes[class as usize].length {
            return Err(PoolError::TooLarge(bytes));
        }
        Ok(orders)
    }

    fn run(&self, class: PoolClass, page: u32, order: u8) -> Run {
        Run { shared: self.shared.clone(), extent: Extent::Pages { class, page, order } }
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

    /// The same pool, without keeping it.
    pub fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.shared))
    }

    /// The memory, for registration.
    pub fn region(&self) -> Region {
        Region { address: self.shared.address(), length: self.shared.length }
    }

    /// Use per class.
    pub fn stats(&self) -> PoolStats {
        let classes = std::array::from_fn(|index| {
            let class = &self.shared.classes[index];
            let state = class.state.lock();
            ClassStats {
                total: class.length,
                used: class.length - state.arena.free_bytes(),
                waiting: state.waiting(),
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
    fn who_leaves_the_line_lets_the_next_ones_through() {
        let pool = small();
        let _half = pool.try_alloc(MAX_BUF / 2, PoolClass::Client).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut large = Box::pin(pool.alloc(MAX_BUF, PoolClass::Client));
        assert!(large.as_mut().poll(&mut context).is_pending());
        let mut next = pin!(pool.alloc(1, PoolClass::Client));
        assert!(next.as_mut().poll(&mut context).is_pending());
        assert!(pool.try_alloc(1, PoolClass::Client).is_none(), "nobody overtakes those who wait");
        drop(large);
        assert!(next.as_mut().poll(&mut context).is_ready());
        assert_eq!(pool.stats().classes[0].waiting, 0);
    }

    #[test]
    fn several_buffers_come_together_or_not_at_all() {
        let pool = small();
        let quarter = MAX_BUF / 4;
        let one = pool.try_alloc(quarter, PoolClass::Client).unwrap();
        assert_eq!(
            pool.try_alloc_many(&[quarter; 4], PoolClass::Client).unwrap().map(|bufs| bufs.len()),
            None
        );
        assert_eq!(pool.stats().classes[0].used, quarter, "nothing is kept of a request that failed");
        let three = pool.try_alloc_many(&[quarter, 5, quarter], PoolClass::Client).unwrap().unwrap();
        assert_eq!(three.iter().map(|buf| buf.len()).collect::<Vec<_>>(), [quarter, 5, quarter]);

        let mut context = Context::from_waker(Waker::noop());
        let quarters = [quarter; 4];
        let mut many = pin!(pool.alloc_many(&quarters, PoolClass::Client));
        assert!(many.as_mut().poll(&mut context).is_pending());
        drop(three);
        assert!(many.as_mut().poll(&mut context).is_pending());
        drop(one);
        let Poll::Ready(Ok(four)) = many.as_mut().poll(&mut context) else { panic!("all of it is free") };
        assert_eq!(four.len(), 4);

        let too_many = pool.try_alloc_many(&[quarter; 5], PoolClass::Client);
        assert_eq!(too_many.unwrap_err(), PoolError::TooLarge(5 * quarter));
    }

    #[test]
    fn threads_that_allocate_and_free_never_share_a_byte() {
        let pool = BufPool::new(PoolConfig { bytes: [2 * MAX_BUF, 0, 0, 0, 0] }).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let pool = &pool;
                scope.spawn(move || {
                    let mut state = thread + 1;
                    let mut held: Vec<IoBuf> = Vec::new();
                    for _ in 0..5_000 {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        let len = (state >> 33) as usize % 40_000 + 16;
                        if let Some(mut buf) = pool.try_alloc(len, PoolClass::Client) {
                            assert_eq!(buf.region_offset() % PAGE, 0);
                            let owner = (state ^ buf.region_offset() as u64).to_le_bytes();
                            buf[..8].copy_from_slice(&owner);
                            buf[len - 8..].copy_from_slice(&owner);
                            held.push(buf);
                        }
                        if held.len() > 20 || state >> 63 == 1 {
                            let at = (state >> 40) as usize % held.len().max(1);
                            if at < held.len() {
                                let buf = held.swap_remove(at);
                                assert_eq!(buf[..8], buf[buf.len() - 8..], "somebody else wrote here");
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(pool.stats().classes[0].used, 0);
        assert!(
            pool.try_alloc_many(&[MAX_BUF; 2], PoolClass::Client).unwrap().is_some(),
            "in one piece again"
        );
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
