//! Memory of a program's own that data goes to and comes from without a copy.
//!
//! Data moves between chunks and *registered* memory: over RDMA the storage nodes reach it by themselves. The pool of a connection is
//! registered from the start; a [`Region`] is registered when the program asks for it, once, because that takes long (the kernel locks
//! its pages). Memory that is not registered is served through pool buffers, one copy.

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;

use catena_buf::{Buf, BufPool, IoBuf};
use catena_proto::layout::Piece;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep};
use catena_storage_client::ReadOut;

use crate::connect::Catena;
use crate::error::{Error, Result};
use crate::file::File;
use crate::read::ReadRequest;

/// Where regions begin, and the parts of them that are read into and written from, and the places in files for these: the pages of disks
/// and processors.
const PAGE: usize = 4096;
/// Between looks at a part that is held.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// Registered memory. Clones share it; it is let go of with the last of them and the last buffer.
///
/// It serves the connection that made it. Its parts are owned by one user at a time, which [`Region::take`] and the calls that read and
/// write see to.
#[derive(Clone, Debug)]
pub struct Region {
    pool: BufPool,
}

impl Catena {
    /// Registers `bytes` of new memory, rounded up to 4 MiB. Zero at first, and in huge pages where the system has them.
    ///
    /// # Errors
    /// [`Status::NoSpace`]: the system, or its limit of locked memory, does not allow it.
    pub async fn region(&self, bytes: usize) -> Result<Region> {
        self.admit(BufPool::for_claims(bytes).map_err(|error| failed("region", Status::NoSpace, error))?)
            .await
    }

    /// Registers memory that the program has already: `bytes` from `address` on, both multiples of 4 KiB. `owner` is dropped when the
    /// region is let go of; let it own the memory, or be `()` for memory that stays.
    ///
    /// # Safety
    /// The memory is mapped, initialised, readable and writable until `owner` is dropped. While a part of it is read into, written from or
    /// taken, nobody else reads or writes that part.
    #[allow(unsafe_code)]
    pub async unsafe fn adopt_region(
        &self,
        address: NonNull<u8>,
        bytes: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Region> {
        // SAFETY: by the caller.
        let pool = unsafe { BufPool::adopt(address, bytes, owner) };
        self.admit(pool.map_err(|error| failed("adopt_region", Status::Invalid, error))?).await
    }

    async fn admit(&self, pool: BufPool) -> Result<Region> {
        let (storage, region) = (self.storage().clone(), Region { pool });
        let pool = region.pool.clone();
        // It waits for the kernel, which locks page after page.
        match catena_rt::spawn_blocking(move || storage.register(&pool)).await {
            Ok(Ok(())) => Ok(region),
            Ok(Err(error)) => Err(failed("region", Status::NoSpace, error)),
            Err(error) => Err(failed("region", Status::Internal, error)),
        }
    }
}

fn failed(operation: &'static str, status: Status, error: impl std::fmt::Display) -> Error {
    Error::new(operation, "(registered memory)", status, error.to_string())
}

impl Region {
    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "there are always some")]
    pub fn len(&self) -> usize {
        self.pool.region().length
    }

    /// Takes a part out as a buffer: to fill it, to look at it, or for [`File::write_buf_at`]. It begins on a multiple of 4 KiB and holds
    /// whole pages. It is back when the buffer and all that was made of it are dropped.
    ///
    /// # Errors
    /// [`Status::Busy`]: a part of it is out. [`Status::Range`]: there is no such part.
    pub fn take(&self, range: Range<usize>) -> Result<IoBuf> {
        let taken = self.pool.claim(range.clone()).map_err(|error| failed("take", Status::Range, error))?;
        taken.ok_or_else(|| failed("take", Status::Busy, format_args!("a part of bytes {range:?} is in use")))
    }

    /// A part that somebody may hold for a while still: a request that failed does so until no storage node can reach it any more.
    async fn wait_for(&self, range: Range<usize>, until: Instant) -> Result<IoBuf> {
        loop {
            match self.take(range.clone()) {
                Err(error) if error.status() == Status::Busy && Instant::now() < until => sleep(PAUSE).await,
                taken => return taken,
            }
        }
    }
}

impl File {
    /// Reads from `offset` on into a part of a region, without a copy. `offset` and the part's start are multiples of 4 KiB. Returns how
    /// many bytes there were: fewer than the part holds only at the end of the file. What lies behind them in the part is unspecified.
    ///
    /// # Errors
    /// [`Status::Busy`]: a part of it is in use. After an error the part holds anything, and a storage node may still be writing into it:
    /// it counts as in use until that is over.
    pub async fn read_to_region(&self, offset: u64, region: &Region, range: Range<usize>) -> Result<usize> {
        self.check_region("read", offset, region, &range)?;
        let until = self.catena().deadline();
        let place = |piece: &Piece| {
            let from = range.start + piece.at as usize;
            from..from + piece.length as usize
        };
        let mut found: Vec<(Range<usize>, Option<ReadOut>)> = Vec::new();
        let into = |piece: &Piece| region.take(place(piece)).map(Some);
        let put = |_, _, piece: &Piece, out| found.push((place(piece), out));
        let request = ReadRequest { file: self, offset, length: range.len() };
        let length = self.catena().read_ranges(&[request], into, put).await;
        for (place, out) in found {
            let there = out.as_ref().map_or(0, |out| out.data.len());
            match out {
                Some(out) if region.pool.owns(&out.data) && out.data.region_offset() == place.start => {
                    let mut buf = out.data;
                    buf.set_len(place.len());
                    buf[there..].fill(0);
                }
                // A hole, or data that came by another way after one had failed.
                out => {
                    let mut buf = region.wait_for(place, until).await?;
                    if let Some(out) = out {
                        buf[..there].copy_from_slice(&out.data);
                    }
                    buf[there..].fill(0);
                }
            }
        }
        length.into_iter().next().unwrap_or(Ok(0))
    }

    /// Writes a part of a region at `offset`, without a copy. `offset` and the part's start are multiples of 4 KiB. On return it is durable
    /// on every replica, and the part is free; see [`File::write_at`] for errors.
    pub async fn write_from_region(&self, offset: u64, region: &Region, range: Range<usize>) -> Result<()> {
        self.check_region("write", offset, region, &range)?;
        if range.is_empty() {
            return Ok(());
        }
        let data: Buf = region.take(range)?.freeze();
        self.write_buf_at(offset, data).await
    }

    fn check_region(
        &self,
        operation: &'static str,
        offset: u64,
        region: &Region,
        range: &Range<usize>,
    ) -> Result<()> {
        if range.start > range.end || range.end > region.len() {
            let what = format!("bytes {range:?} of a region of {}", region.len());
            return Err(self.error(operation, Status::Range, &what));
        }
        if !offset.is_multiple_of(PAGE as u64) || !range.start.is_multiple_of(PAGE) {
            let what = "with a region, the offset and the part's start must be multiples of 4096";
            return Err(self.error(operation, Status::Invalid, what));
        }
        Ok(())
    }
}
