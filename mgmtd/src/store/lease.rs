//! The primary's lease and the list of mgmtd that run, as transactions. What to do, and when, is for [`crate::election`] and
//! [`crate::number`] to say.

use std::time::Duration;

use catena_kv::reserved::restore_unfinished;
use catena_kv::{Isolation, RangeQuery, Tx};
use catena_proto::ids::{ClusterId, NodeId};
use catena_proto::pb;
use catena_proto::routing::{wide_bytes, wide_id};

use super::{Store, StoreError};
use crate::record::*;

/// What became of a transaction that is only for whom the record allows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is written.
    Done,
    /// It is not, because the store has this.
    Instead(Option<LeaseRecord>),
}

/// What a mgmtd reads regularly.
#[derive(Clone, PartialEq, Debug)]
pub struct Look {
    /// Who is primary.
    pub lease: Option<LeaseRecord>,
    /// Who has this mgmtd's number, as a mgmtd.
    pub member: Option<MemberRecord>,
    /// Who has it as a service.
    pub node: Option<pb::Node>,
}

/// Of one holder's one term, which was not given up.
pub(super) fn same_term(a: &LeaseRecord, b: &LeaseRecord) -> bool {
    let name = |record: &LeaseRecord| (record.holder, record.incarnation, record.term, record.released);
    name(a) == name(b)
}

pub(super) async fn read(tx: &Tx, isolation: Isolation) -> Result<Option<LeaseRecord>, StoreError> {
    let value = tx.get(&keys::lease(), isolation).await?;
    Ok(value.map(|value| decode(&keys::lease(), &value)).transpose()?)
}

impl Store {
    /// The lease, and who has the number `own`. Reads only.
    pub async fn look(&self, own: NodeId, deadline: Duration) -> Result<Look, StoreError> {
        self.transact(deadline, |tx| async move {
            self.check(&tx).await?;
            let member = tx.get(&keys::member(own), Isolation::Snapshot).await?;
            let node = tx.get(&keys::node(own), Isolation::Snapshot).await?;
            Ok(Look {
                lease: read(&tx, Isolation::Snapshot).await?,
                member: member.map(|value| decode(&keys::member(own), &value)).transpose()?,
                node: node.map(|value| decode(&keys::node(own), &value)).transpose()?,
            })
        })
        .await
    }

    /// Makes `record` the lease if it still is `watched`; initialises an empty store.
    pub async fn take(
        &self,
        watched: &Option<LeaseRecord>,
        record: &LeaseRecord,
        deadline: Duration,
    ) -> Result<Outcome, StoreError> {
        self.transact(deadline, |tx| async move {
            let initialised = self.check(&tx).await?;
            let found = read(&tx, Isolation::Serializable).await?;
            // An earlier attempt whose outcome was unknown.
            if found.as_ref() == Some(record) {
                return Ok(Outcome::Done);
            }
            if found != *watched {
                return Ok(Outcome::Instead(found));
            }
            if !initialised {
                let ours = ClusterRecord { cluster: wide_bytes(self.cluster.0) };
                tx.set(&keys::cluster(), &encode(&ours))?;
            }
            tx.set(&keys::lease(), &encode(record))?;
            Ok(Outcome::Done)
        })
        .await
    }

    /// Writes the next beat of a term that is still this process's.
    pub async fn renew(&self, record: &LeaseRecord, deadline: Duration) -> Result<Outcome, StoreError> {
        self.transact(deadline, |tx| async move {
            let found = read(&tx, Isolation::Serializable).await?;
            if !found.as_ref().is_some_and(|found| same_term(found, record)) {
                return Ok(Outcome::Instead(found));
            }
            tx.set(&keys::lease(), &encode(record))?;
            Ok(Outcome::Done)
        })
        .await
    }

    /// Gives up the lease if this start of `own` has it, and takes `own` off the list.
    pub async fn release(
        &self,
        own: NodeId,
        incarnation: u64,
        deadline: Duration,
    ) -> Result<bool, StoreError> {
        self.transact(deadline, |tx| async move {
            let member = tx.get(&keys::member(own), Isolation::Serializable).await?;
            let member =
                member.map(|value| decode::<MemberRecord>(&keys::member(own), &value)).transpose()?;
            if member.is_some_and(|member| member.incarnation == incarnation) {
                tx.clear(&keys::member(own))?;
            }
            let Some(found) = read(&tx, Isolation::Serializable).await? else { return Ok(false) };
            if (found.holder, found.incarnation) != (own.0, incarnation) {
                return Ok(false);
            }
            tx.set(&keys::lease(), &encode(&LeaseRecord { released: true, ..found }))?;
            Ok(true)
        })
        .await
    }

    /// Writes the own entry of the list, unless it changed since `found` was read. False if it did.
    pub async fn enlist(
        &self,
        found: &Option<MemberRecord>,
        record: &MemberRecord,
        deadline: Duration,
    ) -> Result<bool, StoreError> {
        let key = keys::member(NodeId(record.node));
        let key = &key;
        self.transact(deadline, |tx| async move {
            let there = tx.get(key, Isolation::Serializable).await?;
            let there = there.map(|value| decode::<MemberRecord>(key, &value)).transpose()?;
            if there.as_ref() == Some(record) {
                return Ok(true);
            }
            if there != *found {
                return Ok(false);
            }
            tx.set(key, &encode(record))?;
            Ok(true)
        })
        .await
    }

    /// All mgmtd on the list.
    pub async fn members(&self, deadline: Duration) -> Result<Vec<MemberRecord>, StoreError> {
        self.transact(deadline, |tx| async move {
            let mut members = Vec::new();
            let mut query = Some(RangeQuery::prefix(&keys::members()).snapshot());
            while let Some(range) = query {
                let page = tx.get_range(range.clone()).await?;
                query = range.next_page(&page);
                for item in &page.items {
                    members.push(decode(&item.key, &item.value)?);
                }
            }
            Ok(members)
        })
        .await
    }

    /// Whether the store was initialised; an error if it is another cluster's, or half restored.
    async fn check(&self, tx: &Tx) -> Result<bool, StoreError> {
        if restore_unfinished(tx).await? {
            return Err(StoreError::HalfRestored);
        }
        let Some(value) = tx.get(&keys::cluster(), Isolation::Serializable).await? else { return Ok(false) };
        let record: ClusterRecord = decode(&keys::cluster(), &value)?;
        let theirs = ClusterId(wide_id(&record.cluster).unwrap_or_default());
        if theirs != self.cluster {
            return Err(StoreError::OtherCluster { ours: self.cluster, theirs });
        }
        Ok(true)
    }
}
