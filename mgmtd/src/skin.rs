//! gRPC around the service: nothing but translation.

use std::sync::Arc;

use catena_proto::pb::mgmtd_server::Mgmtd;
use catena_proto::pb::*;
use tonic::{Request, Response, Status};

use crate::service::Service;

/// The service as tonic calls it.
pub struct Skin(pub Arc<Service>);

macro_rules! skin {
    ($($method:ident($request:ident) -> $reply:ident;)*) => {
        #[async_trait::async_trait]
        impl Mgmtd for Skin {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                Ok(Response::new(Service::$method(&self.0, request.into_inner()).await?))
            })*
        }
    };
}

skin! {
    register(RegisterRequest) -> RegisterReply;
    heartbeat(HeartbeatRequest) -> HeartbeatReply;
    get_routing(GetRoutingRequest) -> GetRoutingReply;
    create_table(CreateTableRequest) -> CreateTableReply;
    recover_chain(RecoverChainRequest) -> RecoverChainReply;
    extend_client_session(ClientSessionRequest) -> ClientSessionReply;
    list_clients(ListClientsRequest) -> ListClientsReply;
}
