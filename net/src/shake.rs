//! The handshake over a stream: who is there, before anything else is said.

use catena_proto::status::Status;
use rand::RngCore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::NetError;
use crate::handshake::{Hello, Identity, PeerId, Proof, Verdict, advice, carrier, prove, proves};

fn nonce() -> [u8; 32] {
    let mut nonce = [0; 32];
    rand::rng().fill_bytes(&mut nonce);
    nonce
}

pub(crate) async fn receive<T: FromBytes + IntoBytes>(stream: &mut TcpStream) -> std::io::Result<T> {
    let mut message = T::new_zeroed();
    stream.read_exact(message.as_mut_bytes()).await?;
    Ok(message)
}

pub(crate) async fn send<T: IntoBytes + Immutable>(
    stream: &mut TcpStream,
    message: &T,
) -> std::io::Result<()> {
    stream.write_all(message.as_bytes()).await
}

/// The client's part. Returns who the server is and how many requests it takes at a time.
pub(crate) async fn introduce(
    stream: &mut TcpStream,
    identity: &Identity,
    carrier: u8,
    address: &str,
) -> Result<(PeerId, u32), NetError> {
    let refused = |status: Status| NetError::Refused {
        address: address.into(),
        status,
        reason: advice(status).to_owned(),
    };
    let broke = |error: std::io::Error| NetError::Connect {
        address: address.into(),
        reason: match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "it hung up during the handshake".into(),
            _ => error.to_string(),
        },
    };
    let ours = Hello { carrier, ..Hello::new(identity, nonce()) };
    send(stream, &ours).await.map_err(broke)?;
    let theirs: Hello = receive(stream).await.map_err(broke)?;
    // Its own view first: what does not even greet like one of ours has no verdict to give.
    let status = match theirs.judge(identity) {
        Status::Ok => Status::from_code(theirs.status.get()),
        status => status,
    };
    // A server from before there was a choice repeats nothing.
    let status = if status == Status::Ok && theirs.carrier != carrier { Status::NoRdma } else { status };
    if status != Status::Ok {
        return Err(refused(status));
    }
    if !proves(&identity.token, b"server", &ours, &theirs, &theirs.proof) {
        return Err(refused(Status::BadToken));
    }
    send(stream, &Proof { proof: prove(&identity.token, b"client", &ours, &theirs) }).await.map_err(broke)?;
    let verdict: Verdict = receive(stream).await.map_err(broke)?;
    match (Status::from_code(verdict.status.get()), theirs.peer()) {
        (Status::Ok, Some(peer)) => Ok((peer, theirs.credits.get())),
        (status, _) => Err(refused(status)),
    }
}

/// The server's part, which offers RDMA or does not. Returns who the client is and what carries its messages. An error has been told to
/// the client, as far as it could be.
pub(crate) async fn welcome(
    stream: &mut TcpStream,
    identity: &Identity,
    credits: u32,
    rdma: bool,
) -> Result<(PeerId, u8), Status> {
    let gone = |_| Status::Disconnected;
    let theirs: Hello = receive(stream).await.map_err(gone)?;
    let mut ours = Hello::new(identity, nonce());
    let status = match (theirs.judge(identity), theirs.carrier) {
        (Status::Ok, carrier::STREAM) => Status::Ok,
        (Status::Ok, carrier::QUEUE_PAIR) if rdma => Status::Ok,
        (Status::Ok, carrier::QUEUE_PAIR) => Status::NoRdma,
        (Status::Ok, _) => Status::WrongProtocol,
        (status, _) => status,
    };
    ours.carrier = theirs.carrier;
    ours.status = (status as u16).into();
    ours.credits = credits.into();
    if status == Status::Ok {
        ours.proof = prove(&identity.token, b"server", &theirs, &ours);
    }
    send(stream, &ours).await.map_err(gone)?;
    let (Status::Ok, Some(peer)) = (status, theirs.peer()) else { return Err(status) };
    // A client without the token sees that by our proof and hangs up.
    let proof: Proof = receive(stream).await.map_err(|_| Status::BadToken)?;
    let known = proves(&identity.token, b"client", &theirs, &ours, &proof.proof);
    let status = if known { Status::Ok } else { Status::BadToken };
    send(stream, &Verdict { status: (status as u16).into(), reserved: [0; 6] }).await.map_err(gone)?;
    if known { Ok((peer, theirs.carrier)) } else { Err(status) }
}
