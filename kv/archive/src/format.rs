//! The file's bytes, as `docs/format-backup.md` draws them: header, blocks of records, footer. No I/O here.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use catena_kv::{KEY_LIMIT, KeyValue, USER_KEY_END, VALUE_LIMIT};
use catena_proto::ids::ClusterId;

use crate::tally::{Count, Kind, Tally};

const MAGIC: &[u8; 8] = b"CATKVBAK";
/// The format that this program writes, and the only one that it reads.
pub const FORMAT: u32 = 1;
/// A header, in bytes.
pub(crate) const HEADER: usize = 64;
/// What a block and the footer begin with: tag, checksum, length, count.
pub(crate) const PREAMBLE: usize = 16;
/// A block is closed once its records reach this many bytes: one is written in one transaction, of which half a megabyte suits
/// every backend.
pub(crate) const BLOCK_TARGET: usize = 256 << 10;
/// A longer block is damage. (A block may exceed the target by one record.)
pub(crate) const BLOCK_LIMIT: usize = 1 << 20;
const RELEASE: usize = 16;
const BLOCK: &[u8; 4] = b"BLCK";
const FOOTER: &[u8; 4] = b"FOOT";
/// The footer without its kinds, after the preamble.
const FOOTER_FIXED: usize = 48;
const FOOTER_KIND: usize = 20;
/// More kinds are not told apart.
pub(crate) const KINDS_LIMIT: usize = 4096;

/// What a file begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The cluster whose state it is.
    pub cluster: ClusterId,
    /// The version that all of it was read at; nothing if it was read from stores that nobody wrote to.
    pub read_version: Option<u64>,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// The release that made it, for people: up to 16 bytes.
    pub release: String,
}

/// What is wrong with a file's bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flaw {
    /// It begins with something else.
    #[error("this is not a backup of a Catena key-value store")]
    Foreign,
    /// It is of another release.
    #[error("format {0}, this program reads format {FORMAT}: use the release that made it")]
    Format(u32),
    /// It ends too early.
    #[error(
        "it ends in the middle, at byte {0}: the copy is incomplete, take it again from where it was made"
    )]
    Truncated(u64),
    /// What is there was changed.
    #[error("damaged at byte {at}: {what}; take another copy of it, or an older backup")]
    Damaged {
        /// Where the damaged part begins.
        at: u64,
        /// What does not fit.
        what: &'static str,
    },
}

/// What follows a preamble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Block,
    Footer,
}

/// A block's or the footer's first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Preamble {
    pub part: Part,
    pub checksum: u32,
    /// Bytes that follow.
    pub length: usize,
    /// Records, or kinds.
    pub count: u32,
}

/// The last part of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Footer {
    pub tally: Tally,
    pub blocks: u64,
    /// CRC32C of everything before the footer.
    pub file: u32,
}

impl Header {
    pub(crate) fn magic() -> &'static [u8; 8] {
        MAGIC
    }

    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.cluster.0.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.read_version.unwrap_or(0).to_le_bytes());
        bytes[40..48].copy_from_slice(&self.made.to_le_bytes());
        let release = self.release.as_bytes();
        let length = release.len().min(RELEASE);
        bytes[48..48 + length].copy_from_slice(&release[..length]);
        let checksum = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Header, Flaw> {
        if !bytes.starts_with(MAGIC) {
            return Err(Flaw::Foreign);
        }
        let mut rest = &bytes[8..];
        let format = rest.get_u32_le();
        if format != FORMAT {
            return Err(Flaw::Format(format));
        }
        if rest.get_u32_le() != crc32c::crc32c(&bytes[16..]) {
            return Err(Flaw::Damaged { at: 0, what: "the header's checksum" });
        }
        let cluster = ClusterId(rest.get_u128());
        let read_version = Some(rest.get_u64_le()).filter(|&version| version != 0);
        let made = rest.get_u64_le();
        let release = rest.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(Header { cluster, read_version, made, release: String::from_utf8_lossy(release).into_owned() })
    }
}

/// Appends a record to a block that [`seal`] will close. Keys and values are within the key-value layer's limits.
pub(crate) fn push(block: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    debug_assert!(key.len() <= KEY_LIMIT && value.len() <= VALUE_LIMIT);
    block.extend_from_slice(&(key.len() as u16).to_le_bytes());
    block.extend_from_slice(&(value.len() as u32).to_le_bytes());
    block.extend_from_slice(key);
    block.extend_from_slice(value);
}

