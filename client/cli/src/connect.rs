//! From `--cluster` to something that answers.

use std::collections::BTreeSet;
use std::time::Duration;

use catena_client::{Catena, ClusterFile, ConnectOptions};
use catena_mgmtd_client::{CallOptions, MgmtdClient};
use catena_proto::pb::{Node, NodeKind, NodeState};
use catena_proto::routing::RoutingInfo;
use catena_proto::rpc::ClientAuth;

use crate::args::ClusterArgs;
use crate::cluster_file::{self, Cluster};
use crate::exit::{Failure, Result};

/// The cluster that the options name.
pub fn cluster(args: &ClusterArgs) -> Result<Cluster> {
    Cluster::load(&cluster_file::locate(args.cluster.clone())?)
}

/// Its manager; nothing is connected yet.
pub fn mgmtd(args: &ClusterArgs) -> Result<MgmtdClient> {
    let cluster = cluster(args)?;
    let auth = ClientAuth::new(cluster.id, &cluster.token);
    let attempt = args.contact().min(Duration::from_secs(2));
    let options = CallOptions { deadline: args.contact(), election: args.election(), attempt };
    Ok(MgmtdClient::connect(cluster.id, &cluster.mgmtd, auth, options)?)
}

/// What it knows now.
pub async fn routing(args: &ClusterArgs) -> Result<RoutingInfo> {
    let reply = mgmtd(args)?.get_routing(0, Duration::ZERO).await?;
    let wire = reply.routing.unwrap_or_default();
    RoutingInfo::try_from(wire).map_err(|error| Failure::failed(error.to_string()))
}

/// A client of the cluster that the options name.
pub async fn client(args: &ClusterArgs) -> Result<Catena> {
    let options = ConnectOptions {
        deadline: args.call(),
        connect_deadline: args.contact(),
        election_deadline: args.election(),
        ..ConnectOptions::default()
    };
    to(&cluster(args)?, options).await
}

/// A client that keeps up to `in_flight` bytes on their way.
pub async fn wide_client(args: &ClusterArgs, in_flight: usize) -> Result<Catena> {
    let options = ConnectOptions {
        deadline: args.call(),
        connect_deadline: args.contact(),
        election_deadline: args.election(),
        ..wide(in_flight)
    };
    to(&cluster(args)?, options).await
}

/// Options for `in_flight` bytes on their way. Buffers are filled before they count as under way, hence the larger pool.
pub fn wide(in_flight: usize) -> ConnectOptions {
    let in_flight_bytes = in_flight.clamp(64 << 20, 1 << 30);
    ConnectOptions { in_flight_bytes, pool_bytes: 3 * in_flight_bytes, ..ConnectOptions::default() }
}

/// Clients of the metadata services that `first` does not use. A client stays with one service, which it chooses at random, so they are
/// made until every service that is up has one; a service that nobody meets (it has just gone) is left out.
pub async fn for_other_metas(first: &Catena, make: impl AsyncFn() -> Result<Catena>) -> Result<Vec<Catena>> {
    const TRIES: usize = 32;
    let routing = first.routing().current();
    let up = |node: &&Node| node.kind() == NodeKind::Meta && node.state() == NodeState::Up;
    let services = routing.nodes.values().filter(up).count();
    // The first call chooses.
    first.stat("/").await?;
    let mut used = BTreeSet::from([first.meta().server()]);
    let mut others = Vec::new();
    for _ in 0..services * TRIES {
        if used.len() >= services {
            break;
        }
        let catena = make().await?;
        catena.stat("/").await?;
        match used.insert(catena.meta().server()) {
            true => others.push(catena),
            false => catena.close().await,
        }
    }
    Ok(others)
}

/// A client of `cluster`. Modes come from the commands, which know the process's umask, so that `-m` can mean what it says.
pub async fn to(cluster: &Cluster, options: ConnectOptions) -> Result<Catena> {
    let file = ClusterFile {
        cluster: cluster.id,
        token: cluster.token,
        mgmtd: cluster.mgmtd.clone(),
        transport: cluster.transport.clone(),
    };
    Ok(Catena::connect(&file, ConnectOptions { umask: 0, ..options }).await?)
}
