//! The service: plain async functions from request to reply. gRPC is a thin skin over them, and the simulator calls them directly.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_kv::reserved::{RESTORE_MARKER, RESTORE_UNFINISHED};
use catena_kv::{Database, KvError, TxOptions};
use catena_mgmtd_client::RoutingWatch;
use catena_proto::clock::Clock;
use catena_proto::ids::{ChainId, ClusterId, InodeId};
use catena_proto::layout::Layout;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::JoinSet;
use catena_rt::time::Instant;
use futures_util::future::try_join_all;
use tokio::sync::Notify;

use crate::chunks::{Chunks, Extent};
use crate::config::{Config, LayoutDefaults, Reads, Reclaim, Requests, Root};
use crate::context::Context;
use crate::cut::Cuts;
use crate::error::{OpError, refuse};
use crate::metrics::Metrics;
use crate::op::{Mutation, Query};
use crate::ops::open::{OpenToRead, OpenToWrite, mutates};
use crate::ops::repair::Repair;
use crate::ops::sync::{Observed, Settle, chains_for, layout_of, open_file};
use crate::ops::truncate::Truncate;
use crate::pace::Pace;
use crate::reclaim::Paces;
use crate::resolve::existing;
use crate::run::{Applied, Runner, failure, put_period, transact};
use crate::schema::inode::FileType;
use crate::schema::{Inode, ROOT, key};
use crate::sessions::Clients;

/// How long one chunk call may take; who waits for it gives up earlier or tries again.
pub(crate) const CHUNK_DEADLINE: Duration = Duration::from_secs(10);
/// How often a sync asks the chains again because the file was cut meanwhile.
const OBSERVATIONS: usize = 5;

/// What a service is given from outside.
pub struct Parts {
    /// The store.
    pub db: Arc<dyn Database>,
    /// The chunk store.
    pub chunks: Arc<dyn Chunks>,
    /// Chains, tables, disks.
    pub routing: RoutingWatch,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// All randomness derives from it. Must differ from start to start and service to service.
    pub seed: u64,
}

/// What an operator may set, without addresses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whose store it is.
    pub cluster: ClusterId,
    /// The root directory of a new file system.
    pub root: Root,
    /// Layout of files that inherit none.
    pub layout: LayoutDefaults,
    /// Background removal.
    pub reclaim: Reclaim,
    /// Memory of requests.
    pub requests: Requests,
    /// How new answers are.
    pub reads: Reads,
    /// Calls slower than this are logged.
    pub slow: Duration,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Settings {
        Settings {
            cluster: config.cluster,
            root: config.root,
            layout: config.layout,
            reclaim: config.reclaim,
            requests: config.requests,
            reads: config.reads,
            slow: config.slow,
        }
    }
}

/// A metadata service without its sockets. It keeps nothing that matters: any number work on one store.
pub struct Service {
    pub(crate) run: Runner,
    pub(crate) chunks: Arc<dyn Chunks>,
    pub(crate) cuts: Cuts,
    /// Names this start of this service in intents.
    pub(crate) owner: u64,
    pub(crate) paces: Paces,
    pub(crate) parallel: usize,
    pub(crate) interval: Duration,
    pub(crate) remember: Duration,
    pub(crate) sessions_interval: Duration,
    settings: Settings,
}

