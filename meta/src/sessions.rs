//! Sessions of dead clients: ended by a service, with the length that the chains say, because nobody else will.
//!
//! A client opens its session with mgmtd before it opens a file, and mgmtd keeps sessions over its own restarts. So a file session whose
//! client mgmtd does not know belongs to a client that is dead, provided mgmtd was asked after the file session was read. It is ended
//! when that was so twice, a whole interval apart, which also lets writes that were on their way arrive.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use catena_mgmtd_client::MgmtdClient;
use catena_proto::ids::{ClientId, InodeId};
use catena_proto::rpc::Failure;

use crate::error::OpError;
use crate::ops::sync::{layout_of, reap};
use crate::run::{failure, transact};
use crate::schema::{Session, decode, key};
use crate::service::Service;

/// Who knows which clients live.
#[async_trait]
pub trait Clients: Send + Sync + 'static {
    /// The clients with a live session.
    async fn alive(&self) -> Result<BTreeSet<ClientId>, Failure>;
}

#[async_trait]
impl Clients for MgmtdClient {
    async fn alive(&self) -> Result<BTreeSet<ClientId>, Failure> {
        Ok(self.list_clients().await?.clients.iter().map(|client| ClientId(client.client)).collect())
    }
}

/// A file session: the file, and which of its sessions.
pub type FileSession = (InodeId, [u8; 16]);

impl Service {
    /// Ends the sessions that were suspect before and still are, and returns those that are suspect now.
    pub async fn reap_sessions(
        &self,
        clients: &dyn Clients,
        suspects: &BTreeSet<FileSession>,
    ) -> Result<BTreeSet<FileSession>, Failure> {
        if catena_rt::broken("meta: sessions of the dead are not reaped") {
            return Ok(BTreeSet::new());
        }
        let open = self.open_sessions().await.map_err(|error| failure(&error))?;
        let alive = clients.alive().await?;
        let mut dead = BTreeSet::new();
        for (session, client) in open {
            if alive.contains(&client) {
                continue;
            }
            let (inode, id) = session;
            if suspects.contains(&session) {
                match self.reap(inode, &id).await {
                    Ok(true) => {
                        self.run.metrics.reaped_sessions.inc();
                        tracing::info!(
                            inode = inode.0,
                            client = client.0,
                            "ended the file session of a dead client"
                        );
                        continue;
                    }
                    Ok(false) => {}
                    Err(failure) => {
                        tracing::debug!(inode = inode.0, %failure, "a dead client's file session has to wait")
                    }
                }
            }
            dead.insert(session);
        }
        Ok(dead)
    }

    async fn open_sessions(&self) -> Result<Vec<(FileSession, ClientId)>, OpError> {
        let mut sessions = Vec::new();
        let mut range = key::sessions();
        loop {
            let (items, more) = transact!(self.run, |tx| { tx.range(range.clone(), 0).await })?;
            for item in &items {
                let session: Session = decode("a session", &item.value)?;
                sessions.push((key::session_parts(&item.key)?, ClientId(session.client)));
            }
            match items.last() {
                Some(last) if more => range.begin = catena_kv::key_after(&last.key),
                _ => return Ok(sessions),
            }
        }
    }

    async fn reap(&self, id: InodeId, session: &[u8; 16]) -> Result<bool, Failure> {
        let found = transact!(self.run, |tx| { tx.inode(id).await }).map_err(|error| failure(&error))?;
        let observed = match found {
            // Of a file without a name only the chunks are left to remove.
            Some(inode) if !inode.is_removed() => {
                let layout = layout_of(&inode).map_err(|error| failure(&error))?;
                self.observe(id, &inode, &layout, layout.stripe).await?
            }
            Some(inode) => crate::ops::sync::Observed { epoch: inode.truncate_epoch, length: 0 },
            None => crate::ops::sync::Observed { epoch: 0, length: 0 },
        };
        transact!(self.run, |tx| { reap(tx, id, session, observed).await }).map_err(|error| failure(&error))
    }

    /// Looks for dead clients now and then.
    pub(crate) async fn reap_forever(self: Arc<Self>, clients: Arc<dyn Clients>) {
        let mut suspects = BTreeSet::new();
        loop {
            catena_rt::time::sleep(self.sessions_interval).await;
            match self.reap_sessions(&*clients, &suspects).await {
                Ok(dead) => suspects = dead,
                Err(failure) => tracing::warn!(%failure, "cannot look for sessions of dead clients"),
            }
        }
    }
}
