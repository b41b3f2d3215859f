//! Both backends carry a write and a read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{BufPool, PoolClass, PoolConfig};
use catena_net::mem::MemNetwork;
use catena_net::tcp::TcpTransport;
use catena_net::{Call, Identity, Incoming, PeerId, Segment, Service, Transport};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use futures_util::future::BoxFuture;

struct Echo;

impl Service for Echo {
    fn class(&self, _: u16, _: &[u8]) -> PoolClass {
        PoolClass::Client
    }
    fn call(self: Arc<Self>, request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let (mut request, responder) = request.split();
            let data = request.pull().await.unwrap();
            let data = data.into_iter().map(|buf| buf.freeze().slice(100..5100)).collect();
            responder.send(Status::Ok, request.body.clone(), data);
        })
    }
}

fn identity(peer: PeerId) -> Identity {
    Identity { cluster: ClusterId(1), token: Token([1; 32]), peer, incarnation: Incarnation(1) }
}

async fn echo(client: &dyn Transport, server: &dyn Transport, address: &str) {
    let listener = server.listen(address, Arc::new(Echo)).await.unwrap();
    let connection = client.connect(&listener.address(), Duration::from_secs(5)).await.unwrap();
    assert_eq!(connection.peer(), PeerId::Node(NodeId(1)));
    let mut data = client.pool().alloc(5000, PoolClass::Client).await.unwrap();
    data.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
    let data = data.freeze();
    let into = client.pool().alloc(6000, PoolClass::Client).await.unwrap();
    let call = Call {
        method: 3,
        body: Bytes::from_static(b"hello"),
        data: vec![Segment { data: data.clone(), align: 100 }],
        into: vec![into],
        into_align: vec![7],
        ..Call::default()
    };
    let reply = connection.call(call).await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (Status::Ok, b"hello".as_slice()));
    assert_eq!(&reply.data[0][7..], &data[..]);
}

fn pool() -> BufPool {
    BufPool::new(PoolConfig::service(64 << 20)).unwrap()
}

#[tokio::test]
async fn tcp() {
    let client = TcpTransport::new(identity(PeerId::Client(ClientId(7))), pool());
    let server = TcpTransport::new(identity(PeerId::Node(NodeId(1))), pool());
    echo(&client, &server, "127.0.0.1:0").await;
}

#[tokio::test]
async fn mem() {
    let network = MemNetwork::new(1);
    let client = network.transport(identity(PeerId::Client(ClientId(7))), pool());
    let server = network.transport(identity(PeerId::Node(NodeId(1))), pool());
    echo(&client, &server, "n1").await;
}
