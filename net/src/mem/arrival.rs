//! Requests as they arrive at the serving end of a connection, and their way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use catena_buf::{Buf, IoBuf};
use catena_proto::status::Status;
use catena_rt::time::{Instant, timeout_at};

use super::link::{Answer, Link, Request};
use crate::call::Segment;
use crate::requests::{self, Request as Arrived};
use crate::service::ReplySink;
use crate::stats::add;

impl Link {
    /// A request is here.
    pub async fn arrive(self: &Arc<Self>, request: Request) {
        let host = &self.host;
        // A message that travelled on its own may arrive after all.
        if host.is_dead() || (request.id != 0 && self.is_severed()) {
            return;
        }
        let Request { id, method, body, deadline, data, room, abandoned } = request;
        let bulk: usize = data.iter().map(|segment| segment.data.len()).sum();
        let received = body.len() + bulk;
        host.begin();
        host.counters.begun(method);
        add(&host.counters.wire_received, received as u64);
        self.in_flight.fetch_add(1, Relaxed);
        let begun = Instant::now();
        let link = self.clone();
        let sink = Box::new(Sink { link, id, method, received, begun, abandoned, answered: false });
        if host.is_leaving() {
            return sink.send(Status::ShuttingDown, Bytes::new(), Vec::new());
        }
        let lens: Vec<usize> =
            data.iter().map(|segment| usize::from(segment.align) + segment.data.len()).collect();
        let class = host.service.class(method, &body);
        let fetched =
            if lens.is_empty() { Ok(Some(Vec::new())) } else { host.pool.try_alloc_many(&lens, class) };
        let request = Arrived { method, body, deadline, room, sink };
        match fetched {
            Ok(Some(bufs)) => self.begin(request, fill(bufs, &data)).await,
            Ok(None) => {
                add(&host.counters.parked, 1);
                self.parked.fetch_add(1, Relaxed);
                let (link, pool) = (self.clone(), host.pool.clone());
                host.spawn(async move {
                    let bufs = timeout_at(deadline, pool.alloc_many(&lens, class)).await;
                    link.parked.fetch_sub(1, Relaxed);
                    match bufs {
                        Ok(Ok(bufs)) => link.begin(request, fill(bufs, &data)).await,
                        _ => request.sink.send(Status::TimedOut, Bytes::new(), Vec::new()),
                    }
                });
            }
            Err(error) => request.sink.send(Status::Invalid, Bytes::from(error.to_string()), Vec::new()),
        }
    }
}

/// Copies bulk data to where it belongs.
fn fill(mut bufs: Vec<IoBuf>, data: &[Segment]) -> Vec<IoBuf> {
    for (buf, segment) in bufs.iter_mut().zip(data) {
        let start = usize::from(segment.align);
        buf[start..].copy_from_slice(&segment.data);
        buf.zero_around(start);
    }
    bufs
}

impl Link {
    async fn begin(&self, request: Arrived<Instant>, data: Vec<IoBuf>) {
        let spawn = |handler| self.host.spawn(handler);
        let left = request.deadline.saturating_duration_since(Instant::now());
        requests::begin(&self.host.service, self.me, request, left, data, spawn).await;
    }
}

/// The way back of one request.
struct Sink {
    link: Arc<Link>,
    id: u64,
    method: u16,
    received: usize,
    begun: Instant,
    abandoned: Arc<AtomicBool>,
    answered: bool,
}

impl Sink {
    fn end(&mut self, ok: bool, sent: usize) {
        self.answered = true;
        self.link.in_flight.fetch_sub(1, Relaxed);
        self.link.host.counters.ended(self.method, ok, sent, self.received, self.begun.elapsed());
        self.link.host.end();
    }
}

impl ReplySink for Sink {
    fn send(mut self: Box<Self>, status: Status, body: Bytes, mut data: Vec<Buf>) {
        if self.abandoned.load(Relaxed) {
            data.clear();
        }
        let sent = body.len() + data.iter().map(|buf| buf.len()).sum::<usize>();
        add(&self.link.host.counters.wire_sent, sent as u64);
        // The second of two has nobody to answer.
        if self.id != 0 && !self.link.is_severed() {
            self.link.answer(Answer { id: self.id, status, body, data });
        }
        self.end(status == Status::Ok, sent);
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.answered {
            self.end(false, 0);
        }
    }
}
