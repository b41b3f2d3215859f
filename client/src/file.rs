//! An open file: its identity, its session, and the settling of its length. Reads and writes are in [`crate::read`] and
//! [`crate::write`].

use std::fmt;
use std::sync::Arc;

use catena_meta_client::{OpenFlags, Place, Settle};
use catena_proto::ids::{ChainId, ChunkId, InodeId, TableId};
use catena_proto::layout::{DEFAULT_CHUNK_SIZE, Layout};
use catena_proto::status::Status;
use catena_rt::time::Instant;
use parking_lot::Mutex;
use tokio::sync::OwnedRwLockReadGuard;
use tracing::warn;

use crate::attributes::Stat;
use crate::connect::Catena;
use crate::error::{Error, Result};
use crate::length::Length;
use crate::metrics::add;

/// An open file. Cheap to clone; clones are the same handle, and any number of tasks may use it at once.
///
/// *Visibility.* A write that returned is durable on all replicas and seen by every later read of this process. Other processes see its
/// bytes at once too, but a new *length* when the writer calls [`File::sync`] or [`File::close`]. Writes that overlap in place and time
/// end up as if one came after the other, per chunk.
///
/// *Closing.* Call [`File::close`]: it settles the length and reports what went wrong. A handle that is only dropped is closed in the
/// background, and errors go to the log.
#[derive(Clone)]
pub struct File {
    inner: Arc<Inner>,
}

struct Inner {
    catena: Catena,
    path: String,
    inode: InodeId,
    layout: Layout,
    chains: Arc<[ChainId]>,
    read: bool,
    append: bool,
    writes: bool,
    /// Of a file that is open for writing. Another one after the first has ended; see [`File::reopen`].
    session: Mutex<Option<[u8; 16]>>,
    reopening: tokio::sync::Mutex<()>,
    length: Arc<Length>,
    state: Mutex<Written>,
}

/// What was written through this handle since its length was last settled.
#[derive(Clone, Copy)]
struct Written {
    any: bool,
    /// End of the furthest acknowledged write,
    high_water: u64,
    /// and the epoch that it counts in.
    epoch: u64,
    /// Every write of the session was acknowledged. Once false it stays so: a lost write may turn up later.
    sound: bool,
    /// Counts writes, so that settling notices those that came meanwhile.
    writes: u64,
    closed: bool,
}

/// A write under way. Dropped without [`Writing::done`], its outcome is unknown.
pub(crate) struct Writing<'a> {
    file: &'a File,
    epoch: u64,
    started: Instant,
    done: bool,
    _gate: OwnedRwLockReadGuard<()>,
}

impl File {
    pub(crate) fn new(
        catena: Catena,
        path: String,
        stat: &Stat,
        length: Arc<Length>,
        flags: &OpenFlags,
        append: bool,
        session: Option<[u8; 16]>,
    ) -> File {
        let written = Written {
            any: false,
            high_water: 0,
            epoch: stat.truncate_epoch,
            sound: true,
            writes: 0,
            closed: false,
        };
        let nowhere = Layout {
            table: TableId(0),
            table_version: 0,
            chunk_size: DEFAULT_CHUNK_SIZE,
            stripe: 0,
            seed: 0,
        };
        let inner = Inner {
            catena,
            path,
            inode: stat.inode,
            layout: nowhere,
            chains: Arc::default(),
            read: flags.read,
            append,
            writes: session.is_some(),
            session: Mutex::new(session),
            reopening: tokio::sync::Mutex::default(),
            length,
            state: Mutex::new(written),
        };
        File { inner: Arc::new(inner) }
    }

