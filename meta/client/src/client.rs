//! The typed calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_proto::ids::{ClientId, InodeId};
use catena_proto::pb;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_proto::status::Status;

use crate::call::Call;
use crate::error::MetaError;
use crate::failover::{Connector, Failover, Options, Servers};
use crate::grpc::GrpcConnector;
use crate::place::{Credentials, Place};

type Result<T> = std::result::Result<T, MetaError>;

/// Time that a connection may take to come up before the next service is tried.
const CONNECT: Duration = Duration::from_secs(2);

/// A client of the meta services. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct MetaClient {
    shared: Arc<Shared>,
}

struct Shared {
    failover: Failover,
    client: ClientId,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Contents will be read: asks for read permission.
    pub read: bool,
    /// Contents will be written: asks for write permission and opens a session.
    pub write: bool,
    /// Make the file if it is missing.
    pub create: bool,
    /// With `create`: fail if it is there, symbolic links included.
    pub exclusive: bool,
    /// Cut to length 0.
    pub truncate: bool,
    /// Fail with [`Status::Loop`] if the last component is a symbolic link.
    pub no_follow: bool,
    /// Fail unless it is a directory.
    pub directory: bool,
}

/// An opened file.
#[derive(Clone, Debug)]
pub struct Open {
    /// As it is now.
    pub inode: pb::Inode,
    /// Whether this call made it.
    pub created: bool,
    /// The session, if it was opened for writing: [`MetaClient::sync`] and [`MetaClient::truncate`] name it, and closing ends it.
    pub session: Option<[u8; 16]>,
}

/// What a writer knows when it settles a file's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settle {
    /// End the session.
    pub close: bool,
    /// Something was written since the last settling.
    pub wrote: bool,
    /// End of the furthest write that was acknowledged.
    pub high_water: u64,
    /// The inode's epoch when that was written: after a shortening the mark does not count.
    pub truncate_epoch: u64,
    /// Every write of the session was acknowledged, so that no chain needs to be asked. False is always safe.
    pub acknowledged: bool,
    /// Modification time, nanoseconds since the epoch; 0 takes the service's now.
    pub mtime: i64,
}

/// Attributes to change; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time, nanoseconds since the epoch.
    pub atime: Option<i64>,
    /// Modification time.
    pub mtime: Option<i64>,
    /// Access time to the service's now; goes before `atime`.
    pub atime_now: bool,
    /// Modification time to the service's now; goes before `mtime`.
    pub mtime_now: bool,
}

/// How an extended attribute is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Whether it is there or not.
    Set,
    /// Only if it is not there: else [`Status::Exists`].
    Create,
    /// Only if it is there: else [`Status::NoAttribute`].
    Replace,
}

/// What a subtree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of file lengths, each inode once.
    pub bytes: u64,
    /// Files of all types but directories, each inode once.
    pub files: u64,
    /// Directories, the starting one included.
    pub directories: u64,
    /// Directories that the caller may not list; what is below them is not counted.
    pub unreadable: u64,
}

impl MetaClient {
    /// A client over gRPC. `client` is this process's session, the one that its writes are tagged with. Connects when first used.
    pub fn new(servers: Servers, auth: ClientAuth, client: ClientId, options: Options) -> MetaClient {
        let connector = GrpcConnector::new(auth, options.channels, CONNECT);
        MetaClient::with_connector(servers, Arc::new(connector), client, options)
    }

    /// A client over another transport.
    pub fn with_connector(
        servers: Servers,
        connector: Arc<dyn Connector>,
        client: ClientId,
        options: Options,
    ) -> MetaClient {
        let failover = Failover::new(servers, connector, options);
        MetaClient { shared: Arc::new(Shared { failover, client }) }
    }

    /// The address of the service in use, or of the one that was used last.
    pub fn server(&self) -> Option<String> {
        self.shared.failover.server()
    }

    /// This process's session.
    pub fn client(&self) -> ClientId {
        self.shared.client
    }

    /// Any call, with the options' deadline. Fills in the caller and, for a mutation, its request id.
    pub async fn call<C: Call>(&self, who: &Credentials, call: C) -> Result<C::Reply> {
        self.call_within(who, call, self.shared.failover.deadline()).await
    }

