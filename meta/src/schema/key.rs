//! Keys. Four letters say what a key is; identities follow in a fixed width.
//!
//! Inode ids stand little-endian where only equality matters: ids are handed out in ranges, and the low byte first spreads neighbours
//! over the whole key space (and over a distributed store's servers). Queues stand big-endian, so that a scan meets the oldest first.

use bytes::{BufMut, Bytes, BytesMut};
use catena_proto::ids::{InodeId, RequestId};

use super::codec::CorruptValue;

/// Shards of each queue and each counter: as many writers can touch one without meeting.
pub const SHARDS: u8 = 16;
/// Shards of the inode allocator.
pub const ALLOCATORS: u8 = 32;

const INODE: &[u8; 4] = b"INOD";
const ENTRY: &[u8; 4] = b"DENT";
const XATTR: &[u8; 4] = b"XATR";
const SESSION: &[u8; 4] = b"SESS";
const OUTCOME: &[u8; 4] = b"IDEM";
const ALLOCATOR: &[u8; 4] = b"IALO";
const RECLAIM: &[u8; 4] = b"RECL";
const TRASH: &[u8; 4] = b"TRSH";
const TRUNCATE: &[u8; 4] = b"TRNC";
const COUNTER: &[u8; 4] = b"CNTR";
const CONFIG: &[u8; 4] = b"CONF";
const PERIOD: &[u8; 4] = b"PERI";

/// What is counted, over the whole file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Counter {
    /// Inodes that are not directories and still have a name or a session.
    Files = 0,
    /// Directories, those in the trash included until they are taken apart.
    Directories = 1,
    /// Removed files whose chunks are still there.
    ReclaimFiles = 2,
    /// Their lengths, summed.
    ReclaimBytes = 3,
    /// Files open for writing, each opening counted.
    Sessions = 4,
}

impl Counter {
    /// All of them.
    pub const ALL: [Counter; 5] = [
        Counter::Files,
        Counter::Directories,
        Counter::ReclaimFiles,
        Counter::ReclaimBytes,
        Counter::Sessions,
    ];
}

/// A half-open range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key in it.
    pub begin: Bytes,
    /// First key behind it.
    pub end: Bytes,
}

