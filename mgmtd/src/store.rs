//! The cluster's state in the key-value store: loaded once in a term, then only written. Every transaction that changes anything reads
//! the lease record, so a primary that was replaced cannot write (design section 5).

mod lease;

pub use lease::{Look, Outcome};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_kv::reserved::RESTORE_UNFINISHED;
use catena_kv::{Database, Isolation, Jitter, KvError, KvFailure, RangeQuery, Retry, Tx, transact};
use catena_proto::ids::*;
use catena_proto::pb;
use catena_proto::routing::{RoutingError, RoutingInfo, wide_bytes, wide_id};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use prost::Message;

use crate::changes::Changes;
use crate::record::*;

/// Why the store did not do what was asked.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The key-value store.
    #[error("the mgmtd store: {0}")]
    Kv(#[from] KvError),
    /// It was initialised for another cluster.
    #[error(
        "the mgmtd store belongs to cluster {theirs}, the configuration says {ours}: correct `cluster` or `store`"
    )]
    OtherCluster {
        /// The configured cluster.
        ours: ClusterId,
        /// The store's.
        theirs: ClusterId,
    },
    /// It is half filled.
    #[error("the mgmtd store: {RESTORE_UNFINISHED}")]
    HalfRestored,
    /// Another process is primary now.
    #[error(
        "node n{} has become the primary mgmtd (term {}); this one may not change anything any more",
        by.holder,
        by.term
    )]
    Deposed {
        /// What the lease record says.
        by: LeaseRecord,
    },
    /// This process may not have its node number.
    #[error("{0}")]
    Number(String),
    /// A record of a newer release, or damage.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// Records that contradict each other.
    #[error("the mgmtd store: {0}")]
    Inconsistent(#[from] RoutingError),
    /// The store has another routing version than this primary left there.
    #[error("the mgmtd store is at routing version {found}, this primary left it at {expected}")]
    Diverged {
        /// What it should be.
        expected: u64,
        /// What it is.
        found: u64,
    },
}

impl KvFailure for StoreError {
    fn kv(&self) -> Option<&KvError> {
        match self {
            StoreError::Kv(error) => Some(error),
            _ => None,
        }
    }
}

/// What an error means for a primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing was written and the same may work later.
    Passing,
    /// What this process has in memory may no longer be what the store has: it has to be primary anew, if it still can.
    Anew,
    /// Nothing gets better by itself.
    Fatal,
}

impl StoreError {
    /// What it means for a primary.
    pub fn verdict(&self) -> Verdict {
        use KvError::*;
        match self {
            StoreError::Kv(Unavailable(_) | TimedOut | Conflict | TooOld) => Verdict::Passing,
            StoreError::Kv(CommitUnknown) | StoreError::Deposed { .. } | StoreError::Diverged { .. } => {
                Verdict::Anew
            }
            _ => Verdict::Fatal,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let status = match &error {
            StoreError::Deposed { .. } => Status::NoPrimary,
            // A service that asks again may well be let in.
            error if error.verdict() == Verdict::Passing => Status::Busy,
            // Whoever answers next knows whether it was carried out.
            StoreError::Kv(KvError::CommitUnknown) | StoreError::Diverged { .. } => Status::Disconnected,
            _ => Status::Internal,
        };
        let failure = Failure::new(status, error.to_string());
        match error {
            StoreError::Deposed { by } => failure.redirected(by.address),
            _ => failure,
        }
    }
}

/// What was in the store.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The routing information.
    pub info: RoutingInfo,
    /// Disks that were seen.
    pub disks: BTreeMap<DiskId, DiskRecord>,
    /// The next ids.
    pub ids: IdsRecord,
    /// Outcomes of CreateTable.
    pub requests: BTreeMap<u128, RequestRecord>,
    /// Clients with a session.
    pub sessions: BTreeMap<ClientId, SessionRecord>,
}

/// The store, as every mgmtd may use it. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Arc<dyn Database>,
    jitter: Arc<Jitter>,
    cluster: ClusterId,
}

