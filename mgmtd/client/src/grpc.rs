//! mgmtd over gRPC: a lazily connected channel and nothing else.

use std::time::Duration;

use async_trait::async_trait;
use catena_proto::pb::mgmtd_client::MgmtdClient as Stub;
use catena_proto::pb::*;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_proto::status::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::api::MgmtdApi;

/// Routing information of a large cluster is larger than tonic's 4 MiB; a bound stays, against a peer gone mad.
const MAX_REPLY: usize = 256 << 20;

/// One mgmtd, reached over gRPC.
#[derive(Clone)]
pub struct GrpcMgmtd {
    stub: Stub<InterceptedService<Channel, ClientAuth>>,
}

impl GrpcMgmtd {
    /// `address` is `host:port`. Nothing is connected yet; must be called inside a tokio runtime.
    ///
    /// `silence` bounds how long a peer that has stopped answering (a stopped process, an unplugged machine) is waited for while a
    /// long poll is under way: the connection is probed that often and dropped after as long again.
    pub fn new(address: &str, auth: ClientAuth, silence: Duration) -> Result<GrpcMgmtd, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| {
                let message = format!(
                    "mgmtd address \"{address}\" is not of the form host:port ({error}): correct `mgmtd`"
                );
                Failure::new(Status::Invalid, message)
            })?
            .connect_timeout(silence)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(silence)
            .keep_alive_timeout(silence)
            .keep_alive_while_idle(false);
        let stub = Stub::with_interceptor(endpoint.connect_lazy(), auth).max_decoding_message_size(MAX_REPLY);
        Ok(GrpcMgmtd { stub })
    }
}

macro_rules! forward {
    ($($method:ident($request:ident) -> $reply:ident;)*) => {
        #[async_trait]
        impl MgmtdApi for GrpcMgmtd {
            $(async fn $method(&self, request: $request) -> Result<$reply, Failure> {
                Ok(self.stub.clone().$method(request).await?.into_inner())
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
