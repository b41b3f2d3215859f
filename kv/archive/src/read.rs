//! A file's bytes into records. What is read is checked before it is given out; whether it is all there is known at the end.

use std::io::{self, ErrorKind, Read};

use bytes::Bytes;
use catena_kv::KeyValue;

use crate::format::{self, Flaw, Footer, HEADER, Header, PREAMBLE, Part, Preamble};
use crate::tally::Tally;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system's reason.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its bytes are not what a backup's are.
    #[error(transparent)]
    Flaw(#[from] Flaw),
}

/// A file that is being read.
pub struct Reader<R> {
    input: R,
    header: Header,
    tally: Tally,
    blocks: u64,
    checksum: u32,
    /// Bytes read so far.
    at: u64,
    done: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(mut input: R) -> Result<Reader<R>, ReadError> {
        let mut bytes = [0; HEADER];
        let got = read_full(&mut input, &mut bytes)?;
        if got < HEADER {
            // Its beginning says whether there was ever more.
            let magic = got.min(8);
            let ours = magic > 0 && bytes[..magic] == Header::magic()[..magic];
            return Err(if ours { Flaw::Truncated(got as u64) } else { Flaw::Foreign }.into());
        }
        let header = Header::decode(&bytes)?;
        let checksum = crc32c::crc32c(&bytes);
        let at = HEADER as u64;
        Ok(Reader { input, header, tally: Tally::default(), blocks: 0, checksum, at, done: false })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How far it was read, in bytes.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// What was read so far; after the last block, what the file has.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The next block's records; nothing once the whole file was read and found to be as it was written.
    pub fn next_block(&mut self) -> Result<Option<Vec<KeyValue>>, ReadError> {
        if self.done {
            return Ok(None);
        }
        let begin = self.at;
        let mut bytes = [0; PREAMBLE];
        self.fill(&mut bytes)?;
        let preamble = Preamble::decode(&bytes, begin)?;
        let mut body = vec![0; preamble.length];
        self.fill(&mut body)?;
        preamble.check(&body, begin)?;
        match preamble.part {
            Part::Block => {
                self.checksum = crc32c::crc32c_append(crc32c::crc32c_append(self.checksum, &bytes), &body);
                self.blocks += 1;
                let records = format::records(Bytes::from(body), preamble.count, begin)?;
                records.iter().for_each(|record| self.tally.add(&record.key, &record.value));
                Ok(Some(records))
            }
            Part::Footer => {
                let found = Footer { tally: self.tally.clone(), blocks: self.blocks, file: self.checksum };
                if Footer::decode(&body, preamble.count, begin)? != found {
                    let what = "the footer does not describe what is before it";
                    return Err(Flaw::Damaged { at: begin, what }.into());
                }
                if read_full(&mut self.input, &mut [0])? != 0 {
                    return Err(Flaw::Damaged { at: self.at, what: "something follows the footer" }.into());
                }
                self.done = true;
                Ok(None)
            }
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ReadError> {
        let got = read_full(&mut self.input, bytes)?;
        self.at += got as u64;
        match got == bytes.len() {
            true => Ok(()),
            false => Err(Flaw::Truncated(self.at).into()),
        }
    }
}

/// Reads until `bytes` are full or the input ends.
fn read_full(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < bytes.len() {
        match input.read(&mut bytes[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
