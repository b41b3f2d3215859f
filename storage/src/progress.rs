//! How far this node is in bringing other targets up to date: kept for every target that it has sent to, the running session or the
//! last one, and shown to whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use bytes::{BufMut, Bytes, BytesMut};
use catena_proto::frame::{MAX_ITEMS, ResyncEntry, ResyncState};
use catena_proto::ids::*;
use catena_rt::time::Instant;
use parking_lot::Mutex;
use zerocopy::IntoBytes;

use crate::metrics::ResyncMetrics;

/// One session as the sender sees it. A session goes on over several walks (R19); the sums are of all of them, `compared` of the last.
pub(crate) struct Progress {
    chain: ChainId,
    from: TargetId,
    to: TargetId,
    joined_at: ChainVersion,
    begun: Instant,
    /// Milliseconds from the beginning to the end, once it has one.
    took: AtomicU64,
    state: AtomicU8,
    compared: AtomicU64,
    total: AtomicU64,
    sent: AtomicU64,
    kept: AtomicU64,
    removed: AtomicU64,
    bytes: AtomicU64,
    gauges: ResyncMetrics,
}

impl Progress {
    /// Another walk over so many chunks.
    pub fn walk(&self, total: u64) {
        self.total.store(total, Relaxed);
        self.compared.store(0, Relaxed);
        self.gauges.chunks.set(0);
        self.set(ResyncState::Running);
    }
    /// A chunk was looked at. There may be more than were counted: what only the target has, what came since.
    pub fn compared(&self) {
        let compared = self.compared.fetch_add(1, Relaxed) + 1;
        self.total.fetch_max(compared, Relaxed);
        self.gauges.chunks.set(compared as i64);
    }
    /// It needs nothing.
    pub fn kept(&self) {
        self.kept.fetch_add(1, Relaxed);
    }
    /// It should not exist.
    pub fn removed(&self) {
        self.removed.fetch_add(1, Relaxed);
    }
    /// Its contents were sent.
    pub fn sent(&self, bytes: u64) {
        self.gauges.sent.set(self.sent.fetch_add(1, Relaxed) as i64 + 1);
        self.gauges.bytes.set((self.bytes.fetch_add(bytes, Relaxed) + bytes) as i64);
    }
    /// How it goes.
    pub fn set(&self, state: ResyncState) {
        let took = self.begun.elapsed().as_millis() as u64;
        self.took.store(if state.is_over() { took.max(1) } else { 0 }, Relaxed);
        self.state.store(state as u8, Relaxed);
    }
    /// Nobody goes on with it here, unless it was through.
    pub fn break_off(&self) {
        if self.state.load(Relaxed) != ResyncState::Done as u8 {
            self.set(ResyncState::BrokenOff);
        }
    }
    /// Chunks and bytes sent so far.
    pub fn sums(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.bytes.load(Relaxed))
    }

    fn entry(&self) -> ResyncEntry {
        let took = match self.took.load(Relaxed) {
            0 => self.begun.elapsed().as_millis() as u64,
            took => took,
        };
        ResyncEntry {
            from: self.from.0.into(),
            to: self.to.0.into(),
            joined_at: self.joined_at.0.into(),
            elapsed_ms: took.into(),
            compared: self.compared.load(Relaxed).into(),
            total: self.total.load(Relaxed).into(),
            sent: self.sent.load(Relaxed).into(),
            kept: self.kept.load(Relaxed).into(),
            removed: self.removed.load(Relaxed).into(),
            bytes: self.bytes.load(Relaxed).into(),
            chain: self.chain.0.into(),
            state: self.state.load(Relaxed),
            reserved: [0; 3],
        }
    }
}

/// The newest session of every target that this node has sent to.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<BTreeMap<TargetId, Arc<Progress>>>);

impl Sessions {
    /// The session `joined_at` of `to`: the one that is known, or a new one in the place of an older.
    pub fn of(
        &self,
        chain: ChainId,
        from: TargetId,
        to: TargetId,
        joined_at: ChainVersion,
        gauges: impl FnOnce() -> ResyncMetrics,
    ) -> Arc<Progress> {
        let mut known = self.0.lock();
        if let Some(progress) =
            known.get(&to).filter(|known| (known.joined_at, known.from) == (joined_at, from))
        {
            return progress.clone();
        }
        let progress = Arc::new(Progress {
            chain,
            from,
            to,
            joined_at,
            begun: Instant::now(),
            took: AtomicU64::new(0),
            state: AtomicU8::new(ResyncState::Running as u8),
            compared: AtomicU64::new(0),
            total: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            gauges: gauges(),
        });
        known.insert(to, progress.clone());
        progress
    }

    /// All of them from target `from` on, as many as an answer holds.
    pub fn encode(&self, from: TargetId) -> Bytes {
        let known = self.0.lock();
        let page = known.range(from..).take(MAX_ITEMS);
        let mut out = BytesMut::with_capacity(size_of::<ResyncEntry>() * known.len().min(MAX_ITEMS));
        page.for_each(|(_, progress)| out.put_slice(progress.entry().as_bytes()));
        out.freeze()
    }
}
