//! The conformance suite over the simulated network, and what the simulated network does on top.

use std::sync::Arc;

use catena_buf::BufPool;
use catena_net::conformance::Backend;
use catena_net::mem::MemNetwork;
use catena_net::{Identity, Transport};

struct Mem(MemNetwork);

impl Backend for Mem {
    fn transport(&self, identity: Identity, pool: BufPool, credits: u32) -> Arc<dyn Transport> {
        Arc::new(self.0.transport(identity, pool).with_credits(credits))
    }
    fn address(&self) -> String {
        "server".into()
    }
}

mod conformance {
    use super::*;
    catena_net::conformance!(Mem(MemNetwork::new(1)), start_paused = true);
}
