//! The control plane: the calls that gRPC carries in production, over the simulated network.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_meta::Service as Meta;
use catena_meta_client::{Connector, Endpoint};
use catena_mgmtd::Service as Mgmtd;
use catena_mgmtd_client::{CallOptions, MgmtdApi, MgmtdClient};
use catena_net::PeerId;
use catena_net::mem::{MemNetwork, PATIENCE};
use catena_proto::ids::ClusterId;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::pb::*;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::Process;
use catena_rt::time::sleep;
use parking_lot::Mutex;

/// A service that is called.
struct Server<S: ?Sized> {
    peer: PeerId,
    process: Process,
    serial: u64,
    service: Arc<S>,
}

impl<S: ?Sized> Clone for Server<S> {
    fn clone(&self) -> Self {
        let (process, service) = (self.process.clone(), self.service.clone());
        Server { peer: self.peer, process, serial: self.serial, service }
    }
}

/// Servers of one kind by address.
pub struct Directory<S: ?Sized> {
    net: MemNetwork,
    servers: Mutex<(u64, BTreeMap<String, Server<S>>)>,
}

fn lost(address: &str, what: &str) -> Failure {
    Failure::new(Status::Disconnected, format!("{address}: {what}"))
}

impl<S: ?Sized + Send + Sync + 'static> Directory<S> {
    /// Nobody is there yet.
    pub fn new(net: MemNetwork) -> Arc<Directory<S>> {
        Arc::new(Directory { net, servers: Mutex::default() })
    }

    /// The running process answers at `address` from now on.
    pub fn serve(&self, address: &str, peer: PeerId, service: Arc<S>) {
        let mut servers = self.servers.lock();
        servers.0 += 1;
        let server = Server { peer, process: Process::current(), serial: servers.0, service };
        let before = servers.1.insert(address.into(), server);
        drop(servers);
        drop(before);
    }

    /// Nobody answers at `address` any more.
    pub fn withdraw(&self, address: &str) {
        let gone = self.servers.lock().1.remove(address);
        drop(gone);
    }

    fn find(&self, address: &str) -> Option<Server<S>> {
        self.servers.lock().1.get(address).cloned()
    }

    /// One call. It goes on if the caller does not, as on a wire.
    pub async fn call<R, F>(
        self: &Arc<Self>,
        me: PeerId,
        address: &str,
        work: impl FnOnce(Arc<S>) -> F + Send + 'static,
    ) -> Result<R, Failure>
    where
        R: Send + 'static,
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let (directory, address) = (self.clone(), address.to_owned());
        let call = Process::world().spawn(async move {
            let Some(server) = directory.find(&address) else {
                sleep(Duration::from_micros(100)).await;
                return Err(lost(&address, "connection refused"));
            };
            let silent = async || {
                sleep(PATIENCE).await;
                Err(lost(&address, "the connection broke"))
            };
            if !directory.net.trip(me, server.peer).await {
                return silent().await;
            }
            if directory.find(&address).is_none_or(|now| now.serial != server.serial) {
                return Err(lost(&address, "connection reset"));
            }
            let Ok(reply) = server.process.spawn(work(server.service)).await else {
                return Err(lost(&address, "connection reset"));
            };
            if !directory.net.trip(server.peer, me).await {
                return silent().await;
            }
            reply
        });
        call.await.unwrap_or_else(|error| Err(lost("the network", &error.to_string())))
    }
}

/// One mgmtd, as one process reaches it.
struct Remote {
    directory: Arc<Directory<Mgmtd>>,
    me: PeerId,
    address: String,
    /// The only storage node whose address it hears of.
    pinned: Option<u32>,
}

impl Remote {
    fn narrow(&self, mut reply: GetRoutingReply) -> GetRoutingReply {
        let nodes = reply.routing.iter_mut().flat_map(|routing| &mut routing.nodes);
        for node in nodes.filter(|node| self.pinned.is_some_and(|pinned| pinned != node.id)) {
            node.data_address.clear();
        }
        reply
    }
}

macro_rules! forward {
    ($($method:ident($request:ident) -> $reply:ident;)*) => {
        #[async_trait]
        impl MgmtdApi for Remote {
            async fn get_routing(&self, request: GetRoutingRequest) -> Result<GetRoutingReply, Failure> {
                let get = move |service: Arc<Mgmtd>| async move { service.get_routing(request).await };
                self.directory.call(self.me, &self.address, get).await.map(|reply| self.narrow(reply))
            }
            $(async fn $method(&self, request: $request) -> Result<$reply, Failure> {
                self.directory
                    .call(self.me, &self.address, move |service| async move { service.$method(request).await })
                    .await
            })*
        }
    };
}

forward! {
    register(RegisterRequest) -> RegisterReply;
    heartbeat(HeartbeatRequest) -> HeartbeatReply;
    create_table(CreateTableRequest) -> CreateTableReply;
    recover_chain(RecoverChainRequest) -> RecoverChainReply;
    extend_client_session(ClientSessionRequest) -> ClientSessionReply;
    list_clients(ListClientsRequest) -> ListClientsReply;
}

/// A client of the managers at `addresses`, for the process `me`; if it is pinned to a storage node, it hears of no other one's address.
pub fn managers(
    directory: &Arc<Directory<Mgmtd>>,
    me: PeerId,
    cluster: ClusterId,
    addresses: &[String],
    pinned: Option<u32>,
) -> MgmtdClient {
    let peers = addresses
        .iter()
        .map(|address| {
            let remote = Remote { directory: directory.clone(), me, address: address.clone(), pinned };
            (address.clone(), Arc::new(remote) as Arc<dyn MgmtdApi>)
        })
        .collect();
    MgmtdClient::new(cluster, peers, CallOptions::default())
}

/// Makes connections to metadata services for one process.
struct Metas {
    directory: Arc<Directory<Meta>>,
    me: PeerId,
}

struct RemoteMeta {
    directory: Arc<Directory<Meta>>,
    me: PeerId,
    address: String,
}

/// Connections of `me`.
pub fn connector(directory: &Arc<Directory<Meta>>, me: PeerId) -> Arc<dyn Connector> {
    Arc::new(Metas { directory: directory.clone(), me })
}

impl Connector for Metas {
    fn connect(&self, address: &str) -> Result<Arc<dyn Endpoint>, Failure> {
        let (directory, address) = (self.directory.clone(), address.to_owned());
        Ok(Arc::new(RemoteMeta { directory, me: self.me, address }))
    }
}

#[async_trait]
impl Endpoint for RemoteMeta {
    async fn call(&self, request: Request, _deadline: Duration) -> Result<Reply, Failure> {
        self.directory
            .call(self.me, &self.address, move |service| async move { service.answer(request).await })
            .await
    }
}