    /// Any call, with a deadline of its own.
    pub async fn call_within<C: Call>(
        &self,
        who: &Credentials,
        mut call: C,
        deadline: Duration,
    ) -> Result<C::Reply> {
        let request = match C::MUTATES {
            true => Bytes::copy_from_slice(&self.shared.failover.random_id()),
            false => Bytes::new(),
        };
        *call.caller() = Some(pb::Caller {
            uid: who.uid,
            gid: who.gid,
            groups: who.groups.to_vec(),
            client: self.shared.client.0,
            request,
            ..Default::default()
        });
        let sent = call.clone();
        let answer = self.shared.failover.call(call.into_request(), deadline).await;
        answer
            .and_then(|reply| {
                C::from_reply(reply).ok_or_else(|| {
                    Failure::new(Status::Malformed, "the meta service answered another call's reply")
                })
            })
            .map_err(|failure| MetaError { operation: C::NAME, subject: sent.subject(), failure })
    }

    /// Attributes of a place. `follow`: through a symbolic link in the last component.
    pub async fn stat(&self, who: &Credentials, at: &Place, follow: bool) -> Result<pb::Inode> {
        let call = pb::StatRequest { at: Some(at.into()), follow, ..Default::default() };
        let reply = self.call(who, call).await?;
        present(reply.inode, "stat", at)
    }

    /// Attributes of many places at one point in time, in order. At most 1024 places a call.
    pub async fn batch_stat(
        &self,
        who: &Credentials,
        places: &[Place],
        follow: bool,
    ) -> Result<Vec<std::result::Result<pb::Inode, Status>>> {
        let call = pb::BatchStatRequest {
            at: places.iter().map(Into::into).collect(),
            follow,
            ..Default::default()
        };
        Ok(stat_results(self.call(who, call).await?))
    }

    /// Attributes of many inodes at one point in time, in order. At most 1024 inodes a call.
    pub async fn batch_stat_inodes(
        &self,
        who: &Credentials,
        inodes: &[InodeId],
    ) -> Result<Vec<std::result::Result<pb::Inode, Status>>> {
        let call = pb::BatchStatRequest {
            inodes: inodes.iter().map(|inode| inode.0).collect(),
            ..Default::default()
        };
        Ok(stat_results(self.call(who, call).await?))
    }

    /// Opens a file, or makes it. `mode` is a new file's permission bits with the umask applied; zero fields of `layout` are
    /// inherited from the directory.
    pub async fn open(
        &self,
        who: &Credentials,
        at: &Place,
        flags: OpenFlags,
        mode: u32,
        layout: Option<pb::Layout>,
    ) -> Result<Open> {
        let session = flags.write.then(|| self.shared.failover.random_id());
        let call = pb::OpenRequest {
            at: Some(at.into()),
            read: flags.read,
            write: flags.write,
            create: flags.create,
            exclusive: flags.exclusive,
            truncate: flags.truncate,
            no_follow: flags.no_follow,
            directory: flags.directory,
            mode,
            layout,
            session: session.map(|id| Bytes::copy_from_slice(&id)).unwrap_or_default(),
            ..Default::default()
        };
        let reply = self.call(who, call).await?;
        Ok(Open { inode: present(reply.inode, "open", at)?, created: reply.created, session })
    }

    /// Settles the length of a file that is open for writing (fsync), and ends the session if `settle.close` says so.
    pub async fn sync(
        &self,
        who: &Credentials,
        inode: InodeId,
        session: [u8; 16],
        settle: Settle,
    ) -> Result<pb::Inode> {
        let call = pb::SyncRequest {
            inode: inode.0,
            session: Bytes::copy_from_slice(&session),
            close: settle.close,
            wrote: settle.wrote,
            high_water: settle.high_water,
            truncate_epoch: settle.truncate_epoch,
            mtime: settle.mtime,
            acknowledged: settle.acknowledged,
            ..Default::default()
        };
        let reply = self.call(who, call).await?;
        present(reply.inode, "sync", &Place::inode(inode))
    }

    /// Sets a file's length. With `session` (an open file) the mode bits are not asked again.
    pub async fn truncate(
        &self,
        who: &Credentials,
        at: &Place,
        length: u64,
        session: Option<[u8; 16]>,
    ) -> Result<pb::Inode> {
        let session = session.map(|id| Bytes::copy_from_slice(&id)).unwrap_or_default();
        let call = pb::TruncateRequest { at: Some(at.into()), length, session, ..Default::default() };
        let reply = self.call(who, call).await?;
        present(reply.inode, "truncate", at)
    }

