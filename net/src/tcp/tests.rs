//! Peers that do not keep to the protocol: raw sockets against the shipped ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{BufPool, MAX_BUF, PoolClass, PoolConfig};
use catena_proto::ids::{ClientId, ClusterId, Incarnation, NodeId};
use catena_proto::status::Status;
use catena_proto::token::Token;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zerocopy::{FromZeros, IntoBytes};

use super::{TcpOptions, TcpTransport};
use crate::frame::{self, Entry, HEADER, Header, Row, flag, kind};
use crate::handshake::carrier;
use crate::handshake::{Hello, Verdict};
use crate::limits;
use crate::shake;
use crate::{Call, Connection, Identity, Incoming, Listener, NetError, PeerId, Segment, Service, Transport};

const LONG: Duration = Duration::from_secs(60);
const CREDITS: u32 = 4;

/// Answers with the data; method 9 never answers.
struct Echo;

impl Service for Echo {
    fn class(&self, _: u16, _: &[u8]) -> PoolClass {
        PoolClass::Client
    }
    fn call(self: Arc<Self>, mut request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let data = request.take_data();
            if request.method == 9 {
                std::future::pending::<()>().await;
            }
            let body = request.body.clone();
            request.responder().send(Status::Ok, body, data.into_iter().map(|buf| buf.freeze()).collect());
        })
    }
}

fn identity(peer: PeerId) -> Identity {
    Identity { cluster: ClusterId(1), token: Token([1; 32]), peer, incarnation: Incarnation(1) }
}

fn transport(peer: PeerId) -> TcpTransport {
    let pool = BufPool::new(PoolConfig { bytes: [4 * MAX_BUF, 0, 0, 0, 0] }).expect("memory");
    let options = TcpOptions { credits: CREDITS, handshake: Duration::from_millis(200) };
    TcpTransport::with_options(identity(peer), pool, options)
}

const ME: PeerId = PeerId::Client(ClientId(5));

async fn server() -> Box<dyn Listener> {
    transport(PeerId::Node(NodeId(1))).listen("127.0.0.1:0", Arc::new(Echo)).await.expect("a free port")
}

async fn raw(listener: &dyn Listener) -> TcpStream {
    TcpStream::connect(super::host(&listener.address())).await.expect("it listens")
}

/// A raw socket behind the handshake.
async fn introduced(listener: &dyn Listener) -> TcpStream {
    let mut stream = raw(listener).await;
    let (peer, credits) =
        shake::introduce(&mut stream, &identity(ME), carrier::STREAM, "there").await.expect("one of ours");
    assert_eq!((peer, credits), (PeerId::Node(NodeId(1)), CREDITS));
    stream
}

async fn works(listener: &dyn Listener) {
    let connection = transport(ME).connect(&listener.address(), LONG).await.expect("it lives");
    let reply = connection.call(Call::new(1, &b"hello"[..], LONG)).await.expect("an answer");
    assert_eq!(&reply.body[..], b"hello");
}

/// Until the peer closes; what it said before.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

fn request(id: u64, data: &[Entry], flags: u8) -> Vec<u8> {
    let header =
        Header { code: 1.into(), deadline_us: u32::MAX.into(), flags, ..Header::bare(kind::REQUEST, id) };
    let mut out = Vec::new();
    let room = data.iter().map(|entry| Entry::new(entry.len() + entry.align(), 0));
    frame::put(&mut out, header, data.iter().copied(), room, b"body");
    out
}

fn data(id: u64, bytes: &[u8], flags: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header { body_len: (bytes.len() as u32).into(), flags, ..Header::bare(kind::DATA, id) };
    frame::put_bare(&mut out, header);
    out.extend_from_slice(bytes);
    out
}

fn bare(header: Header) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put_bare(&mut out, header);
    out
}