/// The store, as the primary of one term may use it.
pub struct Fenced {
    store: Store,
    lease: LeaseRecord,
}

/// Longer than a store that answers at all takes, shorter than the shortest patience of a caller.
const DEADLINE: Duration = Duration::from_secs(5);

fn retry(deadline: Duration) -> Retry {
    // Every transaction finds out by itself whether it was committed: by the routing version, or because writing it twice is the same.
    Retry::default().within(deadline).idempotent()
}

impl Store {
    /// The store of `cluster`; nothing is read yet.
    pub fn new(db: Arc<dyn Database>, cluster: ClusterId, seed: u64) -> Store {
        Store { db, jitter: Arc::new(Jitter::new(seed)), cluster }
    }

    /// For the primary that has written `lease`.
    pub fn fenced(&self, lease: LeaseRecord) -> Fenced {
        Fenced { store: self.clone(), lease }
    }

    async fn transact<T, F, Fut>(&self, deadline: Duration, body: F) -> Result<T, StoreError>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        transact(&*self.db, retry(deadline), &self.jitter, body).await
    }

    /// Everything but the lease and the members, as of one moment after the call. Whoever has just taken the lease sees all that its
    /// predecessor has written, because nothing of that is committed after the lease was taken.
    pub async fn load(&self) -> Result<Loaded, StoreError> {
        load(self).await
    }
}

impl Fenced {
    /// This primary's term.
    pub fn term(&self) -> u64 {
        self.lease.term
    }

    /// Writes `changes`, which lead from routing version `from` to the next one.
    pub async fn commit(&self, from: RoutingVersion, changes: &Changes) -> Result<(), StoreError> {
        let to = from.0 + 1;
        self.store
            .transact(DEADLINE, |tx| async move {
                if catena_rt::broken("mgmtd: writes without looking at the lease record") {
                    tx.set(&keys::version(), &to.to_be_bytes())?;
                    return write(&tx, changes);
                }
                self.fence(&tx).await?;
                match version(&tx).await? {
                    found if found == from.0 => {}
                    // Only this primary writes, so this is an earlier attempt whose outcome was unknown.
                    found if found == to => return Ok(()),
                    found => return Err(StoreError::Diverged { expected: from.0, found }),
                }
                tx.set(&keys::version(), &to.to_be_bytes())?;
                write(&tx, changes)
            })
            .await
    }

    /// Records or removes clients' sessions; they have no routing version.
    pub async fn sessions(
        &self,
        changes: &BTreeMap<ClientId, Option<SessionRecord>>,
    ) -> Result<(), StoreError> {
        self.store
            .transact(DEADLINE, |tx| async move {
                self.fence(&tx).await?;
                for (&client, session) in changes {
                    match session {
                        Some(record) => tx.set(&keys::session(client), &encode(record))?,
                        None => tx.clear(&keys::session(client))?,
                    }
                }
                Ok(())
            })
            .await
    }

    /// Fails unless this process is still primary, and makes the transaction conflict with whoever becomes it.
    async fn fence(&self, tx: &Tx) -> Result<(), StoreError> {
        let record = lease::read(tx, Isolation::Serializable).await?.unwrap_or_default();
        if lease::same_term(&record, &self.lease) {
            return Ok(());
        }
        Err(StoreError::Deposed { by: record })
    }
}

async fn version(tx: &Tx) -> Result<u64, StoreError> {
    let Some(value) = tx.get(&keys::version(), Isolation::Serializable).await? else { return Ok(0) };
    parse_version(&value)
}

fn parse_version(value: &Bytes) -> Result<u64, StoreError> {
    let bytes = value[..].try_into().map_err(|_| BadRecord {
        key: keys::version().escape_ascii().to_string(),
        what: format!("{} bytes, expected 8", value.len()),
    })?;
    Ok(u64::from_be_bytes(bytes))
}

