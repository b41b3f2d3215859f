//! The database: what transactions have in common.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::{Database, FdbConfig, KvError, Tx, TxOptions};
use catena_rt::time::{Instant, timeout};

use crate::cluster_file;
use crate::error::{OpenError, classify};
use crate::network;
use crate::stale::Versions;
use crate::transaction::FdbTransaction;

/// How long one call is waited for: less than a transaction can last, so that whoever waits learns why and not only that time is up.
const PATIENCE: Duration = Duration::from_secs(4);

/// A FoundationDB cluster. Clones share the connection. Nothing is repeated here: what fails is the caller's to run again
/// ([`catena_kv::transact`]).
#[derive(Clone)]
pub struct FdbDatabase {
    client: Arc<Client>,
}

/// What a database's transactions share.
pub(crate) struct Client {
    pub(crate) database: foundationdb::Database,
    pub(crate) versions: Versions,
    name: String,
    patience: Duration,
}

impl FdbDatabase {
    /// The cluster that `config` names; its prefix is the caller's to apply ([`catena_kv::Prefixed`]). Loads the library and starts its
    /// network if this process has not yet. Whether the cluster answers is seen at the first transaction.
    pub fn open(config: &FdbConfig) -> Result<FdbDatabase, OpenError> {
        FdbDatabase::open_with(&config.cluster_file, config.library.as_deref(), PATIENCE)
    }

    /// [`open`](FdbDatabase::open) with another bound on how long one call is waited for.
    pub fn open_with(
        cluster_file: &Path,
        library: Option<&Path>,
        patience: Duration,
    ) -> Result<FdbDatabase, OpenError> {
        cluster_file::check(cluster_file)?;
        network::start(library)?;
        let path = cluster_file.to_str().ok_or_else(|| OpenError::BadClusterFile {
            path: cluster_file.to_owned(),
            reason: "FoundationDB's client takes paths in UTF-8 only".into(),
        })?;
        let database = foundationdb::Database::new(Some(path))?;
        let name = format!("FoundationDB ({})", cluster_file.display());
        Ok(FdbDatabase {
            client: Arc::new(Client { database, versions: Versions::default(), name, patience }),
        })
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Database for FdbDatabase {
    fn begin(&self, options: TxOptions) -> Result<Tx, KvError> {
        let inner = self.client.database.create_trx().map_err(|error| self.client.error(error, 0))?;
        let known = options.staleness.and_then(|age| self.client.versions.within(age, Instant::now()));
        if let Some(version) = known {
            inner.set_read_version(version);
        }
        // Who may read the past and found none leaves a version for the next.
        let leaves = options.staleness.is_some() && known.is_none();
        Ok(Arc::new(FdbTransaction::new(self.client.clone(), inner, leaves)))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        network::stop_at_exit();
    }
}

impl Client {
    /// An error in the contract's classes, with the cluster's name where it helps.
    pub(crate) fn error(&self, error: foundationdb::FdbError, size: usize) -> KvError {
        match classify(error, size) {
            KvError::Unavailable(why) => KvError::Unavailable(format!("{}: {why}", self.name)),
            other => other,
        }
    }

    /// Waits for a read, within patience.
    pub(crate) async fn read<T>(
        &self,
        size: usize,
        read: impl Future<Output = Result<T, foundationdb::FdbError>>,
    ) -> Result<T, KvError> {
        match timeout(self.patience, read).await {
            Ok(done) => done.map_err(|error| match self.error(error, size) {
                // Nothing was sent that could be committed.
                KvError::CommitUnknown => self.silent(),
                other => other,
            }),
            Err(_) => Err(self.silent()),
        }
    }

    /// Waits for a commit, within patience: what is not answered then may have happened.
    pub(crate) async fn commit<T>(
        &self,
        commit: impl Future<Output = Result<T, KvError>>,
    ) -> Result<T, KvError> {
        timeout(self.patience, commit).await.unwrap_or(Err(KvError::CommitUnknown))
    }

    fn silent(&self) -> KvError {
        KvError::Unavailable(format!(
            "{}: no answer within {:?}; `fdbcli -C FILE --exec status` says what the cluster lacks",
            self.name, self.patience
        ))
    }
}
