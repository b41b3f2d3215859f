//! From a file into stores.
//!
//! The order: every store is looked at before any is touched; then each gets the marker; what it had is removed; it is filled; it is read
//! and compared with the file; and when all stores are whole the markers go. Whatever ends a restore in between leaves a store that
//! mgmtd and meta refuse, and that the next restore with `--replace` empties.
//!
//! Every transaction reads the marker and expects this run's. So a commit whose outcome was unknown, and that happens late, does nothing
//! once the restore is over, and of two restores into one store the second stops the first.

use std::pin::pin;
use std::time::Duration;

use catena_kv::reserved::{PROBE, RESTORE_MARKER, RESTORE_UNFINISHED};
use catena_kv::{
    Database, Isolation, Jitter, KeyValue, KvError, KvFailure, RangeQuery, Retry, Tx, USER_KEY_END,
    key_after, transact,
};
use catena_proto::ids::ClusterId;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::archive::{Archive, ArchiveError};
use crate::keys::{Keys, of_tools};
use crate::progress::{Phase, Progress, Tell};
use crate::scan::Scan;
use crate::tally::Tally;

/// Transactions that are under way at the same time, each of one block (256 KiB).
const PARALLEL: usize = 8;
/// Keys removed by one transaction where removing costs for each.
const CLEAR: usize = 10_000;

/// A store to be filled.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The store.
    pub db: &'a dyn Database,
    /// What to call it in messages.
    pub name: &'a str,
    /// Which records it gets.
    pub keys: Keys,
    /// Removing everything is one cheap operation there (FoundationDB), not one for each key.
    pub clears_at_once: bool,
}

/// How a restore is done.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// The cluster that the stores are configured for.
    pub cluster: ClusterId,
    /// What the stores hold is removed.
    pub replace: bool,
    /// This run, random: the marker's value.
    pub run: u128,
    /// How long one transaction is tried.
    pub patience: Duration,
}

/// Why a restore was refused or did not finish.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Not this cluster's.
    #[error(
        "the backup is of cluster {theirs}, the configuration says {ours}: take the right file, or correct `cluster`"
    )]
    OtherCluster {
        /// The configured cluster.
        ours: ClusterId,
        /// The file's.
        theirs: ClusterId,
    },
    /// Records for which there is no store.
    #[error(
        "the backup has records of {whose}, and no configuration of it was given: give it with another --config"
    )]
    Homeless {
        /// mgmtd or meta.
        whose: &'static str,
    },
    /// A store has something in it.
    #[error("{name} is not empty; --replace removes what is in it")]
    NotEmpty {
        /// The store.
        name: String,
    },
    /// A store has records of whom it is not said to be for.
    #[error(
        "{name} also holds records of {whose}, and no configuration of it was given: give it with another --config, or clear them"
    )]
    Shared {
        /// The store.
        name: String,
        /// mgmtd or meta.
        whose: &'static str,
    },
    /// A store is half filled.
    #[error("{name}: {RESTORE_UNFINISHED}")]
    Unfinished {
        /// The store.
        name: String,
    },
    /// Another restore has taken a store.
    #[error("{name} is being restored by somebody else, who began later; this restore has ended")]
    Overtaken {
        /// The store.
        name: String,
    },
    /// A store is not what was written.
    #[error(
        "{name} was written to by somebody else meanwhile: stop all mgmtd and meta services, then run the restore again, with --replace"
    )]
    Changed {
        /// The store.
        name: String,
    },
    /// A store failed.
    #[error("{name}: {source}; once that is mended, run the restore again, with --replace")]
    Store {
        /// The store.
        name: String,
        /// Why.
        source: KvError,
    },
}

/// What ends a transaction's body.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error("not empty")]
    NotEmpty,
    #[error("shared")]
    Shared,
    #[error("unfinished")]
    Unfinished,
    #[error("overtaken")]
    Overtaken,
}

impl KvFailure for Refused {
    fn kv(&self) -> Option<&KvError> {
        match self {
            Refused::Kv(error) => Some(error),
            _ => None,
        }
    }
}