#[tokio::test]
async fn what_is_no_handshake_is_hung_up_on() {
    let listener = server().await;
    for greeting in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 300], b""] {
        let mut stream = raw(&*listener).await;
        stream.write_all(greeting).await.expect("a socket");
        let answer = rest(&mut stream).await;
        // Who sends a whole greeting's worth of nonsense is told so.
        assert_eq!(answer.len(), if greeting.len() >= size_of::<Hello>() { size_of::<Hello>() } else { 0 });
    }
    assert_eq!(listener.stats().refused_other, 3);
    works(&*listener).await;
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name() {
    let listener = server().await;
    let mut stream = raw(&*listener).await;
    let hello = Hello { version: 999.into(), ..Hello::new(&identity(ME), [3; 32]) };
    stream.write_all(hello.as_bytes()).await.expect("a socket");
    let mut answer = Hello::new_zeroed();
    stream.read_exact(answer.as_mut_bytes()).await.expect("an answer");
    assert_eq!(answer.status.get(), Status::WrongProtocol as u16);
    assert_eq!(answer.proof, [0; 32], "nothing is proven to a stranger");
    assert!(rest(&mut stream).await.is_empty());
    assert_eq!(listener.stats().refused_protocol, 1);
    works(&*listener).await;
}

#[tokio::test]
async fn who_cannot_prove_the_token_is_refused() {
    let listener = server().await;
    let mut stream = raw(&*listener).await;
    stream.write_all(Hello::new(&identity(ME), [3; 32]).as_bytes()).await.expect("a socket");
    let mut answer = Hello::new_zeroed();
    stream.read_exact(answer.as_mut_bytes()).await.expect("an answer");
    // The server's own proof sent back is not the client's.
    stream.write_all(&answer.proof).await.expect("a socket");
    let mut verdict = Verdict::new_zeroed();
    stream.read_exact(verdict.as_mut_bytes()).await.expect("an answer");
    assert_eq!(verdict.status.get(), Status::BadToken as u16);
    assert!(rest(&mut stream).await.is_empty());
    assert_eq!(listener.stats().refused_token, 1);
}

/// What a client says of a server that answers its greeting with `answer`.
async fn greeted_with(answer: Vec<u8>) -> NetError {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut hello = Hello::new_zeroed();
        stream.read_exact(hello.as_mut_bytes()).await.expect("a greeting");
        stream.write_all(&answer).await.expect("a socket");
        stream.shutdown().await.expect("a socket");
        rest(&mut stream).await
    });
    let error = transport(ME).connect(&address, LONG).await.err().expect("it is no server of ours");
    assert!(server.await.expect("no panic").is_empty(), "nothing is proven to a stranger");
    error
}

#[tokio::test]
async fn a_client_sees_through_servers_that_are_none() {
    let honest = Hello::new(&identity(PeerId::Node(NodeId(1))), [9; 32]);
    let cases = [
        (honest, Status::BadToken),
        (Hello { version: 7.into(), ..honest }, Status::WrongProtocol),
        (Hello { magic: *b"HTTP/1.1", ..honest }, Status::Malformed),
        (Hello { cluster: [9; 16], ..honest }, Status::WrongCluster),
        (Hello { kind: 77, ..honest }, Status::Malformed),
    ];
    for (answer, expected) in cases {
        let error = greeted_with(answer.as_bytes().to_vec()).await;
        assert!(
            matches!(&error, NetError::Refused { status, .. } if *status == expected),
            "{expected:?}: {error}"
        );
    }
    let error = greeted_with(b"220 smtp".to_vec()).await;
    assert!(matches!(&error, NetError::Connect { reason, .. } if reason.contains("hung up")), "{error}");
}

