//! The serving end of one TCP connection: how its requests are answered. Receiving is [`super::reader`]'s part.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf};
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::outbox::Outbox;
use super::reader::Reader;
use crate::frame::{self, Broken, Entry, Garbled, Header, flag, kind};
use crate::handshake::PeerId;
use crate::listener::Session;
use crate::requests::{AbortOnDrop, Context, Ledger, Ticket};
use crate::service::ReplySink;

/// One connection.
pub(crate) struct TcpSession {
    pub ledger: Arc<Ledger>,
    pub address: SocketAddr,
    pub outbox: Arc<Outbox>,
    /// Buffers of requests that waited for them, once there are any. Who is not in here no longer waits.
    pub granted: Mutex<HashMap<u64, Option<Vec<IoBuf>>>>,
}

impl TcpSession {
    pub fn new(
        context: Arc<Context>,
        peer: PeerId,
        address: SocketAddr,
        stream: Arc<TcpStream>,
    ) -> TcpSession {
        TcpSession {
            ledger: Arc::new(Ledger::new(context, peer)),
            address,
            outbox: Arc::new(Outbox::new(stream, true)),
            granted: Mutex::default(),
        }
    }

    /// Serves it to its end.
    pub async fn serve(self: Arc<Self>, stream: Arc<TcpStream>) -> Broken {
        let writer = tokio::spawn({
            let session = self.clone();
            async move {
                if session.outbox.run(&session.ledger.context.counters).await.is_err() {
                    // The reader sees it end.
                    session.close();
                }
            }
        });
        let _writer = AbortOnDrop(writer.abort_handle());
        Reader::new(self, stream).run().await
    }

    /// Admits a request.
    pub fn admit(self: &Arc<Self>, id: u64, method: u16, received: usize) -> Result<Box<Sink>, Garbled> {
        let ticket = self.ledger.admit(id, method, received)?;
        Ok(Box::new(Sink { session: self.clone(), ticket }))
    }
}

impl Session for TcpSession {
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn goodbye(&self) {
        self.outbox.push(|out| frame::put_bare(out, Header::bare(kind::GOODBYE, 0)), None);
        self.outbox.flush(true, &self.ledger.context.counters);
    }

    fn close(&self) {
        self.ledger.close();
        self.granted.lock().clear();
        self.outbox.close();
    }

    fn drained(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.outbox.drained())
    }
}

/// The way back of one request.
pub(crate) struct Sink {
    session: Arc<TcpSession>,
    ticket: Ticket,
}

impl ReplySink for Sink {
    fn send(mut self: Box<Self>, status: Status, body: Bytes, mut data: Vec<Buf>) {
        let session = self.session.clone();
        if self.ticket.release() {
            data.clear();
        }
        let flags = if session.ledger.parked() > 0 { flag::CROWDED } else { 0 };
        let header =
            Header { code: (status as u16).into(), flags, ..Header::bare(kind::REPLY, self.ticket.id) };
        let entries: Vec<Entry> = data.iter().map(|buf| Entry::new(buf.len(), 0)).collect();
        let bulk: usize = data.iter().map(|buf| buf.len()).sum();
        let put = |out: &mut Vec<u8>| frame::put(out, header, entries.into_iter(), std::iter::empty(), &body);
        session.outbox.push(put, (bulk > 0).then_some((self.ticket.id, 0, data)));
        let last = self.ticket.end(status == Status::Ok, body.len() + bulk);
        session.outbox.flush(last, &session.ledger.context.counters);
    }

    fn is_abandoned(&self) -> bool {
        self.ticket.is_abandoned()
    }
}
