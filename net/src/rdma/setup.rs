//! Agreeing on a queue pair: over the stream, behind the handshake, so only those who proved that they know the cluster's token come
//! this far. The client says where its queue pair is, the server answers with its own or with a reason, and a first packet each way over
//! the queue pairs shows that the way is open before anybody relies on it.

use std::sync::Arc;

use catena_proto::status::Status;
use catena_verbs::Access;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::warn;
use zerocopy::{FromZeros, IntoBytes};

use super::link::Link;
use super::rails::{Half, Rails};
use super::wire::{Terms, link_code};
use crate::error::NetError;
use crate::shake;

/// Bytes of a reason at most.
const REASON: usize = 512;

/// The client's part. The server may READ and WRITE what it is told of.
pub(super) async fn propose(
    stream: &mut TcpStream,
    rails: &Arc<Rails>,
    address: &str,
) -> Result<Link, NetError> {
    let broke = |reason: String| NetError::Connect { address: address.into(), reason };
    let local = stream.local_addr().map_err(|error| broke(error.to_string()))?.ip();
    let half = rails.clone().half(local.to_canonical(), Access::ReadWrite, None).await;
    let half = half.map_err(|error| broke(error.to_string()))?;
    let hung_up = |error: std::io::Error| broke(format!("it hung up over the queue pair: {error}"));
    shake::send(stream, &half.terms).await.map_err(hung_up)?;
    let theirs: Terms = shake::receive(stream).await.map_err(hung_up)?;
    let status = Status::from_code(theirs.status.get());
    if status != Status::Ok {
        let mut reason = vec![0; usize::from(theirs.reason_len.get()).min(REASON)];
        stream.read_exact(&mut reason).await.map_err(hung_up)?;
        let reason = String::from_utf8_lossy(&reason).into_owned();
        return Err(NetError::Refused { address: address.into(), status, reason });
    }
    half.join(theirs).await.map_err(|error| broke(error.to_string()))
}

/// The server's part. Its client may touch nothing: it is the server that READs and WRITEs.
pub(crate) async fn accept(stream: &mut TcpStream, rails: &Arc<Rails>) -> Result<Link, Status> {
    let gone = |_| Status::Disconnected;
    let theirs: Terms = shake::receive(stream).await.map_err(gone)?;
    let local = stream.local_addr().map_err(gone)?.ip().to_canonical();
    // What is refused for now (a link that is down, no memory for another connection) may be asked for again.
    let made = match rails.clone().half(local, Access::None, Some(theirs)).await {
        Ok(half) => join(half, theirs).await,
        Err(error) => Err((Status::Busy, error.to_string())),
    };
    match made {
        Ok((terms, link)) => {
            shake::send(stream, &terms).await.map_err(gone)?;
            Ok(link)
        }
        Err((status, reason)) => {
            warn!(reason, "cannot serve a client over RDMA");
            let reason = &reason.as_bytes()[..reason.len().min(REASON)];
            let mut refusal = Terms::new_zeroed();
            refusal.status = (status as u16).into();
            refusal.reason_len = (reason.len() as u16).into();
            stream.write_all(&[refusal.as_bytes(), reason].concat()).await.map_err(gone)?;
            Err(status)
        }
    }
}

async fn join(half: Half, theirs: Terms) -> Result<(Terms, Link), (Status, String)> {
    if half.terms.link != theirs.link {
        let name = |code| {
            if code == link_code(catena_verbs::LinkLayer::InfiniBand) { "InfiniBand" } else { "Ethernet" }
        };
        let reason = format!(
            "its port is on {}, the client's on {}: name ports of one network in `devices` on both ends",
            name(half.terms.link),
            name(theirs.link)
        );
        return Err((Status::NoRdma, reason));
    }
    let terms = half.terms;
    half.join(theirs).await.map(|link| (terms, link)).map_err(|error| (Status::Busy, error.to_string()))
}
