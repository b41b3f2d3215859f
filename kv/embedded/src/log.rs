//! The commit log: what makes a group of commits durable, with one write and one fdatasync.
//!
//! Why not fjall's journal alone: after a power cut fjall refuses to open at a batch that is whole and wrong, and takes one that ends
//! early for the end, whatever was behind it. The log tells a torn end from damage, and its versions show a loss. It also overwrites
//! zeros or older records in place, where a journal that grows commits file system metadata with each sync (a gain of 1.4 to 1.5 at
//! the median where measured, and next to none on a disk that is busy anyway). fjall's journal is synced only now and then
//! ([`Log::is_full`]); at open, what fjall lacks is replayed from here.
//!
//! Two segments, `log.0` and `log.1`, take turns; little-endian:
//!
//! ```text
//! header, 512 bytes:     0         8       12      16                 24
//!                        | magic   | format| crc   | salt             | zeros
//!                        | CATKVLOG| 1     |       | of this store    |
//! then records, each at a multiple of 512:
//!                        0       4       8         16        24       28
//!                        | magic | crc   | version | length  | count  | entries ...
//!                        | CKVR  |       | 8 bytes | 8 bytes | 4 bytes| length bytes
//! entry:                 | key length 2 | value length 4, ffffffff: absent | key | value |
//! ```
//!
//! - A record begins in a sector of its own, so a sector with acknowledged bytes is not written again before its turn ends.
//! - crc is CRC32C of the salt and what follows the crc up to the last entry. A key or value that a user made up to look like a record
//!   does not know the salt.
//! - Versions of one segment's records follow each other without a gap; the first that does not is a remnant of an earlier turn. One
//!   record is synced before the next is written, so only the last can be torn: a good record with a later version than the last of
//!   the run means that something before it was damaged.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use catena_kv::local::Effects;

use crate::directory::FORMAT;

const SECTOR: u64 = 512;
/// A segment's file begins with this much...
const START: u64 = 64 << 10;
/// ...and grows by itself or by this much, in zeros: the only syncs that commit metadata.
const GROWTH: u64 = 1 << 20;
const SEGMENT_MAGIC: &[u8; 8] = b"CATKVLOG";
const RECORD_MAGIC: &[u8; 4] = b"CKVR";
const RECORD_HEADER: usize = 28;
const ABSENT: u32 = u32::MAX;

/// The log, open for appending.
pub(crate) struct Log {
    salt: u64,
    segments: [Segment; 2],
    active: usize,
    /// Where the next record goes in the active segment.
    position: u64,
    /// A segment takes no more records from here on; one large record may reach beyond.
    size: u64,
    buffer: Vec<u8>,
}

struct Segment {
    file: File,
    /// How much of the file is written, if only with zeros.
    written: u64,
}

/// A record found at open.
struct Record {
    version: u64,
    segment: usize,
    entries: Range<usize>,
    count: u32,
}

/// What was found at open: records with consecutive versions.
pub(crate) struct Found {
    contents: [Vec<u8>; 2],
    records: Vec<Record>,
}

/// Why a log could not be opened.
pub(crate) enum LogError {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> LogError {
        LogError::Io(error)
    }
}

