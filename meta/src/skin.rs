//! gRPC around the service: nothing but the translation of failures. Deadlines are the transport's: a call whose `grpc-timeout` has
//! passed is dropped where it stands, which every operation survives.

use std::sync::Arc;

use catena_proto::pb;
use catena_proto::pb::meta_server::Meta;
use tonic::{Request, Response, Status};

use crate::service::Service;

/// The service as tonic wants it.
pub(crate) struct Skin(pub(crate) Arc<Service>);

macro_rules! skin {
    ($($method:ident: $request:ident -> $reply:ident;)*) => {
        #[tonic::async_trait]
        impl Meta for Skin {
            $(async fn $method(&self, request: Request<pb::$request>) -> Result<Response<pb::$reply>, Status> {
                self.0.$method(request.into_inner()).await.map(Response::new).map_err(Status::from)
            })*
        }
    };
}

skin! {
    stat: StatRequest -> StatReply;
    batch_stat: BatchStatRequest -> BatchStatReply;
    open: OpenRequest -> OpenReply;
    sync: SyncRequest -> SyncReply;
    truncate: TruncateRequest -> TruncateReply;
    mkdir: MkdirRequest -> InodeReply;
    mknod: MknodRequest -> InodeReply;
    symlink: SymlinkRequest -> InodeReply;
    link: LinkRequest -> InodeReply;
    readlink: ReadlinkRequest -> ReadlinkReply;
    remove: RemoveRequest -> RemoveReply;
    rename: RenameRequest -> RenameReply;
    set_attr: SetAttrRequest -> InodeReply;
    set_layout: SetLayoutRequest -> InodeReply;
    readdir: ReaddirRequest -> ReaddirReply;
    get_xattr: GetXattrRequest -> GetXattrReply;
    list_xattr: ListXattrRequest -> ListXattrReply;
    set_xattr: SetXattrRequest -> SetXattrReply;
    statfs: StatfsRequest -> StatfsReply;
    usage: UsageRequest -> UsageReply;
    period: PeriodRequest -> PeriodReply;
    check_inodes: CheckInodesRequest -> CheckInodesReply;
    check_entries: CheckEntriesRequest -> CheckEntriesReply;
    repair: RepairRequest -> RepairReply;
}
