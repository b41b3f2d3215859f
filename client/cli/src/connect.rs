//! From `--cluster` to something that answers.

use std::time::Duration;

use catena_mgmtd_client::{CallOptions, MgmtdClient};
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
    let options =
        CallOptions { deadline: args.contact(), attempt: args.contact().min(Duration::from_secs(2)) };
    Ok(MgmtdClient::connect(cluster.id, &cluster.mgmtd, auth, options)?)
}

/// What it knows now.
pub async fn routing(args: &ClusterArgs) -> Result<RoutingInfo> {
    let reply = mgmtd(args)?.get_routing(0, Duration::ZERO).await?;
    let wire = reply.routing.unwrap_or_default();
    RoutingInfo::try_from(wire).map_err(|error| Failure::failed(error.to_string()))
}
