//! The namespace: everything about names and attributes, nothing about contents.

use std::time::Duration;

use bytes::Bytes;
use catena_meta_client::{SetAttr, Usage, XattrMode};
use catena_mgmtd_client::CallOptions;
use catena_proto::clock::Timestamp;
use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::status::Status;

use crate::attributes::{AsPlace, FileType, LayoutChoice, Stat};
use crate::connect::Catena;
use crate::error::Result;

pub use pb::RenameMode;

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The service's present time.
    Now,
    /// This one.
    To(Timestamp),
}

/// Space and counts of the whole file system. Bytes of file data: all replicas of one byte are counted once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    /// Bytes that can be stored in all.
    pub capacity: u64,
    /// Bytes stored.
    pub used: u64,
    /// Files of all types but directories.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Removed files whose chunks are still to be reclaimed,
    pub reclaim_files: u64,
    /// and their bytes.
    pub reclaim_bytes: u64,
    /// Files open for writing.
    pub sessions: u64,
}

/// Places in one batch call to the service.
const BATCH: usize = 1024;

impl Catena {
    /// Attributes; of what a symbolic link points to.
    pub async fn stat(&self, at: impl AsPlace) -> Result<Stat> {
        Ok(self.shared.meta.stat(&self.who, &at.as_place(), true).await?.into())
    }

    /// Attributes; of a symbolic link itself.
    pub async fn lstat(&self, at: impl AsPlace) -> Result<Stat> {
        Ok(self.shared.meta.stat(&self.who, &at.as_place(), false).await?.into())
    }