fn name(segment: usize) -> String {
    format!("log.{segment}")
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn salted(salt: u64) -> u32 {
    crc32c::crc32c(&salt.to_le_bytes())
}

/// Writes both segments of a new, empty log.
pub(crate) fn create(directory: &Path, salt: u64) -> io::Result<()> {
    let mut header = vec![0; START as usize];
    header[..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..16].copy_from_slice(&salted(salt).to_le_bytes());
    header[16..24].copy_from_slice(&salt.to_le_bytes());
    for segment in 0..2 {
        let file = OpenOptions::new().write(true).create_new(true).open(directory.join(name(segment)))?;
        file.write_all_at(&header, 0)?;
        file.sync_all()?;
    }
    Ok(())
}

impl Log {
    /// Opens the log, with segments of about `size` bytes, and finds its records.
    pub(crate) fn open(directory: &Path, size: u64) -> Result<(Log, Found), LogError> {
        let mut contents = [Vec::new(), Vec::new()];
        let mut salts = [0; 2];
        let open = |segment| OpenOptions::new().read(true).write(true).open(directory.join(name(segment)));
        let files = [open(0)?, open(1)?];
        for (segment, bytes) in contents.iter_mut().enumerate() {
            *bytes = std::fs::read(directory.join(name(segment)))?;
            salts[segment] = read_header(bytes)
                .ok_or_else(|| LogError::Damaged(format!("the header of {} is not valid", name(segment))))?;
        }
        if salts[0] != salts[1] {
            return Err(LogError::Damaged("its log segments are of different stores".into()));
        }
        let salt = salts[0];
        let mut runs = [0, 1].map(|segment| read_run(&contents[segment], segment, salt));
        // Oldest first; an empty run is one whose first record was being written.
        runs.sort_by_key(|(records, _)| records.first().map_or(0, |record| record.version));
        let [(older, _), (newer, position)] = runs;
        let active = newer.last().map_or(0, |record| record.segment);
        let gap = older.last().zip(newer.first()).is_some_and(|(a, b)| a.version + 1 != b.version);
        if gap {
            return Err(LogError::Damaged("commits are missing between its log segments".into()));
        }
        let records: Vec<Record> = older.into_iter().chain(newer).collect();
        let newest = records.last().map_or(0, |record| record.version);
        for (segment, bytes) in contents.iter().enumerate() {
            if let Some(version) = find_later(bytes, salt, newest) {
                let what = format!("{} has commit {version} but lost one after {newest}", name(segment));
                return Err(LogError::Damaged(what));
            }
        }
        let segments = {
            let [a, b] = files;
            let written = |segment: usize| contents[segment].len() as u64;
            [Segment { file: a, written: written(0) }, Segment { file: b, written: written(1) }]
        };
        let log = Log { salt, segments, active, position, size, buffer: Vec::new() };
        Ok((log, Found { contents, records }))
    }

    /// Appends a group's effects; when it returns they are on disk.
    pub(crate) fn append(&mut self, version: u64, effects: &Effects) -> io::Result<()> {
        self.encode(version, effects);
        let segment = &mut self.segments[self.active];
        let end = self.position + self.buffer.len() as u64;
        while segment.written < end {
            let growth = segment.written.clamp(START, GROWTH);
            segment.file.write_all_at(&vec![0; growth as usize], segment.written)?;
            segment.written += growth;
        }
        segment.file.write_all_at(&self.buffer, self.position)?;
        segment.file.sync_data()?;
        self.position = end;
        Ok(())
    }

    /// The active segment is full: time to [`turn`](Log::turn).
    pub(crate) fn is_full(&self) -> bool {
        self.position >= self.size
    }

    /// Goes on in the other segment, over its records: these must be durable elsewhere.
    pub(crate) fn turn(&mut self) {
        self.active = 1 - self.active;
        self.position = SECTOR;
        self.buffer = Vec::new();
    }

    fn encode(&mut self, version: u64, effects: &Effects) {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.resize(RECORD_HEADER, 0);
        for (key, value) in effects {
            // Limits keep a key within 16 bits and a value within 32.
            buffer.extend_from_slice(&(key.len() as u16).to_le_bytes());
            let length = value.as_ref().map_or(ABSENT, |value| value.len() as u32);
            buffer.extend_from_slice(&length.to_le_bytes());
            buffer.extend_from_slice(key);
            buffer.extend_from_slice(value.as_deref().unwrap_or(&[]));
        }
        let length = (buffer.len() - RECORD_HEADER) as u64;
        buffer[..4].copy_from_slice(RECORD_MAGIC);
        buffer[8..16].copy_from_slice(&version.to_le_bytes());
        buffer[16..24].copy_from_slice(&length.to_le_bytes());
        buffer[24..28].copy_from_slice(&(effects.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(salted(self.salt), &buffer[8..]);
        buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        buffer.resize(buffer.len().next_multiple_of(SECTOR as usize), 0);
    }
}

#[cfg(test)]
impl Log {
    /// From here on every append fails.
    pub(crate) fn fail(&mut self) {
        for segment in &mut self.segments {
            segment.file = File::open("/dev/null").expect("/dev/null"); // Not open for writing.
        }
    }
}

impl Found {
    /// Version of the newest record.
    pub(crate) fn newest(&self) -> u64 {
        self.records.last().map_or(0, |record| record.version)
    }

    /// The effects of every commit version after `version`, oldest first. An error says what is wrong.
    pub(crate) fn after(&self, version: u64) -> Result<impl Iterator<Item = (u64, Effects)> + '_, String> {
        let newest = self.newest();
        if newest < version {
            return Err(format!("its tables have commit {version} but its log ends at {newest}"));
        }
        let oldest = self.records.first().map_or(0, |record| record.version);
        if oldest > version + 1 {
            return Err(format!("its tables end at commit {version} but its log begins at {oldest}"));
        }
        let missing = self.records.iter().filter(move |record| record.version > version);
        Ok(missing.map(|record| {
            let entries = &self.contents[record.segment][record.entries.clone()];
            (record.version, decode(entries, record.count).unwrap_or_default())
        }))
    }
}

/// The salt.
fn read_header(bytes: &[u8]) -> Option<u64> {
    let salt = u64::from_le_bytes(take(bytes, 16)?);
    let valid = take::<8>(bytes, 0)? == *SEGMENT_MAGIC
        && u32::from_le_bytes(take(bytes, 8)?) == FORMAT
        && u32::from_le_bytes(take(bytes, 12)?) == salted(salt);
    valid.then_some(salt)
}

/// Records from the beginning, as long as they are good and their versions follow each other, and where they end.
fn read_run(bytes: &[u8], segment: usize, salt: u64) -> (Vec<Record>, u64) {
    let mut records: Vec<Record> = Vec::new();
    let mut at = SECTOR as usize;
    while let Some(record) = read_record(bytes, at, segment, salt) {
        if records.last().is_some_and(|last| last.version + 1 != record.version) {
            break;
        }
        at = record.entries.end.next_multiple_of(SECTOR as usize);
        records.push(record);
    }
    (records, at as u64)
}

fn read_record(bytes: &[u8], at: usize, segment: usize, salt: u64) -> Option<Record> {
    if take::<4>(bytes, at)? != *RECORD_MAGIC {
        return None;
    }
    let crc = u32::from_le_bytes(take(bytes, at + 4)?);
    let version = u64::from_le_bytes(take(bytes, at + 8)?);
    let length = usize::try_from(u64::from_le_bytes(take(bytes, at + 16)?)).ok()?;
    let count = u32::from_le_bytes(take(bytes, at + 24)?);
    let begin = at + RECORD_HEADER;
    let end = begin.checked_add(length)?;
    let covered = bytes.get(at + 8..end)?;
    let good =
        crc32c::crc32c_append(salted(salt), covered) == crc && decode(&bytes[begin..end], count).is_some();
    good.then_some(Record { version, segment, entries: begin..end, count })
}

/// The version of a good record later than `newest`, wherever it is.
fn find_later(bytes: &[u8], salt: u64, newest: u64) -> Option<u64> {
    let sectors = (SECTOR as usize..bytes.len()).step_by(SECTOR as usize);
    let later = |at| {
        let version = u64::from_le_bytes(take(bytes, at + 8)?);
        (version > newest).then_some(()).and_then(|()| read_record(bytes, at, 0, salt))
    };
    sectors.filter_map(later).map(|record| record.version).next()
}

fn decode(mut bytes: &[u8], count: u32) -> Option<Effects> {
    let mut effects = Effects::new();
    for _ in 0..count {
        let key_length = usize::from(u16::from_le_bytes(take(bytes, 0)?));
        let value_length = u32::from_le_bytes(take(bytes, 2)?);
        bytes = &bytes[6..];
        let (key, rest) = bytes.split_at_checked(key_length)?;
        bytes = rest;
        let value = match value_length {
            ABSENT => None,
            length => {
                let (value, rest) = bytes.split_at_checked(length as usize)?;
                bytes = rest;
                Some(Bytes::copy_from_slice(value))
            }
        };
        effects.insert(Bytes::copy_from_slice(key), value);
    }
    bytes.is_empty().then_some(effects)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 256 << 10;

    /// In memory where there is such a place: what is tested here is not the disk.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    fn effects(version: u64, length: usize) -> Effects {
        let value = Some(Bytes::from(vec![version as u8; length]));
        Effects::from([
            (Bytes::from(version.to_be_bytes().to_vec()), value),
            (Bytes::from_static(b"gone"), None),
        ])
    }

    fn open(directory: &Path) -> (Log, Found) {
        match Log::open(directory, SIZE) {
            Ok(opened) => opened,
            Err(LogError::Io(error)) => panic!("{error}"),
            Err(LogError::Damaged(what)) => panic!("{what}"),
        }
    }

    fn versions(found: &Found, after: u64) -> Vec<u64> {
        found.after(after).expect("no gap").map(|(version, _)| version).collect()
    }

    #[test]
    fn what_was_appended_is_found() {
        let directory = directory();
        create(directory.path(), 77).unwrap();
        let (mut log, found) = open(directory.path());
        assert_eq!(found.newest(), 0);
        for version in 1..=50 {
            log.append(version, &effects(version, version as usize * 97)).unwrap();
        }
        let (_, found) = open(directory.path());
        assert_eq!(versions(&found, 48), [49, 50]);
        let (version, last) = found.after(49).unwrap().next().unwrap();
        assert_eq!((version, last), (50, effects(50, 50 * 97)));
        assert!(found.after(51).is_err());
    }

    #[test]
    fn a_last_record_torn_anywhere_is_not_there_and_is_overwritten() {
        let directory = directory();
        create(directory.path(), 77).unwrap();
        let (mut log, _) = open(directory.path());
        for version in 1..=3 {
            log.append(version, &effects(version, 1800)).unwrap();
        }
        let path = directory.path().join("log.0");
        let whole = std::fs::read(&path).unwrap();
        let begin = log.position as usize - 2048;
        // Every set of the last record's four sectors that are still zeros, but the empty one.
        for lost in 1..16usize {
            let mut torn = whole.clone();
            for sector in (0..4).filter(|sector| lost & (1 << sector) != 0) {
                torn[begin + sector * 512..][..512].fill(0);
            }
            std::fs::write(&path, &torn).unwrap();
            let (mut log, found) = open(directory.path());
            assert_eq!(versions(&found, 0), [1, 2], "{lost:b}");
            log.append(3, &effects(3, 10)).unwrap();
            log.append(4, &effects(4, 10)).unwrap();
            let (_, found) = open(directory.path());
            assert_eq!(versions(&found, 0), [1, 2, 3, 4], "{lost:b}");
        }
    }

    #[test]
    fn a_damaged_record_with_others_behind_it_is_an_error_and_no_end() {
        let directory = directory();
        create(directory.path(), 77).unwrap();
        let (mut log, _) = open(directory.path());
        for version in 1..=4 {
            log.append(version, &effects(version, 100)).unwrap();
        }
        let path = directory.path().join("log.0");
        let whole = std::fs::read(&path).unwrap();
        for version in 0..3 {
            let mut damaged = whole.clone();
            damaged[SECTOR as usize * (version + 1) + 60] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(matches!(Log::open(directory.path(), SIZE), Err(LogError::Damaged(_))), "{version}");
        }
        let mut damaged = whole;
        damaged[20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(Log::open(directory.path(), SIZE), Err(LogError::Damaged(_))));
    }

    #[test]
    fn segments_take_turns_and_remnants_do_not_count() {
        let directory = directory();
        create(directory.path(), 77).unwrap();
        let (mut log, _) = open(directory.path());
        let mut version = 0;
        for turn in [5, 4, 3, 2] {
            for _ in 0..turn {
                version += 1;
                log.append(version, &effects(version, 700)).unwrap();
            }
            let (_, found) = open(directory.path());
            assert_eq!(found.newest(), version);
            log.turn();
        }
        let (mut log, found) = open(directory.path());
        assert_eq!(versions(&found, version - 5), [10, 11, 12, 13, 14]);
        assert!(found.after(version - 6).is_err(), "what was overwritten is a gap");
        // The first record of a turn torn: the other segment goes on.
        log.turn();
        log.append(version + 1, &effects(version + 1, 700)).unwrap();
        let path = directory.path().join(name(log.active));
        let mut torn = std::fs::read(&path).unwrap();
        torn[600..900].fill(0);
        std::fs::write(&path, &torn).unwrap();
        let (mut log, found) = open(directory.path());
        assert_eq!(versions(&found, 12), [13, 14]);
        log.append(15, &effects(15, 10)).unwrap();
        assert_eq!(versions(&open(directory.path()).1, 13), [14, 15]);
    }

    #[test]
    fn a_record_larger_than_a_segment_fits() {
        let directory = directory();
        create(directory.path(), 77).unwrap();
        let (mut log, _) = open(directory.path());
        log.append(1, &effects(1, SIZE as usize + 12345)).unwrap();
        assert!(log.is_full());
        log.turn();
        log.append(2, &effects(2, 10)).unwrap();
        assert_eq!(versions(&open(directory.path()).1, 0), [1, 2]);
    }

    #[test]
    fn a_record_in_a_value_is_no_record() {
        let directory = directory();
        create(directory.path(), 77).unwrap();
        let (mut log, _) = open(directory.path());
        // What a user could write who knows the format but not the salt, aligned as it must be.
        let mut forger = Log { salt: 0, ..open(directory.path()).0 };
        forger.encode(3, &effects(3, 10));
        let mut value = vec![0; 512 - RECORD_HEADER - 6 - 1];
        value.extend_from_slice(&forger.buffer);
        log.append(1, &Effects::from([(Bytes::from_static(b"k"), Some(Bytes::from(value)))])).unwrap();
        log.append(2, &effects(2, 10)).unwrap();
        assert_eq!(versions(&open(directory.path()).1, 0), [1, 2]);
    }
}