#[tokio::test]
async fn frames_that_cannot_be_cost_their_connection_and_no_other() {
    let listener = server().await;
    let entry = [Entry::new(100, 5)];
    let flipped = {
        let mut bytes = request(1 << 16, &[], 0);
        bytes[HEADER] ^= 1;
        bytes
    };
    let long = Header { body_len: (limits::BODY as u32 + 1).into(), ..Header::bare(kind::REQUEST, 1 << 16) };
    let bulky = Header { bulk_len: (limits::BULK as u32 + 1).into(), ..Header::bare(kind::REQUEST, 1 << 16) };
    let many =
        Header { segments: (limits::SEGMENTS as u16 + 1).into(), ..Header::bare(kind::REQUEST, 1 << 16) };
    let slow = {
        let header =
            Header { code: 9.into(), deadline_us: u32::MAX.into(), ..Header::bare(kind::REQUEST, 1 << 16) };
        let mut out = Vec::new();
        frame::put(&mut out, header, std::iter::empty::<Entry>(), std::iter::empty(), b"");
        out
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a flipped bit", flipped),
        ("a body too long", bare(long)),
        ("too much bulk data", bare(bulky)),
        ("too many segments", bare(many)),
        ("a segment that fits no buffer", request(1 << 16, &[Entry::new(MAX_BUF, 1)], flag::EAGER)),
        ("an alignment beyond a page", request(1 << 16, &[Entry::new(1, 4096)], flag::EAGER)),
        ("a kind that is none", bare(Header::bare(77, 1))),
        ("what servers send", bare(Header::bare(kind::PULL, 1 << 16))),
        ("an answer", bare(Header::bare(kind::REPLY, 1 << 16))),
        ("data of no request", data(1 << 16, b"data", 0)),
        (
            "more data than announced",
            [request(1 << 16, &entry, flag::EAGER), data(1 << 16, &[0; 101], 0)].concat(),
        ),
        (
            "data that was not asked for",
            [request(1 << 16, &entry, flag::EAGER), data(1 << 16, &[0; 100], flag::PULLED)].concat(),
        ),
        ("data that should wait", [request(1 << 16, &entry, 0), data(1 << 16, &[0; 100], 0)].concat()),
        ("a slot beyond the credits", request(1 << 16 | u64::from(CREDITS), &[], 0)),
        ("a slot in use", [slow.clone(), slow].concat()),
        ("no id", request(0, &[], 0)),
    ];
    for (index, (what, bytes)) in cases.iter().enumerate() {
        let mut stream = introduced(&*listener).await;
        stream.write_all(bytes).await.expect("a socket");
        rest(&mut stream).await;
        // Closed and counted, in either order.
        while listener.stats().garbled < index as u64 + 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(listener.stats().garbled, index as u64 + 1, "{what}");
    }
    works(&*listener).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_is_no_evildoer() {
    let listener = server().await;
    let whole =
        [request(1 << 16, &[Entry::new(9000, 0)], flag::EAGER), data(1 << 16, &[1; 9000], 0)].concat();
    for cut in [0, 1, HEADER, HEADER + 5, 60, 100, 5000] {
        let mut stream = introduced(&*listener).await;
        stream.write_all(&whole[..cut]).await.expect("a socket");
        stream.shutdown().await.expect("a socket");
        assert!(rest(&mut stream).await.is_empty());
    }
    assert_eq!(listener.stats().garbled, 0);
    works(&*listener).await;
    while listener.stats().all.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn random_damage_never_harms_the_server() {
    let listener = server().await;
    let whole = [
        request(1 << 16, &[], 0),
        request(2 << 16 | 1, &[Entry::new(3000, 17), Entry::new(0, 0)], flag::EAGER),
        data(2 << 16 | 1, &[1; 3000], 0),
        bare(Header::bare(kind::CANCEL, 2 << 16 | 1)),
        request(3 << 16, &[Entry::new(70_000, 0)], flag::EAGER),
        data(3 << 16, &[2; 30_000], 0),
        data(3 << 16, &[2; 40_000], 0),
    ]
    .concat();
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    for _ in 0..150 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random() % 4 {
            let (at, bit) = (random() % 400, random() % 8);
            bytes[at] ^= 1 << bit;
        }
        let mut stream = introduced(&*listener).await;
        // It may hang up before all is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        rest(&mut stream).await;
    }
    assert!(listener.stats().garbled > 50);
    works(&*listener).await;
}

#[tokio::test]
async fn a_message_may_come_in_any_pieces() {
    let listener = server().await;
    let mut payload = vec![0; 20_000];
    payload.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7) as u8);
    for step in [1, 7, 31, 33, 4096, 30_000] {
        let mut stream = introduced(&*listener).await;
        stream.set_nodelay(true).expect("a socket");
        let head =
            [request(1 << 16, &[Entry::new(20_000, 3)], flag::EAGER), data(1 << 16, &payload[..5000], 0)];
        let bytes = [&head.concat()[..], &data(1 << 16, &payload[5000..], 0)].concat();
        for piece in bytes.chunks(step) {
            stream.write_all(piece).await.expect("a socket");
            tokio::task::yield_now().await;
        }
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.expect("an answer");
        let header = Header::parse(&header).expect("a frame");
        assert_eq!((header.kind, header.bulk_len.get()), (kind::REPLY, 20_003));
        let mut rest = vec![0; header.covered::<Entry>()];
        stream.read_exact(&mut rest).await.expect("its body");
        let mut back = Vec::new();
        while back.len() < 20_003 {
            let mut header = [0; HEADER];
            stream.read_exact(&mut header).await.expect("data");
            let header = Header::parse(&header).expect("a frame");
            assert_eq!(header.kind, kind::DATA);
            let start = back.len();
            back.resize(start + header.body_len.get() as usize, 0);
            stream.read_exact(&mut back[start..]).await.expect("data");
        }
        assert!(back[3..] == payload[..], "in pieces of {step}");
    }
}