    /// Whether something is there.
    pub async fn exists(&self, at: impl AsPlace) -> Result<bool> {
        match self.stat(at).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.status(), Status::NotFound | Status::NotDirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Attributes of many places, in order, in as few calls as possible. `follow`: of what symbolic links point to.
    pub async fn batch_stat<P: AsPlace>(
        &self,
        places: &[P],
        follow: bool,
    ) -> Result<Vec<std::result::Result<Stat, Status>>> {
        let mut all = Vec::with_capacity(places.len());
        for batch in places.chunks(BATCH) {
            let batch: Vec<_> = batch.iter().map(AsPlace::as_place).collect();
            let results = self.shared.meta.batch_stat(&self.who, &batch, follow).await?;
            all.extend(results.into_iter().map(|result| result.map(Stat::from)));
        }
        Ok(all)
    }

    /// Attributes of many inodes, in order.
    pub async fn batch_stat_inodes(
        &self,
        inodes: &[InodeId],
    ) -> Result<Vec<std::result::Result<Stat, Status>>> {
        let mut all = Vec::with_capacity(inodes.len());
        for batch in inodes.chunks(BATCH) {
            let results = self.shared.meta.batch_stat_inodes(&self.who, batch).await?;
            all.extend(results.into_iter().map(|result| result.map(Stat::from)));
        }
        Ok(all)
    }

    /// Makes a directory.
    pub async fn mkdir(&self, at: impl AsPlace, mode: u32) -> Result<Stat> {
        self.make_directory(at, mode, false, LayoutChoice::default()).await
    }

    /// Makes a directory and those missing above it. One that is there already is no error.
    pub async fn mkdir_all(&self, at: impl AsPlace, mode: u32) -> Result<Stat> {
        self.make_directory(at, mode, true, LayoutChoice::default()).await
    }

    /// Makes a directory, `parents`: and those missing above it, with a layout for what is created below.
    pub async fn make_directory(
        &self,
        at: impl AsPlace,
        mode: u32,
        parents: bool,
        layout: LayoutChoice,
    ) -> Result<Stat> {
        let mode = mode & !self.shared.umask;
        let made = self.shared.meta.mkdir(&self.who, &at.as_place(), mode, parents, layout.to_pb()).await?;
        Ok(made.into())
    }

    /// Makes an empty file, fifo, socket or device node.
    pub async fn mknod(&self, at: impl AsPlace, kind: FileType, mode: u32, rdev: u64) -> Result<Stat> {
        let (mode, kind) = (mode & !self.shared.umask, kind.to_pb());
        Ok(self.shared.meta.mknod(&self.who, &at.as_place(), kind, mode, rdev).await?.into())
    }

    /// Removes a name that is not a directory's. The contents go once no one has the file open for writing.
    pub async fn remove(&self, at: impl AsPlace) -> Result<()> {
        Ok(self.shared.meta.unlink(&self.who, &at.as_place()).await?)
    }

    /// Removes an empty directory.
    pub async fn remove_dir(&self, at: impl AsPlace) -> Result<()> {
        Ok(self.shared.meta.rmdir(&self.who, &at.as_place()).await?)
    }

    /// Removes whatever is there, a directory with everything below it. The name is gone on return, the rest is reclaimed behind it.
    pub async fn remove_all(&self, at: impl AsPlace) -> Result<()> {
        Ok(self.shared.meta.remove_all(&self.who, &at.as_place()).await?)
    }

    /// Moves a name, atomically: replacing what is there, refusing to, or exchanging both.
    pub async fn rename(&self, from: impl AsPlace, to: impl AsPlace, mode: RenameMode) -> Result<Stat> {
        Ok(self.shared.meta.rename(&self.who, &from.as_place(), &to.as_place(), mode).await?.into())
    }

    /// Gives a file another name.
    pub async fn link(&self, from: impl AsPlace, to: impl AsPlace) -> Result<Stat> {
        Ok(self.shared.meta.link(&self.who, &from.as_place(), &to.as_place(), false).await?.into())
    }

    /// Makes a symbolic link at `at` that says `target`.
    pub async fn symlink(&self, target: impl AsRef<[u8]>, at: impl AsPlace) -> Result<Stat> {
        Ok(self.shared.meta.symlink(&self.who, &at.as_place(), target).await?.into())
    }

    /// What a symbolic link says.
    pub async fn readlink(&self, at: impl AsPlace) -> Result<Bytes> {
        Ok(self.shared.meta.readlink(&self.who, &at.as_place()).await?)
    }

    /// Changes attributes; `follow`: of what a symbolic link points to.
    pub async fn set_attr(&self, at: impl AsPlace, change: SetAttr, follow: bool) -> Result<Stat> {
        Ok(self.shared.meta.set_attr(&self.who, &at.as_place(), change, follow).await?.into())
    }

    /// Sets the permission bits.
    pub async fn chmod(&self, at: impl AsPlace, mode: u32) -> Result<Stat> {
        self.set_attr(at, SetAttr { mode: Some(mode), ..SetAttr::default() }, true).await
    }

    /// Sets owner and group; none leaves it.
    pub async fn chown(&self, at: impl AsPlace, uid: Option<u32>, gid: Option<u32>) -> Result<Stat> {
        self.set_attr(at, SetAttr { uid, gid, ..SetAttr::default() }, true).await
    }

    /// Sets access and modification time; none leaves it.
    pub async fn utimes(
        &self,
        at: impl AsPlace,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> Result<Stat> {
        let to = |time| match time {
            Some(SetTime::To(Timestamp(nanos))) => Some(nanos),
            _ => None,
        };
        let change = SetAttr {
            atime: to(atime),
            mtime: to(mtime),
            atime_now: atime == Some(SetTime::Now),
            mtime_now: mtime == Some(SetTime::Now),
            ..SetAttr::default()
        };
        self.set_attr(at, change, true).await
    }

    /// Sets a file's length: cuts it, or lets it end in a hole.
    pub async fn truncate(&self, at: impl AsPlace, length: u64) -> Result<Stat> {
        let at = at.as_place();
        let stat = Stat::from(self.shared.meta.truncate(&self.who, &at, length, None).await?);
        self.learn(&stat);
        Ok(stat)
    }

    /// The layout that a file has, or what was set on a directory for files made below it.
    pub async fn layout(&self, at: impl AsPlace) -> Result<LayoutChoice> {
        Ok(self.stat(at).await?.choice)
    }

    /// Sets the layout of what is created below a directory from now on. What is not chosen is inherited from above.
    pub async fn set_layout(&self, at: impl AsPlace, layout: LayoutChoice) -> Result<Stat> {
        let layout = layout.to_pb().unwrap_or_default();
        Ok(self.shared.meta.set_layout(&self.who, &at.as_place(), layout).await?.into())
    }

    /// The value of an extended attribute.
    pub async fn get_xattr(&self, at: impl AsPlace, name: impl AsRef<[u8]>) -> Result<Bytes> {
        Ok(self.shared.meta.get_xattr(&self.who, &at.as_place(), name, true).await?)
    }

    /// The names of the extended attributes.
    pub async fn list_xattr(&self, at: impl AsPlace) -> Result<Vec<Bytes>> {
        Ok(self.shared.meta.list_xattr(&self.who, &at.as_place(), true).await?)
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(
        &self,
        at: impl AsPlace,
        name: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        mode: XattrMode,
    ) -> Result<()> {
        Ok(self.shared.meta.set_xattr(&self.who, &at.as_place(), name, value.into(), mode, true).await?)
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, at: impl AsPlace, name: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.shared.meta.remove_xattr(&self.who, &at.as_place(), name, true).await?)
    }

    /// Space and counts of the whole file system.
    pub async fn statfs(&self) -> Result<StatFs> {
        let reply = self.shared.meta.statfs(&self.who).await?;
        Ok(StatFs {
            capacity: reply.capacity,
            used: self.used_now(reply.capacity).await.unwrap_or(reply.used),
            files: reply.files,
            directories: reply.directories,
            reclaim_files: reply.reclaim_files,
            reclaim_bytes: reply.reclaim_bytes,
            sessions: reply.sessions,
        })
    }

    /// Bytes used of `capacity`. The metadata service knows the disks' use as of the last change of the routing information, mgmtd as of
    /// the last heartbeats: that share counts, if mgmtd answers.
    async fn used_now(&self, capacity: u64) -> Option<u64> {
        let patience = CallOptions::within(Duration::from_secs(2), Duration::from_secs(1));
        let mgmtd = self.shared.mgmtd.as_ref()?.with_options(patience);
        let nodes = mgmtd.get_routing(0, Duration::ZERO).await.ok()?.routing?.nodes;
        let disks = nodes.iter().flat_map(|node| &node.disks).filter(|disk| !disk.failed);
        let (all, used) = disks.fold((0_u128, 0_u128), |(all, used), disk| {
            (all + u128::from(disk.capacity), used + u128::from(disk.used))
        });
        u64::try_from((u128::from(capacity) * used).checked_div(all)?).ok()
    }

    /// What a subtree holds.
    pub async fn usage(&self, at: impl AsPlace) -> Result<Usage> {
        Ok(self.shared.meta.usage(&self.who, &at.as_place()).await?)
    }

    /// Takes a stat into account if the file is open here.
    pub(crate) fn learn(&self, stat: &Stat) {
        let length = self.shared.lengths.lock().get(&stat.inode).and_then(std::sync::Weak::upgrade);
        if let Some(length) = length {
            length.learn(stat);
        }
    }
}
