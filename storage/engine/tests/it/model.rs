//! What the engine must know of a chunk: every version that was staged, what each made of the contents, and which are acknowledged.
//!
//! After a crash the engine's committed version and its pendings form a *chain*. The chain is right if it is a run of the model's
//! versions without a hole, reaches at least to the newest acknowledged one, begins at or before the newest committed one, and every
//! version in it has exactly its contents.

use catena_engine::{At, ChunkState, Engine, EngineError};
use catena_proto::checksum::{crc32c, piece_checksums};
use catena_proto::ids::*;

use crate::common::T;

/// Contents; `None` is a tombstone.
pub type Contents = Option<Vec<u8>>;

#[derive(Clone, Debug)]
pub struct Version {
    pub id: VersionId,
    pub contents: Contents,
    pub tag: Option<Tag>,
    pub acknowledged: bool,
}

/// One way that a chunk may have gone. `versions[..committed]` are committed; nothing at all if there is none.
#[derive(Clone, Default, Debug)]
pub struct Chain {
    pub versions: Vec<Version>,
    pub committed: usize,
}

impl Chain {
    pub fn last(&self) -> Option<&Version> {
        self.versions.last()
    }
    pub fn contents(&self) -> Contents {
        self.last().map_or(Some(Vec::new()), |last| Some(last.contents.clone().unwrap_or_default()))
    }

    /// The engine's word on the chunk is one of those that this chain allows. Returns what of it is there.
    fn matches(&self, state: Option<&ChunkState>) -> Result<Chain, String> {
        let (mut ids, has_committed) = match state {
            None => (Vec::new(), false),
            Some(state) => {
                let committed = state.committed.map(|meta| meta.version);
                (committed.into_iter().chain(state.pending.iter().copied()).collect(), committed.is_some())
            }
        };
        let needed = self.versions.iter().rposition(|version| version.acknowledged).map_or(0, |at| at + 1);
        if ids.is_empty() {
            return if needed == 0 {
                Ok(Chain::default())
            } else {
                Err("acknowledged versions are gone".into())
            };
        }
        let Some(start) = self.versions.iter().position(|version| version.id == ids[0]) else {
            return Err(format!("{:?} is none of its versions", ids[0]));
        };
        let here: Vec<VersionId> =
            self.versions[start..].iter().map(|version| version.id).take(ids.len()).collect();
        if here != ids {
            return Err(format!("{ids:?} is no run of its versions"));
        }
        if start + ids.len() < needed {
            return Err(format!("{ids:?} stops before the newest acknowledged version"));
        }
        if has_committed && start >= self.committed {
            return Err(format!("{:?} was never committed", ids[0]));
        }
        if !has_committed && start > 0 {
            return Err("the committed version is gone".into());
        }
        ids.clear();
        let mut versions = self.versions[start..start + here.len()].to_vec();
        versions.iter_mut().for_each(|version| version.acknowledged = true);
        Ok(Chain { versions, committed: has_committed.into() })
    }
}

/// Compares what the engine has with what may be, reads every version whole, and returns the way that it took.
pub async fn check(engine: &Engine, chunk: ChunkId, ways: &[Chain]) -> Chain {
    let state = engine.chunk(T, chunk);
    let mut reasons = Vec::new();
    for way in ways {
        match way.matches(state.as_ref()) {
            Ok(chain) => {
                contents(engine, chunk, &chain).await.expect("the disk works");
                return chain;
            }
            Err(reason) => reasons.push(reason),
        }
    }
    panic!("chunk {chunk} is {state:?}, which is none of what it may be: {reasons:?}\n{:?}", brief(ways));
}

fn brief(ways: &[Chain]) -> Vec<Vec<(VersionId, Option<usize>, bool)>> {
    let one = |version: &Version| (version.id, version.contents.as_ref().map(Vec::len), version.acknowledged);
    ways.iter().map(|way| way.versions.iter().map(one).collect()).collect()
}

/// Every version of the chain has its contents.
pub async fn contents(engine: &Engine, chunk: ChunkId, chain: &Chain) -> Result<(), EngineError> {
    for (at, version) in chain.versions.iter().enumerate() {
        let mut ways = Vec::new();
        if at + 1 >= chain.committed {
            ways.push(At::Version(version.id));
        }
        if at + 1 == chain.committed {
            ways.push(At::Committed);
        }
        for at in ways {
            let read = read_all(engine, chunk, at).await;
            match (&version.contents, read) {
                (_, Err(error @ (EngineError::DiskFailed { .. } | EngineError::ReadFailed { .. }))) => {
                    return Err(error);
                }
                (None, Err(EngineError::NotFound(_))) => {}
                (Some(expected), Ok(found)) => {
                    if let Some(place) = expected.iter().zip(&found).position(|(a, b)| a != b) {
                        panic!("chunk {chunk} {at:?}: byte {place} of {} differs", expected.len());
                    }
                    assert_eq!(expected.len(), found.len(), "chunk {chunk} {at:?}: length");
                }
                (expected, found) => panic!(
                    "chunk {chunk} {at:?}: {:?} instead of {:?}",
                    found.map(|found| found.len()),
                    expected.as_ref().map(Vec::len)
                ),
            }
        }
        if at + 1 == chain.committed
            && let Some(expected) = &version.contents
        {
            let mut padded = expected.clone();
            padded.resize(expected.len().next_multiple_of(4096), 0);
            assert_eq!(engine.checksum(T, chunk).await?, crc32c(&padded), "chunk {chunk}");
        }
    }
    Ok(())
}

async fn read_all(engine: &Engine, chunk: ChunkId, at: At) -> Result<Vec<u8>, EngineError> {
    let read = engine.read(T, chunk, at, 0, 4 << 20).await?;
    assert_eq!(read.chunk_length as usize, read.data.len());
    assert_eq!(read.crcs, piece_checksums(0, &read.data), "chunk {chunk} {at:?}: checksums of the pieces");
    Ok(read.data.to_vec())
}
