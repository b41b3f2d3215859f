//! Group commit: one write and one sync for all records that have gathered.
//!
//! Whoever waits for a record and finds nobody leading leads: takes the oldest batch, writes it, wakes all whom it made durable. A
//! leader that gives up half-way (its caller ran out of time) leaves the write to the next who waits: nothing is lost, nobody hangs.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use crate::core::{Core, count};
use crate::disk::{Batch, Completion, File, Io};
use crate::error::Result;
use crate::format::record::{BatchPlace, seal};
use crate::log::Gathered;

/// A batch that has its place in the log.
pub struct Flight {
    gathered: Gathered,
    crc: u32,
    /// Position in the ring.
    offset: u64,
    /// The write, once it is under way.
    write: Option<Completion>,
}

/// Whoever leads.
struct Leader<'a> {
    core: &'a Core,
    flight: Option<Flight>,
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        if self.flight.is_some() {
            let mut state = self.core.state.lock();
            state.log.abandoned = self.flight.take();
            state.log.wake();
        }
    }
}

/// What someone who waits finds.
enum Found {
    Durable,
    ToLead(Flight),
    Full,
}

impl Core {
    /// Waits until the log is durable up to a record; leads a log write when nobody does.
    pub async fn durable(self: &Arc<Self>, rsn: u64) -> Result<()> {
        loop {
            let found = poll_fn(|context| {
                let mut state = match self.lock() {
                    Ok(state) => state,
                    Err(error) => return Poll::Ready(Err(error)),
                };
                if state.log.durable() >= rsn {
                    return Poll::Ready(Ok(Found::Durable));
                }
                if let Some(flight) = state.log.abandoned.take() {
                    return Poll::Ready(Ok(Found::ToLead(flight)));
                }
                if state.log.is_leading() {
                    state.log.wait(context.waker());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(match state.log.lead() {
                    Some((gathered, place)) => Found::ToLead(self.launch(gathered, place)),
                    None => Found::Full,
                }))
            })
            .await?;
            match found {
                Found::Durable => return Ok(()),
                Found::Full => return Err(self.fail("the log is full".into())),
                Found::ToLead(flight) => self.lead(flight).await?,
            }
        }
    }

    fn launch(&self, mut gathered: Gathered, place: BatchPlace) -> Flight {
        let crc = seal(&mut gathered.bytes, place, gathered.count, self.geometry.superblock.disk);
        Flight { gathered, crc, offset: place.lsn % self.geometry.log_bytes, write: None }
    }

    async fn lead(self: &Arc<Self>, flight: Flight) -> Result<()> {
        let bytes = flight.gathered.bytes.len();
        let started = flight.write.is_some();
        let mut leader = Leader { core: self, flight: Some(flight) };
        if !started {
            let mut buf = self.work_buf(bytes.next_multiple_of(self.geometry.log_align as usize)).await?;
            if let Some(flight) = &mut leader.flight {
                buf[..bytes].copy_from_slice(&flight.gathered.bytes);
                buf[bytes..].fill(0);
                let write = Io::Write { file: File::Store, offset: flight.offset, data: vec![buf.freeze()] };
                // The sync covers the batch and all data writes that have ended: those that its records speak of.
                let mut batch = Batch { bufs: Vec::new(), ios: vec![write], sync: vec![File::Store] };
                if catena_rt::broken("engine: log records acknowledged before they are synced") {
                    batch.sync.clear();
                }
                flight.write = Some(self.submit(batch));
            }
        }
        let done = poll_fn(|context| match leader.flight.as_mut().and_then(|flight| flight.write.as_mut()) {
            Some(write) => Pin::new(write).poll(context),
            None => unreachable!("a leader has a write under way until it has ended"),
        })
        .await;
        let Some(flight) = leader.flight.take() else { unreachable!("taken only here and by drop") };
        if let Err(error) = done.result {
            return Err(self.fail(error.to_string()));
        }
        count(&self.counters.log_writes, 1);
        let mut state = self.state.lock();
        state.log.led(flight.gathered.bytes, flight.crc);
        for (target, chunk, id) in flight.gathered.commits {
            state.fold(target, chunk, id);
        }
        state.settle();
        state.release_holds();
        self.notice(&mut state);
        Ok(())
    }

    /// Makes everything that was enqueued durable.
    pub async fn flush(self: &Arc<Self>) -> Result<()> {
        let last = self.lock()?.log.last();
        self.durable(last).await
    }

    /// Where replay has to begin for what is enqueued from now on. Only known while no batch is on its way.
    pub async fn log_place(self: &Arc<Self>) -> Result<BatchPlace> {
        loop {
            let under_way = {
                let state = self.lock()?;
                if !state.log.is_leading() {
                    return Ok(state.log.place());
                }
                state.log.taken()
            };
            self.durable(under_way).await?;
        }
    }
}
