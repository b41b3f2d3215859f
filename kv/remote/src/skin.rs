//! gRPC around the service: nothing but translation.

use std::sync::Arc;

use catena_kv::local::Store;
use catena_proto::pb::kv_server::Kv;
use catena_proto::pb::*;
use tonic::{Request, Response, Status};

use crate::service::Service;

/// The service as tonic calls it.
pub(crate) struct Skin<S: Store>(pub(crate) Arc<Service<S>>);

macro_rules! skin {
    ($($method:ident($request:ident) -> $reply:ident;)*) => {
        #[async_trait::async_trait]
        impl<S: Store> Kv for Skin<S> {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                Ok(Response::new(self.0.$method(request.into_inner()).await))
            })*
        }
    };
}

skin! {
    read_version(KvReadVersionRequest) -> KvReadVersionReply;
    get(KvGetRequest) -> KvGetReply;
    get_range(KvRangeRequest) -> KvRangeReply;
    commit(KvCommitRequest) -> KvCommitReply;
}
