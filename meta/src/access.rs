//! Who may do what to an inode: the classic owner, group, others rules with the superuser above them.

use bytes::Bytes;
use catena_proto::ids::{ClientId, RequestId};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use crate::schema::Inode;

/// Permission to read.
pub const READ: u32 = 4;
/// Permission to write; of a directory, to change its entries.
pub const WRITE: u32 = 2;
/// Permission to search a directory.
pub const SEARCH: u32 = 1;

/// Set user id on execution.
pub const SETUID: u32 = 0o4000;
/// Set group id on execution; of a directory: what is made in it takes its group.
pub const SETGID: u32 = 0o2000;
/// Of a directory: names in it are removed only by their owners.
pub const STICKY: u32 = 0o1000;
/// Everything a mode holds.
pub const MODE_BITS: u32 = 0o7777;

/// Groups of one caller that are looked at; Linux has the same limit.
const MAX_GROUPS: usize = 65_536;

/// On whose behalf a request is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User; 0 is the superuser.
    pub uid: u32,
    /// Group that new files get.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
    /// The client process.
    pub client: ClientId,
    /// Key of the idempotency record; `None` for reads.
    pub request: Option<RequestId>,
    /// In which period of records a mutation was first sent, if that is known.
    pub period: Option<u32>,
    /// Another attempt at the request may still be on its way.
    pub again: bool,
}

impl Caller {
    /// From the wire; refuses what has no caller or a request id of a wrong length.
    pub fn from_wire(wire: Option<&pb::Caller>) -> Result<Caller, Failure> {
        let wire = wire.ok_or_else(|| Failure::new(Status::Invalid, "the request names no caller"))?;
        if wire.groups.len() > MAX_GROUPS {
            return Err(Failure::new(Status::Invalid, format!("more than {MAX_GROUPS} groups")));
        }
        Ok(Caller {
            uid: wire.uid,
            gid: wire.gid,
            groups: wire.groups.clone(),
            client: ClientId(wire.client),
            period: wire.period.checked_sub(1),
            again: wire.again,
            request: match wire.request.is_empty() {
                true => None,
                false => Some(RequestId(u128::from_be_bytes(wide("request id", &wire.request)?))),
            },
        })
    }

    /// Whether nothing is forbidden.
    pub fn is_superuser(&self) -> bool {
        self.uid == 0
    }

    /// Refuses everyone but the superuser.
    pub fn need_superuser(&self) -> Result<(), Failure> {
        match self.is_superuser() {
            true => Ok(()),
            false => Err(Failure::new(Status::NotPermitted, "only the superuser checks the file system")),
        }
    }

    /// Whether the caller belongs to a group.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the mode bits grant all of `want`. Exactly one of the three classes counts.
    pub fn may(&self, inode: &Inode, want: u32) -> bool {
        if self.is_superuser() {
            return want & SEARCH == 0 || inode.is_dir() || inode.mode & 0o111 != 0;
        }
        let shift = if inode.uid == self.uid {
            6
        } else if self.in_group(inode.gid) {
            3
        } else {
            0
        };
        (inode.mode >> shift) & want == want
    }

    /// Refuses unless the mode bits grant all of `want`.
    pub fn need(&self, inode: &Inode, want: u32) -> Result<(), Failure> {
        match self.may(inode, want) {
            true => Ok(()),
            false => Err(Status::AccessDenied.into()),
        }
    }

    /// Whether the caller owns the inode, or need not.
    pub fn owns(&self, inode: &Inode) -> bool {
        self.is_superuser() || inode.uid == self.uid
    }

    /// Refuses unless the caller owns the inode or is the superuser.
    pub fn need_owner(&self, inode: &Inode) -> Result<(), Failure> {
        match self.owns(inode) {
            true => Ok(()),
            false => Err(Status::NotPermitted.into()),
        }
    }

    /// Refuses unless the caller may take the name of `inode` out of `dir`: write and search there, and in a sticky directory to own
    /// either.
    pub fn need_unlink(&self, dir: &Inode, inode: &Inode) -> Result<(), Failure> {
        self.need(dir, WRITE | SEARCH)?;
        match dir.mode & STICKY == 0 || self.owns(inode) || self.owns(dir) {
            true => Ok(()),
            false => {
                Err(Failure::new(Status::NotPermitted, "the directory is sticky and the file another's"))
            }
        }
    }
}

/// A sixteen-byte identity of a request.
pub fn wide(what: &str, bytes: &Bytes) -> Result<[u8; 16], Failure> {
    bytes[..].try_into().map_err(|_| {
        Failure::new(Status::Invalid, format!("a {what} has 16 bytes, this one {}", bytes.len()))
    })
}

/// The mode of a file after someone without privilege changed its contents or it changed hands: setuid goes, and setgid where it means
/// "run as this group" (without group execution it once meant mandatory locking, and stays).
pub fn without_set_ids(mode: u32) -> u32 {
    let gone = if mode & 0o010 != 0 { SETUID | SETGID } else { SETUID };
    mode & !gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(kind: pb::FileType, mode: u32) -> Inode {
        Inode { kind: kind as i32, mode, uid: 10, gid: 20, nlink: 1, ..Default::default() }
    }
    fn user(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller {
            uid,
            gid,
            groups: groups.to_vec(),
            client: ClientId(1),
            request: None,
            period: None,
            again: false,
        }
    }

    #[test]
    fn exactly_one_class_of_bits_counts() {
        let file = inode(pb::FileType::File, 0o074);
        assert!(!user(10, 20, &[]).may(&file, READ), "the owner's class is empty, the group's does not help");
        assert!(user(11, 20, &[]).may(&file, READ | WRITE | SEARCH));
        assert!(user(11, 1, &[5, 20]).may(&file, WRITE));
        assert!(user(11, 1, &[]).may(&file, READ) && !user(11, 1, &[]).may(&file, WRITE));
    }

    #[test]
    fn the_superuser_needs_one_execute_bit_to_execute() {
        let root = user(0, 0, &[]);
        assert!(root.may(&inode(pb::FileType::File, 0), READ | WRITE));
        assert!(!root.may(&inode(pb::FileType::File, 0o666), SEARCH));
        assert!(root.may(&inode(pb::FileType::Directory, 0), SEARCH));
    }

    #[test]
    fn sticky_directories_protect_others_files() {
        let dir = Inode { uid: 1, ..inode(pb::FileType::Directory, 0o1777) };
        let file = inode(pb::FileType::File, 0o666);
        assert!(user(10, 0, &[]).need_unlink(&dir, &file).is_ok());
        assert!(user(1, 0, &[]).need_unlink(&dir, &file).is_ok());
        assert_eq!(user(2, 0, &[]).need_unlink(&dir, &file).unwrap_err().status, Status::NotPermitted);
    }

    #[test]
    fn set_ids_go_when_a_file_changes_hands() {
        assert_eq!(without_set_ids(0o6755), 0o755);
        assert_eq!(without_set_ids(0o6745), 0o2745);
    }
}
