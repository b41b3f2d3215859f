//! The chunk store over the storage client.

use async_trait::async_trait;
use catena_proto::frame::{ChunkEntry, WriteKind};
use catena_proto::ids::{ChainId, ChunkId, InodeId};
use catena_proto::rpc::Failure;
use catena_proto::status::{RetryClass, Status};
use catena_rt::time::Instant;
use catena_storage_client::{Replica, StorageClient, StorageError};

use crate::chunks::{Chunks, Extent};

fn extent(entry: &ChunkEntry) -> Extent {
    Extent { index: entry.index.get(), length: entry.length.get() }
}

/// The storage client has retried until its deadline, so whatever may pass is the caller's to try again later.
fn failure(error: StorageError) -> Failure {
    let status = match error.status.class() {
        RetryClass::Retry | RetryClass::Refresh | RetryClass::BackOff => Status::Busy,
        _ if error.status == Status::TimedOut => Status::Busy,
        _ => error.status,
    };
    Failure::new(status, error.to_string())
}

#[async_trait]
impl Chunks for StorageClient {
    async fn last(
        &self,
        chain: ChainId,
        inode: InodeId,
        deadline: Instant,
    ) -> Result<Option<Extent>, Failure> {
        let last = self.last_chunk(chain, inode, deadline).await.map_err(failure)?;
        Ok(last.as_ref().map(extent))
    }

    async fn list(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: u32,
        limit: u32,
        deadline: Instant,
    ) -> Result<Vec<Extent>, Failure> {
        let from = ChunkId { inode, index: from };
        let listed = self
            .list_chunks(chain, inode..=inode, from, limit as usize, Replica::Any, false, deadline)
            .await
            .map_err(failure)?;
        Ok(listed.iter().map(extent).collect())
    }

    async fn cut(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        length: u32,
        chunk_size: u32,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let done = self.mutate(chain, chunk, WriteKind::Truncate, length, chunk_size, deadline).await;
        done.map(drop).map_err(failure)
    }

    async fn remove(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        chunk_size: u32,
        deadline: Instant,
    ) -> Result<(), Failure> {
        match self.mutate(chain, chunk, WriteKind::Remove, 0, chunk_size, deadline).await {
            Ok(_) => Ok(()),
            Err(error) if error.status == Status::NotFound => Ok(()),
            Err(error) => Err(failure(error)),
        }
    }
}
