//! Listing directories: page by page, so that a directory of any size lists in bounded memory.

use bytes::Bytes;
use catena_meta_client::Place;
use catena_proto::ids::InodeId;
use futures_util::Stream;
use futures_util::stream;

use crate::attributes::{AsPlace, FileType, Stat};
use crate::connect::Catena;
use crate::error::Result;

/// A name in a directory.
#[derive(Clone, PartialEq, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: Bytes,
    /// What it names.
    pub inode: InodeId,
    /// What that is.
    pub kind: FileType,
    /// Its attributes, if they were asked for and it was still there.
    pub stat: Option<Stat>,
}

impl DirEntry {
    /// The name as text; bytes that are none are replaced.
    pub fn name_text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }
}

/// A listing under way, in order of names. `.` and `..` are not in it.
///
/// A name that exists from start to end of the listing is seen exactly once; one that comes or goes meanwhile may be seen or not.
pub struct ReadDir {
    catena: Catena,
    place: Place,
    attributes: bool,
    page: u32,
    after: Bytes,
    more: bool,
    pending: std::vec::IntoIter<DirEntry>,
}

impl Catena {
    /// Lists a directory; `attributes`: with those of every entry.
    pub fn read_dir(&self, at: impl AsPlace, attributes: bool) -> ReadDir {
        ReadDir {
            catena: self.clone(),
            place: at.as_place(),
            attributes,
            page: 0,
            after: Bytes::new(),
            more: true,
            pending: Vec::new().into_iter(),
        }
    }
}

impl ReadDir {
    /// Entries fetched at once; 0 leaves it to the service.
    pub fn page_size(mut self, entries: u32) -> ReadDir {
        self.page = entries;
        self
    }

    /// Begins behind this name instead of at the start.
    pub fn after(mut self, name: impl Into<Bytes>) -> ReadDir {
        self.after = name.into();
        self
    }

    /// The next page; empty at the end.
    pub async fn next_page(&mut self) -> Result<Vec<DirEntry>> {
        let ready: Vec<_> = self.pending.by_ref().collect();
        if !ready.is_empty() {
            return Ok(ready);
        }
        // A page may come back empty although more follows.
        while self.more {
            let Catena { shared, who } = &self.catena;
            let reply =
                shared.meta.readdir(who, &self.place, self.after.clone(), self.page, self.attributes).await?;
            self.more = reply.more && !reply.entries.is_empty();
            if let Some(last) = reply.entries.last() {
                self.after = last.name.clone();
                return Ok(reply.entries.into_iter().map(DirEntry::from).collect());
            }
        }
        Ok(Vec::new())
    }

    /// The next entry; none at the end.
    pub async fn next(&mut self) -> Result<Option<DirEntry>> {
        if let Some(entry) = self.pending.next() {
            return Ok(Some(entry));
        }
        self.pending = self.next_page().await?.into_iter();
        Ok(self.pending.next())
    }

    /// As a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<DirEntry>> + Send {
        stream::try_unfold(self, |mut listing| async move {
            Ok(listing.next().await?.map(|entry| (entry, listing)))
        })
    }

    /// All that is left, in memory: for small directories.
    pub async fn collect(mut self) -> Result<Vec<DirEntry>> {
        let mut all = Vec::new();
        loop {
            let mut page = self.next_page().await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.append(&mut page);
        }
    }
}

impl From<catena_proto::pb::DirEntry> for DirEntry {
    fn from(entry: catena_proto::pb::DirEntry) -> DirEntry {
        DirEntry {
            kind: FileType::from_pb(entry.r#type()),
            inode: InodeId(entry.inode),
            name: entry.name,
            stat: entry.attributes.map(Stat::from),
        }
    }
}
