//! The client: a database whose store is elsewhere.

use std::sync::Arc;
use std::time::Duration;

use catena_kv::local::ReadAt;
use catena_kv::{Database, KvError, Tx, TxOptions};
use catena_proto::pb::*;
use catena_rt::time::{Instant, timeout};

use crate::api::{CallError, KvApi};
use crate::read_version::Shared;
use crate::transaction::RemoteTransaction;
use crate::wire;

/// How a remote store is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the service is called in errors: its address.
    pub name: String,
    /// How long one call is waited for. A read that was not answered then fails as unavailable, a commit as unknown.
    pub patience: Duration,
}

impl Options {
    /// Five seconds of patience, which is as long as a transaction may take.
    pub fn new(name: impl Into<String>) -> Options {
        Options { name: name.into(), patience: Duration::from_secs(5) }
    }
}

/// A database served by a key-value service. Clones share the connection. Nothing is repeated here: what fails is the caller's to run
/// again ([`catena_kv::transact`]), and a commit whose answer was lost is [`KvError::CommitUnknown`].
#[derive(Clone)]
pub struct RemoteDatabase {
    client: Arc<Client>,
}

impl RemoteDatabase {
    /// The database behind `api`.
    pub fn new(api: Arc<dyn KvApi>, options: Options) -> RemoteDatabase {
        RemoteDatabase { client: Arc::new(Client { api, options, versions: Shared::new() }) }
    }
}

impl Database for RemoteDatabase {
    fn begin(&self, _options: TxOptions) -> Result<Tx, KvError> {
        Ok(Arc::new(RemoteTransaction::new(self.client.clone())))
    }
}

/// What a transaction reads at, on both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) wire: KvVersion,
    pub(crate) read: ReadAt,
}

impl At {
    /// From the answer to a question that was sent at `since`.
    fn new(wire: Option<KvVersion>, since: Instant) -> Result<At, KvError> {
        let wire = wire.ok_or_else(|| wire::malformed("a version"))?;
        Ok(At { wire, read: ReadAt { version: wire.version, since } })
    }
}

/// The calls, with patience and errors.
pub(crate) struct Client {
    api: Arc<dyn KvApi>,
    options: Options,
    versions: Shared<At>,
}

impl Client {
    /// The newest version.
    pub(crate) async fn read_version(&self) -> Result<At, KvError> {
        let ask = || async {
            let since = Instant::now();
            let reply = self.call(self.api.read_version(KvReadVersionRequest {})).await;
            let reply = reply.map_err(CallError::of_read)?;
            refuse(reply.failure)?;
            At::new(reply.at, since)
        };
        self.versions.get(ask).await
    }

    /// A key's value at a version, or at the newest.
    pub(crate) async fn get(
        &self,
        at: Option<KvVersion>,
        key: &[u8],
    ) -> Result<(Option<bytes::Bytes>, At), KvError> {
        let since = Instant::now();
        let request = KvGetRequest { at, key: bytes::Bytes::copy_from_slice(key) };
        let reply = self.call(self.api.get(request)).await.map_err(CallError::of_read)?;
        refuse(reply.failure)?;
        Ok((reply.value, At::new(reply.at, since)?))
    }

    /// A page of a range.
    pub(crate) async fn get_range(&self, request: KvRangeRequest) -> Result<(KvRangeReply, At), KvError> {
        let since = Instant::now();
        let mut reply = self.call(self.api.get_range(request)).await.map_err(CallError::of_read)?;
        refuse(reply.failure.take())?;
        if reply.more && reply.items.is_empty() {
            return Err(wire::malformed("the items of a page"));
        }
        let at = At::new(reply.at, since)?;
        Ok((reply, at))
    }

    /// Sends a commit, once.
    pub(crate) async fn commit(&self, request: KvCommitRequest) -> Result<catena_kv::Versionstamp, KvError> {
        let reply = self.call(self.api.commit(request)).await.map_err(CallError::of_commit)?;
        refuse(reply.failure)?;
        wire::stamp(&reply.stamp)
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let Options { name, patience } = &self.options;
        let about = |why: String| format!("key-value service {name}: {why}");
        match timeout(*patience, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(CallError::NotSent(why))) => Err(CallError::NotSent(about(why))),
            Ok(Err(CallError::Lost(why))) => Err(CallError::Lost(about(why))),
            Ok(Err(CallError::Refused(mut failure))) => {
                failure.message = about(failure.message);
                Err(CallError::Refused(failure))
            }
            Err(_) => Err(CallError::Lost(about(format!("no answer within {patience:?}")))),
        }
    }
}

fn refuse(failure: Option<KvFailure>) -> Result<(), KvError> {
    match failure {
        Some(failure) => Err(wire::error(failure)),
        None => Ok(()),
    }
}