    /// Completes a file that was just made.
    pub(crate) fn with_chains(mut self, layout: Layout, chains: Arc<[ChainId]>) -> File {
        let inner = Arc::get_mut(&mut self.inner).expect("nobody else has the file yet");
        inner.layout = layout;
        inner.chains = chains;
        self
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &str {
        &self.inner.path
    }

    /// Its inode.
    pub fn inode(&self) -> InodeId {
        self.inner.inode
    }

    /// Where its chunks are.
    pub fn layout(&self) -> Layout {
        self.inner.layout
    }

    /// The chains of its stripe: chunk `i` is in chain `i % chains.len()`.
    pub fn chains(&self) -> &[ChainId] {
        &self.inner.chains
    }

    /// The connection that it belongs to.
    pub fn catena(&self) -> &Catena {
        &self.inner.catena
    }

    /// Its length as far as this process knows: as of the last exchange with the metadata service, and what this process wrote since.
    pub fn known_len(&self) -> u64 {
        self.inner.length.known()
    }

    /// Its length: asks the metadata service, and adds what this process wrote since it settled the length last.
    pub async fn len(&self) -> Result<u64> {
        self.refresh("len").await?;
        Ok(self.known_len())
    }

    /// Whether it has no bytes. Asks as [`File::len`] does.
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.len().await? == 0)
    }

    /// Its attributes. The length is the settled one; see [`File::len`].
    pub async fn stat(&self) -> Result<Stat> {
        self.refresh("stat").await
    }

    /// Settles the length if anything was written: the metadata service, and with it everyone, knows it on return. The bytes were
    /// durable before.
    pub async fn sync(&self) -> Result<()> {
        if self.inner.state.lock().any { self.settle(false).await.map(drop) } else { Ok(()) }
    }

    /// As [`File::sync`]: nothing is buffered in this process, so that there is nothing else to flush.
    pub async fn flush(&self) -> Result<()> {
        self.sync().await
    }

    /// Waits for the writes under way, settles the length and ends the session. Reads and writes are refused afterwards, of clones
    /// too. Closing twice is no error.
    pub async fn close(&self) -> Result<()> {
        let _gate = self.inner.length.gate.clone().write_owned().await;
        if self.inner.state.lock().closed {
            return Ok(());
        }
        if self.inner.writes {
            self.settle(true).await?;
        }
        self.inner.state.lock().closed = true;
        Ok(())
    }

    /// Sets the length: cuts the file, or lets it end in a hole. Waits for the writes of this process that are under way.
    pub async fn truncate(&self, length: u64) -> Result<()> {
        self.check_write("truncate")?;
        if length > self.inner.layout.max_length() {
            return Err(self.too_long("truncate", length));
        }
        let _gate = self.inner.length.gate.clone().write_owned().await;
        // The service must know how long the file is to know what to cut.
        if self.inner.state.lock().any {
            self.settle(false).await?;
        }
        let Catena { shared, who } = &self.inner.catena;
        let place = Place::inode(self.inner.inode);
        let session = *self.inner.session.lock();
        let mut cut = shared.meta.truncate(who, &place, length, session).await;
        if ended(&cut) {
            let session = self.reopen("truncate", session).await?;
            cut = shared.meta.truncate(who, &place, length, Some(session)).await;
        }
        let stat = Stat::from(cut.map_err(|error| self.meta_error("truncate", error))?);
        self.inner.length.learn(&stat);
        Ok(())
    }

    pub(crate) fn length(&self) -> &Arc<Length> {
        &self.inner.length
    }

    /// The chunk at `index` and its chain.
    pub(crate) fn chunk(&self, index: u32) -> (ChainId, ChunkId) {
        let chains = &self.inner.chains;
        (chains[index as usize % chains.len()], ChunkId { inode: self.inner.inode, index })
    }

    /// Asks the metadata service for the file's attributes.
    pub(crate) async fn refresh(&self, operation: &'static str) -> Result<Stat> {
        let Catena { shared, who } = &self.inner.catena;
        let stat = shared.meta.stat(who, &Place::inode(self.inner.inode), false).await;
        let stat = Stat::from(stat.map_err(|error| match error.status() {
            Status::NotFound => self.error(operation, Status::StaleHandle, "the file was removed"),
            _ => self.meta_error(operation, error),
        })?);
        self.inner.length.learn(&stat);
        Ok(stat)
    }

    pub(crate) fn error(&self, operation: &'static str, status: Status, detail: &str) -> Error {
        Error::new(operation, &*self.inner.path, status, detail)
    }

    fn meta_error(&self, operation: &'static str, error: catena_meta_client::MetaError) -> Error {
        Error::from(error).about(operation, &self.inner.path)
    }

    pub(crate) fn too_long(&self, operation: &'static str, end: u64) -> Error {
        let layout = &self.inner.layout;
        let what = format!(
            "byte {end} is beyond {}, the longest file with chunks of {} bytes",
            layout.max_length(),
            layout.chunk_size
        );
        self.error(operation, Status::TooLarge, &what)
    }

    pub(crate) fn check_read(&self, operation: &'static str) -> Result<()> {
        if !self.inner.read {
            return Err(self.error(operation, Status::Invalid, "the file is not open for reading"));
        }
        self.check_open(operation)
    }

    pub(crate) fn check_write(&self, operation: &'static str) -> Result<()> {
        if !self.inner.writes {
            return Err(self.error(operation, Status::Invalid, "the file is not open for writing"));
        }
        self.check_open(operation)
    }

    /// Whether it is open for appending alone.
    pub(crate) fn appends(&self) -> bool {
        self.inner.append
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        match self.inner.state.lock().closed {
            true => Err(self.error(operation, Status::StaleHandle, "the file was closed")),
            false => Ok(()),
        }
    }

    /// Begins a write: nobody cuts or closes the file until it is over.
    pub(crate) async fn writing(&self, operation: &'static str) -> Result<Writing<'_>> {
        self.check_write(operation)?;
        let gate = self.inner.length.gate.clone();
        let gate = match gate.clone().try_read_owned() {
            Ok(guard) => guard,
            Err(_) => gate.read_owned().await,
        };
        self.check_open(operation)?;
        let epoch = self.inner.length.epoch();
        Ok(Writing { file: self, epoch, started: Instant::now(), done: false, _gate: gate })
    }

    /// A new session for one that has ended: this process stood still for longer than its lease and was taken for dead. What it wrote
    /// was settled then and is there; with a new session the handle goes on, if the file still is and still may be written.
    async fn reopen(&self, operation: &'static str, old: Option<[u8; 16]>) -> Result<[u8; 16]> {
        let Inner { catena, session, inode, state, .. } = &*self.inner;
        let _alone = self.inner.reopening.lock().await;
        let current = *session.lock();
        if let Some(newer) = current.filter(|_| current != old) {
            return Ok(newer);
        }
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let opened = catena.shared.meta.open(&catena.who, &Place::inode(*inode), flags, 0, None).await;
        let failed = |why: &dyn fmt::Display| {
            let what = format!(
                "the file's session ended because this client was not heard of for longer than its lease, and the file cannot be opened again: {why}"
            );
            self.error(operation, Status::StaleHandle, &what)
        };
        let opened = opened.map_err(|error| failed(&error))?;
        let id = opened.session.ok_or_else(|| failed(&"the service opened no session"))?;
        *session.lock() = Some(id);
        // Without a session others could cut the file, or settle it: the chains are to be asked.
        state.lock().sound = false;
        self.inner.length.learn(&Stat::from(opened.inode));
        warn!(path = self.inner.path, "the file's session had ended; it was opened again");
        Ok(id)
    }

    /// Tells the metadata service what was written. May be dropped at any point, or fail: what is not confirmed is told again.
    async fn settle(&self, close: bool) -> Result<Stat> {
        let Inner { catena, inode, length, state, .. } = &*self.inner;
        let operation = if close { "close" } else { "sync" };
        let Some(session) = *self.inner.session.lock() else {
            return Err(self.error(operation, Status::Invalid, "the file is not open for writing"));
        };
        let meta = &catena.shared.meta;
        let mut told = *state.lock();
        let mut settled = meta.sync(&catena.who, *inode, session, told.settle(close)).await;
        if ended(&settled) {
            let session = self.reopen(operation, Some(session)).await?;
            told = *state.lock();
            settled = meta.sync(&catena.who, *inode, session, told.settle(close)).await;
        }
        let stat = Stat::from(settled.map_err(|error| self.meta_error(operation, error))?);
        add(&catena.shared.metrics.settles, 1);
        length.learn(&stat);
        let mut now = state.lock();
        if now.writes == told.writes {
            (now.any, now.high_water) = (false, 0);
        }
        Ok(stat)
    }
}

