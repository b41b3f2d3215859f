//! The conformance suite over TCP, on one thread and on several.

use std::sync::Arc;

use catena_buf::BufPool;
use catena_net::conformance::Backend;
use catena_net::tcp::{TcpOptions, TcpTransport};
use catena_net::{Identity, Transport};

struct Tcp;

impl Backend for Tcp {
    fn transport(&self, identity: Identity, pool: BufPool, credits: u32) -> Arc<dyn Transport> {
        Arc::new(TcpTransport::with_options(identity, pool, TcpOptions { credits, ..TcpOptions::default() }))
    }
    fn address(&self) -> String {
        "tcp://127.0.0.1:0".into()
    }
}

mod one_thread {
    catena_net::conformance!(super::Tcp);
}

mod several_threads {
    catena_net::conformance!(super::Tcp, flavor = "multi_thread", worker_threads = 3);
}
