//! A request with bulk data both ways, over each backend.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{BufPool, PoolClass, PoolConfig};
use catena_net::mem::MemNetwork;
use catena_net::tcp::TcpTransport;
use catena_net::{Call, Identity, Incoming, NetError, PeerId, Segment, Service, Transport};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use futures_util::future::BoxFuture;

struct Echo;

impl Service for Echo {
    fn class(&self, _: u16, _: &[u8]) -> PoolClass {
        PoolClass::Client
    }
    fn call(self: Arc<Self>, mut request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let data = request.pull().await.expect("data is here");
            let body = request.body.clone();
            let back = data
                .into_iter()
                .map(|buf| buf.freeze())
                .map(|buf| buf.slice(buf.len() - 5000..buf.len()))
                .collect();
            request.responder().send(Status::Ok, body, back);
        })
    }
}

fn identity(peer: PeerId, token: u8) -> Identity {
    Identity { cluster: ClusterId(1), token: Token([token; 32]), peer, incarnation: Incarnation(9) }
}

fn pool() -> BufPool {
    BufPool::new(PoolConfig::service(64 << 20)).expect("64 MiB can be mapped")
}

async fn round_trip(server: &dyn Transport, client: &dyn Transport, address: &str) {
    let listener = server.listen(address, Arc::new(Echo)).await.expect("a free address");
    let connection = client.connect(&listener.address(), Duration::from_secs(5)).await.expect("one of ours");
    assert_eq!(connection.peer(), PeerId::Node(NodeId(3)));
    for round in 0..50_u8 {
        let mut data = client.pool().alloc(5000, PoolClass::Client).await.expect("room");
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = (index as u8).wrapping_mul(31) ^ round;
        }
        let data = data.freeze();
        let into = vec![client.pool().alloc(6000, PoolClass::Client).await.expect("room")];
        let mut call = Call::new(7, Bytes::from(vec![round]), Duration::from_secs(5));
        (call.data, call.into) = (vec![Segment { data: data.clone(), align: 123 }], into);
        let reply = connection.call(call).await.expect("an answer");
        assert_eq!((reply.status, &reply.body[..]), (Status::Ok, &[round][..]));
        assert_eq!(reply.data[0][..], data[..]);
    }
    listener.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn over_tcp() {
    let server = TcpTransport::new(identity(PeerId::Node(NodeId(3)), 1), pool());
    let client = TcpTransport::new(identity(PeerId::Client(ClientId(5)), 1), pool());
    round_trip(&server, &client, "tcp://127.0.0.1:0").await;
}

#[tokio::test]
async fn in_memory() {
    let network = MemNetwork::new(1);
    let server = network.transport(identity(PeerId::Node(NodeId(3)), 1), pool());
    let client = network.transport(identity(PeerId::Client(ClientId(5)), 1), pool());
    round_trip(&server, &client, "mem://3").await;
}

#[tokio::test]
async fn a_stranger_is_refused_by_name() {
    let server = TcpTransport::new(identity(PeerId::Node(NodeId(3)), 1), pool());
    let client = TcpTransport::new(identity(PeerId::Client(ClientId(5)), 2), pool());
    let listener = server.listen("tcp://127.0.0.1:0", Arc::new(Echo)).await.expect("a free address");
    let refused = client.connect(&listener.address(), Duration::from_secs(5)).await.err();
    assert!(matches!(refused, Some(NetError::Refused { status: Status::BadToken, .. })), "{refused:?}");
}
