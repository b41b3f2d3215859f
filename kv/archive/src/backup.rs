//! From stores into a file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use catena_kv::reserved::RESTORE_MARKER;
use catena_kv::{Database, Isolation, KvError, TxOptions};
use catena_proto::ids::ClusterId;
use catena_rt::time::{Instant, sleep};
use futures_util::stream::StreamExt;

use crate::format::Header;
use crate::keys::{Keys, of_tools};
use crate::progress::{Phase, Progress, Tell};
use crate::scan::Scan;
use crate::tally::Tally;
use crate::write::Writer;

/// A read of everything at one version that an error ended is begun anew this many times, if it was young.
const ATTEMPTS: u32 = 4;
/// One that ended older than this would end the same way again.
const YOUNG: Duration = Duration::from_secs(3);

/// A store to be read.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The store.
    pub db: &'a dyn Database,
    /// What to call it in messages.
    pub name: &'a str,
    /// Which of its records are taken.
    pub keys: Keys,
    /// Nobody else can have it open, so it stays as it is and need not be read at one version.
    pub exclusive: bool,
}

/// How a backup is made.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Whose state it is: recorded in the file.
    pub cluster: ClusterId,
    /// The time, in seconds since 1970: recorded in the file.
    pub made: u64,
    /// The release: recorded in the file.
    pub release: String,
    /// Nobody writes to the stores: they are read at many versions, twice, and the two must agree.
    pub stopped: bool,
    /// How long a page of a stopped store is waited for.
    pub patience: Duration,
    /// Randomness for pauses.
    pub seed: u64,
}

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupReport {
    /// What is in the file.
    pub tally: Tally,
    /// The version that all of it was read at, if it was one.
    pub read_version: Option<u64>,
    /// The file's length.
    pub length: u64,
    /// Records that were left out because they do not belong into the store that they are in.
    pub left_out: u64,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Reading failed.
    #[error("{name}: {source}")]
    Store {
        /// The store.
        name: String,
        /// Why.
        source: KvError,
    },
    /// Five seconds were not enough.
    #[error(
        "{name} is too large to be read at one version: {records} records, {bytes} bytes came before the version was too old. \
         Stop all mgmtd and meta services, then make the backup with --stopped"
    )]
    TooLarge {
        /// The store.
        name: String,
        /// How far it came.
        records: u64,
        /// How far it came.
        bytes: u64,
    },
    /// The two readings of a stopped store differ.
    #[error("{name} changed while it was read: stop all mgmtd and meta services, then make the backup again")]
    Changed {
        /// The store.
        name: String,
    },
    /// Two stores have no version in common.
    #[error(
        "mgmtd and meta have a store each, which cannot be read at the same moment: stop all mgmtd and meta services, then make the \
         backup with --stopped"
    )]
    Several,
    /// What is there is neither the old state nor the new.
    #[error("{name}: {}", catena_kv::reserved::RESTORE_UNFINISHED)]
    HalfRestored {
        /// The store.
        name: String,
    },
    /// The file is there already.
    #[error("{} exists already; give another name, or remove it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Writing the file failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Writes what `sources` hold into a new file, which is there as a whole or not at all.
