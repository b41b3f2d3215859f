//! Whole files in and out: parallel, with progress, checked end to end.
//!
//! *The check.* Every byte is checksummed once in this process's memory: those checksums travel with the data, and are verified by every
//! replica and by readers. At the end of an upload the replicas are asked for the checksums of what they hold, and the two must agree. A
//! download is verified on arrival, compared with the replicas' checksums as well, and the local file is read back.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use catena_buf::IoBuf;
use catena_proto::status::Status;
use catena_rt::{JoinSet, spawn_blocking};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use crate::checksum::Crc;
use crate::checksum::Manifest;
use crate::error::{Error, Result};
use crate::file::File;
use crate::stream::{Chunk, landed};

/// How far a transfer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes moved.
    pub done: u64,
    /// Bytes in all, if known.
    pub total: Option<u64>,
}

/// How a transfer is done.
#[derive(Clone)]
pub struct TransferOptions {
    /// Called after every step, from any task; must not block.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// Compare with the replicas' checksums at the end, and read a downloaded file back. Default true.
    pub verify: bool,
}

impl Default for TransferOptions {
    fn default() -> TransferOptions {
        TransferOptions { progress: None, verify: true }
    }
}

impl std::fmt::Debug for TransferOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TransferOptions {{ progress: {}, verify: {} }}", self.progress.is_some(), self.verify)
    }
}

/// What was moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transferred {
    /// Bytes.
    pub bytes: u64,
    /// CRC32C of all of them.
    pub crc32c: u32,
    /// Whether the end-to-end check was made, and passed.
    pub verified: bool,
}

/// Counts steps for the caller's progress display, and keeps what the check needs.
struct Track {
    options: TransferOptions,
    total: Option<u64>,
    done: Mutex<u64>,
    manifest: Arc<Mutex<Manifest>>,
}

impl Track {
    fn new(options: &TransferOptions, total: Option<u64>) -> Track {
        Track { options: options.clone(), total, done: Mutex::default(), manifest: Arc::default() }
    }

    fn moved(&self, bytes: u64) {
        let done = {
            let mut done = self.done.lock();
            *done += bytes;
            *done
        };
        if let Some(progress) = &self.options.progress {
            progress(Progress { done, total: self.total });
        }
    }

    fn step(&self, offset: u64, length: u32, crc: u32) {
        self.manifest.lock().add(offset, length, crc);
        self.moved(u64::from(length));
    }

    /// The end of a transfer: one stream without a gap, the same as what is stored.
    async fn finish(&self, operation: &'static str, file: &File, bytes: u64) -> Result<Transferred> {
        let manifest = std::mem::take(&mut *self.manifest.lock());
        let whole = manifest.whole().filter(|crc| crc.length() == bytes);
        let Some(whole) = whole else {
            return Err(file.error(operation, Status::Internal, "the transfer has a gap"));
        };
        if self.options.verify {
            file.check_stored(operation, &manifest).await?;
        }
        Ok(Transferred { bytes, crc32c: whole.value(), verified: self.options.verify })
    }
}

/// Uploads a local file into `file`, which was just created (or cut to length 0) and is open for writing. Settles its length; closing it
/// is up to the caller.
///
/// # Errors
/// The local file cannot be read or becomes shorter meanwhile; a write fails; what is stored in the end is something else
/// ([`Status::Damaged`]).
pub async fn put_file(
    local: impl AsRef<Path>,
    file: &File,
    options: &TransferOptions,
) -> Result<Transferred> {
    let local = Arc::new(Local::open(local.as_ref()).await?);
    if !local.regular {
        // A pipe or a device: no positions, no length.
        let source = tokio_file(&local)?;
        return put_blocking(source, file, options).await;
    }
    let track = Arc::new(Track::new(options, Some(local.length)));
    let mut running: JoinSet<Result<()>> = JoinSet::new();
    let mut offset = 0;
    while offset < local.length {
        while running.len() >= file.steps_at_once() {
            running.join_next().await.map_or(Ok(()), landed)?;
        }
        let step = file.step_at(offset, local.length - offset);
        offset += u64::from(step.length);
        let (local, file, track) = (local.clone(), file.clone(), track.clone());
        running.spawn(async move {
            let buf = file.catena().alloc_buf(step.length as usize).await?;
            let buf = local.read_exact_at(buf, step.offset).await?;
            let crc = file.write_step(step.offset, buf).await?;
            track.step(step.offset, step.length, crc);
            Ok(())
        });
    }
    while let Some(outcome) = running.join_next().await {
        landed(outcome)?;
    }
    file.sync().await?;
    track.finish("put", file, local.length).await
}

