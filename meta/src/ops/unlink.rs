//! Taking a name from an inode, and what happens to an inode that has lost its last one.

use catena_proto::ids::InodeId;

use crate::error::OpError;
use crate::schema::key::{self, Counter};
use crate::schema::{Inode, Reclaim, TrashedDir, encode};
use crate::tx::Tx;

/// A file's name was taken away. With its last name goes the file, unless someone still writes to it.
pub(crate) async fn drop_link(tx: &mut Tx<'_>, id: InodeId, inode: &Inode) -> Result<(), OpError> {
    let left = inode.nlink.saturating_sub(1);
    if left == 0 && !has_sessions(tx, id).await? {
        retire(tx, id, inode, inode.chains_used);
        return Ok(());
    }
    let now = tx.now;
    tx.put_inode(id, Inode { nlink: left, ctime: now, ..inode.clone() });
    Ok(())
}

/// Whether a file is open for writing.
pub(crate) async fn has_sessions(tx: &mut Tx<'_>, id: InodeId) -> Result<bool, OpError> {
    let (sessions, _) = tx.range(key::sessions_of(id), 1).await?;
    Ok(!sessions.is_empty())
}

/// The end of a file without names and sessions: the inode goes, its chunks are queued. `chains` of the stripe may hold some.
pub(crate) fn retire(tx: &mut Tx<'_>, id: InodeId, inode: &Inode, chains: u32) {
    tx.clear_inode(id, inode);
    tx.count(Counter::Files, -1);
    let mut chains = chains;
    if inode.truncating {
        // Whoever cuts finds the intent gone and stops; what it had not reached is removed with the rest.
        tx.clear(key::truncate(id));
        chains = inode.layout.map_or(0, |layout| layout.stripe);
    }
    if let (Some(layout), true) = (inode.layout, inode.is_file() && chains > 0) {
        let record = Reclaim { layout: Some(layout), chains, length: inode.length };
        tx.enqueue(key::reclaim(id), encode(&record));
        tx.count(Counter::ReclaimFiles, 1);
        tx.count(Counter::ReclaimBytes, record.length as i64);
    }
}

/// The end of an empty directory.
pub(crate) fn retire_dir(tx: &mut Tx<'_>, id: InodeId, inode: &Inode) {
    tx.clear_inode(id, inode);
    tx.count(Counter::Directories, -1);
}

/// Cuts a directory off with everything below it: nothing is made in it any more, and it is taken apart in the background.
pub(crate) fn trash(tx: &mut Tx<'_>, id: InodeId, inode: &Inode) {
    let now = tx.now;
    tx.put_inode(id, Inode { nlink: 0, parent: 0, ctime: now, ..inode.clone() });
    tx.enqueue(key::trash(id), encode(&TrashedDir { removed: now }));
}