    /// Makes a directory. `parents`: and the missing ones above it; then an existing directory is no error.
    pub async fn mkdir(
        &self,
        who: &Credentials,
        at: &Place,
        mode: u32,
        parents: bool,
        layout: Option<pb::Layout>,
    ) -> Result<pb::Inode> {
        let call = pb::MkdirRequest { at: Some(at.into()), mode, parents, layout, ..Default::default() };
        let reply = self.call(who, call).await?;
        present(reply.inode, "mkdir", at)
    }

    /// Makes an empty file, fifo, socket or device node.
    pub async fn mknod(
        &self,
        who: &Credentials,
        at: &Place,
        kind: pb::FileType,
        mode: u32,
        rdev: u64,
    ) -> Result<pb::Inode> {
        let call =
            pb::MknodRequest { at: Some(at.into()), r#type: kind as i32, mode, rdev, ..Default::default() };
        let reply = self.call(who, call).await?;
        present(reply.inode, "mknod", at)
    }

    /// Makes a symbolic link at `at` that says `target`.
    pub async fn symlink(
        &self,
        who: &Credentials,
        at: &Place,
        target: impl AsRef<[u8]>,
    ) -> Result<pb::Inode> {
        let target = Bytes::copy_from_slice(target.as_ref());
        let call = pb::SymlinkRequest { at: Some(at.into()), target, ..Default::default() };
        let reply = self.call(who, call).await?;
        present(reply.inode, "symlink", at)
    }

    /// Gives the file at `from` another name. `follow`: through a symbolic link at `from`.
    pub async fn link(&self, who: &Credentials, from: &Place, to: &Place, follow: bool) -> Result<pb::Inode> {
        let call =
            pb::LinkRequest { from: Some(from.into()), to: Some(to.into()), follow, ..Default::default() };
        let reply = self.call(who, call).await?;
        present(reply.inode, "link", to)
    }

    /// What a symbolic link says.
    pub async fn readlink(&self, who: &Credentials, at: &Place) -> Result<Bytes> {
        let call = pb::ReadlinkRequest { at: Some(at.into()), ..Default::default() };
        Ok(self.call(who, call).await?.target)
    }

    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, who: &Credentials, at: &Place) -> Result<()> {
        let call = pb::RemoveRequest { at: Some(at.into()), ..Default::default() };
        self.call(who, call).await.map(drop)
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, who: &Credentials, at: &Place) -> Result<()> {
        let call = pb::RemoveRequest { at: Some(at.into()), directory: true, ..Default::default() };
        self.call(who, call).await.map(drop)
    }

    /// Removes whatever is there, a directory with everything below it: the name is gone on return, the rest is reclaimed behind it.
    /// A directory that is not empty takes its owner or the superuser.
    pub async fn remove_all(&self, who: &Credentials, at: &Place) -> Result<()> {
        let call = pb::RemoveRequest { at: Some(at.into()), recursive: true, ..Default::default() };
        self.call(who, call).await.map(drop)
    }

    /// Moves a name, atomically.
    pub async fn rename(
        &self,
        who: &Credentials,
        from: &Place,
        to: &Place,
        mode: pb::RenameMode,
    ) -> Result<pb::Inode> {
        let call = pb::RenameRequest {
            from: Some(from.into()),
            to: Some(to.into()),
            mode: mode as i32,
            ..Default::default()
        };
        let reply = self.call(who, call).await?;
        present(reply.inode, "rename", from)
    }

    /// Changes attributes.
    pub async fn set_attr(
        &self,
        who: &Credentials,
        at: &Place,
        change: SetAttr,
        follow: bool,
    ) -> Result<pb::Inode> {
        let call = pb::SetAttrRequest {
            at: Some(at.into()),
            follow,
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            atime: change.atime,
            mtime: change.mtime,
            atime_now: change.atime_now,
            mtime_now: change.mtime_now,
            ..Default::default()
        };
        let reply = self.call(who, call).await?;
        present(reply.inode, "set_attr", at)
    }

