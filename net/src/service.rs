//! The serving end: a request comes in, a handler answers it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf, PoolClass};
use catena_proto::status::Status;
use futures_util::future::BoxFuture;
use tracing::error;

use crate::handshake::PeerId;
use crate::limits;

/// What a server does with requests.
pub trait Service: Send + Sync + 'static {
    /// Which class of buffers a request's bulk data takes. Asked before the data is received; must be quick.
    fn class(&self, method: u16, body: &[u8]) -> PoolClass;

    /// Handles a request and answers through its responder.
    ///
    /// The future is polled once on the connection's own task before the connection's next request is looked at: what it does before its
    /// first wait happens in the order of arrival and costs no hop. If it waits, it goes on as a task of its own. It runs to its end also
    /// when the caller has given up.
    fn call(self: Arc<Self>, request: Incoming) -> BoxFuture<'static, ()>;
}

/// Where a reply goes.
pub trait ReplySink: Send {
    /// Sends it. Never waits: replies under way are bounded by credits.
    fn send(self: Box<Self>, status: Status, body: Bytes, data: Vec<Buf>);

    /// The caller has given the request up, or is gone.
    fn is_abandoned(&self) -> bool;
}

/// A request.
pub struct Incoming {
    /// What is asked.
    pub method: u16,
    /// The message.
    pub body: Bytes,
    /// Who asks, as proven by the handshake.
    pub peer: PeerId,
    /// What is left of the caller's deadline.
    pub deadline: Duration,
    data: Vec<IoBuf>,
    responder: Responder,
}

impl Incoming {
    /// For backends. `room` is what the caller made room for, per segment of the reply.
    pub fn new(
        method: u16,
        body: Bytes,
        peer: PeerId,
        deadline: Duration,
        room: Vec<u32>,
        data: Vec<IoBuf>,
        sink: Box<dyn ReplySink>,
    ) -> Incoming {
        let responder = Responder { sink: Some(sink), room, method };
        Incoming { method, body, peer, deadline, data, responder }
    }

    /// The bulk data, one buffer a segment; once. A segment with alignment `a` lies at `a..` of its buffer, whose length is `a` + the
    /// segment's. The rest of the buffer's first and last page is zero, so that whole pages can go to disk.
    ///
    /// A handler begins when its data is here, on every backend.
    pub fn take_data(&mut self) -> Vec<IoBuf> {
        std::mem::take(&mut self.data)
    }

    /// Bytes that the caller made room for, per segment of the reply.
    pub fn room(&self) -> &[u32] {
        self.responder.room()
    }

    /// The way to answer.
    pub fn responder(self) -> Responder {
        self.responder
    }

    /// The rest, and the way to answer.
    pub fn split(mut self) -> (Incoming, Responder) {
        let empty = Responder { sink: None, room: Vec::new(), method: self.method };
        let responder = std::mem::replace(&mut self.responder, empty);
        (self, responder)
    }
}

/// Answers one request, once. Dropped without an answer, it answers [`Status::Internal`], so that no caller waits in vain.
pub struct Responder {
    sink: Option<Box<dyn ReplySink>>,
    room: Vec<u32>,
    method: u16,
}

impl Responder {
    /// Answers. `data[i]` is pushed into the caller's buffer `i`, at most its room; an empty one leaves that buffer alone.
    ///
    /// An answer that does not fit is a bug of the service; the caller gets [`Status::Internal`] instead.
    pub fn send(mut self, status: Status, body: Bytes, data: Vec<Buf>) {
        let Some(sink) = self.sink.take() else { return };
        let too_long = data.len() > self.room.len()
            || data.iter().zip(&self.room).any(|(buf, &room)| buf.len() > room as usize);
        if too_long || body.len() > limits::BODY {
            error!(method = self.method, body = body.len(), segments = data.len(), "an answer does not fit");
            return sink.send(Status::Internal, Bytes::from_static(b"the answer does not fit"), Vec::new());
        }
        sink.send(status, body, data);
    }

    /// Answers with a status alone.
    pub fn status(self, status: Status) {
        self.send(status, Bytes::new(), Vec::new());
    }

    /// Answers with a status other than success and a sentence about it, which becomes the reply's body.
    pub fn refuse(self, status: Status, why: impl Into<String>) {
        self.send(status, Bytes::from(why.into()), Vec::new());
    }

    /// Bytes that the caller made room for, per segment of the reply.
    pub fn room(&self) -> &[u32] {
        &self.room
    }

    /// The caller has given up or is gone: its answer will be thrown away. For work that is done only to be sent.
    pub fn is_abandoned(&self) -> bool {
        self.sink.as_ref().is_none_or(|sink| sink.is_abandoned())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.send(Status::Internal, Bytes::new(), Vec::new());
        }
    }
}
