//! The typed calls: which reply belongs to which request, and how both travel as values.

use bytes::Bytes;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::pb;

use crate::place::Place;

/// One metadata call: a request struct, its reply, and how both travel.
pub trait Call: Clone + Send + 'static {
    /// What comes back.
    type Reply: Send + 'static;
    /// For errors and logs.
    const NAME: &'static str;
    /// Mutating calls carry a request id.
    const MUTATES: bool;
    /// The caller, filled in before the call is sent.
    fn caller(&mut self) -> &mut Option<pb::Caller>;
    /// The place that the call is about, for errors.
    fn subject(&self) -> String;
    /// As a value that an [`Endpoint`](crate::Endpoint) carries.
    fn into_request(self) -> Request;
    /// Back from the value; nothing if the endpoint answered another call.
    fn from_reply(reply: Reply) -> Option<Self::Reply>;
}

fn at(at: &Option<pb::At>) -> String {
    match at {
        Some(at) => {
            Place { parent: catena_proto::ids::InodeId(at.parent), path: at.path.clone() }.to_string()
        }
        None => String::new(),
    }
}

fn subject(repair: &pb::RepairRequest) -> String {
    let inode = |seen: &pb::CheckedInode| format!("inode {}", seen.id);
    let entry = |entry: &pb::CheckedEntry| {
        format!("{} (below inode {})", String::from_utf8_lossy(&entry.name), entry.parent)
    };
    repair.entry.as_ref().map(entry).or(repair.seen.as_ref().map(inode)).unwrap_or_default()
}

macro_rules! calls {
    ($($name:ident, $method:ident, $request:ident -> $reply:ident, $mutates:literal, |$this:ident| $subject:expr;)*) => {
        $(impl Call for pb::$request {
            type Reply = pb::$reply;
            const NAME: &'static str = stringify!($method);
            const MUTATES: bool = $mutates;
            fn caller(&mut self) -> &mut Option<pb::Caller> { &mut self.caller }
            fn subject(&self) -> String { let $this = self; $subject }
            fn into_request(self) -> Request { Request::$name(self) }
            fn from_reply(reply: Reply) -> Option<pb::$reply> {
                match reply { Reply::$name(reply) => Some(reply), _ => None }
            }
        })*

        /// Sends a request through the generated gRPC client.
        pub(crate) async fn send<T>(
            client: &mut pb::meta_client::MetaClient<T>,
            request: Request,
            timeout: std::time::Duration,
        ) -> Result<Reply, tonic::Status>
        where
            T: tonic::client::GrpcService<tonic::body::Body>,
            T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
            T::ResponseBody: tonic::transport::Body<Data = Bytes> + Send + 'static,
            <T::ResponseBody as tonic::transport::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
        {
            match request {
                $(Request::$name(request) => {
                    let mut request = tonic::Request::new(request);
                    request.set_timeout(timeout);
                    Ok(Reply::$name(client.$method(request).await?.into_inner()))
                })*
            }
        }
    };
}

calls! {
    Stat, stat, StatRequest -> StatReply, false, |this| at(&this.at);
    BatchStat, batch_stat, BatchStatRequest -> BatchStatReply, false, |this| format!("{} places", this.at.len() + this.inodes.len());
    Open, open, OpenRequest -> OpenReply, true, |this| at(&this.at);
    Sync, sync, SyncRequest -> SyncReply, true, |this| format!("inode {}", this.inode);
    Truncate, truncate, TruncateRequest -> TruncateReply, true, |this| at(&this.at);
    Mkdir, mkdir, MkdirRequest -> InodeReply, true, |this| at(&this.at);
    Mknod, mknod, MknodRequest -> InodeReply, true, |this| at(&this.at);
    Symlink, symlink, SymlinkRequest -> InodeReply, true, |this| at(&this.at);
    Link, link, LinkRequest -> InodeReply, true, |this| format!("{} to {}", at(&this.from), at(&this.to));
    Readlink, readlink, ReadlinkRequest -> ReadlinkReply, false, |this| at(&this.at);
    Remove, remove, RemoveRequest -> RemoveReply, true, |this| at(&this.at);
    Rename, rename, RenameRequest -> RenameReply, true, |this| format!("{} to {}", at(&this.from), at(&this.to));
    SetAttr, set_attr, SetAttrRequest -> InodeReply, true, |this| at(&this.at);
    SetLayout, set_layout, SetLayoutRequest -> InodeReply, true, |this| at(&this.at);
    Readdir, readdir, ReaddirRequest -> ReaddirReply, false, |this| at(&this.at);
    GetXattr, get_xattr, GetXattrRequest -> GetXattrReply, false, |this| at(&this.at);
    ListXattr, list_xattr, ListXattrRequest -> ListXattrReply, false, |this| at(&this.at);
    SetXattr, set_xattr, SetXattrRequest -> SetXattrReply, true, |this| at(&this.at);
    Statfs, statfs, StatfsRequest -> StatfsReply, false, |_this| String::from("/");
    Usage, usage, UsageRequest -> UsageReply, false, |this| at(&this.at);
    Period, period, PeriodRequest -> PeriodReply, false, |_this| String::from("/");
    CheckInodes, check_inodes, CheckInodesRequest -> CheckInodesReply, false, |_this| String::from("/");
    CheckEntries, check_entries, CheckEntriesRequest -> CheckEntriesReply, false, |_this| String::from("/");
    Repair, repair, RepairRequest -> RepairReply, true, |this| subject(this);
}
