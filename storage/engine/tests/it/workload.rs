//! A workload of all operations, several at a time, beside a model that says what may be found after a crash at any moment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use catena_buf::BufPool;
use catena_engine::sim::{SimConfig, SimDisk};
use catena_engine::{Engine, EngineError, Op, Options};
use catena_proto::ids::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::common::*;
use crate::model::{Chain, Version, check, contents};

/// Chunks of one worker: no two workers touch the same.
const CHUNKS: u32 = 3;

/// All that is to be known of a disk.
#[derive(Default)]
pub struct World {
    pub chunks: BTreeMap<ChunkId, Vec<Chain>>,
    /// Sequences that are committed, or may be, for each client.
    pub sequence: u64,
    pub state: Vec<Vec<u8>>,
}

pub struct Run {
    pub pool: BufPool,
    pub world: RefCell<World>,
    pub rng: RefCell<StdRng>,
}

pub fn sim(seed: u64, delay: bool) -> SimDisk {
    let delay = delay.then_some((Duration::from_micros(10), Duration::from_micros(500)));
    SimDisk::new(SimConfig { seed, capacity: 64 << 20, delay })
}

pub fn small_options() -> Options {
    Options {
        growth: 1 << 20,
        reserve: 0,
        overlays: 256 << 10,
        sums_cache: 0,
        work: 8 << 20,
        ..Options::default()
    }
}

