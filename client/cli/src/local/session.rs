//! One piece of work with a cluster of its own: started, worked with, stopped, whatever happens.

use catena_proto::ids::NodeId;
use tokio::sync::mpsc;

use crate::exit::{Failure, Result};
use crate::local::cluster::LocalCluster;
use crate::local::directory::Directory;
use crate::signals::Stop;
use crate::supervise::{Event, last_words};

/// Starts the cluster in `directory`, does `work` with it, stops it. A service that dies by itself ends the work: it is restarted, but
/// then this shows nothing.
pub async fn with_cluster<T>(
    directory: Directory,
    stop: &mut Stop,
    work: impl AsyncFnOnce(&mut LocalCluster) -> Result<T>,
) -> Result<T> {
    let mut cluster = LocalCluster::start(directory, "info", stop.wait()).await?;
    let mut events = cluster.take_events();
    let outcome = tokio::select! {
        outcome = work(&mut cluster) => outcome,
        failure = lost(&mut events) => Err(failure),
        () = stop.wait() => Err(Failure::interrupted()),
    };
    tokio::select! {
        _ = cluster.stop() => {}
        () = stop.wait() => return Err(Failure::interrupted()),
    }
    outcome
}

async fn lost(events: &mut mpsc::UnboundedReceiver<Event>) -> Failure {
    loop {
        match events.recv().await {
            Some(Event::Died { name, how, log, .. }) => {
                let message = format!("{name} {how}{}", last_words(&log));
                return Failure::failed(message);
            }
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// The name of the storage service that is node `node` of a local cluster.
pub fn storage_name(node: NodeId) -> String {
    format!("storage-{}", node.0)
}
