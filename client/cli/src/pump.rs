//! Moving generated contents into files and back, many blocks at once: what `demo` and `bench` measure.

use std::future::Future;
use std::time::{Duration, Instant};

use catena_client::{Buf, Data, File};
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt};

use crate::cmd::bench::stats::Tally;
use crate::content::Content;
use crate::exit::{Exit, Failure, Result};

/// The largest buffer of the client's pool.
const BUFFER: usize = 4 << 20;

/// An operation that is done.
pub struct Done {
    /// How long it took.
    pub time: Duration,
    /// How many operations it counts for.
    pub ops: u64,
    /// The bytes that it moved.
    pub bytes: u64,
}

/// Runs `operation` on what `next` gives, `depth` at once, until there is nothing more or one fails.
pub async fn drive<T, F>(
    depth: usize,
    next: impl FnMut() -> Option<T>,
    operation: impl Fn(T) -> F,
    mut progress: impl FnMut(u64),
) -> Result<Tally>
where
    F: Future<Output = Result<Done>>,
{
    let mut tally = Tally::new();
    let mut running = stream::iter(std::iter::from_fn(next)).map(operation).buffer_unordered(depth.max(1));
    while let Some(done) = running.next().await {
        let done = done?;
        tally.record(done.time, done.ops, done.bytes);
        progress(done.bytes);
    }
    Ok(tally)
}

/// What is written.
#[derive(Clone)]
pub enum Source {
    /// Contents that depend on the place, so that they can be checked.
    Checked(Content),
    /// The same buffers again and again: nothing is measured but the writing.
    Same(Vec<Buf>),
}

impl Source {
    /// Buffers for blocks of `length` bytes.
    pub async fn same(file: &File, length: usize) -> Result<Source> {
        Ok(Source::Same(filled(file, &Content::new(0), 0, length).await?))
    }

    async fn block(&self, file: &File, offset: u64, length: usize) -> Result<Vec<Buf>> {
        match self {
            Source::Checked(content) => filled(file, content, offset, length).await,
            Source::Same(buffers) => {
                let mut left = length;
                let cut = buffers.iter().map(|buffer| {
                    let part = buffer.slice(0..buffer.len().min(left));
                    left -= part.len();
                    part
                });
                Ok(cut.filter(|part| !part.is_empty()).collect())
            }
        }
    }
}

async fn filled(file: &File, content: &Content, offset: u64, length: usize) -> Result<Vec<Buf>> {
    let mut buffers = Vec::with_capacity(length.div_ceil(BUFFER));
    for start in (0..length).step_by(BUFFER) {
        let mut buffer = file.catena().alloc_buf(BUFFER.min(length - start)).await?;
        content.fill(offset + start as u64, &mut buffer);
        buffers.push(buffer.freeze());
    }
    Ok(buffers)
}

/// Writes a block.
pub async fn write_block(file: &File, source: &Source, offset: u64, length: usize) -> Result<Done> {
    let buffers = source.block(file, offset, length).await?;
    let start = Instant::now();
    let mut at = offset;
    let writes = buffers.into_iter().map(|buffer| {
        let offset = at;
        at += buffer.len() as u64;
        file.write_buf_at(offset, buffer)
    });
    try_join_all(writes).await?;
    Ok(Done { time: start.elapsed(), ops: 1, bytes: length as u64 })
}

/// Reads a block, and checks it if `content` says what it should be.
pub async fn read_block(file: &File, content: Option<&Content>, offset: u64, length: usize) -> Result<Done> {
    let start = Instant::now();
    let data = file.read_buf_at(offset, length).await?;
    let time = start.elapsed();
    check(file, content, offset, length, &data)?;
    Ok(Done { time, ops: 1, bytes: length as u64 })
}

/// Compares what was read with what should be there.
pub fn check(file: &File, content: Option<&Content>, offset: u64, length: usize, data: &Data) -> Result<()> {
    let wrong = |at: u64, what: &str| {
        Failure::new(Exit::Corrupt, format!("{}: {what} at byte {at}", file.path()))
            .hint("this is a bug of Catena or broken hardware: please report it with the services' logs")
    };
    if data.len() != length {
        return Err(wrong(offset + data.len() as u64, "the file ends early:"));
    }
    let Some(content) = content else { return Ok(()) };
    let mut at = offset;
    for part in data.parts() {
        if let Some(difference) = content.first_difference(at, part) {
            return Err(wrong(at + difference as u64, "what was read is not what was written:"));
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// Blocks of a range, in order.
pub fn blocks(range: std::ops::Range<u64>, block: usize) -> impl FnMut() -> Option<(u64, usize)> {
    let mut at = range.start;
    move || {
        let length = (range.end.saturating_sub(at)).min(block as u64) as usize;
        let offset = at;
        at += length as u64;
        (length > 0).then_some((offset, length))
    }
}

/// One task's blocks of a file that several tasks go through together: every `step`-th, so that together they go in order.
#[derive(Clone, Copy, Debug)]
pub struct Stride {
    /// The task's number, from 0.
    pub first: u64,
    /// Tasks in all.
    pub step: u64,
    /// The end of the file.
    pub end: u64,
}

/// The blocks of a stride, in order.
pub fn strided(stride: Stride, block: usize) -> impl FnMut() -> Option<(u64, usize)> {
    let block = block as u64;
    let mut at = stride.first * block;
    move || {
        let length = stride.end.saturating_sub(at).min(block) as usize;
        let offset = at;
        at += stride.step * block;
        (length > 0).then_some((offset, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_range_once() {
        let mut next = blocks(10..35, 10);
        let all: Vec<_> = std::iter::from_fn(&mut next).collect();
        assert_eq!(all, [(10, 10), (20, 10), (30, 5)]);
        assert_eq!(blocks(5..5, 10)(), None);
    }

    #[test]
    fn strides_cover_a_file_once() {
        let mut all: Vec<_> = (0..3)
            .flat_map(|first| std::iter::from_fn(strided(Stride { first, step: 3, end: 95 }, 10)))
            .collect();
        all.sort();
        assert_eq!(all, (0..10).map(|n| (n * 10, if n == 9 { 5 } else { 10 })).collect::<Vec<_>>());
    }
}
