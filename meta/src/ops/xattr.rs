//! Extended attributes: `user.*` for whoever may read or write the file, `trusted.*` for the superuser alone, `security.*` readable by
//! all and set by the superuser. Limits are Linux's.

use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use crate::access::{Caller, READ, STICKY, WRITE};
use crate::error::{OpError, refuse};
use crate::op::{Mutation, Query};
use crate::resolve::find;
use crate::schema::{Inode, key};
use crate::tx::Tx;

/// Longest name with its prefix (XATTR_NAME_MAX).
const MAX_NAME: usize = 255;
/// Longest value (XATTR_SIZE_MAX).
const MAX_VALUE: usize = 64 << 10;
/// All names of one inode with a byte behind each (XATTR_LIST_MAX).
const MAX_LIST: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    User,
    Trusted,
    Security,
}

fn space(name: &[u8]) -> Result<Space, OpError> {
    if name.len() > MAX_NAME {
        return refuse(Status::Range, format!("the name of an attribute has at most {MAX_NAME} bytes"));
    }
    if name.contains(&0) {
        return refuse(Status::Invalid, "the name of an attribute contains a NUL byte");
    }
    let spaces =
        [(&b"user."[..], Space::User), (b"trusted.", Space::Trusted), (b"security.", Space::Security)];
    let found = spaces.into_iter().find(|(prefix, _)| name.starts_with(prefix));
    match found {
        Some((prefix, _)) if name.len() == prefix.len() => {
            refuse(Status::Invalid, "the name of an attribute ends with its prefix")
        }
        Some((_, space)) => Ok(space),
        None => refuse(Status::Unsupported, "attributes begin with user., trusted. or security."),
    }
}

impl Query for pb::GetXattrRequest {
    type Reply = pb::GetXattrReply;
    const NAME: &'static str = "get_xattr";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::GetXattrReply, OpError> {
        let space = space(&self.name)?;
        let (id, inode) = find(tx, caller, self.at.as_ref(), self.follow).await?;
        match space {
            Space::User if carries_user(&inode) => caller.need(&inode, READ)?,
            Space::User => return Err(Status::NoAttribute.into()),
            // To others a trusted attribute is not there.
            Space::Trusted if !caller.is_superuser() => return Err(Status::NoAttribute.into()),
            Space::Trusted | Space::Security => {}
        }
        match tx.get(key::xattr(id, &self.name)).await? {
            Some(value) => Ok(pb::GetXattrReply { value }),
            None => Err(Status::NoAttribute.into()),
        }
    }
}

impl Query for pb::ListXattrRequest {
    type Reply = pb::ListXattrReply;
    const NAME: &'static str = "list_xattr";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn answer(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::ListXattrReply, OpError> {
        let (id, inode) = find(tx, caller, self.at.as_ref(), self.follow).await?;
        if !inode.has_xattrs {
            return Ok(pb::ListXattrReply::default());
        }
        let mut names = all_names(tx, id).await?;
        if !caller.is_superuser() {
            names.retain(|name| !name.starts_with(b"trusted."));
        }
        Ok(pb::ListXattrReply { names })
    }
}

impl Mutation for pb::SetXattrRequest {
    type Reply = pb::SetXattrReply;
    const NAME: &'static str = "set_xattr";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::SetXattrReply, OpError> {
        let space = space(&self.name)?;
        if self.value.len() > MAX_VALUE {
            return refuse(
                Status::Range,
                format!("the value has {} bytes, at most {MAX_VALUE} are taken", self.value.len()),
            );
        }
        if self.create && self.replace || self.remove && (self.create || self.replace) {
            return refuse(Status::Invalid, "create, replace and remove exclude each other");
        }
        let (id, inode) = find(tx, caller, self.at.as_ref(), self.follow).await?;
        match space {
            Space::User if !carries_user(&inode) => {
                return refuse(Status::NotPermitted, "user attributes are for files and directories");
            }
            Space::User if inode.is_dir() && inode.mode & STICKY != 0 => caller.need_owner(&inode)?,
            Space::User => caller.need(&inode, WRITE)?,
            Space::Trusted | Space::Security if caller.is_superuser() => {}
            Space::Trusted | Space::Security => {
                return refuse(
                    Status::NotPermitted,
                    "only the superuser sets trusted and security attributes",
                );
            }
        }
        let key = key::xattr(id, &self.name);
        let there = tx.get(key.clone()).await?.is_some();
        match there {
            true if self.create => return Err(Status::Exists.into()),
            false if self.replace || self.remove => return Err(Status::NoAttribute.into()),
            _ => {}
        }
        if self.remove {
            tx.clear(key);
        } else {
            if !there {
                let names = all_names(tx, id).await?;
                let list: usize = names.iter().map(|name| name.len() + 1).sum();
                if list + self.name.len() + 1 > MAX_LIST {
                    return refuse(
                        Status::NoSpace,
                        format!("the names of its attributes would exceed {MAX_LIST} bytes"),
                    );
                }
            }
            tx.set(key, self.value.clone());
        }
        let ctime = tx.now;
        tx.put_inode(id, Inode { has_xattrs: true, ctime, ..(*inode).clone() });
        Ok(pb::SetXattrReply {})
    }
}

/// Linux keeps user attributes off symbolic links and special files, whose permissions do not mean what a file's mean.
fn carries_user(inode: &Inode) -> bool {
    inode.is_file() || inode.is_dir()
}

async fn all_names(tx: &mut Tx<'_>, id: InodeId) -> Result<Vec<bytes::Bytes>, OpError> {
    let mut names = Vec::new();
    let mut range = key::xattrs(id);
    loop {
        let (items, more) = tx.range(range.clone(), 0).await?;
        for item in &items {
            names.push(key::xattr_name(&item.key)?);
        }
        match items.last() {
            Some(last) if more => range.begin = catena_kv::key_after(&last.key),
            _ => return Ok(names),
        }
    }
}
