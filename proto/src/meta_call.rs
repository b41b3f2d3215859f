//! The metadata calls as values: what gRPC carries, and what the simulator carries over its own network instead.

use crate::pb;

macro_rules! calls {
    ($($name:ident: $request:ident -> $reply:ident;)*) => {
        /// A request to a meta service.
        #[derive(Clone, Debug)]
        #[allow(missing_docs)]
        pub enum Request { $($name(pb::$request),)* }

        /// Its answer.
        #[derive(Clone, Debug)]
        #[allow(missing_docs)]
        pub enum Reply { $($name(pb::$reply),)* }

        impl Request {
            /// The call's name.
            pub fn name(&self) -> &'static str {
                match self { $(Request::$name(_) => stringify!($name),)* }
            }

            /// As [`Request::caller`], to be filled in.
            pub fn caller_mut(&mut self) -> Option<&mut pb::Caller> {
                match self { $(Request::$name(request) => request.caller.as_mut(),)* }
            }

            /// Whether it carries a request id, as mutations do.
            pub fn mutates(&self) -> bool {
                self.caller().is_some_and(|caller| !caller.request.is_empty())
            }

            /// Who asks, and for a mutation the request id.
            pub fn caller(&self) -> Option<&pb::Caller> {
                match self { $(Request::$name(request) => request.caller.as_ref(),)* }
            }
        }
    };
}

calls! {
    Stat: StatRequest -> StatReply;
    BatchStat: BatchStatRequest -> BatchStatReply;
    Open: OpenRequest -> OpenReply;
    Sync: SyncRequest -> SyncReply;
    Truncate: TruncateRequest -> TruncateReply;
    Mkdir: MkdirRequest -> InodeReply;
    Mknod: MknodRequest -> InodeReply;
    Symlink: SymlinkRequest -> InodeReply;
    Link: LinkRequest -> InodeReply;
    Readlink: ReadlinkRequest -> ReadlinkReply;
    Remove: RemoveRequest -> RemoveReply;
    Rename: RenameRequest -> RenameReply;
    SetAttr: SetAttrRequest -> InodeReply;
    SetLayout: SetLayoutRequest -> InodeReply;
    Readdir: ReaddirRequest -> ReaddirReply;
    GetXattr: GetXattrRequest -> GetXattrReply;
    ListXattr: ListXattrRequest -> ListXattrReply;
    SetXattr: SetXattrRequest -> SetXattrReply;
    Statfs: StatfsRequest -> StatfsReply;
    Usage: UsageRequest -> UsageReply;
    Period: PeriodRequest -> PeriodReply;
    CheckInodes: CheckInodesRequest -> CheckInodesReply;
    CheckEntries: CheckEntriesRequest -> CheckEntriesReply;
    Repair: RepairRequest -> RepairReply;
}
