//! The native client of Catena, a distributed file system for AI clusters: an async library for files, directories and attributes.
//!
//! [`Catena`] is a connection to a cluster, [`File`] an open file. Everything that takes a place takes a path from the root, an inode,
//! or a path below an inode ([`Place`]).
//!
//! ```no_run
//! use catena_client::{Catena, ClusterFile, ConnectOptions, ReadRequest};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let catena = Catena::connect(&ClusterFile::load("cluster.toml")?, ConnectOptions::default()).await?;
//!
//! let file = catena.create("/samples").await?;
//! file.write_at(0, &[7; 1 << 20]).await?;
//! file.close().await?;
//!
//! // Many small reads in one call: a message a node, not one a read.
//! let file = catena.open("/samples").await?;
//! let wanted: Vec<_> = (0..64).map(|n| ReadRequest { file: &file, offset: n * 4096, length: 4096 }).collect();
//! for data in catena.read_batch(&wanted).await {
//!     assert_eq!(data?.len(), 4096);
//! }
//! # Ok(()) }
//! ```
//!
//! *Where bytes are copied.* [`File::write_at`] and [`File::read_at`] copy once, between the caller's memory and a pool buffer, and
//! checksum on the way. [`File::write_buf_at`], [`File::read_buf_at`] and [`Catena::read_batch`] work in pool buffers and copy nothing;
//! [`File::write_from_region`] and [`File::read_to_region`] copy nothing in memory that the program registered ([`Region`]).
//!
//! *What a write means.* When it returns, the bytes are durable on every replica. The file's *length* is settled for other processes by
//! [`File::sync`] and [`File::close`].

mod attributes;
mod checksum;
mod cluster_file;
mod connect;
mod error;
mod file;
mod fsck;
mod length;
mod locate;
mod metrics;
mod namespace;
mod open;
mod read;
mod readdir;
mod region;
mod stream;
pub mod transfer;
mod write;

pub use attributes::{AsPlace, FileType, LayoutChoice, Stat};
pub use cluster_file::{ClusterFile, ClusterFileError};
pub use connect::{Catena, ConnectOptions, Links, Parts};
pub use error::{Error, Result};
pub use file::File;
pub use fsck::{Finding, FindingKind, FsckOptions, FsckReport};
pub use locate::{ChunkPlace, ReplicaReport, StoredChunk, TargetPlace};
pub use metrics::MetricsSnapshot;
pub use namespace::{RenameMode, SetTime, StatFs};
pub use open::OpenOptions;
pub use read::{Data, ReadInto, ReadRequest};
pub use readdir::{DirEntry, ReadDir};
pub use region::Region;
pub use stream::{Chunk, Reader, Writer};
pub use write::WriteRequest;

pub use catena_buf::{Buf, IoBuf};
pub use catena_meta_client::{Credentials, Place, SetAttr, Usage, XattrMode};
pub use catena_proto::clock::Timestamp;
pub use catena_proto::ids::InodeId;
pub use catena_proto::layout::Layout;
pub use catena_proto::status::Status;
