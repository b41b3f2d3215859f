//! Writing: a range is cut at chunk boundaries and its pieces go to their chains side by side.
//!
//! From the caller's memory a piece is copied once, into a pool buffer, and its checksums are computed while each block is in the
//! processor's cache. From a pool buffer nothing is copied.

use std::collections::BTreeMap;

use catena_buf::Buf;
use catena_proto::checksum;
use catena_proto::layout::Piece;
use catena_proto::status::Status;
use catena_storage_client::WriteOp;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::file::File;

/// Pieces of one call on their way at once; bytes are bounded by the connection.
const PIECES: usize = 32;

/// A write of a batch.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest<'a> {
    /// Into which file,
    pub file: &'a File,
    /// from which byte on,
    pub offset: u64,
    /// what.
    pub data: &'a [u8],
}

impl File {
    /// Writes all of `data` at `offset`. On return it is durable on every replica. No data is no error and changes nothing.
    ///
    /// # Errors
    /// [`Status::TooLarge`] beyond the longest possible file, [`Status::NoSpace`], [`Status::TimedOut`]. After an error, and when the call
    /// is dropped, any part of the range may have been written.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_at("write")?;
        self.write_slice("write", offset, data).await
    }

    /// Writes a pool buffer ([`crate::Catena::alloc_buf`], then [`catena_buf::IoBuf::freeze`]) at `offset` without copying it. Fastest when
    /// `offset` and the buffer's end are multiples of the chunk size, or of 4 MiB in larger chunks.
    pub async fn write_buf_at(&self, offset: u64, data: Buf) -> Result<()> {
        self.check_at("write")?;
        self.write_buf("write", offset, data).await
    }

    /// Writes all of `data` behind the end of the file and returns where it begins.
    ///
    /// Appends of one process never overlap. Processes that append to one file have to agree among themselves, as on NFS: each one knows
    /// the end that was settled when it opened the file.
    pub async fn append(&self, data: &[u8]) -> Result<u64> {
        self.check_write("append")?;
        let place = self.length().reserve(data.len() as u64);
        self.write_slice("append", place.offset, data).await?;
        Ok(place.offset)
    }

    /// Appends a pool buffer without copying it; see [`File::append`].
    pub async fn append_buf(&self, data: Buf) -> Result<u64> {
        self.check_write("append")?;
        let place = self.length().reserve(data.len() as u64);
        self.write_buf("append", place.offset, data).await?;
        Ok(place.offset)
    }

    fn check_at(&self, operation: &'static str) -> Result<()> {
        self.check_write(operation)?;
        match self.appends() {
            true => Err(self.error(operation, Status::Invalid, "the file is open for appending alone")),
            false => Ok(()),
        }
    }

    fn pieces(&self, operation: &'static str, offset: u64, length: usize) -> Result<(u64, Vec<Piece>)> {
        let end = offset.saturating_add(length as u64);
        let pieces =
            self.layout().pieces(offset, length as u64).map_err(|_| self.too_long(operation, end))?;
        Ok((end, pieces.collect()))
    }

    async fn write_slice(&self, operation: &'static str, offset: u64, data: &[u8]) -> Result<()> {
        let (end, pieces) = self.pieces(operation, offset, data.len())?;
        if pieces.is_empty() {
            return Ok(());
        }
        let writing = self.writing(operation).await?;
        let write = |piece: Piece| async move {
            let from = piece.at as usize;
            let part = &data[from..from + piece.length as usize];
            let _room = self.catena().room(part.len()).await;
            let mut buf = self.catena().alloc_buf(part.len()).await?;
            let checksums = copy_with_checksums(&mut buf, part, piece.offset);
            self.write_piece(operation, piece, buf.freeze(), Some(checksums)).await
        };
        match *pieces {
            [piece] => write(piece).await?,
            _ => {
                let writes = stream::iter(pieces).map(write);
                writes.buffer_unordered(PIECES).try_collect::<()>().await?;
            }
        }
        writing.done(data.len() as u64, end);
        Ok(())
    }

    async fn write_buf(&self, operation: &'static str, offset: u64, data: Buf) -> Result<()> {
        let (end, pieces) = self.pieces(operation, offset, data.len())?;
        if pieces.is_empty() {
            return Ok(());
        }
        let writing = self.writing(operation).await?;
        let write = |piece: Piece| {
            let from = piece.at as usize;
            let part = data.slice(from..from + piece.length as usize);
            async move {
                let _room = self.catena().room(part.len()).await;
                self.write_piece(operation, piece, part, None).await
            }
        };
        match *pieces {
            [piece] => write(piece).await?,
            _ => {
                let writes = stream::iter(pieces).map(write);
                writes.buffer_unordered(PIECES).try_collect::<()>().await?;
            }
        }
        writing.done(data.len() as u64, end);
        Ok(())
    }

    /// Writes a buffer whose range lies in one piece of the layout, with its checksums.
    pub(crate) async fn write_checked(&self, offset: u64, data: Buf, checksums: Vec<u32>) -> Result<()> {
        let (end, pieces) = self.pieces("write", offset, data.len())?;
        let [piece] = *pieces else {
            return Err(self.error("write", Status::Invalid, "the buffer crosses a chunk boundary"));
        };
        let writing = self.writing("write").await?;
        let _room = self.catena().room(data.len()).await;
        let bytes = data.len() as u64;
        self.write_piece("write", piece, data, Some(checksums)).await?;
        writing.done(bytes, end);
        Ok(())
    }

    async fn write_piece(
        &self,
        operation: &'static str,
        piece: Piece,
        data: Buf,
        checksums: Option<Vec<u32>>,
    ) -> Result<()> {
        let (chain, chunk) = self.chunk(piece.index);
        let chunk_size = self.layout().chunk_size;
        let op = WriteOp { chain, chunk, offset: piece.offset, data, checksums, chunk_size };
        let written = self.catena().storage().write_op(op, self.catena().deadline()).await;
        written.map(drop).map_err(|error| Error::from_storage(operation, self.path(), &error))
    }
}

