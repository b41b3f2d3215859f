//! Makes fjall's journal readable after a power cut.
//!
//! The journal is synced only now and then (the log next to it is what is durable), so a power cut may leave any of its last pages
//! unwritten. fjall cuts off a batch that ends early, but refuses to open at one that is whole and wrong. What is behind the first bad
//! batch is in the log, so it is cut off here; if it were not, the log's versions would show the gap.
//!
//! fjall 3's journal, little-endian: `1 count:4 seqno:8`, then `count` times `2 type:1 compression:1 keyspace:8 key:2 value:4 stored:4`
//! and key and stored value, or `4 keyspace:8`; then `3 xxh3-of-the-items:8 "FJL" 3`.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

static ZEROS: [u8; 4096] = [0; 4096];

/// Cuts the newest journal in `directory` at its first bad batch. Earlier ones were synced by fjall when it closed them. Returns
/// about how many bytes with something in them went.
pub(crate) fn cut_torn_end(directory: &Path) -> io::Result<usize> {
    let Some(path) = newest(directory)? else { return Ok(0) };
    let bytes = std::fs::read(&path)?;
    let good = good_length(&bytes);
    // Zeros are what fjall allocates ahead; it removes them itself.
    // There may be many, so they are compared by the page.
    let torn = bytes[good..].chunks(ZEROS.len()).rposition(|page| page != &ZEROS[..page.len()]);
    let torn = torn.map_or(0, |page| (page + 1) * ZEROS.len());
    if torn > 0 {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(good as u64)?;
        file.sync_all()?;
    }
    Ok(torn)
}

fn newest(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        newest = newest.max(number.map(|number| (number, path)));
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where the good batches from the beginning end.
fn good_length(bytes: &[u8]) -> usize {
    let mut good = 0;
    while let Some(length) = batch(&bytes[good..]) {
        good += length;
    }
    good
}

/// The length of the batch that `bytes` begin with, if it is good.
fn batch(bytes: &[u8]) -> Option<usize> {
    let field = |at: usize, length: usize| bytes.get(at..at.checked_add(length)?);
    let number = |at, length| {
        field(at, length)
            .map(|bytes| bytes.iter().rev().fold(0usize, |number, &byte| number << 8 | usize::from(byte)))
    };
    if number(0, 1)? != 1 {
        return None;
    }
    let begin = 13;
    let mut at = begin;
    for _ in 0..number(1, 4)? {
        at = match number(at, 1)? {
            2 => at.checked_add(21)?.checked_add(number(at + 11, 2)?)?.checked_add(number(at + 17, 4)?)?,
            4 => at + 9,
            _ => return None,
        };
        if at > bytes.len() {
            return None;
        }
    }
    let end = field(at, 13)?;
    let checksum = xxh3_64(&bytes[begin..at]).to_le_bytes();
    (end[0] == 3 && end[1..9] == checksum && end[9..] == *b"FJL\x03").then_some(at + 13)
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    use super::*;

    /// A journal as fjall writes it, of batches of one and two items.
    fn journal(directory: &Path) -> Vec<u8> {
        let database = Database::builder(directory).open().unwrap();
        let keyspace = database.keyspace("k", KeyspaceCreateOptions::default).unwrap();
        for number in 0..20u8 {
            let mut batch = database.batch();
            batch.insert(&keyspace, [number], vec![number; 10_000]);
            if number % 2 == 0 {
                batch.remove(&keyspace, [number, 1]);
            }
            batch.commit().unwrap();
        }
        database.persist(PersistMode::SyncAll).unwrap();
        std::fs::read(newest(directory).unwrap().unwrap()).unwrap()
    }

    fn copy(from: &Path) -> tempfile::TempDir {
        fn files(from: &Path, to: &Path) {
            std::fs::create_dir_all(to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
                match path.is_dir() {
                    true => files(&path, &to.join(name)),
                    false => _ = std::fs::copy(&path, to.join(name)).unwrap(),
                }
            }
        }
        let to = directory();
        files(from, to.path());
        to
    }

    /// In memory where there is such a place: what is tested here is not the disk.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    fn keys(directory: &Path) -> usize {
        let database = Database::builder(directory).open().unwrap();
        let keyspace = database.keyspace("k", KeyspaceCreateOptions::default).unwrap();
        keyspace.iter().count()
    }

    #[test]
    fn a_good_journal_is_left_alone() {
        let directory = directory();
        let bytes = journal(directory.path());
        assert_eq!(cut_torn_end(directory.path()).unwrap(), 0);
        assert_eq!(std::fs::read(newest(directory.path()).unwrap().unwrap()).unwrap(), bytes);
        let end = good_length(&bytes);
        assert!(end > 200_000 && bytes[end..].chunks(4096).all(|page| page == &ZEROS[..page.len()]));
        assert_eq!(keys(directory.path()), 20);
    }

    #[test]
    fn pages_lost_anywhere_leave_what_was_before() {
        let written = directory();
        let mut bytes = journal(written.path());
        let end = good_length(&bytes);
        bytes.truncate(end + 4096); // The rest is zeros.
        for lost in (0..end).step_by(3 * 4096) {
            let directory = copy(written.path());
            let mut torn = bytes.clone();
            torn[lost..lost + 4096].fill(0);
            std::fs::write(newest(directory.path()).unwrap().unwrap(), &torn).unwrap();
            cut_torn_end(directory.path()).unwrap();
            let (mut at, mut whole) = (0, 0);
            while let Some(length) = batch(&bytes[at..]).filter(|length| at + length <= lost) {
                at += length;
                whole += 1;
            }
            assert_eq!(keys(directory.path()), whole, "{lost}");
        }
    }
}