/// Room for the preamble, which [`seal`] fills in.
pub(crate) fn begin() -> Vec<u8> {
    vec![0; PREAMBLE]
}

/// Writes the preamble over the room in front.
pub(crate) fn seal(bytes: &mut [u8], part: Part, count: u32) {
    let length = (bytes.len() - PREAMBLE) as u32;
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..16].copy_from_slice(&count.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    bytes[..4].copy_from_slice(match part {
        Part::Block => BLOCK,
        Part::Footer => FOOTER,
    });
}

impl Preamble {
    /// The part that begins at byte `at` of the file.
    pub(crate) fn decode(bytes: &[u8; PREAMBLE], at: u64) -> Result<Preamble, Flaw> {
        let mut rest = &bytes[4..];
        let (checksum, length, count) = (rest.get_u32_le(), rest.get_u32_le() as usize, rest.get_u32_le());
        let (part, limit) = match &bytes[..4] {
            tag if tag == BLOCK => (Part::Block, BLOCK_LIMIT),
            tag if tag == FOOTER => (Part::Footer, FOOTER_FIXED + KINDS_LIMIT * FOOTER_KIND),
            _ => return Err(Flaw::Damaged { at, what: "neither a block nor the footer begins here" }),
        };
        if length > limit {
            return Err(Flaw::Damaged { at, what: "a length that cannot be" });
        }
        Ok(Preamble { part, checksum, length, count })
    }

    /// Whether `body` is what was written.
    pub(crate) fn check(&self, body: &[u8], at: u64) -> Result<(), Flaw> {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&(self.length as u32).to_le_bytes());
        head[4..].copy_from_slice(&self.count.to_le_bytes());
        match crc32c::crc32c_append(crc32c::crc32c(&head), body) == self.checksum {
            true => Ok(()),
            false => Err(Flaw::Damaged { at, what: "a checksum" }),
        }
    }
}

/// The records of a block whose checksum is right. They are checked all the same: what they say goes into a store.
pub(crate) fn records(mut body: Bytes, count: u32, at: u64) -> Result<Vec<KeyValue>, Flaw> {
    let damaged = |what| Flaw::Damaged { at, what };
    let mut records = Vec::with_capacity((count as usize).min(body.len() / 6));
    while !body.is_empty() {
        if body.len() < 6 {
            return Err(damaged("a record that does not fit into its block"));
        }
        let (key, value) = (body.get_u16_le() as usize, body.get_u32_le() as usize);
        if key > KEY_LIMIT || value > VALUE_LIMIT || key + value > body.len() {
            return Err(damaged("a record that does not fit into its block"));
        }
        let key = body.split_to(key);
        if key >= USER_KEY_END {
            return Err(damaged("a key that no store has"));
        }
        records.push(KeyValue { key, value: body.split_to(value) });
    }
    match records.len() == count as usize {
        true => Ok(records),
        false => Err(damaged("another number of records than the block says")),
    }
}

impl Footer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = begin();
        bytes.extend_from_slice(&self.file.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for number in [self.blocks, self.tally.records, self.tally.bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.tally.digest.to_le_bytes());
        for (kind, count) in &self.tally.kinds {
            bytes.extend_from_slice(&kind.0);
            bytes.extend_from_slice(&count.records.to_le_bytes());
            bytes.extend_from_slice(&count.bytes.to_le_bytes());
        }
        seal(&mut bytes, Part::Footer, self.tally.kinds.len() as u32);
        bytes
    }

    pub(crate) fn decode(mut body: &[u8], count: u32, at: u64) -> Result<Footer, Flaw> {
        if body.len() != FOOTER_FIXED + count as usize * FOOTER_KIND {
            return Err(Flaw::Damaged { at, what: "the footer's length" });
        }
        let file = body.get_u32_le();
        body.advance(4);
        let blocks = body.get_u64_le();
        let (records, bytes, digest) = (body.get_u64_le(), body.get_u64_le(), body.get_u128_le());
        let mut kinds = BTreeMap::new();
        while body.has_remaining() {
            let mut kind = Kind::default();
            body.copy_to_slice(&mut kind.0);
            kinds.insert(kind, Count { records: body.get_u64_le(), bytes: body.get_u64_le() });
        }
        Ok(Footer { tally: Tally { records, bytes, digest, kinds }, blocks, file })
    }
}
