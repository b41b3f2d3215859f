//! The conformance suite over RDMA: on the software double everywhere, on real devices where `CATENA_TEST_RDMA` names two.

use std::sync::Arc;

use catena_buf::BufPool;
use catena_net::conformance::Backend;
use catena_net::rdma::{RdmaOptions, RdmaTransport};
use catena_net::{Identity, Transport};
use catena_verbs::soft::Fabric;

struct Soft(Fabric);

impl Backend for Soft {
    fn transport(&self, identity: Identity, pool: BufPool, credits: u32) -> Arc<dyn Transport> {
        let options = RdmaOptions { credits, ..RdmaOptions::default() };
        Arc::new(RdmaTransport::new(&self.0, identity, pool, options).expect("a soft device"))
    }
    fn address(&self) -> String {
        "127.0.0.1:0".into()
    }
}

mod one_thread {
    use super::*;
    catena_net::conformance!(Soft(Fabric::loopback()));
}

mod several_threads {
    use super::*;
    catena_net::conformance!(Soft(Fabric::loopback()), flavor = "multi_thread", worker_threads = 3);
}
