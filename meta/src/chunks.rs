//! What the metadata service wants from the chunk store: lengths, and the removal of what no file has any more.

use std::collections::BTreeMap;

use async_trait::async_trait;
use catena_proto::ids::{ChainId, ChunkId, InodeId};
use catena_proto::rpc::Failure;
use catena_rt::time::Instant;
use parking_lot::Mutex;

/// A chunk of a file and its committed length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Extent {
    /// Position in the file, in chunks.
    pub index: u32,
    /// Bytes.
    pub length: u32,
}

/// The chunk store as the metadata service uses it. Every call is answered by the chain's serving replicas, and an answered mutation
/// is committed on all of them.
#[async_trait]
pub trait Chunks: Send + Sync + 'static {
    /// The last chunk that `inode` has in `chain`.
    async fn last(
        &self,
        chain: ChainId,
        inode: InodeId,
        deadline: Instant,
    ) -> Result<Option<Extent>, Failure>;

    /// Up to `limit` chunks that `inode` has in `chain`, in order, from index `from`.
    async fn list(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: u32,
        limit: u32,
        deadline: Instant,
    ) -> Result<Vec<Extent>, Failure>;

    /// Cuts a chunk to `length`.
    async fn cut(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        length: u32,
        chunk_size: u32,
        deadline: Instant,
    ) -> Result<(), Failure>;

    /// Removes a chunk. One that is not there is no error.
    async fn remove(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        chunk_size: u32,
        deadline: Instant,
    ) -> Result<(), Failure>;
}

/// Chunks without contents, in memory: what tests and benchmarks of metadata need of a chunk store.
#[derive(Default)]
pub struct MemChunks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: BTreeMap<(ChainId, ChunkId), u32>,
    /// Calls to answer before the next one fails, if one shall.
    fail_in: Option<(u64, Failure)>,
    calls: u64,
}

impl MemChunks {
    /// An empty store.
    pub fn new() -> MemChunks {
        MemChunks::default()
    }
    /// What a client's write does: the chunk reaches at least `length`.
    pub fn write(&self, chain: ChainId, chunk: ChunkId, length: u32) {
        let mut state = self.state.lock();
        let old = state.chunks.entry((chain, chunk)).or_default();
        *old = length.max(*old);
    }
    /// All chunks of an inode, with their chains, in order of chains.
    pub fn of(&self, inode: InodeId) -> Vec<(ChainId, Extent)> {
        let state = self.state.lock();
        let chunks = state.chunks.iter().filter(|((_, chunk), _)| chunk.inode == inode);
        chunks.map(|(&(chain, chunk), &length)| (chain, Extent { index: chunk.index, length })).collect()
    }
    /// Chunks of all inodes.
    pub fn count(&self) -> usize {
        self.state.lock().chunks.len()
    }
    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }
    /// After `calls` more calls every call fails, until this is called with `None`.
    pub fn fail_after(&self, failure: Option<(u64, Failure)>) {
        self.state.lock().fail_in = failure;
    }
}

impl State {
    fn enter(&mut self) -> Result<(), Failure> {
        self.calls += 1;
        match &mut self.fail_in {
            Some((0, failure)) => Err(failure.clone()),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
    fn range(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: u32,
    ) -> impl DoubleEndedIterator<Item = Extent> + '_ {
        let first = (chain, ChunkId { inode, index: from });
        let last = (chain, ChunkId { inode, index: u32::MAX });
        self.chunks.range(first..=last).map(|(&(_, chunk), &length)| Extent { index: chunk.index, length })
    }
}

#[async_trait]
impl Chunks for MemChunks {
    async fn last(&self, chain: ChainId, inode: InodeId, _: Instant) -> Result<Option<Extent>, Failure> {
        let mut state = self.state.lock();
        state.enter()?;
        Ok(state.range(chain, inode, 0).next_back())
    }
    async fn list(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: u32,
        limit: u32,
        _: Instant,
    ) -> Result<Vec<Extent>, Failure> {
        let mut state = self.state.lock();
        state.enter()?;
        Ok(state.range(chain, inode, from).take(limit as usize).collect())
    }
    async fn cut(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        length: u32,
        _: u32,
        _: Instant,
    ) -> Result<(), Failure> {
        let mut state = self.state.lock();
        state.enter()?;
        if let Some(old) = state.chunks.get_mut(&(chain, chunk)) {
            *old = length.min(*old);
        }
        Ok(())
    }
    async fn remove(&self, chain: ChainId, chunk: ChunkId, _: u32, _: Instant) -> Result<(), Failure> {
        let mut state = self.state.lock();
        state.enter()?;
        state.chunks.remove(&(chain, chunk));
        Ok(())
    }
}