/// Uploads a stream (standard input, a socket) into `file`; see [`put_file`].
pub async fn put_reader(
    mut source: impl AsyncRead + Unpin,
    file: &File,
    options: &TransferOptions,
) -> Result<Transferred> {
    let mut track = Track::new(options, None);
    let mut writer = file.writer(0);
    track.manifest = writer.manifest.clone();
    loop {
        let space = writer.space().await?;
        let read = source.read(space).await.map_err(|error| Error::from_io("read", "(input)", &error))?;
        if read == 0 {
            break;
        }
        writer.advance(read).await?;
        track.moved(read as u64);
    }
    let bytes = writer.finish().await?;
    file.sync().await?;
    track.finish("put", file, bytes).await
}

/// As [`put_reader`], for a source that blocks, which is read on a thread of its own.
pub async fn put_blocking(
    mut source: impl std::io::Read + Send + 'static,
    file: &File,
    options: &TransferOptions,
) -> Result<Transferred> {
    let mut track = Track::new(options, None);
    let mut writer = file.writer(0);
    track.manifest = writer.manifest.clone();
    loop {
        let mut buf = file.catena().alloc_buf(file.step_size() as usize).await?;
        let read = spawn_blocking(move || {
            let mut filled = 0;
            while filled < buf.len() {
                match source.read(&mut buf[filled..]) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            buf.set_len(filled);
            Ok((source, buf))
        });
        let (back, buf) = landed(
            read.await.map(|outcome| outcome.map_err(|error| Error::from_io("read", "(input)", &error))),
        )?;
        source = back;
        let read = buf.len();
        if read == 0 {
            break;
        }
        writer.put(buf).await?;
        track.moved(read as u64);
    }
    let bytes = writer.finish().await?;
    file.sync().await?;
    track.finish("put", file, bytes).await
}

/// Downloads `file` into a local file, which appears under its name when it is complete. Holes stay holes. A destination that is no
/// regular file (a pipe, `/dev/null`) is written as a stream.
pub async fn get_file(
    file: &File,
    local: impl AsRef<Path>,
    options: &TransferOptions,
) -> Result<Transferred> {
    let local = local.as_ref();
    if std::fs::metadata(local).is_ok_and(|meta| !meta.is_file()) {
        let target = std::fs::OpenOptions::new().write(true).open(local);
        let target = target.map_err(|error| Error::from_io("write", local.display(), &error))?;
        return get_blocking(file, target, options).await;
    }
    let length = file.len().await?;
    let draft = Arc::new(Draft::create(local, length).await?);
    let track = Arc::new(Track::new(options, Some(length)));
    let mut running: JoinSet<Result<()>> = JoinSet::new();
    let mut offset = 0;
    while offset < length {
        while running.len() >= file.steps_at_once() {
            running.join_next().await.map_or(Ok(()), landed)?;
        }
        let step = file.step_at(offset, length - offset);
        offset += u64::from(step.length);
        let (draft, file, track) = (draft.clone(), file.clone(), track.clone());
        running.spawn(async move {
            let chunk = Chunk::new(step, file.read_step(step).await?);
            let crc = chunk.crc;
            draft.write_at(chunk, file.catena(), track.options.verify).await?;
            track.step(step.offset, step.length, crc);
            Ok(())
        });
    }
    while let Some(outcome) = running.join_next().await {
        landed(outcome)?;
    }
    let outcome = track.finish("get", file, length).await?;
    draft.keep()?;
    Ok(outcome)
}

/// Downloads `file` into a stream (standard output, a socket); see [`get_file`].
pub async fn get_writer(
    file: &File,
    mut target: impl AsyncWrite + Unpin,
    options: &TransferOptions,
) -> Result<Transferred> {
    let failed = |error| Error::from_io("write", "(output)", &error);
    let length = file.len().await?;
    let track = Track::new(options, Some(length));
    let mut reader = file.reader(0);
    let mut done = 0;
    while done < length
        && let Some(chunk) = reader.next().await?
    {
        target.write_all(chunk.data()).await.map_err(failed)?;
        for part in zeros(chunk.zeros()) {
            target.write_all(part).await.map_err(failed)?;
        }
        done += u64::from(chunk.length);
        track.step(chunk.offset, chunk.length, chunk.crc);
    }
    target.flush().await.map_err(failed)?;
    track.finish("get", file, done).await
}

/// As [`get_writer`], for a target that blocks, which is written on a thread of its own.
pub async fn get_blocking(
    file: &File,
    mut target: impl std::io::Write + Send + 'static,
    options: &TransferOptions,
) -> Result<Transferred> {
    let failed = |error| Error::from_io("write", "(output)", &error);
    let length = file.len().await?;
    let track = Track::new(options, Some(length));
    let mut reader = file.reader(0);
    let mut done = 0;
    while done < length
        && let Some(chunk) = reader.next().await?
    {
        done += u64::from(chunk.length);
        track.step(chunk.offset, chunk.length, chunk.crc);
        let write = spawn_blocking(move || {
            target.write_all(chunk.data())?;
            zeros(chunk.zeros()).try_for_each(|part| target.write_all(part))?;
            Ok(target)
        });
        target = landed(write.await.map(|outcome| outcome.map_err(failed)))?;
    }
    landed(spawn_blocking(move || target.flush()).await.map(|outcome| outcome.map_err(failed)))?;
    track.finish("get", file, done).await
}

/// `length` zero bytes in parts.
fn zeros(length: usize) -> impl Iterator<Item = &'static [u8]> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    (0..length).step_by(ZEROS.len()).map(move |at| &ZEROS[..ZEROS.len().min(length - at)])
}