///
/// One store is read at one version, unless it is exclusive or stopped: then at as many as it takes. Several stores must all be so.
pub async fn backup(
    sources: &[Source<'_>],
    path: &Path,
    options: &BackupOptions,
    tell: Tell<'_>,
) -> Result<BackupReport, BackupError> {
    if sources.len() > 1 && !options.stopped && sources.iter().any(|source| !source.exclusive) {
        return Err(BackupError::Several);
    }
    if path.exists() {
        return Err(BackupError::Exists { path: path.to_owned() });
    }
    let [source] = sources else { return at_rest(sources, path, options, tell).await };
    if options.stopped || source.exclusive {
        return at_rest(sources, path, options, tell).await;
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let begun = Instant::now();
        let mut far = (0, 0);
        let error = match at_one_version(source, path, options, tell, &mut far).await {
            Err(BackupError::Store { source, .. }) if source.retryable() => source,
            outcome => return outcome,
        };
        if attempts < ATTEMPTS && begun.elapsed() < YOUNG {
            sleep(Duration::from_millis(100) * attempts).await;
            continue;
        }
        let name = source.name.to_owned();
        return Err(match error {
            KvError::TooOld => BackupError::TooLarge { name, records: far.0, bytes: far.1 },
            source => BackupError::Store { name, source },
        });
    }
}

async fn at_one_version(
    source: &Source<'_>,
    path: &Path,
    options: &BackupOptions,
    tell: Tell<'_>,
    far: &mut (u64, u64),
) -> Result<BackupReport, BackupError> {
    let store = |error| BackupError::Store { name: source.name.to_owned(), source: error };
    let tx = source.db.begin(TxOptions::default()).map_err(store)?;
    let version = tx.read_version().await.map_err(store)?;
    refuse_half(source, tx.get(RESTORE_MARKER, Isolation::Snapshot).await.map_err(store)?.is_some())?;
    let mut output = Output::new(path, options, Some(version))?;
    let outcome = output.take(source, Scan::at(source.db, tx), tell).await;
    *far = (output.writer.tally().records, output.writer.tally().bytes);
    outcome?;
    output.finish()
}

/// Reads stores that stay as they are.
async fn at_rest(
    sources: &[Source<'_>],
    path: &Path,
    options: &BackupOptions,
    tell: Tell<'_>,
) -> Result<BackupReport, BackupError> {
    let mut output = Output::new(path, options, None)?;
    for (n, source) in (0u64..).zip(sources) {
        let scan = |pass: u64| Scan::at_many(source.db, options.patience, options.seed ^ (2 * n + pass));
        let first = output.take(source, scan(0), tell).await?;
        if source.exclusive {
            continue;
        }
        let mut second = Tally::default();
        let total = Some(first.bytes);
        read(source, scan(1), |key, value| {
            second.add(key, value);
            tell(Progress { phase: Phase::Compare, bytes: second.bytes, total });
            Ok(())
        })
        .await?;
        if first != second {
            return Err(BackupError::Changed { name: source.name.to_owned() });
        }
    }
    output.finish()
}

/// The file while it is being written, under another name. It goes unless it is finished.
struct Output<'a> {
    path: &'a Path,
    partial: Partial,
    writer: Writer<BufWriter<File>>,
    read_version: Option<u64>,
    left_out: u64,
}

impl<'a> Output<'a> {
    fn new(
        path: &'a Path,
        options: &BackupOptions,
        read_version: Option<u64>,
    ) -> Result<Output<'a>, BackupError> {
        let failed = |source| BackupError::File { path: path.to_owned(), source };
        let (partial, file) = Partial::create(path).map_err(failed)?;
        let header = Header {
            cluster: options.cluster,
            read_version,
            made: options.made,
            release: options.release.clone(),
        };
        let writer = Writer::new(BufWriter::with_capacity(1 << 20, file), &header).map_err(failed)?;
        Ok(Output { path, partial, writer, read_version, left_out: 0 })
    }

    /// Adds what a store has; gives what was found there, the left out included.
    async fn take(
        &mut self,
        source: &Source<'_>,
        scan: Scan<'_>,
        tell: Tell<'_>,
    ) -> Result<Tally, BackupError> {
        let failed = |source| BackupError::File { path: self.path.to_owned(), source };
        let mut found = Tally::default();
        read(source, scan, |key, value| {
            found.add(key, value);
            match source.keys.holds(key) {
                true => self.writer.push(key, value).map_err(failed)?,
                false => self.left_out += 1,
            }
            tell(Progress { phase: Phase::Read, bytes: self.writer.tally().bytes, total: None });
            Ok(())
        })
        .await?;
        Ok(found)
    }

    fn finish(self) -> Result<BackupReport, BackupError> {
        let failed = |source| BackupError::File { path: self.path.to_owned(), source };
        let (out, tally, length) = self.writer.finish().map_err(failed)?;
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        self.partial.keep(self.path).map_err(failed)?;
        Ok(BackupReport { tally, read_version: self.read_version, length, left_out: self.left_out })
    }
}

/// Gives everything that a store holds, without the tools' own, to `add`.
async fn read(
    source: &Source<'_>,
    scan: Scan<'_>,
    mut add: impl FnMut(&[u8], &[u8]) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let store = |error| BackupError::Store { name: source.name.to_owned(), source: error };
    let ranges = scan.ranges().await.map_err(store)?;
    let mut pages = pin!(scan.pages(ranges));
    while let Some(page) = pages.next().await {
        for record in page.map_err(store)? {
            refuse_half(source, record.key == RESTORE_MARKER)?;
            if !of_tools(&record.key) {
                add(&record.key, &record.value)?;
            }
        }
        // A store in this process answers at once; whoever waits for a signal has to come to its turn.
        catena_rt::yield_now().await;
    }
    Ok(())
}

fn refuse_half(source: &Source<'_>, half: bool) -> Result<(), BackupError> {
    match half {
        true => Err(BackupError::HalfRestored { name: source.name.to_owned() }),
        false => Ok(()),
    }
}

/// A file that is removed when this is dropped, unless it was kept.
struct Partial(Option<PathBuf>);

impl Partial {
    /// `path` with `.partial` behind it; what an earlier process that was killed left there is overwritten. Only its owner can read
    /// it: it has everybody's file names.
    fn create(path: &Path) -> io::Result<(Partial, File)> {
        let mut name = path.as_os_str().to_owned();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        Ok((Partial(Some(partial)), file))
    }

    /// Gives it its name, durably.
    fn keep(mut self, path: &Path) -> io::Result<()> {
        if let Some(partial) = &self.0 {
            std::fs::rename(partial, path)?;
        }
        self.0 = None;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(partial) = &self.0 {
            // Nothing can be done about one that cannot be removed; it is not what was asked for, and is overwritten next time.
            let _ = std::fs::remove_file(partial);
        }
    }
}
