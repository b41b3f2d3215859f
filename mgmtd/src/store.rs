//! The cluster's state in the key-value store: loaded once, then only written. Every transaction that changes anything reads the lease
//! record, so a primary that was replaced cannot write (design section 5).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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
    /// Another process is primary now.
    #[error(
        "node n{holder} has become the primary mgmtd (term {term}); this one may not change anything any more"
    )]
    Deposed {
        /// The other process.
        holder: u32,
        /// Its term.
        term: u64,
    },
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

impl StoreError {
    /// Nothing was written and the same may work later; otherwise what this process has in memory may no longer be what the store has,
    /// and it has to end.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            StoreError::Kv(KvError::Unavailable(_) | KvError::TimedOut | KvError::Conflict | KvError::TooOld)
        )
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let status = match &error {
            StoreError::Deposed { .. } => Status::NoPrimary,
            error if error.is_passing() => Status::Busy,
            _ => Status::Internal,
        };
        Failure::new(status, error.to_string())
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
    /// The cluster was initialised by this start.
    pub initialised: bool,
}

/// The store, held as primary.
pub struct Store {
    db: Arc<dyn Database>,
    jitter: Jitter,
    lease: LeaseRecord,
}

/// Longer than a store that answers at all takes, shorter than the shortest patience of a caller.
const DEADLINE: Duration = Duration::from_secs(5);

fn retry() -> Retry {
    // Every transaction finds out by itself whether it was committed: by the routing version, or because writing it twice is the same.
    Retry::default().within(DEADLINE).idempotent()
}

impl Store {
    /// Initialises an empty store for `cluster`, or checks that it belongs to it; takes the primary's lease; loads everything.
    ///
    /// The lease is taken at once, whoever had it: with one mgmtd that is this process's own predecessor, which the store's lock on its
    /// directory has outlived. With several this is where a challenger waits.
    pub async fn open(
        db: Arc<dyn Database>,
        cluster: ClusterId,
        holder: NodeId,
        incarnation: Incarnation,
        seed: u64,
    ) -> Result<(Store, Loaded), StoreError> {
        let jitter = Jitter::new(seed);
        let (lease, initialised) = transact(&*db, retry(), &jitter, |tx| async move {
            let initialised = match tx.get(&keys::cluster(), Isolation::Serializable).await? {
                None => {
                    let record = ClusterRecord { cluster: wide_bytes(cluster.0) };
                    tx.set(&keys::cluster(), &encode(&record))?;
                    true
                }
                Some(value) => {
                    let record: ClusterRecord = decode(&keys::cluster(), &value)?;
                    let theirs = ClusterId(wide_id(&record.cluster).unwrap_or_default());
                    if theirs != cluster {
                        return Err(StoreError::OtherCluster { ours: cluster, theirs });
                    }
                    false
                }
            };
            let term = match tx.get(&keys::lease(), Isolation::Serializable).await? {
                None => 0,
                Some(value) => decode::<LeaseRecord>(&keys::lease(), &value)?.term,
            };
            let lease = LeaseRecord {
                holder: holder.0,
                incarnation: incarnation.0,
                term: term + 1,
                beat: 0,
                address: String::new(),
            };
            tx.set(&keys::lease(), &encode(&lease))?;
            Ok((lease, initialised))
        })
        .await?;
        let mut loaded = load(&*db, &jitter, cluster).await?;
        loaded.initialised = initialised;
        Ok((Store { db, jitter, lease }, loaded))
    }

    /// This primary's term.
    pub fn term(&self) -> u64 {
        self.lease.term
    }

    /// Writes `changes`, which lead from routing version `from` to the next one.
    pub async fn commit(&self, from: RoutingVersion, changes: &Changes) -> Result<(), StoreError> {
        let to = from.0 + 1;
        transact(&*self.db, retry(), &self.jitter, |tx| async move {
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
        transact(&*self.db, retry(), &self.jitter, |tx| async move {
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
        let value = tx.get(&keys::lease(), Isolation::Serializable).await?;
        let record: LeaseRecord = match value {
            Some(value) => decode(&keys::lease(), &value)?,
            None => LeaseRecord::default(),
        };
        if (record.holder, record.incarnation, record.term)
            == (self.lease.holder, self.lease.incarnation, self.lease.term)
        {
            return Ok(());
        }
        Err(StoreError::Deposed { holder: record.holder, term: record.term })
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

async fn load(db: &dyn Database, jitter: &Jitter, cluster: ClusterId) -> Result<Loaded, StoreError> {
    let items = transact(db, retry(), jitter, |tx| async move {
        let mut items = Vec::new();
        // The lease was written before, in a transaction of its own: nobody else changes anything between the pages.
        let mut query = Some(RangeQuery::prefix(PREFIX).snapshot());
        while let Some(range) = query {
            let page = tx.get_range(range.clone()).await?;
            query = range.next_page(&page);
            items.extend(page.items);
        }
        Ok::<_, StoreError>(items)
    })
    .await?;
    let mut wire = pb::RoutingInfo { cluster: wide_bytes(cluster.0), ..Default::default() };
    let mut loaded = Loaded { ids: IdsRecord { target: 1, chain: 1 }, ..Default::default() };
    for item in items {
        let (key, value) = (&item.key[..], &item.value);
        let (&kind, id) = key[PREFIX.len()..].split_first().unwrap_or((&0, &[]));
        let malformed = || BadRecord { key: key.escape_ascii().to_string(), what: "malformed key".into() };
        match kind {
            b'C' | b'L' => {}
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