/// Whether a call was refused because the file's session has ended.
fn ended<T>(outcome: &std::result::Result<T, catena_meta_client::MetaError>) -> bool {
    matches!(outcome, Err(error) if error.status() == Status::StaleHandle)
}

impl Written {
    fn settle(&self, close: bool) -> Settle {
        Settle {
            close,
            wrote: self.any,
            high_water: self.high_water,
            truncate_epoch: self.epoch,
            acknowledged: self.sound,
            mtime: 0,
        }
    }
}

impl Writing<'_> {
    /// All of it was acknowledged: `bytes` up to `end`.
    pub fn done(mut self, bytes: u64, end: u64) {
        self.done = true;
        let inner = &self.file.inner;
        self.note(end);
        inner.length.wrote(end, self.epoch);
        let metrics = &inner.catena.shared.metrics;
        add(&metrics.writes, 1);
        add(&metrics.write_bytes, bytes);
        metrics.write_latency.record(self.started.elapsed());
    }

    fn note(&self, end: u64) {
        let mut written = self.file.inner.state.lock();
        if !written.any {
            (written.any, written.high_water, written.epoch) = (true, 0, self.epoch);
        }
        // Marks of two epochs at once: the older one makes the service ask the chains.
        written.epoch = written.epoch.min(self.epoch);
        written.high_water = written.high_water.max(end);
        written.writes += 1;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.note(0);
            self.file.inner.state.lock().sound = false;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        Length::forget(&self.catena, self.inode);
        let written = *self.state.get_mut();
        let Some(session) = self.session.get_mut().filter(|_| !written.closed && catena_rt::can_spawn())
        else {
            return;
        };
        let (catena, inode, path) = (self.catena.clone(), self.inode, std::mem::take(&mut self.path));
        catena_rt::spawn(async move {
            let settled = catena.shared.meta.sync(&catena.who, inode, session, written.settle(true)).await;
            if let Err(error) = settled {
                warn!(path, %error, "a dropped file could not be closed; its session ends with the client's");
            }
        });
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({}, {})", self.inner.path, self.inner.inode)
    }
}