/// Background work; ends when this is dropped. A crash is no worse.
#[must_use]
pub struct Background(#[allow(dead_code)] JoinSet<()>);

impl Service {
    /// Makes a service. Nothing is read or written yet: see [`Service::initialise`].
    pub fn new(settings: Settings, parts: Parts) -> Arc<Service> {
        let cx =
            Context::new(parts.clock, parts.routing, settings.layout, settings.reads.staleness, parts.seed);
        let owner = cx.random();
        let metrics = Arc::new(Metrics::default());
        Arc::new(Service {
            run: Runner { db: parts.db, cx, metrics, queued: Notify::new() },
            chunks: parts.chunks,
            cuts: Cuts::default(),
            owner,
            paces: Paces {
                chunks: Pace::new(settings.reclaim.chunks_per_second),
                entries: Pace::new(settings.reclaim.entries_per_second),
            },
            parallel: settings.reclaim.parallel,
            interval: settings.reclaim.interval,
            remember: settings.requests.remember,
            sessions_interval: settings.reclaim.sessions,
            settings,
        })
    }

    /// Makes the root directory in a new store, and refuses another cluster's.
    pub async fn initialise(&self) -> Result<(), Failure> {
        let cluster = self.settings.cluster;
        let root = self.settings.root;
        let done = transact!(self.run, |tx| {
            if tx.get(Bytes::from_static(RESTORE_MARKER)).await?.is_some() {
                return refuse(Status::Internal, RESTORE_UNFINISHED);
            }
            match tx.get(key::cluster()).await? {
                Some(id) if id[..] == cluster.0.to_be_bytes() => {}
                Some(id) => {
                    let found = <[u8; 16]>::try_from(&id[..]).map(u128::from_be_bytes).map(ClusterId);
                    let found = found.map_or("another cluster".into(), |id| format!("cluster {id}"));
                    return refuse(
                        Status::WrongCluster,
                        format!(
                            "the metadata store belongs to {found}, this service to {cluster}: check `cluster` and `store` in its configuration"
                        ),
                    );
                }
                None => {
                    tx.set(key::cluster(), cluster.0.to_be_bytes().to_vec().into());
                    put_period(tx, 0);
                }
            }
            if tx.inode(ROOT).await?.is_none() {
                let now = tx.now;
                let inode = Inode {
                    kind: FileType::Directory as i32,
                    mode: root.mode,
                    uid: root.uid,
                    gid: root.gid,
                    nlink: 1,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    btime: now,
                    parent: ROOT.0,
                    ..Default::default()
                };
                tx.put_inode(ROOT, inode);
                tx.count(key::Counter::Directories, 1);
                tracing::info!(%cluster, "made a new file system");
            }
            Ok(())
        });
        done.map_err(|error| failure(&error))
    }

    /// Starts reclaiming, forgetting and, if it is known which clients live, the ending of dead ones' sessions.
    pub fn background(self: &Arc<Self>, clients: Option<Arc<dyn Clients>>) -> Background {
        let mut tasks = JoinSet::new();
        if let Some(clients) = clients {
            tasks.spawn(self.clone().reap_forever(clients));
        }
        tasks.spawn(self.clone().reclaim_forever());
        tasks.spawn(self.clone().collect_forever());
        Background(tasks)
    }

    /// Counts of this service.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.run.metrics
    }

    /// Resolves when the store has failed for good.
    pub(crate) async fn store_failed(&self) -> KvError {
        loop {
            catena_rt::time::sleep(Duration::from_secs(1)).await;
            // A read version is the cheapest question that a failed store does not answer.
            let asked = match self.run.db.begin(TxOptions::default()) {
                Ok(tx) => tx.read_version().await,
                Err(error) => Err(error),
            };
            if let Err(error @ KvError::Storage(_)) = asked {
                return error;
            }
        }
    }

    /// Measures a call and logs it if it was slow or failed on our side.
    async fn observed<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let metrics = &self.run.metrics;
        let start = self.run.cx.clock.monotonic();
        let guard = metrics.begin();
        let outcome = work.await;
        let took = self.run.cx.clock.monotonic().since(start);
        guard.end(call, took, outcome.as_ref().err().map(|failure| failure.status));
        if took >= self.settings.slow {
            let status = outcome.as_ref().err().map_or(Status::Ok, |failure| failure.status);
            tracing::warn!(call, took_ms = took.as_millis() as u64, %status, "slow call");
        }
        outcome
    }

    /// Answers a query.
    async fn query<Q: Query>(&self, query: &Q) -> Result<Q::Reply, Failure> {
        self.observed(Q::NAME, self.run.query(query)).await
    }

    /// Carries out a mutation that is one transaction.
    async fn mutate<M: Mutation>(&self, mutation: &M) -> Result<M::Reply, Failure> {
        self.observed(M::NAME, async {
            let applied = self.run.mutate(mutation).await;
            applied.map(Applied::reply).map_err(|failure| failure.unwrap_or(Status::Conflict.into()))
        })
        .await
    }

    /// Carries out a mutation that may begin a cut, and the cut; `with` puts the inode after it into the reply.
    async fn mutate_and_cut<M: Mutation>(
        self: &Arc<Self>,
        mutation: &M,
        inode: fn(&mut M::Reply) -> &mut Option<pb::Inode>,
    ) -> Result<M::Reply, Failure> {
        self.observed(M::NAME, async {
            let began = self.run.cx.clock.monotonic();
            let applied = self.run.mutate(mutation).await;
            let (mut reply, resumed) = match applied {
                Ok(Applied::Done(reply)) => return Ok(reply),
                Ok(Applied::Deferred { reply, resumed }) => (reply, resumed),
                Err(failure) => return Err(failure.unwrap_or(Status::Conflict.into())),
            };
            let slot = inode(&mut reply);
            let id = InodeId(slot.as_ref().map_or(0, |inode| inode.id));
            let fresh = (!resumed).then_some(began);
            *slot = Some(self.cut(id, fresh).await?);
            Ok(reply)
        })
        .await
    }

    /// A file's chains in stripe order.
    pub(crate) fn chains(&self, layout: &Layout) -> Result<Vec<ChainId>, Failure> {
        self.run.cx.routing.current().chains_of(layout).ok_or_else(|| {
            let (table, version) = (layout.table, layout.table_version);
            let message =
                format!("routing information does not have version {version} of chain table {table}");
            Failure::new(Status::Busy, message)
        })
    }

    /// Opens or makes a file.
    pub async fn open(self: &Arc<Self>, request: pb::OpenRequest) -> Result<pb::OpenReply, Failure> {
        if !mutates(&request) {
            return self.query(&OpenToRead(&request)).await;
        }
        let open = OpenToWrite { request: &request, owner: self.as_owner() };
        self.mutate_and_cut(&open, |reply| &mut reply.inode).await
    }

    /// Sets a file's length.
    pub async fn truncate(
        self: &Arc<Self>,
        request: pb::TruncateRequest,
    ) -> Result<pb::TruncateReply, Failure> {
        let truncate = Truncate { request: &request, owner: self.as_owner() };
        self.mutate_and_cut(&truncate, |reply| &mut reply.inode).await
    }

    /// Settles a file's length; ends a session.
    pub async fn sync(&self, request: pb::SyncRequest) -> Result<pb::SyncReply, Failure> {
        self.observed("sync", async {
            // The writer's own mark may do; if not, the chains are asked.
            let mut observed = None;
            for _ in 0..OBSERVATIONS {
                match self.run.mutate(&Settle { request: &request, observed }).await {
                    Ok(applied) => return Ok(applied.reply()),
                    Err(Some(failure)) => return Err(failure),
                    Err(None) => {}
                }
                observed = Some(self.observe_length(&request).await?);
            }
            Err(Failure::new(Status::Busy, "the file is cut again and again; its length cannot be settled"))
        })
        .await
    }

    /// In which period of records a mutation that is sent now is sent. New ones may say so for a quarter of the time that records live.
    pub async fn period(&self, request: pb::PeriodRequest) -> Result<pb::PeriodReply, Failure> {
        let mut reply = self.query(&request).await?;
        reply.fresh_ms = u64::try_from((self.remember / 4).as_millis()).unwrap_or(u64::MAX);
        Ok(reply)
    }

    /// Looks whether damage is there, and repairs it if that is asked.
    pub async fn repair(&self, request: pb::RepairRequest) -> Result<pb::RepairReply, Failure> {
        self.observed("repair", async {
            let mut observed = None;
            for _ in 0..OBSERVATIONS {
                match self.run.mutate(&Repair { request: &request, observed }).await {
                    Ok(applied) => return Ok(applied.reply()),
                    Err(Some(failure)) => return Err(failure),
                    Err(None) => {}
                }
                let id = InodeId(request.seen.as_ref().map_or(0, |seen| seen.id));
                let read = transact!(self.run, |tx| { existing(tx, id).await });
                let inode = read.map_err(|error| failure(&error))?;
                let layout = layout_of(&inode).map_err(|error: OpError| failure(&error))?;
                observed = Some(self.observe(id, &inode, &layout, layout.stripe).await?);
            }
            Err(Failure::new(Status::Busy, "the file is cut again and again; its length cannot be settled"))
        })
        .await
    }

    /// Asks the chains that may hold chunks of a file how long it is.
    async fn observe_length(&self, request: &pb::SyncRequest) -> Result<Observed, Failure> {
        let read = transact!(self.run, |tx| {
            let (_, inode) = open_file(tx, request).await?;
            Ok(inode)
        });
        let inode = read.map_err(|error| failure(&error))?;
        let layout = layout_of(&inode).map_err(|error: OpError| failure(&error))?;
        let reach = inode.length.max(request.high_water);
        let used = inode.chains_used.max(chains_for(&inode, reach));
        self.observe(InodeId(request.inode), &inode, &layout, used).await
    }

    /// Asks the first `used` chains of a file's stripe how long it is.
    pub(crate) async fn observe(
        &self,
        id: InodeId,
        inode: &Inode,
        layout: &Layout,
        used: u32,
    ) -> Result<Observed, Failure> {
        let chains = self.chains(layout)?;
        let deadline = Instant::now() + CHUNK_DEADLINE;
        let asked = chains.iter().take(used as usize).map(|&chain| self.chunks.last(chain, id, deadline));
        let ends = try_join_all(asked).await?;
        let size = u64::from(layout.chunk_size);
        let end = |extent: Extent| u64::from(extent.index) * size + u64::from(extent.length);
        let length = ends.into_iter().flatten().map(end).max().unwrap_or(0);
        Ok(Observed { epoch: inode.truncate_epoch, length })
    }
}

macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident $method:ident: $request:ident -> $reply:ident by $how:ident;)*) => {
        impl Service {
            $($(#[$doc])*
            pub async fn $method(&self, request: pb::$request) -> Result<pb::$reply, Failure> {
                self.$how(&request).await
            })*

            /// Answers any call: for networks that carry calls as values.
            pub async fn answer(self: &Arc<Self>, request: Request) -> Result<Reply, Failure> {
                Ok(match request {
                    Request::Open(request) => Reply::Open(self.open(request).await?),
                    Request::Truncate(request) => Reply::Truncate(self.truncate(request).await?),
                    Request::Sync(request) => Reply::Sync(self.sync(request).await?),
                    Request::Period(request) => Reply::Period(self.period(request).await?),
                    Request::Repair(request) => Reply::Repair(self.repair(request).await?),
                    $(Request::$name(request) => Reply::$name(self.$method(request).await?),)*
                })
            }
        }
    };
}

handlers! {
    /// Attributes of a place.
    Stat stat: StatRequest -> StatReply by query;
    /// Attributes of many places.
    BatchStat batch_stat: BatchStatRequest -> BatchStatReply by query;
    /// Makes directories.
    Mkdir mkdir: MkdirRequest -> InodeReply by mutate;
    /// Makes an empty file, fifo, socket or device node.
    Mknod mknod: MknodRequest -> InodeReply by mutate;
    /// Makes a symbolic link.
    Symlink symlink: SymlinkRequest -> InodeReply by mutate;
    /// Makes a hard link.
    Link link: LinkRequest -> InodeReply by mutate;
    /// What a symbolic link says.
    Readlink readlink: ReadlinkRequest -> ReadlinkReply by query;
    /// Removes a name, or a whole tree.
    Remove remove: RemoveRequest -> RemoveReply by mutate;
    /// Moves a name.
    Rename rename: RenameRequest -> RenameReply by mutate;
    /// Changes attributes.
    SetAttr set_attr: SetAttrRequest -> InodeReply by mutate;
    /// Sets what is made below a directory.
    SetLayout set_layout: SetLayoutRequest -> InodeReply by mutate;
    /// A page of a directory.
    Readdir readdir: ReaddirRequest -> ReaddirReply by query;
    /// An extended attribute.
    GetXattr get_xattr: GetXattrRequest -> GetXattrReply by query;
    /// Names of extended attributes.
    ListXattr list_xattr: ListXattrRequest -> ListXattrReply by query;
    /// Sets or removes an extended attribute.
    SetXattr set_xattr: SetXattrRequest -> SetXattrReply by mutate;
    /// Space and counts.
    Statfs statfs: StatfsRequest -> StatfsReply by query;
    /// A page of what a subtree holds.
    Usage usage: UsageRequest -> UsageReply by query;
    /// A page of inodes, or given ones, as a check wants to know them.
    CheckInodes check_inodes: CheckInodesRequest -> CheckInodesReply by query;
    /// A page of the entries of all directories.
    CheckEntries check_entries: CheckEntriesRequest -> CheckEntriesReply by query;
}
