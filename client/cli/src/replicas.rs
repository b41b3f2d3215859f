//! What every replica holds of a file: asked of each target by itself, so that differences show.

use catena_client::{Catena, Stat};
use catena_proto::frame::ChunkEntry;
use catena_proto::ids::{ChainId, ChunkId, InodeId, NodeId, TargetId};
use catena_proto::layout::Layout;
use catena_proto::routing::PublicState;
use catena_storage_client::{Replica, StorageError};
use futures_util::future::try_join_all;

use crate::exit::{Exit, Failure, Result};

/// Chunks asked for at once; the most that services answer.
const PAGE: usize = 1024;

/// One target's share of a file.
pub struct Member {
    /// The target.
    pub target: TargetId,
    /// The node that has it.
    pub node: NodeId,
    /// What it may do.
    pub state: PublicState,
    /// The file's chunks that it holds, in order.
    pub chunks: Vec<ChunkEntry>,
}

/// One chain's share of a file: the same from every member.
pub struct Share {
    /// The chain.
    pub chain: ChainId,
    /// Its targets, head first.
    pub members: Vec<Member>,
}

/// A file without a layout, or whose chain table this routing information does not have.
fn no_layout(path: &str) -> Failure {
    Failure::new(Exit::Failed, format!("{path}: has no layout of its own")).hint("only files have chunks")
}

/// The chains of a file, in stripe order.
pub fn chains(catena: &Catena, path: &str, stat: &Stat) -> Result<(Layout, Vec<ChainId>)> {
    let layout = stat.layout.ok_or_else(|| no_layout(path))?;
    let chains = catena.routing().current().chains_of(&layout).ok_or_else(|| {
        let table = format!("chain table {} version {}", layout.table.0, layout.table_version);
        Failure::failed(format!("{path}: {table} is not in the routing information"))
    })?;
    Ok((layout, chains))
}

/// Asks every target of the file's chains for its chunks below index `end`.
pub async fn survey(
    catena: &Catena,
    path: &str,
    stat: &Stat,
    end: u32,
    checksums: bool,
) -> Result<Vec<Share>> {
    let (_, chains) = chains(catena, path, stat)?;
    let routing = catena.routing().current();
    let mut shares = Vec::with_capacity(chains.len());
    for chain in chains {
        let targets = routing.chains.get(&chain).map(|chain| chain.targets.clone()).unwrap_or_default();
        let members = targets.iter().filter_map(|id| routing.targets.get(id)).map(async |target| {
            let chunks = list(catena, chain, stat.inode, end, target.id, checksums)
                .await
                .map_err(|error| Failure::new(Exit::of(error.status), format!("{path}: {error}")))?;
            Ok::<_, Failure>(Member { target: target.id, node: target.node, state: target.state, chunks })
        });
        shares.push(Share { chain, members: try_join_all(members).await? });
    }
    Ok(shares)
}

async fn list(
    catena: &Catena,
    chain: ChainId,
    inode: InodeId,
    end: u32,
    target: TargetId,
    checksums: bool,
) -> Result<Vec<ChunkEntry>, StorageError> {
    let storage = catena.storage();
    let mut all: Vec<ChunkEntry> = Vec::new();
    let mut from = ChunkId { inode, index: 0 };
    loop {
        let replica = Replica::Target(target);
        let page = storage
            .list_chunks(chain, inode..=inode, from, PAGE, replica, checksums, storage.deadline())
            .await?;
        let whole = page.len() == PAGE;
        all.extend(page.into_iter().filter(|entry| entry.index.get() < end));
        match all.last().and_then(|last| last.index.get().checked_add(1)) {
            Some(next) if whole && next < end => from.index = next,
            _ => return Ok(all),
        }
    }
}

/// The first thing in which a chain's serving replicas differ; nothing if they hold the same chunks, byte for byte.
pub fn first_difference(share: &Share) -> Option<String> {
    let mut serving = share.members.iter().filter(|member| member.state == PublicState::Serving);
    let first = serving.next()?;
    serving.find_map(|other| {
        let (a, b) = (&first.chunks, &other.chunks);
        let differ = a.iter().zip(b).find(|(a, b)| a != b).map(|(a, b)| a.index.get().min(b.index.get()));
        let index = differ.or_else(|| {
            let longer = if a.len() > b.len() { a } else { b };
            longer.get(a.len().min(b.len())).map(|entry| entry.index.get())
        })?;
        let text = |chunks: &[ChunkEntry]| match chunks.iter().find(|entry| entry.index.get() == index) {
            None => "nothing".into(),
            Some(entry) => format!(
                "version {}@{}, {} bytes, checksum {:08x}, {} pending",
                entry.version, entry.assigned, entry.length, entry.checksum, entry.pending
            ),
        };
        Some(format!(
            "chunk {index} of {}: {} on {} holds {}, {} on {} holds {}",
            share.chain,
            first.target,
            first.node,
            text(a),
            other.target,
            other.node,
            text(b)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(target: u64, chunks: &[(u32, u32)]) -> Member {
        let chunks = chunks.iter().map(|(index, checksum)| ChunkEntry {
            inode: 5.into(),
            version: 1.into(),
            assigned: 1.into(),
            index: (*index).into(),
            length: 4096.into(),
            checksum: (*checksum).into(),
            pending: 0.into(),
        });
        Member {
            target: TargetId(target),
            node: NodeId(1),
            state: PublicState::Serving,
            chunks: chunks.collect(),
        }
    }

    #[test]
    fn replicas_that_differ_are_named() {
        let share = |other: &[(u32, u32)]| Share {
            chain: ChainId(3),
            members: vec![member(1, &[(0, 7), (4, 8)]), member(2, other)],
        };
        assert_eq!(first_difference(&share(&[(0, 7), (4, 8)])), None);
        let wrong = first_difference(&share(&[(0, 7), (4, 9)])).unwrap();
        assert!(wrong.starts_with("chunk 4 of c3: t1 on n1 holds version 1@1"), "{wrong}");
        let missing = first_difference(&share(&[(0, 7)])).unwrap();
        assert!(missing.ends_with("t2 on n1 holds nothing"), "{missing}");
    }
}
