//! Reading: ranges of any number of files become pieces of chunks, pieces go in windows of a few MiB, windows go side by side.
//!
//! *Where a file ends* is a matter of its length, not of its chunks: a chunk that is missing or short within the length is a hole and
//! reads as zeros. A read that reaches the known end asks the metadata service whether the file has grown; one that meets a hole asks
//! whether it was cut, unless the answer is less than a second old.

use std::sync::Arc;

use catena_buf::{Buf, IoBuf};
use catena_proto::frame::MAX_ITEMS;
use catena_proto::layout::{MAX_IO, Piece};
use catena_proto::status::Status;
use catena_rt::time::Instant;
use catena_storage_client::{ReadOp, ReadOut, StorageError};
use futures_util::stream::{self, StreamExt};

use crate::connect::Catena;
use crate::error::{Error, Result};
use crate::file::File;
use crate::metrics::add;

/// Bytes of one window.
const WINDOW: usize = MAX_IO as usize;
/// Windows of one call on their way at once; bytes are bounded by the connection.
const WINDOWS: usize = 32;

/// A read of a batch.
#[derive(Clone, Copy, Debug)]
pub struct ReadRequest<'a> {
    /// From which file,
    pub file: &'a File,
    /// from which byte on,
    pub offset: u64,
    /// how many bytes. Fewer come at the end of the file.
    pub length: usize,
}

/// A read of a batch into the caller's memory.
#[derive(Debug)]
pub struct ReadInto<'a> {
    /// From which file,
    pub file: &'a File,
    /// from which byte on,
    pub offset: u64,
    /// to where. Fewer bytes come at the end of the file.
    pub to: &'a mut [u8],
}

/// Bytes that were read, in pool buffers, in order. Holds its share of the pool until dropped.
#[derive(Clone, Debug, Default)]
pub struct Data {
    parts: Vec<Buf>,
    length: usize,
}

impl Data {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.length
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    /// The buffers, none of them empty.
    pub fn parts(&self) -> &[Buf] {
        &self.parts
    }
    /// The buffers.
    pub fn into_parts(self) -> Vec<Buf> {
        self.parts
    }
    /// A copy in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.length);
        self.parts.iter().for_each(|part| all.extend_from_slice(part));
        all
    }

    fn push(&mut self, part: Buf) {
        if !part.is_empty() {
            self.length += part.len();
            self.parts.push(part);
        }
    }

    fn truncate(&mut self, length: usize) {
        while self.length > length {
            let last = self.parts.pop().expect("the length is the sum of the parts");
            self.length -= last.len();
            if self.length < length {
                self.push(last.slice(0..length - self.length));
            }
        }
    }
}

/// What a piece turned out to be: data, or nothing at all (a hole).
type Found = Result<Option<ReadOut>, StorageError>;

impl File {
    /// Reads into `to` from `offset` on. Returns how many bytes there were: fewer than asked for only at the end of the file.
    pub async fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let mut items = [ReadInto { file: self, offset, to }];
        self.catena().read_into(&mut items).await.pop().expect("one outcome an item")
    }

    /// Fills `to` from `offset` on.
    ///
    /// # Errors
    /// [`Status::Range`] if the file ends before.
    pub async fn read_exact_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let (wanted, read) = (to.len(), self.read_at(offset, to).await?);
        if read < wanted {
            let what = format!("the file ends {} bytes before the wanted range does", wanted - read);
            return Err(self.error("read", Status::Range, &what));
        }
        Ok(())
    }

    /// Reads up to `length` bytes from `offset` on into pool buffers, without copying them. Holes come as zeros. `length` is limited by
    /// what may be under way at once ([`crate::ConnectOptions::in_flight_bytes`]).
    pub async fn read_buf_at(&self, offset: u64, length: usize) -> Result<Data> {
        let item = ReadRequest { file: self, offset, length };
        self.catena().read_batch(&[item]).await.pop().expect("one outcome an item")
    }
}

/// Buffers of the pool, for whatever piece.
fn from_pool(_: &Piece) -> Result<Option<IoBuf>> {
    Ok(None)
}

/// A part of an item that lies in one chunk.
struct Part {
    item: usize,
    piece: Piece,
    op: ReadOp,
}

