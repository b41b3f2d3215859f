//! What clients do, and what they saw.

pub mod chunks;
pub mod files;
pub mod names;

use std::sync::Arc;
use std::time::Duration;

use catena_buf::PoolConfig;
use catena_client::{Catena, ConnectOptions, Credentials, Links};
use catena_net::PeerId;
use catena_proto::ids::{ClientId, Incarnation};
use catena_rt::time::sleep;

use crate::cluster::{CLUSTER, World};

/// A client of the whole file system.
async fn mount(world: &Arc<World>, id: u64, seed: u64) -> Catena {
    let peer = PeerId::Client(ClientId(id));
    loop {
        let links = Links {
            cluster: CLUSTER,
            client: ClientId(id),
            mgmtd: world.mgmtd_client(peer),
            meta: world.meta_connector(peer),
            transport: Arc::new(world.transport(peer, Incarnation(id), PoolConfig::client(16 << 20))),
        };
        let options = ConnectOptions {
            credentials: Some(Credentials::root()),
            umask: 0,
            deadline: Duration::from_secs(120),
            description: Some("simulated".into()),
            seed: Some(seed),
            ..ConnectOptions::default()
        };
        match Catena::connect_over(links, "the simulator", options).await {
            Ok(catena) => return catena,
            Err(error) => {
                tracing::debug!(%error, "no connection yet");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
