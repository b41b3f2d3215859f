//! Records into a file's bytes.

use std::io::{self, Write};

use crate::format::{self, BLOCK_TARGET, Footer, Header, PREAMBLE, Part};
use crate::tally::Tally;

/// A file that is being written.
pub struct Writer<W> {
    out: W,
    block: Vec<u8>,
    count: u32,
    footer: Footer,
    /// Bytes written so far.
    length: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(out: W, header: &Header) -> io::Result<Writer<W>> {
        let footer = Footer { tally: Tally::default(), blocks: 0, file: 0 };
        let mut writer = Writer { out, block: format::begin(), count: 0, footer, length: 0 };
        writer.put(&header.encode())?;
        Ok(writer)
    }

    /// Adds a record.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.footer.tally.add(key, value);
        format::push(&mut self.block, key, value);
        self.count += 1;
        match self.block.len() - PREAMBLE >= BLOCK_TARGET {
            true => self.close_block(),
            false => Ok(()),
        }
    }

    /// What was added so far.
    pub fn tally(&self) -> &Tally {
        &self.footer.tally
    }

    /// Writes the footer. Gives back where it was written to, what is in it and its length.
    pub fn finish(mut self) -> io::Result<(W, Tally, u64)> {
        if self.count > 0 {
            self.close_block()?;
        }
        let footer = self.footer.encode();
        self.put(&footer)?;
        self.out.flush()?;
        Ok((self.out, self.footer.tally, self.length))
    }

    fn close_block(&mut self) -> io::Result<()> {
        let mut block = std::mem::replace(&mut self.block, format::begin());
        format::seal(&mut block, Part::Block, self.count);
        self.count = 0;
        self.footer.blocks += 1;
        self.put(&block)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.footer.file = crc32c::crc32c_append(self.footer.file, bytes);
        self.length += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}