    /// Sets the layout for what is created below a directory from now on; zero fields are inherited from above.
    pub async fn set_layout(&self, who: &Credentials, at: &Place, layout: pb::Layout) -> Result<pb::Inode> {
        let call = pb::SetLayoutRequest { at: Some(at.into()), layout: Some(layout), ..Default::default() };
        let reply = self.call(who, call).await?;
        present(reply.inode, "set_layout", at)
    }

    /// One page of a directory, in order of names: those after `after` (empty: from the start), at most `limit` (0: the service's
    /// choice). Ask again with the last name while `more` is set.
    pub async fn readdir(
        &self,
        who: &Credentials,
        at: &Place,
        after: Bytes,
        limit: u32,
        attributes: bool,
    ) -> Result<pb::ReaddirReply> {
        let call = pb::ReaddirRequest { at: Some(at.into()), after, limit, attributes, ..Default::default() };
        self.call(who, call).await
    }

    /// The value of an extended attribute.
    pub async fn get_xattr(
        &self,
        who: &Credentials,
        at: &Place,
        name: impl AsRef<[u8]>,
        follow: bool,
    ) -> Result<Bytes> {
        let name = Bytes::copy_from_slice(name.as_ref());
        let call = pb::GetXattrRequest { at: Some(at.into()), follow, name, ..Default::default() };
        Ok(self.call(who, call).await?.value)
    }

    /// The names of the extended attributes that the caller may see.
    pub async fn list_xattr(&self, who: &Credentials, at: &Place, follow: bool) -> Result<Vec<Bytes>> {
        let call = pb::ListXattrRequest { at: Some(at.into()), follow, ..Default::default() };
        Ok(self.call(who, call).await?.names)
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(
        &self,
        who: &Credentials,
        at: &Place,
        name: impl AsRef<[u8]>,
        value: Bytes,
        mode: XattrMode,
        follow: bool,
    ) -> Result<()> {
        let call = pb::SetXattrRequest {
            at: Some(at.into()),
            follow,
            name: Bytes::copy_from_slice(name.as_ref()),
            value,
            create: mode == XattrMode::Create,
            replace: mode == XattrMode::Replace,
            ..Default::default()
        };
        self.call(who, call).await.map(drop)
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(
        &self,
        who: &Credentials,
        at: &Place,
        name: impl AsRef<[u8]>,
        follow: bool,
    ) -> Result<()> {
        let name = Bytes::copy_from_slice(name.as_ref());
        let call =
            pb::SetXattrRequest { at: Some(at.into()), follow, name, remove: true, ..Default::default() };
        self.call(who, call).await.map(drop)
    }

    /// Space and counts of the whole file system.
    pub async fn statfs(&self, who: &Credentials) -> Result<pb::StatfsReply> {
        self.call(who, pb::StatfsRequest::default()).await
    }

    /// What a subtree holds, computed by the service page after page; memory here grows only with files that have several links.
    pub async fn usage(&self, who: &Credentials, at: &Place) -> Result<Usage> {
        let mut usage = Usage::default();
        let mut linked = BTreeMap::new();
        let mut cursor = Bytes::new();
        loop {
            let call = pb::UsageRequest { at: Some(at.into()), cursor, ..Default::default() };
            let page = self.call(who, call).await?;
            usage.bytes += page.bytes;
            usage.files += page.files;
            usage.directories += page.directories;
            usage.unreadable += page.unreadable;
            linked.extend(page.linked.iter().map(|file| (file.inode, file.bytes)));
            cursor = page.cursor;
            if cursor.is_empty() {
                usage.files += linked.len() as u64;
                usage.bytes += linked.values().sum::<u64>();
                return Ok(usage);
            }
        }
    }
}

fn stat_results(reply: pb::BatchStatReply) -> Vec<std::result::Result<pb::Inode, Status>> {
    let result = |one: pb::StatResult| match (Status::from_code(one.status as u16), one.inode) {
        (Status::Ok, Some(inode)) => Ok(inode),
        (Status::Ok, None) => Err(Status::Malformed),
        (status, _) => Err(status),
    };
    reply.results.into_iter().map(result).collect()
}

fn present(inode: Option<pb::Inode>, operation: &'static str, at: &Place) -> Result<pb::Inode> {
    inode.ok_or_else(|| MetaError {
        operation,
        subject: at.to_string(),
        failure: Failure::new(Status::Malformed, "the meta service's reply has no inode"),
    })
}
