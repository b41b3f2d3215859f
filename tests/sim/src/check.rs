//! What must hold when everything is quiet again.

use std::collections::BTreeMap;
use std::time::Duration;

use catena_model::chunk::{Chunk, Op};
use catena_model::linear::{Call, explain};
use catena_proto::ids::{ChunkId, InodeId, TargetId};
use catena_proto::routing::PublicState;
use catena_rt::time::sleep;
use catena_storage_client::{Replica, StorageClient};

/// Version, length and checksum of every chunk of a target.
type Contents = BTreeMap<ChunkId, (u64, u64, u32, u32)>;

async fn contents(storage: &StorageClient, target: TargetId) -> Result<Contents, String> {
    let chain = storage.routing().current().targets.get(&target).map(|target| target.chain);
    let Some(chain) = chain else { return Err(format!("target {target} is unknown")) };
    let mut found = Contents::new();
    let all = InodeId(0)..=InodeId(u64::MAX);
    let mut from = ChunkId { inode: InodeId(0), index: 0 };
    loop {
        const PAGE: usize = 256;
        let deadline = storage.deadline();
        let page = storage
            .list_chunks(chain, all.clone(), from, PAGE, Replica::Target(target), true, deadline)
            .await
            .map_err(|error| format!("target {target}: {error}"))?;
        for entry in &page {
            let chunk = ChunkId { inode: InodeId(entry.inode.get()), index: entry.index.get() };
            let state = (entry.version.get(), entry.assigned.get(), entry.length.get(), entry.checksum.get());
            found.insert(chunk, state);
            from = ChunkId { index: chunk.index + 1, ..chunk };
        }
        if page.len() < PAGE {
            return Ok(found);
        }
    }
}

/// Invariant 3: all serving replicas of a chain hold the same. It may take a moment until the last commit mark has arrived.
pub async fn converged(storage: &StorageClient) -> Vec<String> {
    let mut wrong = Vec::new();
    for _ in 0..20 {
        wrong.clear();
        let routing = storage.routing().current();
        for &chain in routing.chains.keys() {
            let mut first: Option<(TargetId, Contents)> = None;
            for target in routing.targets_in(chain, PublicState::Serving) {
                let found = match contents(storage, target.id).await {
                    Ok(found) => found,
                    Err(error) => {
                        wrong.push(format!("converged: {error}"));
                        continue;
                    }
                };
                match &first {
                    None => first = Some((target.id, found)),
                    Some((other, contents)) if *contents != found => {
                        let differs: Vec<String> = contents
                            .keys()
                            .chain(found.keys())
                            .filter(|chunk| contents.get(chunk) != found.get(chunk))
                            .take(3)
                            .map(|chunk| {
                                format!("{chunk:?}: {:?} and {:?}", contents.get(chunk), found.get(chunk))
                            })
                            .collect();
                        let target = target.id;
                        wrong.push(format!("converged: {other} and {target} differ: {}", differs.join("; ")));
                    }
                    Some(_) => {}
                }
            }
        }
        if wrong.is_empty() {
            return wrong;
        }
        sleep(Duration::from_millis(500)).await;
    }
    wrong
}

/// Invariants 2 and 5 for one chunk: one order explains everything that was told.
pub fn chunk(index: u32, calls: &[Call<Op>]) -> Option<String> {
    explain(&Chunk, &format!("chunk {index}"), calls)
}