impl crate::Catena {
    /// Writes a batch, side by side; outcomes come in the order of the items.
    ///
    /// Items that overlap another item of the batch have no defined order: all of them are refused with [`Status::Invalid`] and not
    /// written.
    pub async fn write_batch(&self, items: &[WriteRequest<'_>]) -> Vec<Result<()>> {
        let overlap = overlapping(items);
        let writes = items.iter().enumerate().map(|(index, item)| {
            let refused = overlap[index];
            async move {
                let outcome = if refused {
                    let what = "the range overlaps another write of the same batch";
                    Err(item.file.error("write", Status::Invalid, what))
                } else {
                    item.file.write_at(item.offset, item.data).await
                };
                (index, outcome)
            }
        });
        let mut outcomes: Vec<Option<Result<()>>> = items.iter().map(|_| None).collect();
        let mut writes = stream::iter(writes).buffer_unordered(2 * PIECES);
        while let Some((index, outcome)) = writes.next().await {
            outcomes[index] = Some(outcome);
        }
        outcomes.into_iter().map(|outcome| outcome.expect("every item has an outcome")).collect()
    }
}

/// Which items overlap another one.
fn overlapping(items: &[WriteRequest<'_>]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..items.len()).filter(|&at| !items[at].data.is_empty()).collect();
    order.sort_by_key(|&at| (items[at].file.inode(), items[at].offset));
    let mut overlap = vec![false; items.len()];
    // Per inode: how far the items so far reach, and the one that does.
    let mut reach: BTreeMap<_, (u64, usize)> = BTreeMap::new();
    for at in order {
        let item = &items[at];
        let end = item.offset.saturating_add(item.data.len() as u64);
        let furthest = reach.entry(item.file.inode()).or_insert((0, at));
        if furthest.1 != at && item.offset < furthest.0 {
            overlap[at] = true;
            overlap[furthest.1] = true;
        }
        if end > furthest.0 {
            *furthest = (end, at);
        }
    }
    overlap
}

/// Copies `from` to `to`, and computes the piece checksums of each block while the cache has it.
fn copy_with_checksums(to: &mut [u8], from: &[u8], offset: u32) -> Vec<u32> {
    let mut checksums = Vec::with_capacity(checksum::piece_count(offset, from.len()));
    for (at, size) in checksum::pieces(offset, from.len()) {
        let block = &mut to[at..at + size];
        block.copy_from_slice(&from[at..at + size]);
        checksums.push(checksum::crc32c(block));
    }
    checksums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_and_checksumming_agree_with_doing_one_after_the_other() {
        let data: Vec<u8> = (0..20_000_u32).map(|n| ((n * 7) >> 3) as u8).collect();
        for (offset, len) in [(0, 20_000), (4095, 2), (100, 4096), (8192, 1), (5, 0)] {
            let mut to = vec![0; len];
            let checksums = copy_with_checksums(&mut to, &data[..len], offset);
            assert_eq!(to, data[..len]);
            assert_eq!(checksums, checksum::piece_checksums(offset, &data[..len]));
        }
    }
}