impl Catena {
    /// Reads a batch from any number of files; outcomes come in the order of the items. Items may overlap. Many small reads in one call
    /// cost a few messages, not one each.
    pub async fn read_batch(&self, items: &[ReadRequest<'_>]) -> Vec<Result<Data>> {
        let total: usize = items.iter().fold(0, |sum, item| sum.saturating_add(item.length));
        if total > self.room_bytes() {
            let what = format!(
                "{total} bytes at once, but only {} may be under way: read in parts, or into memory of your own",
                self.room_bytes()
            );
            return items.iter().map(|item| Err(item.file.error("read", Status::Invalid, &what))).collect();
        }
        // Parts of an item arrive in any order.
        let mut slots: Vec<Vec<Option<Buf>>> = items.iter().map(|_| Vec::new()).collect();
        let put = |item: usize, part: usize, piece: &Piece, out: Option<ReadOut>| {
            let slots = &mut slots[item];
            // Two places a piece: what there was, and the zeros behind it.
            slots.resize(slots.len().max(2 * part + 2), None);
            let found = out.map(|out| out.data.freeze()).filter(|data| !data.is_empty());
            let length = found.as_ref().map_or(0, |data| data.len());
            slots[2 * part] = found;
            if length < piece.length as usize {
                slots[2 * part + 1] = Some(zeros(piece.length as usize - length));
            }
        };
        let lengths = self.read_ranges(items, from_pool, put).await;
        let collect = |(length, slots): (Result<usize>, Vec<Option<Buf>>)| {
            let length = length?;
            let mut data = Data::default();
            slots.into_iter().flatten().for_each(|part| data.push(part));
            data.truncate(length);
            Ok(data)
        };
        lengths.into_iter().zip(slots).map(collect).collect()
    }

    /// As [`Catena::read_batch`], into the caller's memory: one copy. Returns for each item how many bytes there were.
    pub async fn read_into(&self, items: &mut [ReadInto<'_>]) -> Vec<Result<usize>> {
        let mut ranges = Vec::with_capacity(items.len());
        let mut targets = Vec::with_capacity(items.len());
        for item in items {
            ranges.push(ReadRequest { file: item.file, offset: item.offset, length: item.to.len() });
            targets.push(&mut *item.to);
        }
        let put = |item: usize, _part: usize, piece: &Piece, out: Option<ReadOut>| {
            let to = &mut targets[item][piece.at as usize..][..piece.length as usize];
            let found = out.as_ref().map_or(0, |out| out.data.len());
            if let Some(out) = out {
                to[..found].copy_from_slice(&out.data);
            }
            to[found..].fill(0);
        };
        self.read_ranges(&ranges, from_pool, put).await
    }

    /// Reads ranges, into the buffers that `into` has for their pieces, and hands over every piece as it comes: (range, number of the piece
    /// in it, the piece, what was found).
    pub(crate) async fn read_ranges(
        &self,
        ranges: &[ReadRequest<'_>],
        mut into: impl FnMut(&Piece) -> Result<Option<IoBuf>>,
        mut put: impl FnMut(usize, usize, &Piece, Option<ReadOut>),
    ) -> Vec<Result<usize>> {
        let start = Instant::now();
        let mut lengths = Vec::with_capacity(ranges.len());
        let mut parts: Vec<Part> = Vec::with_capacity(ranges.len());
        for (item, &ReadRequest { file, offset, length }) in ranges.iter().enumerate() {
            let clipped = clip(file, offset, length).await;
            let cut = clipped.and_then(|length| {
                // Nothing is there to be read behind the longest possible file either.
                let from = if length == 0 { 0 } else { offset };
                let pieces = file.layout().pieces(from, length as u64);
                let whole = parts.len();
                for piece in pieces.map_err(|_| file.too_long("read", offset))? {
                    let (chain, chunk) = file.chunk(piece.index);
                    let into = into(&piece).inspect_err(|_| parts.truncate(whole))?;
                    let op = ReadOp { chain, chunk, offset: piece.offset, length: piece.length, into };
                    parts.push(Part { item, piece, op });
                }
                Ok(length)
            });
            lengths.push(cut);
        }
        // Which piece of its item each part is.
        let (mut last, mut number) = (usize::MAX, 0);
        let mut numbers = Vec::with_capacity(parts.len());
        let mut holes = vec![false; ranges.len()];
        let mut windows: Vec<Vec<(usize, Piece, ReadOp)>> = Vec::new();
        let mut filled = WINDOW;
        for (index, part) in parts.into_iter().enumerate() {
            number = if part.item == last { number + 1 } else { 0 };
            last = part.item;
            numbers.push((part.item, number));
            let length = part.piece.length as usize;
            if filled + length > WINDOW || windows.last().is_none_or(|window| window.len() >= MAX_ITEMS) {
                windows.push(Vec::new());
                filled = 0;
            }
            filled += length;
            if let Some(window) = windows.last_mut() {
                window.push((index, part.piece, part.op));
            }
        }
        let mut deliver = |index: usize, piece: &Piece, found: Found| {
            let (item, number) = numbers[index];
            match found {
                Ok(out) => {
                    let there = out.as_ref().map_or(0, |out| out.data.len());
                    holes[item] |= there < piece.length as usize;
                    if lengths[item].is_ok() {
                        put(item, number, piece, out);
                    }
                }
                Err(error) => {
                    if lengths[item].is_ok() {
                        lengths[item] = Err(Error::from_storage("read", ranges[item].file.path(), &error));
                    }
                }
            }
        };
        if windows.len() == 1 {
            for (index, piece, found) in self.read_window(windows.remove(0)).await {
                deliver(index, &piece, found);
            }
        } else {
            let mut running = stream::iter(windows.into_iter().map(|window| self.read_window(window)))
                .buffer_unordered(WINDOWS);
            while let Some(window) = running.next().await {
                for (index, piece, found) in window {
                    deliver(index, &piece, found);
                }
            }
        }
        for (item, &ReadRequest { file, offset, .. }) in ranges.iter().enumerate() {
            if holes[item] && lengths[item].is_ok() {
                lengths[item] = after_hole(file, offset, std::mem::replace(&mut lengths[item], Ok(0))).await;
            }
        }
        let metrics = &self.shared.metrics;
        add(&metrics.reads, ranges.len() as u64);
        add(&metrics.read_bytes, lengths.iter().flatten().map(|&length| length as u64).sum());
        metrics.read_latency.record(start.elapsed());
        lengths
    }

    async fn read_window(&self, window: Vec<(usize, Piece, ReadOp)>) -> Vec<(usize, Piece, Found)> {
        let bytes = window.iter().map(|(_, piece, _)| (piece.length as usize).next_multiple_of(4096)).sum();
        let _room = self.room(bytes).await;
        let mut places = Vec::with_capacity(window.len());
        let mut ops = Vec::with_capacity(window.len());
        for (index, piece, op) in window {
            places.push((index, piece));
            ops.push(op);
        }
        let outcomes = self.storage().read(ops, self.deadline()).await;
        let found = |outcome| match outcome {
            Ok(out) => Ok(Some(out)),
            Err(StorageError { status: Status::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        };
        places
            .into_iter()
            .zip(outcomes)
            .map(|((index, piece), outcome)| (index, piece, found(outcome)))
            .collect()
    }
}

/// How much of a range lies within the file.
async fn clip(file: &File, offset: u64, length: usize) -> Result<usize> {
    file.check_read("read")?;
    if length == 0 {
        return Ok(0);
    }
    let end = offset.saturating_add(length as u64);
    if end > file.known_len() {
        file.refresh("read").await?;
    }
    Ok(within(file, offset, length))
}

fn within(file: &File, offset: u64, length: usize) -> usize {
    let there = file.known_len().saturating_sub(offset);
    usize::try_from(there).unwrap_or(usize::MAX).min(length)
}

/// The length of a range in which there was a hole: perhaps the file was cut.
async fn after_hole(file: &File, offset: u64, length: Result<usize>) -> Result<usize> {
    let length = length?;
    if !file.length().is_fresh() {
        file.refresh("read").await?;
    }
    Ok(within(file, offset, length))
}

/// Zeros that take no place in the pool, all views of the same few MiB.
fn zeros(length: usize) -> Buf {
    static ZEROS: std::sync::OnceLock<Arc<Buf>> = std::sync::OnceLock::new();
    ZEROS.get_or_init(|| Arc::new(Buf::from_vec(vec![0; MAX_IO as usize]))).slice(0..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_cut_at_any_byte() {
        let mut whole = Data::default();
        for part in [&b"abc"[..], b"", b"de", b"f"] {
            whole.push(Buf::from_vec(part.to_vec()));
        }
        assert_eq!((whole.len(), whole.parts().len()), (6, 3));
        for length in 0..=7 {
            let mut data = whole.clone();
            data.truncate(length);
            assert_eq!(data.to_vec(), b"abcdef"[..length.min(6)]);
            assert_eq!(data.len(), length.min(6));
        }
    }
}
