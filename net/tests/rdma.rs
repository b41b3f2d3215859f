//! The conformance suite over RDMA: on the software double everywhere, on real devices where `CATENA_TEST_RDMA` names two and their
//! addresses: `rx1=10.9.0.1,rx2=10.9.0.2`, the server's first.

use std::sync::Arc;

use catena_buf::BufPool;
use catena_net::conformance::Backend;
use catena_net::rdma::{RdmaOptions, RdmaTransport};
use catena_net::{Identity, PeerId, Transport};
use catena_verbs::soft::Fabric;
use catena_verbs::{Provider, ibv};

enum Devices {
    Soft(Fabric),
    Real { provider: Arc<dyn Provider>, server: (String, String), client: String },
}

fn devices() -> Devices {
    let Ok(named) = std::env::var("CATENA_TEST_RDMA") else { return Devices::Soft(Fabric::loopback()) };
    let mut pairs = named.split(',').map(|pair| pair.split_once('=').expect("device=address"));
    let (Some(server), Some(client)) = (pairs.next(), pairs.next()) else { panic!("two devices: {named}") };
    let provider = ibv::provider().expect("libibverbs");
    Devices::Real { provider, server: (server.0.into(), server.1.into()), client: client.0.into() }
}

impl Backend for Devices {
    fn transport(&self, identity: Identity, pool: BufPool, credits: u32) -> Arc<dyn Transport> {
        let mut options = RdmaOptions { credits, ..RdmaOptions::default() };
        let provider: Arc<dyn Provider> = match self {
            Devices::Soft(fabric) => Arc::new(fabric.clone()),
            Devices::Real { provider, server, client } => {
                let device = if matches!(identity.peer, PeerId::Node(_)) { &server.0 } else { client };
                options.devices = vec![device.clone()];
                provider.clone()
            }
        };
        Arc::new(RdmaTransport::new(provider, identity, pool, options).expect("a device"))
    }
    fn address(&self) -> String {
        match self {
            Devices::Soft(_) => "127.0.0.1:0".into(),
            Devices::Real { server, .. } => format!("{}:0", server.1),
        }
    }
}

mod one_thread {
    use super::*;
    catena_net::conformance!(devices());
}

mod several_threads {
    use super::*;
    catena_net::conformance!(devices(), flavor = "multi_thread", worker_threads = 3);
}
