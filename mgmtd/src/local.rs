//! The service as its client calls it, without a wire between them: for tests, the simulator and tools in the same process.

use async_trait::async_trait;
use catena_mgmtd_client::MgmtdApi;
use catena_proto::pb::*;
use catena_proto::rpc::Failure;

use crate::service::Service;

macro_rules! forward {
    ($($method:ident($request:ident) -> $reply:ident;)*) => {
        #[async_trait]
        impl MgmtdApi for Service {
            $(async fn $method(&self, request: $request) -> Result<$reply, Failure> {
                Service::$method(self, request).await
            })*
        }
    };
}

forward! {
    register(RegisterRequest) -> RegisterReply;
    heartbeat(HeartbeatRequest) -> HeartbeatReply;
    get_routing(GetRoutingRequest) -> GetRoutingReply;
    create_table(CreateTableRequest) -> CreateTableReply;
    recover_chain(RecoverChainRequest) -> RecoverChainReply;
    extend_client_session(ClientSessionRequest) -> ClientSessionReply;
    list_clients(ListClientsRequest) -> ListClientsReply;
}
