//! Files as streams: a writer that has several chunks on their way while the next one fills, and a reader that reads ahead.

use std::collections::VecDeque;
use std::sync::Arc;

use catena_buf::IoBuf;
use catena_proto::checksum as pieces;
use catena_proto::layout::{MAX_IO, Piece};
use catena_proto::status::Status;
use catena_rt::{JoinError, JoinHandle, JoinSet};
use catena_storage_client::{ReadOp, ReadOut};
use parking_lot::Mutex;

use crate::checksum::{self, Manifest};
use crate::error::{Error, Result};
use crate::file::File;

/// A part of a file that is moved at once: it ends with its chunk, or at a multiple of 4 MiB in a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub offset: u64,
    pub length: u32,
}

impl File {
    /// Bytes of a whole step.
    pub(crate) fn step_size(&self) -> u32 {
        self.layout().chunk_size.min(MAX_IO)
    }

    /// The step that begins at `offset`, at most `length` long.
    pub(crate) fn step_at(&self, offset: u64, length: u64) -> Step {
        let size = u64::from(self.step_size());
        Step { offset, length: (size - offset % size).min(length) as u32 }
    }

    /// Steps that a transfer has on their way at once.
    pub(crate) fn steps_at_once(&self) -> usize {
        (self.catena().room_bytes() / 2 / self.step_size() as usize).clamp(2, 32)
    }

    /// Writes one step and returns its checksum.
    pub(crate) async fn write_step(&self, offset: u64, data: IoBuf) -> Result<u32> {
        let in_chunk = (offset % u64::from(self.layout().chunk_size)) as u32;
        let checksums = pieces::piece_checksums(in_chunk, &data);
        let crc = match in_chunk as usize % pieces::BLOCK {
            0 => checksum::of_pieces(&checksums, data.len()),
            _ => pieces::crc32c(&data),
        };
        self.write_checked(offset, data.freeze(), checksums).await?;
        Ok(crc)
    }

    /// Reads one step; nothing is a hole. Short data ends in one.
    pub(crate) async fn read_step(&self, step: Step) -> Result<Option<ReadOut>> {
        let layout = self.layout();
        let piece =
            layout.pieces(step.offset, u64::from(step.length)).ok().and_then(|mut found| found.next());
        let Some(Piece { index, offset, length, .. }) = piece else {
            return Err(self.too_long("read", step.offset));
        };
        let (chain, chunk) = self.chunk(index);
        let _room = self.catena().room(length as usize).await;
        let op = ReadOp { chain, chunk, offset, length, into: None };
        let outcome = self.catena().storage().read(vec![op], self.catena().deadline()).await.pop();
        match outcome.expect("one outcome an item") {
            Ok(out) => Ok(Some(out)),
            Err(error) if error.status == Status::NotFound => Ok(None),
            Err(error) => Err(Error::from_storage("read", self.path(), &error)),
        }
    }

    /// Writes a stream from `offset` on.
    pub fn writer(&self, offset: u64) -> Writer {
        Writer {
            file: self.clone(),
            offset,
            start: offset,
            current: None,
            running: JoinSet::new(),
            manifest: Arc::default(),
        }
    }

    /// Reads a stream from `offset` to the end that is known when it gets there.
    pub fn reader(&self, offset: u64) -> Reader {
        Reader { file: self.clone(), next: offset, end: None, ahead: VecDeque::new() }
    }
}

/// Writes a stream of bytes to a file, chunk by chunk, several at once. [`Writer::finish`] waits for them all; a writer that is only
/// dropped gives up what is under way.
///
/// ```no_run
/// # async fn example(catena: catena_client::Catena) -> catena_client::Result<()> {
/// let file = catena.create("/log").await?;
/// let mut writer = file.writer(0);
/// for line in 0..1_000_000 {
///     writer.write(format!("line {line}\n").as_bytes()).await?;
/// }
/// let length = writer.finish().await?;
/// file.close().await
/// # }
/// ```
pub struct Writer {
    file: File,
    start: u64,
    offset: u64,
    /// The buffer being filled and how far it is.
    current: Option<(IoBuf, usize)>,
    running: JoinSet<Result<()>>,
    pub(crate) manifest: Arc<Mutex<Manifest>>,
}

