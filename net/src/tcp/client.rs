//! The calling end of a TCP connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::net::TcpStream;

use super::inbox::{Inbox, Landing};
use super::outbox::Outbox;
use crate::call::Call;
use crate::calls::{Answered, Calls, Handle, Lane, LaneConnection, Waiting};
use crate::error::NetError;
use crate::frame::{self, Broken, Entry, Garbled, Header, flag, kind};
use crate::handshake::PeerId;
use crate::stats::Counters;

/// The way out over a stream.
pub(crate) struct TcpLane {
    outbox: Outbox,
    /// The server has requests that wait for buffers: let it ask for bulk data.
    crowded: AtomicBool,
}

impl Lane for TcpLane {
    /// Only this end's own reader writes into buffers.
    const REACHES: bool = false;

    async fn prepare(&self, _: &mut Call) -> Result<(), NetError> {
        Ok(())
    }

    fn request(&self, header: Header, call: &mut Waiting, body: &[u8]) -> bool {
        let id = header.id.get();
        let eager = !call.data.is_empty() && !self.crowded.load(Relaxed);
        let header = Header { flags: if eager { flag::EAGER } else { 0 }, ..header };
        let sizes = call.data.iter().zip(&call.data_align);
        let entries = sizes.map(|(data, &align)| Entry::new(data.len(), align.into()));
        let room = |(at, len): (usize, usize)| Entry::new(len - call.align(at), call.align(at));
        let rooms = call.into.iter().map(|buf| buf.len()).enumerate().map(room);
        let put = |out: &mut Vec<u8>| frame::put(out, header, entries, rooms, body);
        self.outbox.push(put, eager.then(|| (id, 0, call.data.clone())))
    }

    fn cancel(&self, id: u64, counters: &Counters) {
        self.outbox.withdraw(id);
        self.outbox.push(|out| frame::put_bare(out, Header::bare(kind::CANCEL, id)), None);
        self.outbox.flush(false, counters);
    }

    fn flush(&self, now: bool, counters: &Counters) {
        self.outbox.flush(now, counters);
    }

    fn close(&self) {
        self.outbox.close();
    }
}

/// Starts the tasks of a connection that has been agreed upon.
pub(crate) fn start(stream: TcpStream, peer: PeerId, address: &str, credits: u32) -> LaneConnection<TcpLane> {
    let stream = Arc::new(stream);
    let counters = Arc::new(Counters::new());
    let lane = TcpLane { outbox: Outbox::new(stream.clone(), false), crowded: AtomicBool::new(false) };
    let calls = Arc::new(Calls::new(lane, peer, address, credits, counters.clone()));
    let inbox = Inbox::new(stream, None, counters);
    let reader = Reader { calls: calls.clone(), inbox, landing: HashMap::new() };
    let reader = tokio::spawn(reader.run());
    let writer = tokio::spawn({
        let calls = calls.clone();
        async move {
            if let Err(error) = calls.lane.outbox.run(&calls.counters).await {
                calls.close(&error.to_string());
            }
        }
    });
    let tasks = vec![reader.abort_handle(), writer.abort_handle()];
    LaneConnection(Handle::new(calls, tasks))
}

/// A reply whose bulk data is arriving. It owns the buffers to the end, whether or not anybody still waits.
struct Arriving {
    landing: Landing,
    left: usize,
    answered: Answered,
}

struct Reader {
    calls: Arc<Calls<TcpLane>>,
    inbox: Inbox,
    landing: HashMap<u64, Arriving>,
}

impl Reader {
    async fn run(mut self) {
        let broken = loop {
            if let Err(broken) = self.frame().await {
                break broken;
            }
        };
        // What the server said before it left is a better reason than that it left.
        self.calls.close(&broken.to_string());
    }

    async fn frame(&mut self) -> Result<(), Broken> {
        let header = self.inbox.frame().await?;
        let parts = header.open::<Entry>(self.inbox.bytes(&header))?;
        match header.kind {
            kind::REPLY => {
                let mut answered = self.calls.answered(&header, &parts)?;
                self.calls.lane.crowded.store(header.flags & flag::CROWDED != 0, Relaxed);
                self.inbox.consume(&header);
                let (into, places) =
                    (std::mem::take(&mut answered.into), std::mem::take(&mut answered.places));
                // A caller that has gone wants none of it.
                let landing =
                    if answered.answer.is_some() { Landing::new(into, places) } else { Landing::default() };
                let arriving = Arriving { landing, left: answered.bulk, answered };
                if arriving.left > 0 {
                    self.landing.insert(header.id.get(), arriving);
                } else {
                    arriving.deliver();
                }
            }
            kind::DATA => {
                self.inbox.consume(&header);
                self.data(header.id.get(), header.body_len.get() as usize).await?;
            }
            kind::PULL => {
                self.inbox.consume(&header);
                self.pulled(header.id.get())?;
            }
            kind::GOODBYE => {
                self.inbox.consume(&header);
                self.calls.leave("the server is shutting down");
            }
            _ => return Err(Garbled("a frame that only clients send").into()),
        }
        Ok(())
    }

    async fn data(&mut self, id: u64, len: usize) -> Result<(), Broken> {
        let Some(arriving) = self.landing.get_mut(&id) else {
            return Err(Garbled("bulk data of no reply").into());
        };
        if len > arriving.left {
            return Err(Garbled("more bulk data than announced").into());
        }
        arriving.left -= len;
        if arriving.landing.is_nowhere() {
            self.inbox.skip(len).await?;
        } else {
            self.inbox.land(&mut arriving.landing, len).await?;
        }
        if arriving.left == 0
            && let Some(arriving) = self.landing.remove(&id)
        {
            arriving.deliver();
        }
        Ok(())
    }

    /// The server has room for a request's bulk data.
    fn pulled(&self, id: u64) -> Result<(), Garbled> {
        let lane = &self.calls.lane;
        lane.crowded.store(true, Relaxed);
        // Given up: the server learns of it by the cancel that is on its way.
        let Some(data) = self.calls.data(id)? else { return Ok(()) };
        if data.is_empty() {
            return Err(Garbled("asks for bulk data that was not announced"));
        }
        lane.outbox.push(|_| {}, Some((id, flag::PULLED, data)));
        lane.outbox.flush(false, &self.calls.counters);
        Ok(())
    }
}

impl Arriving {
    fn deliver(self) {
        let Answered { answer, mut reply, .. } = self.answered;
        reply.data = self.landing.finish();
        // A caller that has gone does not want it.
        if let Some(answer) = answer {
            let _ = answer.send(Ok(reply));
        }
    }
}
