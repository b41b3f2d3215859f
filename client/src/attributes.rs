//! What the namespace says of a file: attributes in types of this library, and the places that calls are about.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use catena_meta_client::Place;
use catena_proto::clock::Timestamp;
use catena_proto::ids::InodeId;
use catena_proto::layout::Layout;
use catena_proto::pb;

/// Kinds of files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileType {
    pub(crate) fn from_pb(kind: pb::FileType) -> FileType {
        match kind {
            pb::FileType::Directory => FileType::Directory,
            pb::FileType::Symlink => FileType::Symlink,
            pb::FileType::Fifo => FileType::Fifo,
            pb::FileType::Socket => FileType::Socket,
            pb::FileType::CharDevice => FileType::CharDevice,
            pb::FileType::BlockDevice => FileType::BlockDevice,
            pb::FileType::File | pb::FileType::Unspecified => FileType::File,
        }
    }

    pub(crate) fn to_pb(self) -> pb::FileType {
        match self {
            FileType::File => pb::FileType::File,
            FileType::Directory => pb::FileType::Directory,
            FileType::Symlink => pb::FileType::Symlink,
            FileType::Fifo => pb::FileType::Fifo,
            FileType::Socket => pb::FileType::Socket,
            FileType::CharDevice => pb::FileType::CharDevice,
            FileType::BlockDevice => pb::FileType::BlockDevice,
        }
    }
}

/// A file's attributes.
#[derive(Clone, PartialEq, Debug)]
pub struct Stat {
    /// Its inode: names it for as long as it exists, whatever it is called.
    pub inode: InodeId,
    /// What it is.
    pub kind: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that it has; of a directory, 2 and one a subdirectory.
    pub nlink: u32,
    /// Bytes. While someone has the file open for writing: at least what was settled last.
    pub length: u64,
    /// Last access (kept relaxed).
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// When it was made.
    pub btime: Timestamp,
    /// Where a file's chunks are. Nothing else has any.
    pub layout: Option<Layout>,
    /// What a file was made with; of a directory, what was set there for files made below it. What is not set there is inherited.
    pub choice: LayoutChoice,
    /// What a symbolic link says; empty for everything else.
    pub symlink: Bytes,
    /// Device number of a device node.
    pub rdev: u64,
    pub(crate) truncate_epoch: u64,
}

impl From<pb::Inode> for Stat {
    fn from(inode: pb::Inode) -> Stat {
        let kind = FileType::from_pb(inode.r#type());
        let layout = inode.layout.filter(|_| kind == FileType::File);
        Stat {
            inode: InodeId(inode.id),
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            nlink: inode.nlink,
            length: inode.length,
            atime: Timestamp(inode.atime),
            mtime: Timestamp(inode.mtime),
            ctime: Timestamp(inode.ctime),
            btime: Timestamp(inode.btime),
            layout: layout.and_then(|layout| Layout::try_from(layout).ok()),
            choice: inode.layout.map(LayoutChoice::from).unwrap_or_default(),
            symlink: inode.symlink,
            rdev: inode.rdev,
            truncate_epoch: inode.truncate_epoch,
        }
    }
}

impl Stat {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == FileType::File
    }
}

/// What calls accept as a place: a path from the root (with or without a leading `/`), a [`Place`], or an inode.
pub trait AsPlace {
    /// The place.
    fn as_place(&self) -> Place;
}

macro_rules! as_place {
    ($($type:ty => |$this:ident| $place:expr;)*) => {
        $(impl AsPlace for $type { fn as_place(&self) -> Place { let $this = self; $place } })*
    };
}

as_place! {
    str => |this| Place::path(this);
    String => |this| Place::path(this);
    [u8] => |this| Place::path(this);
    Vec<u8> => |this| Place::path(this);
    Bytes => |this| Place::path(this);
    Path => |this| Place::path(this.as_os_str().as_bytes());
    PathBuf => |this| Place::path(this.as_os_str().as_bytes());
    Place => |this| this.clone();
    InodeId => |this| Place::inode(*this);
}

impl<T: AsPlace + ?Sized> AsPlace for &T {
    fn as_place(&self) -> Place {
        (**self).as_place()
    }
}

/// Layout of what is created. What is not set is inherited from the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LayoutChoice {
    /// Chain table id.
    pub table: Option<u32>,
    /// Bytes in a chunk: a power of two from 64 KiB to 64 MiB.
    pub chunk_size: Option<u32>,
    /// Number of chains that a file goes round.
    pub stripe: Option<u32>,
}

impl From<pb::Layout> for LayoutChoice {
    fn from(said: pb::Layout) -> LayoutChoice {
        let set = |value: u32| (value != 0).then_some(value);
        LayoutChoice { table: set(said.table), chunk_size: set(said.chunk_size), stripe: set(said.stripe) }
    }
}

impl LayoutChoice {
    pub(crate) fn to_pb(self) -> Option<pb::Layout> {
        (self != LayoutChoice::default()).then(|| pb::Layout {
            table: self.table.unwrap_or(0),
            chunk_size: self.chunk_size.unwrap_or(0),
            stripe: self.stripe.unwrap_or(0),
            ..Default::default()
        })
    }
}
