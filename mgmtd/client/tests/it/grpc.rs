//! The same calls over real gRPC on the loopback.

use std::sync::Arc;
use std::time::Duration;

use catena_mgmtd_client::{CallOptions, MgmtdApi, MgmtdClient, RoutingWatch, WatchOptions};
use catena_proto::ids::RoutingVersion;
use catena_proto::pb::mgmtd_server::{Mgmtd, MgmtdServer};
use catena_proto::pb::*;
use catena_proto::rpc::{ClientAuth, ServerAuth};
use catena_proto::status::Status;
use catena_proto::token::Token;
use tonic::{Request, Response};

use crate::fake::{CLUSTER, Fake};

struct Skin(Arc<Fake>);

macro_rules! skin {
    ($($method:ident($request:ident) -> $reply:ident;)*) => {
        #[async_trait::async_trait]
        impl Mgmtd for Skin {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$reply>, tonic::Status> {
                Ok(Response::new(self.0.$method(request.into_inner()).await?))
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

async fn serve(fake: Arc<Fake>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let auth = ServerAuth::new(CLUSTER, Token([1; 32]));
    let service = MgmtdServer::with_interceptor(Skin(fake), auth);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    address
}

fn connect(address: &str, token: Token) -> MgmtdClient {
    let auth = ClientAuth::new(CLUSTER, &token);
    MgmtdClient::connect(CLUSTER, &[address.to_owned()], auth, CallOptions::default()).unwrap()
}

#[tokio::test]
async fn routing_arrives_over_grpc() {
    let fake = Fake::new();
    let address = serve(fake.clone()).await;
    let watch = RoutingWatch::spawn(connect(&address, Token([1; 32])), WatchOptions::default());
    fake.publish(3);
    let info = watch.changed(RoutingVersion(0)).await;
    assert_eq!(*info, *fake.routing.borrow());
}

#[tokio::test]
async fn failures_keep_their_status_over_grpc() {
    let fake = Fake::new();
    let address = serve(fake.clone()).await;
    let stranger = connect(&address, Token([2; 32])).list_clients().await.unwrap_err();
    assert_eq!(stranger.status, Status::BadToken);
    assert_eq!(fake.calls(), 0);
    fake.set_mood(crate::fake::Mood::Refuse(Status::StaleHandle));
    let refused = connect(&address, Token([1; 32])).list_clients().await.unwrap_err();
    assert_eq!(refused.status, Status::StaleHandle);
}

#[tokio::test]
async fn an_address_that_nobody_has_is_named() {
    let options = CallOptions::within(Duration::from_millis(50), Duration::from_millis(50));
    let client = connect("127.0.0.1:1", Token([1; 32])).with_options(options);
    let failure = client.list_clients().await.unwrap_err();
    assert_eq!(failure.status, Status::Disconnected);
    assert!(failure.message.contains("127.0.0.1:1"), "{failure}");
    let auth = ClientAuth::new(CLUSTER, &Token([1; 32]));
    let bad = MgmtdClient::connect(CLUSTER, &["no port".into()], auth.clone(), options).err().unwrap();
    assert_eq!(bad.status, Status::Invalid);
    assert!(MgmtdClient::connect(CLUSTER, &[], auth, options).is_err());
}
