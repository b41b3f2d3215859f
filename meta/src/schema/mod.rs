//! Every key and value that the metadata service stores, and nothing else: `docs/format-meta.md` draws them.

pub mod codec;
pub mod inode;
pub mod key;
pub mod records;

pub use codec::{CorruptValue, decode, encode};
pub use inode::{DirTimes, Inode, MAX_LINKS, ROOT};
pub use records::{Dirent, Outcome, Reclaim, Session, TrashedDir, TruncateIntent};
