//! What every part of the engine stands on: the state's lock, the disk with its counters, durability, failure, space.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use catena_buf::{Buf, BufPool, PoolClass, PoolConfig, PoolError};
use catena_proto::checksum::BLOCK;
use parking_lot::{Mutex, MutexGuard};

use crate::alloc::Run;
use crate::disk::{Batch, Completion, Disk, Done, File, Io};
use crate::error::{EngineError, Result};
use crate::format::BLOCK_U64;
use crate::format::superblock::Geometry;
use crate::op::Options;
use crate::state::State;

/// Bytes of zeros at hand.
const ZEROS: usize = 256 << 10;

/// Counters that [`crate::EngineStats`] shows.
#[derive(Default)]
pub struct Counters {
    pub written: AtomicU64,
    pub read: AtomicU64,
    pub stages: AtomicU64,
    pub reads: AtomicU64,
    pub log_writes: AtomicU64,
    pub checkpoints: AtomicU64,
    pub copied: AtomicU64,
    pub corrupt: AtomicU64,
}

pub struct Core {
    pub disk: Arc<dyn Disk>,
    pub geometry: Geometry,
    pub options: Options,
    /// Buffers that reads return.
    pub pool: BufPool,
    /// Buffers of the engine's own, so that slow readers cannot hold up the log.
    pub work: BufPool,
    pub state: Mutex<State>,
    /// One upkeep at a time.
    pub upkeep: tokio::sync::Mutex<()>,
    growing: tokio::sync::Mutex<()>,
    /// Who copies data that lies wrong holds much of `work`: one at a time.
    pub copying: tokio::sync::Mutex<()>,
    pub counters: Counters,
    /// For gaps.
    pub zeros: Buf,
    /// Writes whose callers gave up, and what they need.
    orphans: Mutex<Vec<(Completion, Option<Kept>)>>,
}

/// Keeps an epoch from being over.
pub struct Reading {
    core: Arc<Core>,
    epoch: u64,
}

impl Reading {
    /// Guards an epoch that was entered.
    pub fn new(core: &Arc<Core>, epoch: u64) -> Reading {
        Reading { core: core.clone(), epoch }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.core.state.lock().epochs.leave(self.epoch);
    }
}

/// Fails the disk if what it guards is dropped before it has ended: what that left on the disk is not known.
pub struct MustEnd {
    core: Option<Arc<Core>>,
    what: &'static str,
}

impl MustEnd {
    pub fn new(core: &Arc<Core>, what: &'static str) -> MustEnd {
        MustEnd { core: Some(core.clone()), what }
    }
    pub fn ended(mut self) {
        self.core = None;
    }
}

impl Drop for MustEnd {
    fn drop(&mut self) {
        if let Some(core) = &self.core {
            core.fail(format!("{} was abandoned half-way", self.what));
        }
    }
}

/// What must not be dropped while a write is under way.
pub type Kept = Box<dyn std::any::Any + Send>;

/// A write under way. Dropped, it becomes an orphan.
struct UnderWay<'a, F: Fn() -> Option<Kept>> {
    core: &'a Core,
    completion: Option<Completion>,
    keep: F,
}

