//! Who asks, and about which place in the namespace.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use catena_proto::ids::InodeId;
use catena_proto::pb;

/// The root directory's inode.
pub(crate) const ROOT: u64 = 1;

/// On whose behalf a call is made. The service trusts it: the cluster token is what proves that the caller may say so.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Effective user id; 0 passes every permission check.
    pub uid: u32,
    /// Effective group id: new files belong to it.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Arc<[u32]>,
}

impl Credentials {
    /// The superuser.
    pub fn root() -> Credentials {
        Credentials::default()
    }
    /// A user with one group.
    pub fn user(uid: u32, gid: u32) -> Credentials {
        Credentials { uid, gid, groups: Arc::default() }
    }
}

/// A place in the namespace: a path from a directory, or an inode itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// Where the path starts. A path that begins with `/` starts at the root whatever this says.
    pub parent: InodeId,
    /// At most 4096 bytes; empty means the inode `parent` itself.
    pub path: Bytes,
}

impl Place {
    /// A path from the root, with or without a leading `/`. The empty path is the root itself.
    pub fn path(path: impl AsRef<[u8]>) -> Place {
        Place { parent: InodeId(ROOT), path: Bytes::copy_from_slice(path.as_ref()) }
    }
    /// An inode that is already known, as an open file is: no path, no search permission on the way.
    pub fn inode(inode: InodeId) -> Place {
        Place { parent: inode, path: Bytes::new() }
    }
    /// A name (or path) below a directory that is already known.
    pub fn below(directory: InodeId, path: impl AsRef<[u8]>) -> Place {
        Place { parent: directory, path: Bytes::copy_from_slice(path.as_ref()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = String::from_utf8_lossy(&self.path);
        match (self.parent.0, path.as_ref()) {
            (ROOT, "") => f.write_str("/"),
            (inode, "") => write!(f, "inode {inode}"),
            (ROOT, path) => write!(f, "/{}", path.trim_start_matches('/')),
            (inode, path) => write!(f, "{path} (below inode {inode})"),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<&Place> for pb::At {
    fn from(place: &Place) -> pb::At {
        pb::At { parent: place.parent.0, path: place.path.clone() }
    }
}