/// A local file that is read.
struct Local {
    path: PathBuf,
    file: Arc<std::fs::File>,
    length: u64,
    regular: bool,
}

impl Local {
    async fn open(path: &Path) -> Result<Local> {
        let failed = |error: std::io::Error| Error::from_io("read", path.display(), &error);
        let own = path.to_owned();
        let open = spawn_blocking(move || {
            let file = std::fs::File::open(own)?;
            let meta = file.metadata()?;
            Ok((file, meta))
        });
        let (file, meta) = landed(open.await.map(|outcome| outcome.map_err(failed)))?;
        if meta.is_dir() {
            return Err(Error::new("read", path.display().to_string(), Status::IsDirectory, ""));
        }
        Ok(Local { path: path.into(), file: Arc::new(file), length: meta.len(), regular: meta.is_file() })
    }

    async fn read_exact_at(&self, mut buf: IoBuf, offset: u64) -> Result<IoBuf> {
        let file = self.file.clone();
        let read = spawn_blocking(move || file.read_exact_at(&mut buf, offset).map(|()| buf));
        landed(
            read.await
                .map(|outcome| outcome.map_err(|error| Error::from_io("read", self.path.display(), &error))),
        )
    }
}

fn tokio_file(local: &Local) -> Result<std::fs::File> {
    local.file.try_clone().map_err(|error| Error::from_io("read", local.path.display(), &error))
}

/// A download that is not complete yet, under a name of its own; removed if it never becomes so.
struct Draft {
    path: PathBuf,
    draft: PathBuf,
    file: Arc<std::fs::File>,
    kept: std::sync::atomic::AtomicBool,
}

impl Draft {
    async fn create(path: &Path, length: u64) -> Result<Draft> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:08x}.part", rand::random::<u32>()));
        let draft = path.with_file_name(name);
        let failed = |error: std::io::Error| Error::from_io("write", path.display(), &error);
        let own = draft.clone();
        let create = spawn_blocking(move || {
            let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(own)?;
            file.set_len(length)?;
            Ok(file)
        });
        let file = landed(create.await.map(|outcome| outcome.map_err(failed)))?;
        Ok(Draft { path: path.into(), draft, file: Arc::new(file), kept: false.into() })
    }

    /// Writes the data of a chunk; with `verify`, reads it back and compares.
    async fn write_at(&self, chunk: Chunk, catena: &crate::Catena, verify: bool) -> Result<()> {
        let failed = |error: std::io::Error| Error::from_io("write", self.path.display(), &error);
        if chunk.data().is_empty() {
            return Ok(());
        }
        let back = if verify { Some(catena.alloc_buf(chunk.data().len()).await?) } else { None };
        let file = self.file.clone();
        let write = spawn_blocking(move || {
            file.write_all_at(chunk.data(), chunk.offset)?;
            let Some(mut back) = back else { return Ok(true) };
            file.read_exact_at(&mut back, chunk.offset)?;
            Ok(*back == *chunk.data())
        });
        if landed(write.await.map(|outcome| outcome.map_err(failed)))? {
            return Ok(());
        }
        let what = "the local file does not hold what was written to it: check the disk";
        Err(Error::new("get", self.path.display().to_string(), Status::Damaged, what))
    }

    fn keep(&self) -> Result<()> {
        let failed = |error| Error::from_io("write", self.path.display(), &error);
        std::fs::rename(&self.draft, &self.path).map_err(failed)?;
        self.kept.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept.load(std::sync::atomic::Ordering::Relaxed) {
            // Already failing: what cannot be removed stays, under a name that says what it is.
            let _ = std::fs::remove_file(&self.draft);
        }
    }
}
