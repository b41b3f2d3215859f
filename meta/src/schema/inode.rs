//! The inode as stored, and the few facts about a directory that are kept beside it.
//!
//! A directory's inode is read by everything that happens below it, so nothing that happens below it may write it, or all creations
//! in one directory would conflict with each other. What they change lies in keys of its own that are written without being read:
//! `dir_times` by a blind set, `dir_children` by an atomic add.

use bytes::Bytes;
use catena_proto::ids::InodeId;
use catena_proto::pb;

use super::codec::CorruptValue;

pub use pb::FileType;

/// The root directory.
pub const ROOT: InodeId = InodeId(1);

/// Most names of one file, as ext4 has it.
pub const MAX_LINKS: u32 = 65_000;

/// An inode as stored. The id is in the key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Inode {
    /// A [`FileType`].
    #[prost(enumeration = "FileType", tag = "1")]
    pub kind: i32,
    /// Permission bits with setuid, setgid and sticky.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    /// Names of a file. Of a directory: 1 while it has its name, 0 in the trash.
    #[prost(uint32, tag = "5")]
    pub nlink: u32,
    /// Settled length of a file in bytes.
    #[prost(uint64, tag = "6")]
    pub length: u64,
    /// Nanoseconds since the Unix epoch, as the next three.
    #[prost(sfixed64, tag = "7")]
    pub atime: i64,
    /// Of a directory: before its first change; see `dir_times`.
    #[prost(sfixed64, tag = "8")]
    pub mtime: i64,
    /// Of a directory: last change of the inode itself.
    #[prost(sfixed64, tag = "9")]
    pub ctime: i64,
    /// Birth.
    #[prost(sfixed64, tag = "10")]
    pub btime: i64,
    /// Of a file: whole. Of a directory: what was set on it, zero fields inherited.
    #[prost(message, optional, tag = "11")]
    pub layout: Option<pb::Layout>,
    /// What a symbolic link says.
    #[prost(bytes = "bytes", tag = "12")]
    pub symlink: Bytes,
    /// Number of a device node.
    #[prost(uint64, tag = "13")]
    pub rdev: u64,
    /// Of a directory: the one that holds it; 0 in the trash.
    #[prost(uint64, tag = "14")]
    pub parent: u64,
    /// How many of the stripe's chains may hold settled chunks.
    #[prost(uint32, tag = "15")]
    pub chains_used: u32,
    /// Grows with every cut.
    #[prost(uint64, tag = "16")]
    pub truncate_epoch: u64,
    /// Whether it has, or once had, extended attributes.
    #[prost(bool, tag = "17")]
    pub has_xattrs: bool,
    /// A cut is under way; its intent is under `truncate`.
    #[prost(bool, tag = "18")]
    pub truncating: bool,
}

/// Modification and change time of a directory's contents: 16 bytes, two little-endian i64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirTimes {
    /// Last change of an entry, or what `utimensat` set.
    pub mtime: i64,
    /// Last change of an entry or of `mtime`.
    pub ctime: i64,
}

impl DirTimes {
    /// As stored.
    pub fn encode(self) -> Bytes {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.mtime.to_le_bytes());
        out[8..].copy_from_slice(&self.ctime.to_le_bytes());
        Bytes::copy_from_slice(&out)
    }
    /// From the store.
    pub fn decode(value: &[u8]) -> Result<DirTimes, CorruptValue> {
        let damaged = || CorruptValue::Damaged {
            what: "a directory's times",
            reason: format!("{} bytes instead of 16", value.len()),
        };
        let (mtime, ctime) = value.split_first_chunk::<8>().ok_or_else(damaged)?;
        let ctime = ctime.try_into().map_err(|_| damaged())?;
        Ok(DirTimes { mtime: i64::from_le_bytes(*mtime), ctime: i64::from_le_bytes(ctime) })
    }
}

impl Inode {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory as i32
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == FileType::File as i32
    }
    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.kind == FileType::Symlink as i32
    }
    /// A directory that was removed, or a file that lives only through its sessions.
    pub fn is_removed(&self) -> bool {
        self.nlink == 0
    }

    /// For the wire. `directory` has the times and the number of subdirectories of a directory.
    pub fn to_wire(&self, id: InodeId, directory: Option<(Option<DirTimes>, i64)>) -> pb::Inode {
        let mut wire = pb::Inode {
            id: id.0,
            r#type: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            length: self.length,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            layout: self.layout,
            symlink: self.symlink.clone(),
            rdev: self.rdev,
            parent: self.parent,
            chains_used_hint: self.chains_used,
            truncate_epoch: self.truncate_epoch,
        };
        if self.is_symlink() {
            wire.length = self.symlink.len() as u64;
        }
        if let Some((times, children)) = directory {
            if self.nlink > 0 {
                wire.nlink = 2 + u32::try_from(children).unwrap_or(0);
            }
            if let Some(times) = times {
                wire.mtime = times.mtime;
                wire.ctime = wire.ctime.max(times.ctime);
            }
        }
        wire
    }
}