fn write(tx: &Tx, changes: &Changes) -> Result<(), StoreError> {
    for (&id, node) in &changes.nodes {
        tx.set(&keys::node(id), &encode(node))?;
    }
    for (&id, disk) in &changes.disks {
        tx.set(&keys::disk(id), &encode(disk))?;
    }
    for (&id, target) in &changes.targets {
        // Figures are of the moment; a record that changes only when the state does stays out of the heartbeats' way.
        let record = pb::Target { used: 0, chunks: 0, ..target.into() };
        tx.set(&keys::target(id), &encode(&record))?;
    }
    for (&id, chain) in &changes.chains {
        let targets = chain.targets.iter().map(|target| target.0).collect();
        tx.set(&keys::chain(id), &encode(&pb::Chain { id: id.0, version: chain.version.0, targets }))?;
    }
    for table in &changes.tables {
        for (part, chains) in table.chains.chunks(TABLE_PART).enumerate() {
            let record = pb::ChainTable {
                id: table.id.0,
                version: table.version,
                replicas: table.replicas,
                chains: chains.iter().map(|chain| chain.0).collect(),
            };
            tx.set(&keys::table(table.id, table.version, part as u32), &encode(&record))?;
        }
    }
    if let Some(ids) = &changes.ids {
        tx.set(&keys::ids(), &encode(ids))?;
    }
    if let Some((request, record)) = &changes.request {
        tx.set(&keys::request(*request), &encode(record))?;
    }
    Ok(())
}

async fn load(store: &Store) -> Result<Loaded, StoreError> {
    let items = store
        .transact(DEADLINE, |tx| async move {
            let mut items = Vec::new();
            let mut query = Some(RangeQuery::prefix(PREFIX).snapshot());
            while let Some(range) = query {
                let page = tx.get_range(range.clone()).await?;
                query = range.next_page(&page);
                items.extend(page.items);
            }
            Ok::<_, StoreError>(items)
        })
        .await?;
    let mut wire = pb::RoutingInfo { cluster: wide_bytes(store.cluster.0), ..Default::default() };
    let mut loaded = Loaded { ids: IdsRecord { target: 1, chain: 1 }, ..Default::default() };
    for item in items {
        let (key, value) = (&item.key[..], &item.value);
        let (&kind, id) = key[PREFIX.len()..].split_first().unwrap_or((&0, &[]));
        let malformed = || BadRecord { key: key.escape_ascii().to_string(), what: "malformed key".into() };
        match kind {
            b'C' | b'L' | b'M' => {}
            b'V' => wire.version = parse_version(value)?,
            b'I' => loaded.ids = decode(key, value)?,
            b'N' => wire.nodes.push(decode(key, value)?),
            b'T' => wire.targets.push(decode(key, value)?),
            b'H' => wire.chains.push(decode(key, value)?),
            b'B' => {
                let part: pb::ChainTable = decode(key, value)?;
                match wire.tables.last_mut() {
                    Some(table) if (table.id, table.version) == (part.id, part.version) => {
                        table.chains.extend(part.chains);
                    }
                    _ => wire.tables.push(part),
                }
            }
            b'D' => {
                let disk = DiskId(wide_id(id).ok_or_else(malformed)?);
                loaded.disks.insert(disk, decode(key, value)?);
            }
            b'R' => {
                loaded.requests.insert(wide_id(id).ok_or_else(malformed)?, decode(key, value)?);
            }
            b'S' => {
                let client = u64::from_be_bytes(id.try_into().map_err(|_| malformed())?);
                loaded.sessions.insert(ClientId(client), decode(key, value)?);
            }
            _ => return Err(malformed().into()),
        }
    }
    loaded.info = wire.try_into()?;
    Ok(loaded)
}

/// Bytes that `changes` take in a transaction, about.
pub fn size_of(changes: &Changes) -> usize {
    let nodes: usize = changes.nodes.values().map(|node| node.encoded_len() + 16).sum();
    nodes + changes.targets.len() * 96 + changes.chains.len() * 64
}