#[tokio::test]
async fn large_data_is_received_where_it_belongs() {
    let listener = server().await;
    let client = transport(ME);
    let connection = client.connect(&listener.address(), LONG).await.expect("it lives");
    let bytes = client.pool().try_alloc(1 << 20, PoolClass::Client).expect("room").freeze();
    for _ in 0..50 {
        let into = vec![client.pool().try_alloc(1 << 20, PoolClass::Client).expect("room")];
        let data = vec![Segment { data: bytes.clone(), align: 0 }];
        let call =
            Call { method: 1, body: vec![1; 1056].into(), data, into, deadline: LONG, ..Call::default() };
        connection.call(call).await.expect("an answer");
    }
    // The first one's beginning, before it is known that messages are large; then a few bytes behind each header.
    for copied in [connection.stats().copied, listener.stats().all.copied] {
        assert!(copied < (64 << 10) + 50 * 4096, "{copied} bytes of 50 MiB were copied");
    }
}

/// A server that is none: takes one request and answers with `bytes` of it.
async fn answered_with(bytes: impl FnOnce(u64) -> Vec<u8> + Send + 'static) -> NetError {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        shake::welcome(&mut stream, &identity(PeerId::Node(NodeId(1))), CREDITS, false)
            .await
            .expect("one of ours");
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.expect("a request");
        let id = Header::parse(&header).expect("a frame").id.get();
        stream.write_all(&bytes(id)).await.expect("a socket");
        rest(&mut stream).await;
    });
    let client = transport(ME);
    let connection: Arc<dyn Connection> = client.connect(&address, LONG).await.expect("it shakes hands");
    let into = vec![client.pool().try_alloc(100, PoolClass::Client).expect("room")];
    let data = vec![Segment { data: vec![1; 10].into(), align: 0 }];
    let error = connection.call(Call { into, data, deadline: LONG, ..Call::default() }).await;
    assert!(connection.is_closed());
    server.await.expect("no panic");
    assert_eq!(client.pool().stats().classes[0].used, 0);
    error.expect_err("no sense can be made of it")
}

fn reply(id: u64, lens: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let entries = lens.iter().map(|&len| Entry::new(len, 0));
    frame::put(&mut out, Header::bare(kind::REPLY, id), entries, std::iter::empty(), b"");
    out
}

#[tokio::test]
async fn a_client_survives_answers_that_cannot_be() {
    let errors = [
        answered_with(|id| reply(id + (1 << 16), &[])).await,
        answered_with(|id| reply(id, &[101])).await,
        answered_with(|id| reply(id, &[1, 1])).await,
        answered_with(|id| [reply(id, &[50]), data(id, &[0; 51], 0)].concat()).await,
        answered_with(|id| data(id, &[0; 50], 0)).await,
        answered_with(|id| bare(Header::bare(kind::PULL, id + 1))).await,
        answered_with(|id| bare(Header::bare(kind::REQUEST, id))).await,
        answered_with(|_| b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec()).await,
    ];
    for (index, error) in errors.iter().enumerate() {
        let NetError::Disconnected { reason, sent: true, .. } = error else { panic!("{index}: {error}") };
        assert!(reason.contains("garbled"), "{index}: {error}");
    }
}

#[tokio::test]
async fn bodies_are_not_shared_with_the_receiving_buffer() {
    // The same buffer receives the next message while the service still holds the body.
    assert_eq!(frame::body(b""), Bytes::new());
    let bytes = *b"abc";
    let body = frame::body(&bytes);
    assert_ne!(body.as_ptr(), bytes.as_ptr());
}