fn with(prefix: &[u8; 4], parts: &[&[u8]]) -> Bytes {
    let mut key = BytesMut::with_capacity(4 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.put_slice(prefix);
    parts.iter().for_each(|part| key.put_slice(part));
    key.freeze()
}

/// Everything that begins with `prefix`, which must not be all 0xff.
fn below(prefix: Bytes) -> KeyRange {
    let mut end = BytesMut::from(&prefix[..]);
    while end.last() == Some(&0xff) {
        end.truncate(end.len() - 1);
    }
    *end.last_mut().expect("prefixes begin with letters") += 1;
    KeyRange { begin: prefix, end: end.freeze() }
}

/// An inode.
pub fn inode(id: InodeId) -> Bytes {
    with(INODE, &[&id.0.to_le_bytes()])
}
/// A directory's modification and change times (see `schema::DirTimes`).
pub fn dir_times(id: InodeId) -> Bytes {
    with(INODE, &[&id.0.to_le_bytes(), b"t"])
}
/// How many directories a directory holds.
pub fn dir_children(id: InodeId) -> Bytes {
    with(INODE, &[&id.0.to_le_bytes(), b"n"])
}
/// All inodes with their companions, for tools.
pub fn inodes() -> KeyRange {
    below(with(INODE, &[]))
}

/// Where the keys of an inode and its companions end.
pub fn behind_inode(id: InodeId) -> Bytes {
    with(INODE, &[&id.0.to_le_bytes(), &[0xff]])
}
/// The inode that a key of [`inodes`] stands for; nothing for a companion.
pub fn inode_id(key: &[u8]) -> Option<InodeId> {
    let id = key.strip_prefix(INODE)?;
    Some(InodeId(u64::from_le_bytes(id.try_into().ok()?)))
}

/// A name in a directory.
pub fn entry(parent: InodeId, name: &[u8]) -> Bytes {
    with(ENTRY, &[&parent.0.to_le_bytes(), name])
}
/// All names of a directory, in order.
pub fn entries(parent: InodeId) -> KeyRange {
    below(with(ENTRY, &[&parent.0.to_le_bytes()]))
}
/// All names of all directories, for tools.
pub fn all_entries() -> KeyRange {
    below(with(ENTRY, &[]))
}
/// The directory in an entry's key.
pub fn entry_parent(key: &[u8]) -> Result<InodeId, CorruptValue> {
    let id = key.strip_prefix(ENTRY).and_then(|key| key.first_chunk::<8>());
    let damaged = || CorruptValue::Damaged { what: "a directory entry's key", reason: format!("{key:?}") };
    id.map(|id| InodeId(u64::from_le_bytes(*id))).ok_or_else(damaged)
}
/// The name in an entry's key.
pub fn entry_name(key: &Bytes) -> Result<Bytes, CorruptValue> {
    match key.len() > 12 && key.starts_with(ENTRY) {
        true => Ok(key.slice(12..)),
        false => Err(CorruptValue::Damaged { what: "a directory entry's key", reason: format!("{key:?}") }),
    }
}

/// An extended attribute.
pub fn xattr(id: InodeId, name: &[u8]) -> Bytes {
    with(XATTR, &[&id.0.to_le_bytes(), name])
}
/// All extended attributes of an inode.
pub fn xattrs(id: InodeId) -> KeyRange {
    below(with(XATTR, &[&id.0.to_le_bytes()]))
}
/// The name in an extended attribute's key.
pub fn xattr_name(key: &Bytes) -> Result<Bytes, CorruptValue> {
    match key.len() > 12 && key.starts_with(XATTR) {
        true => Ok(key.slice(12..)),
        false => {
            Err(CorruptValue::Damaged { what: "an extended attribute's key", reason: format!("{key:?}") })
        }
    }
}

/// A file that is open for writing.
pub fn session(inode: InodeId, session: &[u8; 16]) -> Bytes {
    with(SESSION, &[&inode.0.to_le_bytes(), session])
}
/// All sessions of a file.
pub fn sessions_of(inode: InodeId) -> KeyRange {
    below(with(SESSION, &[&inode.0.to_le_bytes()]))
}
/// All sessions.
pub fn sessions() -> KeyRange {
    below(with(SESSION, &[]))
}
/// Inode and session id of a session's key.
pub fn session_parts(key: &[u8]) -> Result<(InodeId, [u8; 16]), CorruptValue> {
    let damaged = || CorruptValue::Damaged { what: "a session's key", reason: format!("{key:?}") };
    let body: [u8; 24] =
        key.strip_prefix(SESSION).and_then(|body| body.try_into().ok()).ok_or_else(damaged)?;
    let (inode, session) = body.split_at(8);
    let inode = u64::from_le_bytes(inode.try_into().expect("8 bytes"));
    Ok((InodeId(inode), session.try_into().expect("16 bytes")))
}

/// The recorded outcome of a request, in the period in which it was carried out.
pub fn outcome(period: u32, request: RequestId) -> Bytes {
    with(OUTCOME, &[&period.to_be_bytes(), &request.0.to_be_bytes()])
}
/// All outcomes of the periods before `period`.
pub fn outcomes_before(period: u32) -> KeyRange {
    KeyRange { begin: with(OUTCOME, &[]), end: with(OUTCOME, &[&period.to_be_bytes()]) }
}

/// The next free number of one shard of the inode allocator.
pub fn allocator(shard: u8) -> Bytes {
    with(ALLOCATOR, &[&[shard]])
}

/// A removed file whose chunks are to be removed.
pub fn reclaim(id: InodeId) -> Bytes {
    with(RECLAIM, &[&[shard_of(id)], &id.0.to_be_bytes()])
}
/// One shard of the removed files.
pub fn reclaims(shard: u8) -> KeyRange {
    below(with(RECLAIM, &[&[shard]]))
}

/// A directory that was cut off with everything below it.
pub fn trash(id: InodeId) -> Bytes {
    with(TRASH, &[&[shard_of(id)], &id.0.to_be_bytes()])
}
/// One shard of the trash.
pub fn trashed(shard: u8) -> KeyRange {
    below(with(TRASH, &[&[shard]]))
}

/// A file that is being cut.
pub fn truncate(id: InodeId) -> Bytes {
    with(TRUNCATE, &[&id.0.to_be_bytes()])
}
/// All files that are being cut.
pub fn truncates() -> KeyRange {
    below(with(TRUNCATE, &[]))
}
/// The inode at the end of a queue's key.
pub fn queued_inode(key: &[u8]) -> Result<InodeId, CorruptValue> {
    let id = key
        .last_chunk::<8>()
        .filter(|_| key.len() >= 12)
        .ok_or_else(|| CorruptValue::Damaged { what: "a queue's key", reason: format!("{key:?}") })?;
    Ok(InodeId(u64::from_be_bytes(*id)))
}

/// One shard of a counter.
pub fn counter(counter: Counter, shard: u8) -> Bytes {
    with(COUNTER, &[&[counter as u8, shard]])
}
/// All counters.
pub fn counters() -> KeyRange {
    below(with(COUNTER, &[]))
}
/// Which counter a key belongs to.
pub fn counter_of(key: &[u8]) -> Option<Counter> {
    let code = *key.strip_prefix(COUNTER)?.first()?;
    Counter::ALL.into_iter().find(|&counter| counter as u8 == code)
}

/// Whose store this is: the cluster id, 16 bytes.
pub fn cluster() -> Bytes {
    with(CONFIG, &[b"cluster"])
}
/// The current period of outcomes, a little-endian i64. Every mutation reads it, so there are copies, changed together: see
/// [`period_copy`].
pub fn period() -> Bytes {
    with(CONFIG, &[b"period"])
}
/// A copy of [`period`]: readers spread over as many keys, and over a distributed store's servers.
pub fn period_copy(shard: u8) -> Bytes {
    // Before the name, so that copies lie apart from it and from each other as far as keys allow.
    with(PERIOD, &[&[shard.reverse_bits()]])
}

/// Queues are sharded by identity: whoever has the inode finds its record without a search.
fn shard_of(id: InodeId) -> u8 {
    // Fibonacci hashing: ids come in strides.
    ((id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8) % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_s_range_holds_its_names_and_no_others() {
        for id in [0, 1, 255, 256, 0xff00, u64::MAX] {
            let range = entries(InodeId(id));
            let inside = |key: &Bytes| *key >= range.begin && *key < range.end;
            assert!(inside(&entry(InodeId(id), b"a")) && inside(&entry(InodeId(id), &[0xff; 255])));
            assert!(!inside(&entry(InodeId(id.wrapping_add(1)), b"a")));
            assert!(!inside(&entry(InodeId(id.wrapping_sub(1)), b"\xff")));
            assert!(!inside(&inode(InodeId(id))));
        }
    }

    /// mgmtd may keep its records in the same store: they begin with MGMT. So may tools.
    #[test]
    fn no_kind_of_key_is_another_s_or_mgmtd_s() {
        let kinds = [
            &INODE[..],
            ENTRY,
            XATTR,
            SESSION,
            OUTCOME,
            ALLOCATOR,
            RECLAIM,
            TRASH,
            TRUNCATE,
            COUNTER,
            CONFIG,
            PERIOD,
            b"MGMT",
            catena_kv::reserved::RESTORE_MARKER,
            catena_kv::reserved::PROBE,
        ];
        let distinct: std::collections::BTreeSet<_> = kinds.iter().map(|kind| &kind[..4]).collect();
        assert_eq!(distinct.len(), kinds.len());
    }

    #[test]
    fn keys_give_back_what_they_name() {
        let name = Bytes::from_static(b"file");
        assert_eq!(entry_name(&entry(InodeId(5), &name)), Ok(name.clone()));
        assert_eq!(entry_parent(&entry(InodeId(5), &name)), Ok(InodeId(5)));
        assert_eq!(inode_id(&inode(InodeId(5))), Some(InodeId(5)));
        assert_eq!(inode_id(&dir_times(InodeId(5))), None);
        assert!(dir_times(InodeId(5)) < behind_inode(InodeId(5)));
        assert_eq!(xattr_name(&xattr(InodeId(5), &name)), Ok(name));
        assert_eq!(session_parts(&session(InodeId(5), &[9; 16])), Ok((InodeId(5), [9; 16])));
        assert_eq!(queued_inode(&reclaim(InodeId(77))), Ok(InodeId(77)));
        assert_eq!(queued_inode(&truncate(InodeId(77))), Ok(InodeId(77)));
        assert_eq!(counter_of(&counter(Counter::Sessions, 3)), Some(Counter::Sessions));
        assert!(entry_name(&Bytes::from_static(b"DENT")).is_err());
        assert!(session_parts(b"SESS").is_err());
        assert!(queued_inode(b"RECL").is_err());
    }

    #[test]
    fn periods_sort_in_time() {
        let old = outcome(254, RequestId(u128::MAX));
        let range = outcomes_before(255);
        assert!(old >= range.begin && old < range.end);
        assert!(outcome(255, RequestId(0)) >= range.end);
        assert!(outcome(256, RequestId(0)) > outcome(255, RequestId(u128::MAX)));
    }
}