impl Writer {
    /// Goes on with these bytes. An error may be about bytes that were written before.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let space = self.space().await?;
            let part = bytes.len().min(space.len());
            space[..part].copy_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            self.advance(part).await?;
        }
        Ok(())
    }

    /// Room for the bytes to come, never empty: fill some of it, then say how much with [`Writer::advance`]. Saves a copy.
    pub async fn space(&mut self) -> Result<&mut [u8]> {
        if self.current.is_none() {
            let step = self.file.step_at(self.offset, u64::from(MAX_IO));
            let buf = self.file.catena().alloc_buf(step.length as usize).await?;
            self.current = Some((buf, 0));
        }
        let (buf, filled) = self.current.as_mut().expect("it was just made");
        Ok(&mut buf[*filled..])
    }

    /// `bytes` of [`Writer::space`] were filled.
    ///
    /// # Panics
    /// If that is more than there was room for.
    pub async fn advance(&mut self, bytes: usize) -> Result<()> {
        let Some((buf, filled)) = &mut self.current else {
            assert!(bytes == 0, "no room was asked for");
            return Ok(());
        };
        *filled += bytes;
        assert!(*filled <= buf.len(), "more than there was room for");
        if *filled == buf.len() { self.send().await } else { Ok(()) }
    }

    /// Goes on with a buffer of at most 4 MiB: without a copy where it begins and ends with a step.
    pub(crate) async fn put(&mut self, buf: IoBuf) -> Result<()> {
        let step = self.file.step_at(self.offset, u64::from(MAX_IO));
        if self.current.is_some() || buf.len() > step.length as usize {
            return self.write(&buf).await;
        }
        let filled = buf.len();
        self.current = Some((buf, filled));
        self.send().await
    }

    /// Waits until everything is durable. Returns the number of bytes written. The file's length is settled by [`File::sync`] or
    /// [`File::close`].
    pub async fn finish(mut self) -> Result<u64> {
        self.flush().await?;
        Ok(self.offset - self.start)
    }

    /// Waits until everything so far is durable.
    pub async fn flush(&mut self) -> Result<()> {
        self.send().await?;
        while let Some(outcome) = self.running.join_next().await {
            landed(outcome)?;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<()> {
        while self.running.len() >= self.file.steps_at_once() {
            if let Some(outcome) = self.running.join_next().await {
                landed(outcome)?;
            }
        }
        let Some((mut buf, filled)) = self.current.take().filter(|(_, filled)| *filled > 0) else {
            return Ok(());
        };
        buf.set_len(filled);
        let (file, offset, manifest) = (self.file.clone(), self.offset, self.manifest.clone());
        self.offset += filled as u64;
        self.running.spawn(async move {
            let crc = file.write_step(offset, buf).await?;
            manifest.lock().add(offset, filled as u32, crc);
            Ok(())
        });
        Ok(())
    }
}

/// The outcome of a task; a panic in it is one here.
pub(crate) fn landed<T>(outcome: Result<Result<T>, JoinError>) -> Result<T> {
    match outcome {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::new("transfer", "(task)", Status::ShuttingDown, "the runtime is shutting down")),
    }
}

/// A part of a stream that was read.
#[derive(Debug)]
pub struct Chunk {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// The CRC32C of all of it, zeros included.
    pub crc: u32,
    data: Option<IoBuf>,
}

impl Chunk {
    /// The stored bytes; the rest of `length` is zeros (a hole).
    pub fn data(&self) -> &[u8] {
        self.data.as_deref().unwrap_or_default()
    }

    /// Zeros behind the data.
    pub fn zeros(&self) -> usize {
        self.length as usize - self.data().len()
    }

    pub(crate) fn new(step: Step, out: Option<ReadOut>) -> Chunk {
        let (crc, data) = match out {
            None => (0, None),
            // Within a block, the pieces' checksums are of parts of blocks.
            Some(out) if !step.offset.is_multiple_of(pieces::BLOCK as u64) => {
                (pieces::crc32c(&out.data), Some(out.data))
            }
            Some(out) => (checksum::of_pieces(&out.checksums, out.data.len()), Some(out.data)),
        };
        let there = data.as_ref().map_or(0, |data| data.len());
        let crc = checksum::append_zeros(crc, u64::from(step.length) - there as u64);
        Chunk { offset: step.offset, length: step.length, crc, data }
    }
}

/// Reads a file as a stream, several chunks ahead. Bytes are in pool buffers; drop each [`Chunk`] before long.
pub struct Reader {
    file: File,
    next: u64,
    end: Option<u64>,
    ahead: VecDeque<JoinHandle<Result<Chunk>>>,
}

impl Reader {
    /// The next part; none at the end of the file.
    pub async fn next(&mut self) -> Result<Option<Chunk>> {
        self.fill();
        if self.ahead.is_empty() {
            // The known end: perhaps the file has grown.
            self.end = Some(self.file.len().await?);
            self.fill();
        }
        let Some(first) = self.ahead.front_mut() else { return Ok(None) };
        let outcome = first.await;
        self.ahead.pop_front();
        landed(outcome).map(Some)
    }

    fn fill(&mut self) {
        let end = self.end.unwrap_or_else(|| self.file.known_len());
        while self.next < end && self.ahead.len() < self.file.steps_at_once() {
            let step = self.file.step_at(self.next, end - self.next);
            let file = self.file.clone();
            self.ahead.push_back(catena_rt::spawn(async move {
                let out = file.read_step(step).await?;
                Ok(Chunk::new(step, out))
            }));
            self.next += u64::from(step.length);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.ahead.iter().for_each(JoinHandle::abort);
    }
}
