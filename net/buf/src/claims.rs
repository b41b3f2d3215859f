//! Pools over a program's own memory, whose buffers lie where the program wants them.
#![allow(unsafe_code)]

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::buf::IoBuf;
use crate::pool::{BufPool, PoolError};
use crate::region::{self, Shared};
use crate::{MAX_BUF, PAGE};

impl BufPool {
    /// Memory without classes, `length` bytes of it (rounded up to pages), whose parts are taken out where they are wanted
    /// ([`BufPool::claim`]). Zero at first and only touched when used.
    pub fn for_claims(length: usize) -> Result<BufPool, PoolError> {
        let length = length.max(1).next_multiple_of(MAX_BUF);
        match region::map(length) {
            // SAFETY: a mapping of its own.
            Ok(base) => Ok(BufPool { shared: Arc::new(unsafe { Shared::for_claims(base, length, None) }) }),
            Err(error) => Err(PoolError::Map { bytes: length, error: error.to_string() }),
        }
    }

    /// As [`BufPool::for_claims`], over memory that somebody else has: a program's own buffers, what another library allocated, shared
    /// memory. `owner` is dropped when neither the pool nor a buffer of it is left.
    ///
    /// # Errors
    /// [`PoolError::Unaligned`]: the address and the length must be multiples of 4 KiB.
    ///
    /// # Safety
    /// `length` bytes from `address` on are mapped, initialised, readable and writable until `owner` is dropped, and nobody reads or writes
    /// a part of them while a buffer over it is out, but through that buffer.
    pub unsafe fn adopt(
        address: NonNull<u8>,
        length: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<BufPool, PoolError> {
        let start = address.as_ptr() as usize;
        if !start.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) || length == 0 {
            return Err(PoolError::Unaligned(start, length));
        }
        // SAFETY: by the caller.
        Ok(BufPool { shared: Arc::new(unsafe { Shared::for_claims(address, length, Some(owner)) }) })
    }

    /// The buffer over a range of the memory of a pool for claims: it begins at the range's start, a multiple of 4 KiB, has its length,
    /// and holds its pages. `None` while another one holds a part of them.
    ///
    /// # Errors
    /// [`PoolError::NoSuchPlace`]: the range lies outside, begins within a page, or the pool has classes.
    pub fn claim(&self, range: Range<usize>) -> Result<Option<IoBuf>, PoolError> {
        let Range { start, end } = range;
        let claimable = self.shared.classes.iter().all(|class| class.length == 0);
        if !claimable || !start.is_multiple_of(PAGE) || start >= end || end > self.shared.length {
            return Err(PoolError::NoSuchPlace(start, end, self.shared.length));
        }
        let run = self.shared.claim(start, (end - start).next_multiple_of(PAGE));
        Ok(run.map(|run| IoBuf::new(run, end - start)))
    }

    /// Keeps something for as long as the memory is there: it is dropped when neither the pool nor a buffer of it is left, before the
    /// memory goes. For what has to let go of the memory first, such as a registration with a device.
    pub fn attach(&self, attachment: Box<dyn Any + Send + Sync>) {
        self.shared.attached.lock().push(attachment);
    }

    /// Whether a buffer is one of this pool.
    pub fn owns(&self, buf: &IoBuf) -> bool {
        Arc::ptr_eq(&self.shared, buf.shared())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PoolClass, PoolConfig};
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    /// Adds to a number when it is dropped.
    struct Mark(Arc<AtomicU32>, u32);

    impl Drop for Mark {
        fn drop(&mut self) {
            // What is attached (1) goes before the owner (10).
            let before = self.0.fetch_add(self.1, Relaxed);
            assert_eq!(before, self.1 / 10);
        }
    }

    #[test]
    fn parts_are_taken_out_once_at_a_time_and_share_the_memory() {
        let pool = BufPool::for_claims(100_000).unwrap();
        let mut first = pool.claim(4096..9000).unwrap().unwrap();
        assert_eq!((first.len(), first.capacity(), first.region_offset()), (4904, 8192, 4096));
        assert!(first.iter().all(|&byte| byte == 0));
        first[4903] = 7;
        for overlapping in [4096..4097, 8192..8193, 0..4097, 0..100_000, 8192..20_000] {
            assert!(pool.claim(overlapping).unwrap().is_none());
        }
        let others = (pool.claim(0..4096).unwrap().unwrap(), pool.claim(12_288..12_289).unwrap().unwrap());
        assert!(pool.owns(&others.0) && !BufPool::for_claims(1).unwrap().owns(&others.0));
        // A part that is shared holds its place to the last view of it.
        let view = first.freeze().slice(4900..4904);
        assert!(pool.claim(4096..9000).unwrap().is_none());
        assert_eq!((view.region_offset(), view.align()), (Some(4096 + 4900), Some(4900 % 4096)));
        drop(view);
        assert_eq!(pool.claim(4096..9000).unwrap().unwrap()[4903], 7);
    }

    #[test]
    fn what_cannot_be_taken_out_is_an_error() {
        let pool = BufPool::for_claims(1).unwrap();
        let end = pool.region().length;
        for bad in [1..2, 0..0, 4096..4096, 0..end + 1, end..end + 1] {
            assert!(matches!(pool.claim(bad), Err(PoolError::NoSuchPlace(..))));
        }
        assert!(matches!(pool.try_alloc_many(&[1], PoolClass::Client), Err(PoolError::NoSuchClass(_))));
        let ordinary = BufPool::new(PoolConfig::client(MAX_BUF)).unwrap();
        assert!(matches!(ordinary.claim(0..1), Err(PoolError::NoSuchPlace(..))));
    }

    #[test]
    fn memory_of_others_is_let_go_of_with_the_last_buffer_what_is_attached_first() {
        let memory = BufPool::for_claims(16_384).unwrap();
        let region = memory.region();
        let address = NonNull::new(region.address as *mut u8).unwrap();
        let gone = Arc::new(AtomicU32::new(0));
        let owner = Box::new((Mark(gone.clone(), 10), memory));
        // SAFETY: the pool that is its owner has the memory, and gives out nothing of it by itself.
        let pool = unsafe { BufPool::adopt(address, 16_384, owner) }.unwrap();
        pool.attach(Box::new(Mark(gone.clone(), 1)));
        let buf = pool.claim(4096..8192).unwrap().unwrap();
        drop(pool);
        assert_eq!((gone.load(Relaxed), buf[0]), (0, 0));
        drop(buf);
        assert_eq!(gone.load(Relaxed), 11);
        // SAFETY: refused before anything is done with it.
        let odd = unsafe { BufPool::adopt(address, 5, Box::new(())) };
        assert!(matches!(odd, Err(PoolError::Unaligned(..))));
    }
}
