//! One mgmtd as a caller sees it. The trait is the seam between decisions (which mgmtd, how often) and the wire: gRPC or the simulator.

use async_trait::async_trait;
use catena_proto::pb::*;
use catena_proto::rpc::Failure;

/// The calls of one mgmtd, primary or not. A stand-by answers [`catena_proto::status::Status::NoPrimary`].
///
/// Implementations do not retry and need no deadline of their own: [`crate::MgmtdClient`] drops the future when its time is over.
#[async_trait]
#[allow(missing_docs)] // the messages in proto/schema/mgmtd.proto are the documentation
pub trait MgmtdApi: Send + Sync + 'static {
    async fn register(&self, request: RegisterRequest) -> Result<RegisterReply, Failure>;
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatReply, Failure>;
    async fn get_routing(&self, request: GetRoutingRequest) -> Result<GetRoutingReply, Failure>;
    async fn create_table(&self, request: CreateTableRequest) -> Result<CreateTableReply, Failure>;
    async fn recover_chain(&self, request: RecoverChainRequest) -> Result<RecoverChainReply, Failure>;
    async fn extend_client_session(
        &self,
        request: ClientSessionRequest,
    ) -> Result<ClientSessionReply, Failure>;
    async fn list_clients(&self, request: ListClientsRequest) -> Result<ListClientsReply, Failure>;
}
