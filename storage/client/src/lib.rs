//! Reads and writes of chunks: what lies between a file's bytes and the storage services.
//!
//! A [`StorageClient`] knows chains from routing information, sends writes to a chain's head, spreads reads over its serving replicas,
//! and repeats what may be repeated until the caller's deadline. It knows nothing of files: layouts, lengths and names are
//! `catena-client`'s business. Meta services use it too, to settle lengths and to reclaim chunks.
//!
//! *Writes are applied once.* Every mutation carries a tag (client, channel, sequence) that stays the same over all its retries; a
//! target answers a repeated tag from its table. A channel carries one mutation at a time.
//!
//! *Reads are checked.* Every piece that arrives is verified against the checksum that its writer computed. A replica whose data does
//! not match is passed over, counted and logged, and another one is asked.
//!
//! *Dropping a future is safe* at any point: a dropped read has no effect; a dropped write may or may not be carried out, and its
//! channel rests until the servers have forgotten it.
//!
//! ```no_run
//! # async fn example(client: catena_storage_client::StorageClient) -> Result<(), catena_storage_client::StorageError> {
//! use catena_buf::Buf;
//! use catena_proto::ids::{ChainId, ChunkId, InodeId};
//! use catena_storage_client::ReadOp;
//!
//! let (chain, chunk) = (ChainId(3), ChunkId { inode: InodeId(17), index: 0 });
//! client.write(chain, chunk, 0, Buf::from(b"hello".to_vec()), 1 << 20, client.deadline()).await?;
//! let items = vec![ReadOp { chain, chunk, offset: 0, length: 5, into: None }];
//! for outcome in client.read(items, client.deadline()).await {
//!     assert_eq!(&outcome?.data[..], b"hello");
//! }
//! # Ok(()) }
//! ```

mod channels;
mod chunks;
mod client;
mod error;
mod metrics;
mod nodes;
mod options;
mod pause;
mod read;
mod resyncs;
mod scrub;
mod write;

pub use chunks::Replica;
pub use client::StorageClient;
pub use error::StorageError;
pub use metrics::{Histogram, LatencySnapshot, Metrics, MetricsSnapshot};
pub use options::Options;
pub use read::{ReadOp, ReadOut};
pub use scrub::{NodeError, Scrub, ScrubReport};
pub use write::{WriteOp, Written};