pub async fn open(disk: &SimDisk, pool: &BufPool) -> Result<Engine, EngineError> {
    Engine::open(disk.attach(), EXPECT, pool.clone(), small_options()).await
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let world = World { state: vec![Vec::new()], ..World::default() };
        Run { pool: pool(), world: RefCell::new(world), rng: RefCell::new(StdRng::seed_from_u64(seed)) }
    }

    fn pick(&self, range: std::ops::Range<u32>) -> u32 {
        self.rng.borrow_mut().random_range(range)
    }

    fn chain(&self, chunk: ChunkId) -> Chain {
        let world = self.world.borrow();
        match world.chunks.get(&chunk).map(Vec::as_slice) {
            None => Chain::default(),
            Some([one]) => one.clone(),
            Some(more) => panic!("{} ways while nothing is under way", more.len()),
        }
    }

    fn set(&self, chunk: ChunkId, ways: Vec<Chain>) {
        self.world.borrow_mut().chunks.insert(chunk, ways);
    }

    fn some_bytes(&self, len: u32) -> Vec<u8> {
        bytes(self.pick(0..1 << 30), len as usize)
    }

    fn some_length(&self) -> u32 {
        match self.pick(0..10) {
            0..4 => self.pick(1..5000),
            4 => 4096,
            5 => 8192,
            6 | 7 => self.pick(1..40_000),
            8 => self.pick(60_000..100_000),
            _ => self.pick(1..300_000),
        }
    }

    /// An operation, and what it makes of contents.
    fn some_op(&self, before: &[u8]) -> (Op, Option<Vec<u8>>) {
        let mut after = before.to_vec();
        let len = before.len() as u32;
        let pool = (self.pick(0..4) > 0).then_some(&self.pool);
        match self.pick(0..20) {
            0 => (Op::Remove, None),
            1 | 2 => {
                let length = self.pick(0..len + 2);
                after.resize(length as usize, 0);
                (Op::Truncate { length }, Some(after))
            }
            3 => {
                let length = self.pick(0..len + 20_000);
                after.resize(after.len().max(length as usize), 0);
                (Op::Extend { length }, Some(after))
            }
            4 => {
                let data = self.some_bytes(self.some_length());
                let length = data.len() as u32 + self.pick(0..2) * 5000;
                after = data.clone();
                after.resize(length as usize, 0);
                (replace(pool, length, &data), Some(after))
            }
            at => {
                let offset = match at {
                    5..10 => len,
                    10 => len + self.pick(0..9000),
                    11..14 => self.pick(0..len + 1) / 4096 * 4096,
                    _ => self.pick(0..len + 1),
                };
                let data = self.some_bytes(self.some_length());
                let end = offset as usize + data.len();
                after.resize(after.len().max(end), 0);
                after[offset as usize..end].copy_from_slice(&data);
                (write(pool, offset, &data), Some(after))
            }
        }
    }

    fn some_tag(&self) -> Option<Tag> {
        if self.pick(0..3) > 0 {
            return None;
        }
        let mut world = self.world.borrow_mut();
        world.sequence += 1;
        Some(tag(world.sequence % 5 + 1, world.sequence))
    }

    /// Stages a few versions at once, commits some, drops some.
    async fn burst(&self, engine: &Engine, chunk: ChunkId) -> Result<(), EngineError> {
        let mut chain = self.chain(chunk);
        let mut stages = Vec::new();
        let first = chain.versions.len();
        for _ in 0..self.pick(1..4) {
            let id = version(chain.last().map_or(0, |last| last.id.version.0) + 1);
            let (op, contents) = self.some_op(&chain.contents().unwrap_or_default());
            let tag = self.some_tag();
            let reservation = if self.pick(0..2) == 0 { engine.admit(T, chunk, &op).ok() } else { None };
            stages.push(engine.stage(T, chunk, id, tag, op, reservation));
            chain.versions.push(Version { id, contents, tag, acknowledged: false });
        }
        self.set(chunk, vec![chain.clone()]);
        let staged = join(stages).await;
        for (at, result) in staged.into_iter().enumerate() {
            let length = result?.length as usize;
            let version = &mut chain.versions[first + at];
            version.acknowledged = true;
            assert_eq!(length, version.contents.as_ref().map_or(0, Vec::len), "{chunk} {:?}", version.id);
            self.set(chunk, vec![chain.clone()]);
        }
        if self.pick(0..4) > 0 {
            let upto = self.pick(chain.committed as u32..chain.versions.len() as u32 + 1) as usize;
            if upto > chain.committed {
                chain.committed = upto;
                self.set(chunk, vec![chain.clone()]);
                engine.commit(T, chunk, chain.versions[upto - 1].id)?;
            }
        }
        // A rebase that is dropped makes the old contents count again: `resync` has that case.
        let rebased = chain.committed == 0 && chain.versions[0].id.assigned != ChainVersion(1);
        let droppable = chain.committed + usize::from(rebased);
        if self.pick(0..6) == 0 && droppable < chain.versions.len() {
            let from = self.pick(droppable as u32..chain.versions.len() as u32) as usize;
            let id = chain.versions[from].id;
            let kept = Chain { versions: chain.versions[..from].to_vec(), committed: chain.committed };
            self.set(chunk, vec![chain.clone(), kept.clone()]);
            engine.drop_pending(T, chunk, id).await?;
            chain = kept;
            self.set(chunk, vec![chain.clone()]);
        }
        // What lies before the newest committed version can no longer be read, only be where a crash goes back to.
        if chain.committed > 0 {
            let read = Chain { versions: chain.versions[chain.committed - 1..].to_vec(), committed: 1 };
            if self.pick(0..3) == 0 {
                contents(engine, chunk, &read).await?;
            }
        }
        Ok(())
    }

    /// A base of resync, or a chunk that has to go.
    async fn resync(&self, engine: &Engine, chunk: ChunkId) -> Result<(), EngineError> {
        let before = self.chain(chunk);
        let all_committed = before.committed == before.versions.len();
        let number = self.pick(1..9);
        let id = VersionId {
            version: ChunkVersion(number.into()),
            assigned: ChainVersion(self.pick(2..1000).into()),
        };
        let data = self.some_bytes(self.some_length());
        let base = |acknowledged, committed| Chain {
            versions: vec![Version { id, contents: Some(data.clone()), tag: None, acknowledged }],
            committed,
        };
        if !all_committed || self.pick(0..3) == 0 {
            self.set(chunk, vec![before.clone(), Chain::default()]);
            engine.forget(T, chunk).await?;
            self.set(chunk, vec![Chain::default()]);
            return Ok(());
        }
        if self.pick(0..2) == 0 {
            self.set(chunk, vec![before.clone(), base(false, 1)]);
            let op = if self.pick(0..2) == 0 {
                replace(Some(&self.pool), data.len() as u32, &data)
            } else {
                let spool = engine.spool(data.len() as u32).await?;
                for (at, part) in data.chunks(8192).enumerate() {
                    let crcs = catena_proto::checksum::piece_checksums(0, part);
                    let placed = placed(Some(&self.pool), 0, part);
                    engine.spool_write(&spool, at as u32 * 8192, placed, &crcs).await?;
                }
                Op::Spooled(spool)
            };
            engine.install(T, chunk, id, op).await?;
            self.set(chunk, vec![base(true, 1)]);
            return Ok(());
        }
        self.set(chunk, vec![before.clone(), base(false, 0)]);
        let op = replace(None, data.len() as u32, &data);
        engine.stage_rebase(T, chunk, id, None, op).await?;
        self.set(chunk, vec![base(true, 0)]);
        if self.pick(0..2) == 0 {
            // The old contents are void in memory already, but the log may not say so.
            self.set(chunk, vec![base(true, 1)]);
            engine.commit(T, chunk, id)?;
        } else if self.pick(0..2) == 0 {
            self.set(chunk, vec![base(true, 0), before.clone()]);
            engine.drop_pending(T, chunk, id).await?;
            self.set(chunk, vec![before]);
        }
        Ok(())
    }

    /// Waits for something that may be given up, or for a while.
    async fn patiently<F: Future>(&self, future: F) -> Option<F::Output> {
        let patience = match self.pick(0..2) {
            0 => Duration::from_secs(1000),
            _ => Duration::from_micros(self.pick(1..3000).into()),
        };
        tokio::time::timeout(patience, future).await.ok()
    }

    async fn worker(&self, engine: &Engine, number: u32, steps: u32) -> Result<(), EngineError> {
        for _ in 0..steps {
            let chunk = chunk(number * CHUNKS + self.pick(0..CHUNKS));
            match self.pick(0..12) {
                0 => self.resync(engine, chunk).await?,
                1 => self.patiently(engine.maintain()).await.unwrap_or(Ok(()))?,
                2 if number == 0 => {
                    let state = self.some_bytes(self.pick(0..200));
                    self.world.borrow_mut().state.push(state.clone());
                    if let Some(set) = self.patiently(engine.set_target_state(T, &state)).await {
                        set?;
                        self.world.borrow_mut().state = vec![state];
                    }
                }
                _ => self.burst(engine, chunk).await?,
            }
        }
        Ok(())
    }

    /// Runs the workload until it ends or the disk does.
    pub async fn work(&self, engine: &Engine, steps: u32) -> Result<(), EngineError> {
        let workers = (0..3).map(|number| self.worker(engine, number, steps)).collect();
        join(workers).await.into_iter().collect()
    }

    /// The disk was recovered: everything has to be as the model says, which from now on knows only what is there.
    pub async fn check(&self, engine: &Engine) {
        let ways = self.world.borrow().chunks.clone();
        let mut known = BTreeMap::new();
        let mut sequences: BTreeSet<u64> = BTreeSet::new();
        for (chunk, ways) in ways {
            let chain = check(engine, chunk, &ways).await;
            sequences.extend(
                ways.iter().flat_map(|way| &way.versions).filter_map(|one| Some(one.tag?.sequence.0)),
            );
            self.tags(engine, chunk, &chain);
            known.insert(chunk, vec![chain]);
        }
        let listed =
            engine.list(T, std::ops::Bound::Unbounded, std::ops::Bound::Unbounded, 1000).expect("lists");
        for info in listed {
            assert!(known.contains_key(&info.chunk), "chunk {} was never written", info.chunk);
        }
        let state = engine.target_state(T).expect("is there");
        assert!(self.world.borrow().state.contains(&state), "the target's state is none that was set");
        let mut world = self.world.borrow_mut();
        world.state = vec![state];
        world.chunks = known;
    }

    /// Pendings have their tags; a committed version's is in the table, or a later one of its channel.
    fn tags(&self, engine: &Engine, chunk: ChunkId, chain: &Chain) {
        let pendings = engine.pendings(T);
        for version in &chain.versions[chain.committed..] {
            let pending = pendings.iter().find(|one| one.chunk == chunk && one.id == version.id);
            let pending = pending.unwrap_or_else(|| panic!("{chunk} {:?} is no pending", version.id));
            assert_eq!(pending.tag, version.tag);
        }
        if let (1, Some(tag)) = (chain.committed, chain.versions.first().and_then(|one| one.tag)) {
            let known = engine.tag(T, tag.client, tag.channel).map_or(0, |known| known.sequence.0);
            assert!(known >= tag.sequence.0, "{chunk}: the tag {tag:?} of a committed version is gone");
        }
    }
}

/// Runs futures side by side in one task; like `join_all`.
pub async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    outputs.into_iter().flatten().collect()
}
