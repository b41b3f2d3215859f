//! The calling end of a connection over RDMA: it tells the server where data is and where there is room, and keeps both until the answer.

use std::sync::Arc;
use std::time::Duration;

use catena_buf::PoolClass;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::link::Link;
use super::reader::{self, Incoming};
use super::wire::{Place, flag};
use crate::call::Call;
use crate::calls::{Answered, Calls, Handle, Lane, LaneConnection, Waiting};
use crate::error::NetError;
use crate::frame::{self, Frame, Garbled, Header, Row, kind};
use crate::handshake::PeerId;
use crate::stats::{Counters, add};

/// The way out over a queue pair.
pub(crate) struct RdmaLane {
    link: Link,
    pool: catena_buf::BufPool,
    counters: Arc<Counters>,
}

impl Lane for RdmaLane {
    /// The server READs and WRITEs by itself. Its answer comes behind its last WRITE, on the same queue pair; without an answer only the
    /// queue pair's end is proof that nothing more can come.
    const REACHES: bool = true;

    /// Data that the device cannot reach goes through a buffer of the pool: counted, and not for what matters.
    async fn prepare(&self, call: &mut Call) -> Result<(), NetError> {
        for segment in &mut call.data {
            if self.link.nic().reaches(&segment.data) {
                continue;
            }
            let bounce = self.pool.alloc(segment.data.len(), PoolClass::Local).await;
            let mut bounce = bounce.map_err(|error| NetError::Invalid(error.to_string()))?;
            bounce.copy_from_slice(&segment.data);
            add(&self.counters.copied, segment.data.len() as u64);
            segment.data = bounce.freeze();
        }
        for buf in &mut call.into {
            if buf.capacity() > 0 && self.link.nic().writable(buf, 0).is_none() {
                return Err(NetError::Invalid(
                    "a buffer of a pool that the transport does not know: register it first".into(),
                ));
            }
        }
        Ok(())
    }

    fn request(&self, header: Header, call: &mut Waiting, body: &[u8]) -> bool {
        let nic = self.link.nic();
        let sizes = call.data.iter().zip(&call.data_align);
        let data: Vec<Place> =
            sizes.map(|(data, &align)| Place::new(data.len(), align.into(), nic.readable(data))).collect();
        let mut room = Vec::with_capacity(call.into.len());
        for at in 0..call.into.len() {
            let align = call.align(at);
            let len = call.into[at].len() - align;
            room.push(Place::new(len, align, nic.writable(&mut call.into[at], align)));
        }
        // The server fetches it: nothing here will see it go.
        add(&self.counters.wire_sent, data.iter().map(|place| place.len() as u64).sum());
        self.link.push(|out| frame::put(out, header, data.into_iter(), room.into_iter(), body))
    }

    fn cancel(&self, id: u64, counters: &Counters) {
        self.link.push(|out| frame::put_bare(out, Header::bare(kind::CANCEL, id)));
        self.link.flush(counters);
    }

    fn flush(&self, _now: bool, counters: &Counters) {
        self.link.flush(counters);
    }

    fn close(&self) {
        self.link.close();
    }
}

/// Starts the task of a connection that has been agreed upon, and waits until a packet has gone each way.
pub(super) async fn start(
    stream: TcpStream,
    link: Link,
    pool: catena_buf::BufPool,
    peer: PeerId,
    address: &str,
    credits: u32,
    busy_poll: Duration,
) -> Result<LaneConnection<RdmaLane>, NetError> {
    let counters = Arc::new(Counters::new());
    let path = link.path.clone();
    let lane = RdmaLane { link, pool, counters: counters.clone() };
    let calls = Arc::new(Calls::new(lane, peer, address, credits, counters));
    let (open, opened) = oneshot::channel();
    let task = tokio::spawn({
        let calls = calls.clone();
        async move {
            let mut end = ClientEnd { calls: calls.clone(), open: Some(open) };
            let broken = reader::run(&calls.lane.link, stream, &mut end, &calls.counters, busy_poll).await;
            calls.close(&broken.to_string());
            if let Some(open) = end.open {
                let _ = open.send(Err(broken.to_string()));
            }
        }
    });
    // From here on, whoever drops this ends the connection.
    let connection = LaneConnection(Handle::new(calls.clone(), vec![task.abort_handle()]));
    calls.lane.link.signal(flag::PING);
    calls.lane.link.flush(&calls.counters);
    let reason = match opened.await {
        Ok(Ok(())) => return Ok(connection),
        Ok(Err(reason)) => reason,
        Err(_) => "closed".into(),
    };
    Err(NetError::Connect {
        address: address.into(),
        reason: format!(
            "the stream is open, but no packet came back over {path}: {reason}; check with `catena rdma check --peer`"
        ),
    })
}

struct ClientEnd {
    calls: Arc<Calls<RdmaLane>>,
    open: Option<oneshot::Sender<Result<(), String>>>,
}

impl Incoming for ClientEnd {
    async fn frame(&mut self, header: &Header, parts: Frame<'_, Place>) -> Result<(), Garbled> {
        match header.kind {
            kind::REPLY => {
                let Answered { answer, mut into, places, mut reply, bulk } =
                    self.calls.answered(header, &parts)?;
                add(&self.calls.counters.wire_received, bulk as u64);
                if let Some(answer) = answer {
                    for (buf, (_, end)) in into.iter_mut().zip(places) {
                        buf.set_len(end);
                    }
                    reply.data = into;
                    let _ = answer.send(Ok(reply));
                }
            }
            kind::GOODBYE => self.calls.leave("the server is shutting down"),
            _ => return Err(Garbled("a frame that only clients send")),
        }
        Ok(())
    }

    async fn read(&mut self, _: u64, _: usize) {
        // A client posts none.
    }

    fn progress(&mut self) {}

    fn pong(&mut self) {
        if let Some(open) = self.open.take() {
            let _ = open.send(Ok(()));
        }
    }
}
