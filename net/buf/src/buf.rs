//! The two views of a buffer: [`IoBuf`], owned and writable, and [`Buf`], shared and read-only.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::region::{Run, Shared};

/// A buffer from the pool with one owner. Dereferences to its first `len` bytes ([`IoBuf::set_len`]).
///
/// Its memory is always initialised: zero when first mapped, later whatever its last user left. Send only what was filled.
pub struct IoBuf {
    run: Run,
    len: usize,
}

impl IoBuf {
    pub(crate) fn new(run: Run, len: usize) -> IoBuf {
        debug_assert!(len <= run.capacity());
        IoBuf { run, len }
    }

    /// Bytes that it can hold: a multiple of 4 KiB.
    pub fn capacity(&self) -> usize {
        self.run.capacity()
    }

    /// Sets the length, at most the capacity.
    ///
    /// # Panics
    /// Beyond the capacity: the caller's arithmetic is wrong.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} beyond a buffer of {}", self.capacity());
        self.len = len;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.run.shared
    }

    /// Offset of its first byte in the pool's region.
    pub fn region_offset(&self) -> usize {
        self.run.region_offset()
    }

    /// Address of its first byte, page-aligned, for I/O that the kernel or a device does. Valid while the buffer lives.
    pub fn as_io_ptr(&mut self) -> *mut u8 {
        self.run.as_ptr()
    }

    /// All its capacity, whatever the length.
    pub fn whole_mut(&mut self) -> &mut [u8] {
        // SAFETY: the run is `capacity` bytes of initialised memory that only this owner can reach.
        unsafe { std::slice::from_raw_parts_mut(self.run.as_ptr(), self.capacity()) }
    }

    /// Zeroes the rest of the first and last page around `start..len`, so that whole pages can go to disk and nothing that another
    /// owner left behind goes with them.
    ///
    /// # Panics
    /// If `start` lies behind the length.
    pub fn zero_around(&mut self, start: usize) {
        let len = self.len;
        assert!(start <= len, "data from {start} on in a buffer of {len}");
        let whole = self.whole_mut();
        whole[start - start % crate::PAGE..start].fill(0);
        whole[len..len.next_multiple_of(crate::PAGE)].fill(0);
    }

    /// Shares it. No copy.
    pub fn freeze(self) -> Buf {
        let len = self.len;
        Buf { owner: Owner::Pool(Arc::new(self)), range: 0..len }
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` bytes of initialised memory that only this owner can reach.
        unsafe { std::slice::from_raw_parts(self.run.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other view.
        unsafe { std::slice::from_raw_parts_mut(self.run.as_ptr(), self.len) }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} of {} bytes)", self.len, self.capacity())
    }
}

#[derive(Clone)]
enum Owner {
    Pool(Arc<IoBuf>),
    Heap(Bytes),
}

/// A range of a shared, read-only buffer. Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Buf {
    owner: Owner,
    range: Range<usize>,
}

impl Buf {
    /// Wraps heap memory: for tests and small data. Such a buffer has no place in the pool's region and no alignment.
    pub fn from_vec(bytes: Vec<u8>) -> Buf {
        Buf::from(Bytes::from(bytes))
    }

    /// No bytes.
    pub fn empty() -> Buf {
        Buf::from(Bytes::new())
    }

    /// A part of it.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn slice(&self, range: Range<usize>) -> Buf {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "{range:?} outside a buffer of {}",
            self.len()
        );
        let start = self.range.start + range.start;
        Buf { owner: self.owner.clone(), range: start..start + (range.end - range.start) }
    }

    /// Offset of its first byte in the pool's region; `None` for heap memory.
    pub fn region_offset(&self) -> Option<usize> {
        match &self.owner {
            Owner::Pool(buf) => Some(buf.region_offset() + self.range.start),
            Owner::Heap(_) => None,
        }
    }

    /// Bytes between the last page boundary and its first byte; `None` for heap memory, which has no known alignment.
    pub fn align(&self) -> Option<usize> {
        matches!(self.owner, Owner::Pool(_)).then_some(self.range.start % crate::PAGE)
    }

    /// The whole pages that its bytes lie in, for O_DIRECT: from the last page boundary before the first byte to the next one behind the
    /// last. What surrounds the bytes is what the filler left there ([`IoBuf::zero_around`]). `None` for heap memory and for no bytes.
    pub fn pages(&self) -> Option<Buf> {
        let page = crate::PAGE;
        let range = self.range.start / page * page..self.range.end.next_multiple_of(page);
        let of_pool = matches!(self.owner, Owner::Pool(_)) && !self.range.is_empty();
        of_pool.then(|| Buf { owner: self.owner.clone(), range })
    }

    /// Address of its first byte, for I/O that the kernel or a device does. Valid while any part of the buffer is held.
    pub fn as_io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    /// The owned buffer back, with this view's end as its length, if nobody else holds a part of it and the view begins at its start.
    pub fn try_into_iobuf(self) -> Result<IoBuf, Buf> {
        match self.owner {
            Owner::Pool(buf) if self.range.start == 0 => match Arc::try_unwrap(buf) {
                Ok(mut buf) => {
                    buf.len = self.range.end;
                    Ok(buf)
                }
                Err(buf) => Err(Buf { owner: Owner::Pool(buf), range: self.range }),
            },
            owner => Err(Buf { owner, range: self.range }),
        }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.owner {
            // SAFETY: within the capacity; while a `Buf` exists nobody has `&mut` to the run, so its bytes stand still.
            Owner::Pool(buf) => unsafe {
                std::slice::from_raw_parts(buf.run.as_ptr().add(self.range.start), self.range.len())
            },
            Owner::Heap(bytes) => &bytes[self.range.clone()],
        }
    }
}

impl Default for Buf {
    fn default() -> Buf {
        Buf::empty()
    }
}

impl From<Bytes> for Buf {
    fn from(bytes: Bytes) -> Buf {
        let range = 0..bytes.len();
        Buf { owner: Owner::Heap(bytes), range }
    }
}

impl From<Vec<u8>> for Buf {
    fn from(bytes: Vec<u8>) -> Buf {
        Buf::from_vec(bytes)
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Buf, BufPool, MAX_BUF, PoolClass, PoolConfig};

    #[test]
    fn slices_see_the_same_bytes_and_the_last_one_gives_the_buffer_back() {
        let pool = BufPool::new(PoolConfig::client(MAX_BUF)).unwrap();
        let mut buf = pool.try_alloc(10_000, PoolClass::Client).unwrap();
        assert_eq!((buf.len(), buf.capacity()), (10_000, 16_384));
        buf[9_999] = 5;
        let start = buf.region_offset();
        assert_eq!(start % 4096, 0);
        let whole = buf.freeze();
        let end = whole.slice(9_990..10_000).slice(9..10);
        assert_eq!(&end[..], [5]);
        assert_eq!(end.region_offset(), Some(start + 9_999));
        assert_eq!(end.align(), Some(9_999 % 4096));
        let whole = whole.try_into_iobuf().unwrap_err();
        drop(end);
        let buf = whole.try_into_iobuf().unwrap();
        assert_eq!(buf[9_999], 5);
        drop(buf);
        assert_eq!(pool.stats().classes[0].used, 0);
    }

    #[test]
    fn the_pages_around_data_are_clean() {
        let pool = BufPool::new(PoolConfig::client(MAX_BUF)).unwrap();
        let mut buf = pool.try_alloc(12_000, PoolClass::Client).unwrap();
        buf.whole_mut().fill(7);
        buf.set_len(9_000);
        buf.zero_around(5_000);
        let whole = buf.freeze();
        let data = whole.slice(5_000..9_000);
        let pages = data.pages().unwrap();
        assert_eq!((pages.align(), pages.len()), (Some(0), 8192));
        assert!(pages[..904].iter().all(|&byte| byte == 0) && pages[904..4904].iter().all(|&byte| byte == 7));
        assert!(pages[4904..].iter().all(|&byte| byte == 0));
        assert!(whole.slice(3..3).pages().is_none() && Buf::from(vec![1]).pages().is_none());
    }

    #[test]
    fn heap_memory_serves_as_a_buffer_too() {
        let buf = Buf::from(vec![1, 2, 3]);
        assert_eq!(&buf.slice(1..3)[..], [2, 3]);
        assert_eq!(buf.region_offset(), None);
        assert!(Buf::empty().is_empty());
    }
}