/// Fills `targets` from a file. They are empty, or are emptied (`replace`).
pub async fn restore(
    archive: &Archive,
    targets: &[Target<'_>],
    options: &RestoreOptions,
    tell: Tell<'_>,
) -> Result<(), RestoreError> {
    let theirs = archive.header().cluster;
    if theirs != options.cluster {
        return Err(RestoreError::OtherCluster { ours: options.cluster, theirs });
    }
    homes(archive, targets)?;
    let fillings: Vec<_> = targets.iter().map(|target| Filling::new(*target, *options)).collect();
    for filling in &fillings {
        filling.look().await?;
    }
    for filling in &fillings {
        filling.begin().await?;
    }
    for filling in &fillings {
        filling.clear(tell).await?;
    }
    let expected = fill(archive, &fillings, tell).await?;
    for (filling, expected) in fillings.iter().zip(&expected) {
        filling.verify(expected, tell).await?;
    }
    for filling in &fillings {
        filling.end().await?;
    }
    Ok(())
}

/// Every record must have a store to go to.
fn homes(archive: &Archive, targets: &[Target<'_>]) -> Result<(), RestoreError> {
    for kind in archive.tally().kinds.keys() {
        if !targets.iter().any(|target| target.keys.holds(&kind.0)) {
            let whose = if Keys::Mgmtd.holds(&kind.0) { "mgmtd" } else { "meta" };
            return Err(RestoreError::Homeless { whose });
        }
    }
    Ok(())
}

/// Writes the whole file, each record into its store. Gives what each store has then.
async fn fill(
    archive: &Archive,
    fillings: &[Filling<'_>],
    tell: Tell<'_>,
) -> Result<Vec<Tally>, RestoreError> {
    let mut expected = vec![Tally::default(); fillings.len()];
    let total = Some(archive.tally().bytes);
    let reader = archive.read()?;
    let blocks = stream::try_unfold(reader, |mut reader| async move {
        let block = reader.next_block().map_err(|source| archive.failed(source))?;
        Ok::<_, RestoreError>(block.map(|block| (block, reader)))
    });
    let tallies = &mut expected;
    let writes = blocks.map_ok(|block| {
        for (filling, tally) in fillings.iter().zip(tallies.iter_mut()) {
            let ours = block.iter().filter(|record| filling.target.keys.holds(&record.key));
            ours.for_each(|record| tally.add(&record.key, &record.value));
        }
        async move {
            for filling in fillings {
                filling.write(&block).await?;
            }
            Ok(block.iter().map(|record| (record.key.len() + record.value.len()) as u64).sum::<u64>())
        }
    });
    let mut bytes = 0;
    {
        let mut writes = pin!(writes.try_buffer_unordered(PARALLEL));
        while let Some(written) = writes.try_next().await? {
            bytes += written;
            tell(Progress { phase: Phase::Write, bytes, total });
            catena_rt::yield_now().await;
        }
    }
    Ok(expected)
}

/// One store on its way.
struct Filling<'a> {
    target: Target<'a>,
    options: RestoreOptions,
    run: [u8; 16],
    jitter: Jitter,
}

impl<'a> Filling<'a> {
    fn new(target: Target<'a>, options: RestoreOptions) -> Filling<'a> {
        let jitter = Jitter::new(options.run as u64);
        Filling { target, options, run: options.run.to_be_bytes(), jitter }
    }

    async fn transact<T, F, Fut>(&self, body: F) -> Result<T, RestoreError>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, Refused>>,
    {
        let retry = Retry::default().within(self.options.patience).idempotent();
        let done = transact(self.target.db, retry, &self.jitter, body).await;
        let name = || self.target.name.to_owned();
        done.map_err(|refused| match refused {
            Refused::Kv(source) => RestoreError::Store { name: name(), source },
            Refused::NotEmpty => RestoreError::NotEmpty { name: name() },
            Refused::Shared => {
                let whose = if self.target.keys == Keys::Mgmtd { "meta" } else { "mgmtd" };
                RestoreError::Shared { name: name(), whose }
            }
            Refused::Unfinished => RestoreError::Unfinished { name: name() },
            Refused::Overtaken => RestoreError::Overtaken { name: name() },
        })
    }

    /// Refuses a store that this restore must not touch.
    async fn look(&self) -> Result<(), RestoreError> {
        self.transact(|tx| async move { self.admit(&tx).await }).await
    }

    /// Whether this restore may have the store.
    async fn admit(&self, tx: &Tx) -> Result<(), Refused> {
        for (begin, end) in self.target.keys.outside() {
            // What tools left there does not count, and there are only two of those.
            let others = tx.get_range(RangeQuery::new(begin, end).limit(3)).await?;
            if others.items.iter().any(|record| !of_tools(&record.key)) {
                return Err(Refused::Shared);
            }
        }
        let marker = tx.get(RESTORE_MARKER, Isolation::Serializable).await?;
        if self.options.replace || marker.as_deref() == Some(&self.run) {
            return Ok(());
        }
        if marker.is_some() {
            return Err(Refused::Unfinished);
        }
        let some = tx.get_range(RangeQuery::new(&b""[..], USER_KEY_END).limit(2)).await?;
        match some.items.iter().any(|record| record.key != PROBE) {
            true => Err(Refused::NotEmpty),
            false => Ok(()),
        }
    }

    /// Takes the store: from here on no service starts on it.
    async fn begin(&self) -> Result<(), RestoreError> {
        self.transact(|tx| async move {
            self.admit(&tx).await?;
            if self.options.replace && self.target.clears_at_once {
                tx.clear_range(b"", USER_KEY_END)?;
            }
            Ok(tx.set(RESTORE_MARKER, &self.run)?)
        })
        .await
    }

    /// Whether the store is still this restore's.
    async fn fence(&self, tx: &Tx) -> Result<(), Refused> {
        match tx.get(RESTORE_MARKER, Isolation::Serializable).await? {
            Some(run) if run[..] == self.run => Ok(()),
            _ => Err(Refused::Overtaken),
        }
    }

    /// Removes everything but the marker, in parts.
    async fn clear(&self, tell: Tell<'_>) -> Result<(), RestoreError> {
        let mut bytes = 0;
        let parts = [(&b""[..], RESTORE_MARKER), (&key_after(RESTORE_MARKER), USER_KEY_END)];
        for (begin, end) in parts {
            let all =
                RangeQuery::new(bytes::Bytes::copy_from_slice(begin), bytes::Bytes::copy_from_slice(end));
            let mut rest = Some(all.snapshot().limit(CLEAR));
            while let Some(query) = rest {
                let page = self
                    .transact(|tx| {
                        let query = query.clone();
                        async move {
                            self.fence(&tx).await?;
                            let page = tx.get_range(query.clone()).await?;
                            if let Some(last) = page.items.last() {
                                tx.clear_range(&query.begin, &key_after(&last.key))?;
                            }
                            Ok(page)
                        }
                    })
                    .await?;
                bytes += page.items.iter().map(|r| (r.key.len() + r.value.len()) as u64).sum::<u64>();
                tell(Progress { phase: Phase::Clear, bytes, total: None });
                rest = query.next_page(&page);
                catena_rt::yield_now().await;
            }
        }
        Ok(())
    }

    /// Writes those of the records that belong into this store, in one transaction.
    async fn write(&self, records: &[KeyValue]) -> Result<(), RestoreError> {
        let ours = || records.iter().filter(|record| self.target.keys.holds(&record.key));
        if ours().next().is_none() {
            return Ok(());
        }
        self.transact(|tx| async move {
            self.fence(&tx).await?;
            for record in ours().filter(|record| !of_tools(&record.key)) {
                tx.set(&record.key, &record.value)?;
            }
            Ok(())
        })
        .await
    }

    /// Reads the store and compares it with what was written.
    async fn verify(&self, expected: &Tally, tell: Tell<'_>) -> Result<(), RestoreError> {
        let failed = |source| RestoreError::Store { name: self.target.name.to_owned(), source };
        let scan = Scan::at_many(self.target.db, self.options.patience, self.options.run as u64);
        let ranges = scan.ranges().await.map_err(failed)?;
        let mut found = Tally::default();
        let mut pages = pin!(scan.pages(ranges));
        while let Some(page) = pages.next().await {
            let page = page.map_err(failed)?;
            page.iter().filter(|r| !of_tools(&r.key)).for_each(|r| found.add(&r.key, &r.value));
            tell(Progress { phase: Phase::Verify, bytes: found.bytes, total: Some(expected.bytes) });
            catena_rt::yield_now().await;
        }
        match found == *expected {
            true => Ok(()),
            false => Err(RestoreError::Changed { name: self.target.name.to_owned() }),
        }
    }

    /// The store is whole: services may have it.
    async fn end(&self) -> Result<(), RestoreError> {
        let mut earlier = false;
        self.transact(|tx| {
            let again = std::mem::replace(&mut earlier, true);
            async move {
                match self.fence(&tx).await {
                    // An earlier attempt whose outcome was unknown, and nobody has begun since.
                    Err(Refused::Overtaken)
                        if again && !catena_kv::reserved::restore_unfinished(&tx).await? =>
                    {
                        Ok(())
                    }
                    Err(refused) => Err(refused),
                    Ok(()) => Ok(tx.clear(RESTORE_MARKER)?),
                }
            }
        })
        .await
    }
}
