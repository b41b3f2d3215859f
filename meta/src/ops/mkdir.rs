//! Making directories, with those above them if asked.

use catena_proto::pb;
use catena_proto::status::Status;

use super::make;
use crate::access::Caller;
use crate::error::{OpError, refuse};
use crate::layout;
use crate::op::Mutation;
use crate::resolve::{Links, Place, find, walk};
use crate::schema::Inode;
use crate::schema::inode::FileType;
use crate::tx::Tx;

/// The owner can always go on below a directory made on the way, whatever the umask (as `mkdir -p` has it).
const ON_THE_WAY: u32 = 0o300;

impl Mutation for pb::MkdirRequest {
    type Reply = pb::InodeReply;
    const NAME: &'static str = "mkdir";
    fn caller(&self) -> Option<&pb::Caller> {
        self.caller.as_ref()
    }

    async fn apply(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<pb::InodeReply, OpError> {
        let said = match &self.layout {
            Some(said) if *said != pb::Layout::default() => {
                Some(layout::for_directory(&tx.cx.routing.current(), said)?)
            }
            _ => None,
        };
        let blank = |tx: &Tx<'_>, parent: &Inode, mode| Inode {
            layout: said,
            ..make::blank(tx, caller, parent, FileType::Directory, mode)
        };
        if !self.parents {
            let place = walk(tx, caller, self.at.as_ref(), Links::Name).await?;
            let slot = make::free_slot(place, caller, true)?;
            let inode = blank(tx, &slot.parent, self.mode);
            let (id, inode) = make::put(tx, slot.dir, &slot.name, inode)?;
            return Ok(make::reply(id, &inode));
        }

        // From the front, one component after the other: each either is there or is made.
        let Some(at) = &self.at else { return refuse(Status::Invalid, "the request names no place") };
        let ends = component_ends(&at.path);
        let mut last = None;
        for (nth, &end) in ends.iter().enumerate() {
            let step = pb::At { parent: at.parent, path: at.path.slice(..end) };
            let is_last = nth + 1 == ends.len();
            match walk(tx, caller, Some(&step), Links::Name).await? {
                Place::Slot(slot) if slot.entry.is_none() => {
                    make::may_make(caller, &slot.parent)?;
                    let mode = if is_last { self.mode } else { self.mode | ON_THE_WAY };
                    let mut inode = blank(tx, &slot.parent, mode);
                    if !is_last {
                        inode.layout = None;
                    }
                    last = Some(make::put(tx, slot.dir, &slot.name, inode)?);
                }
                _ => {
                    // There already, perhaps through a symbolic link.
                    let (id, inode) = find(tx, caller, Some(&step), true).await?;
                    if !inode.is_dir() {
                        return Err(if is_last { Status::Exists } else { Status::NotDirectory }.into());
                    }
                    last = Some((id, inode));
                }
            }
        }
        let (id, inode) = match last {
            Some(last) => last,
            None => find(tx, caller, Some(at), true).await?,
        };
        Ok(pb::InodeReply { inode: Some(tx.wire(id, &inode).await?) })
    }
}

/// Where each component of a path ends.
fn component_ends(path: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut inside = false;
    for (at, &byte) in path.iter().enumerate() {
        match (byte, inside) {
            (b'/', true) => {
                ends.push(at);
                inside = false;
            }
            (b'/', false) => {}
            _ => inside = true,
        }
    }
    if inside {
        ends.push(path.len());
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::component_ends;

    #[test]
    fn components_end_where_a_slash_or_the_path_does() {
        assert_eq!(component_ends(b"/a/bc//d/"), [2, 5, 8]);
        assert_eq!(component_ends(b"a"), [1]);
        assert_eq!(component_ends(b"//"), [0_usize; 0]);
    }
}