impl<F: Fn() -> Option<Kept>> Drop for UnderWay<'_, F> {
    fn drop(&mut self) {
        if let Some(completion) = self.completion.take() {
            self.core.orphans.lock().push((completion, (self.keep)()));
        }
    }
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Core {
    pub fn new(
        disk: Arc<dyn Disk>,
        geometry: Geometry,
        pool: BufPool,
        options: Options,
    ) -> Result<Core, PoolError> {
        let work = BufPool::new(PoolConfig { bytes: [0, 0, 0, 0, options.work] })?;
        let state = Mutex::new(State::new(&geometry, &options));
        let mut zeros =
            work.try_alloc(ZEROS, PoolClass::Local).ok_or(PoolError::NoSuchClass(PoolClass::Local))?;
        zeros.fill(0);
        Ok(Core {
            disk,
            geometry,
            options,
            pool,
            work,
            state,
            upkeep: tokio::sync::Mutex::new(()),
            growing: tokio::sync::Mutex::new(()),
            copying: tokio::sync::Mutex::new(()),
            counters: Counters::default(),
            zeros: zeros.freeze(),
            orphans: Mutex::default(),
        })
    }

    pub fn name(&self) -> String {
        self.disk.name().to_owned()
    }

    // --- failure ---

    pub fn failure(&self, state: &State) -> Option<EngineError> {
        let reason = state.failed.as_ref()?.to_string();
        Some(EngineError::DiskFailed { disk: self.name(), reason })
    }

    /// The lock, unless the disk has failed.
    pub fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        match self.failure(&state) {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }

    /// Nothing on this disk is trusted any more. The first reason stays.
    pub fn fail(&self, reason: String) -> EngineError {
        let mut state = self.state.lock();
        if state.failed.is_none() {
            tracing::error!(disk = self.disk.name(), reason, "the disk is out of service");
            state.failed = Some(reason.into());
        }
        state.log.wake();
        state.epochs.waiting.drain(..).for_each(std::task::Waker::wake);
        state.due.drain(..).for_each(std::task::Waker::wake);
        for target in state.targets.values_mut() {
            target.active.values_mut().for_each(crate::index::Active::wake);
        }
        let reason = state.failed.as_ref().map_or_else(String::new, ToString::to_string);
        EngineError::DiskFailed { disk: self.name(), reason }
    }

    // --- the disk ---

    /// File offset of a block of the data area.
    pub fn place(&self, block: u32) -> u64 {
        self.geometry.log_bytes + u64::from(block) * BLOCK_U64
    }

    pub fn submit(&self, batch: Batch) -> Completion {
        let (mut read, mut written) = (0, 0);
        for io in &batch.ios {
            match io {
                Io::Read { len, .. } => read += *len as u64,
                Io::Write { data, .. } => written += data.iter().map(|part| part.len() as u64).sum::<u64>(),
                Io::Allocate { .. } => {}
            }
        }
        count(&self.counters.read, read);
        count(&self.counters.written, written);
        self.disk.submit(batch)
    }

    /// Carries out a batch of reads. A failed read leaves the disk in service: another replica may answer.
    pub async fn read_batch(&self, batch: Batch) -> Result<Vec<catena_buf::IoBuf>> {
        let Done { bufs, result } = self.submit(batch).await;
        match result {
            Ok(()) => Ok(bufs),
            Err(error) => {
                tracing::error!(disk = self.disk.name(), %error, "a read failed");
                Err(EngineError::ReadFailed { disk: self.name(), reason: error.to_string() })
            }
        }
    }

    /// Carries out a batch that writes or syncs. An error fails the disk.
    pub async fn write_batch(&self, batch: Batch) -> Result<()> {
        self.write_keeping(batch, || None).await
    }

    /// [`Core::write_batch`]. If the caller gives up meanwhile, the batch goes on without it: what `keep` gives stays alive until
    /// upkeep has seen the batch end.
    pub async fn write_keeping(&self, batch: Batch, keep: impl Fn() -> Option<Kept>) -> Result<()> {
        let mut under_way = UnderWay { core: self, completion: Some(self.submit(batch)), keep };
        let done = poll_fn(|context| match &mut under_way.completion {
            Some(completion) => Pin::new(completion).poll(context),
            None => unreachable!("taken only below and by drop"),
        })
        .await;
        under_way.completion = None;
        match done.result {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error.to_string())),
        }
    }

    /// Waits for writes whose callers gave up. Before anything that may write to the same places.
    pub async fn orphans_ended(&self) -> Result<()> {
        loop {
            let Some((completion, kept)) = self.orphans.lock().pop() else { return Ok(()) };
            let kept = Mutex::new(kept);
            let mut under_way =
                UnderWay { core: self, completion: Some(completion), keep: || kept.lock().take() };
            let done = poll_fn(|context| match &mut under_way.completion {
                Some(completion) => Pin::new(completion).poll(context),
                None => unreachable!("taken only below and by drop"),
            })
            .await;
            under_way.completion = None;
            if let Err(error) = done.result {
                return Err(self.fail(error.to_string()));
            }
        }
    }

    pub async fn work_buf(&self, len: usize) -> Result<catena_buf::IoBuf> {
        Ok(self.work.alloc(len, PoolClass::Local).await?)
    }

    // --- reading ---

    /// Waits until every reader of an epoch has left.
    pub async fn epoch_over(&self, epoch: u64) -> Result<()> {
        poll_fn(|context| {
            let mut state = match self.lock() {
                Ok(state) => state,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if state.epochs.is_over(epoch) {
                return Poll::Ready(Ok(()));
            }
            state.epochs.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    // --- space ---

    /// Bytes that the data area may have in all.
    pub fn limit(&self, state: &State) -> u64 {
        let end = u64::from(state.allocator.end()) * BLOCK_U64;
        let addressable = u64::from(u32::MAX - (1 << 14)) * BLOCK_U64;
        // What the file system cannot say it does not have.
        let available = self.disk.available().unwrap_or(0);
        let limit = end.saturating_add(available).min(addressable);
        if self.options.capacity == 0 { limit } else { limit.min(self.options.capacity.max(end)) }
    }

    /// Free bytes, those included that the data area may still grow by.
    pub fn free(&self, state: &State) -> u64 {
        let limbo = state.limbo_blocks();
        let used = u64::from(state.allocator.end()) - state.allocator.free_blocks() - limbo;
        self.limit(state).saturating_sub(used * BLOCK_U64)
    }

    pub fn no_space(&self, state: &State, needed: u64, reserve: u64) -> EngineError {
        EngineError::NoSpace { disk: self.name(), needed, free: self.free(state), reserve }
    }

    /// A run of the size class, or, if the disk is nearly full, of the smallest that does.
    pub async fn take_run(self: &Arc<Self>, order: u8, least: u8) -> Result<Run> {
        for order in [order, least] {
            if let Some(run) = self.try_take(order).await? {
                return Ok(run);
            }
        }
        let state = self.lock()?;
        Err(self.no_space(&state, BLOCK_U64 << least, 0))
    }

    async fn try_take(self: &Arc<Self>, order: u8) -> Result<Option<Run>> {
        let (last, epoch) = {
            let mut state = self.lock()?;
            state.settle();
            if let Some(run) = state.allocator.take(order) {
                return Ok(Some(run));
            }
            (state.log.last(), state.limbo_epoch())
        };
        if self.grow(order).await?
            && let Some(run) = self.lock()?.allocator.take(order)
        {
            return Ok(Some(run));
        }
        // Full, but for what was given up and waits.
        let Some(epoch) = epoch else { return Ok(None) };
        self.durable(last).await?;
        self.epoch_over(epoch).await?;
        let mut state = self.lock()?;
        state.settle();
        Ok(state.allocator.take(order))
    }

    /// Makes sure that a file is so long before it is written there. A file system without room is no failure of the disk: what it
    /// holds is as good as ever.
    pub async fn extend(&self, file: File, length: u64) -> Result<()> {
        if self.disk.len(file)? >= length {
            return Ok(());
        }
        let ios = vec![Io::Allocate { file, length }];
        match self.submit(Batch { bufs: Vec::new(), ios, sync: Vec::new() }).await.result {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let state = self.lock()?;
                Err(self.no_space(&state, length, 0))
            }
            Err(error) => Err(self.fail(error.to_string())),
        }
    }

    /// Grows the data area, and the checksum table with it. False if it has reached its limit.
    async fn grow(&self, order: u8) -> Result<bool> {
        let _one = self.growing.lock().await;
        let (end, limit) = {
            let state = self.lock()?;
            if state.allocator.has(order) {
                return Ok(true);
            }
            let limit = self.limit(&state) / BLOCK_U64;
            (u64::from(state.allocator.end()), limit)
        };
        let run = 1u64 << order;
        let needed = end.next_multiple_of(run) + run;
        let wished = (end + self.options.growth / BLOCK_U64).max(needed);
        for target in [wished, needed] {
            if target > limit {
                continue;
            }
            // The reserve for the table: the file system counts it too.
            let sums = (target * 4).next_multiple_of(BLOCK as u64);
            let ios = vec![
                Io::Allocate { file: File::Sums, length: sums },
                Io::Allocate { file: File::Store, length: self.place(target as u32) },
            ];
            match self.submit(Batch { bufs: Vec::new(), ios, sync: Vec::new() }).await.result {
                Ok(()) => {
                    self.lock()?.allocator.grow(target as u32);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::StorageFull => continue,
                Err(error) => return Err(self.fail(error.to_string())),
            }
        }
        Ok(false)
    }
}
