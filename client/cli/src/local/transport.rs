//! What carries data in a local cluster: chosen at every start.

use catena_net::{TransportConfig, TransportKind};

use crate::args::local::TransportArgs;
use crate::exit::{Failure, Result};

/// A local cluster's transport. Its storage nodes share out the devices that were named; clients use the one behind theirs, if there are
/// as many, so that each process of a test cluster has a device of its own.
#[derive(Clone, Debug, Default)]
pub struct LocalTransport {
    all: TransportConfig,
}

impl LocalTransport {
    /// As the command line says.
    pub fn wished(args: &TransportArgs) -> Result<LocalTransport> {
        let kind = args.transport.map_or(TransportKind::Tcp, Into::into);
        let devices = args.rdma_device.clone();
        if kind == TransportKind::Tcp && !devices.is_empty() {
            return Err(Failure::usage("--rdma-device goes with --transport rdma"));
        }
        Ok(LocalTransport { all: TransportConfig { kind, devices, ..TransportConfig::default() } })
    }

    /// Storage node `node`'s, which count from 1.
    pub fn of_node(&self, node: u32) -> TransportConfig {
        self.with(node.saturating_sub(1) as usize)
    }

    /// That of clients and metadata services.
    pub fn of_clients(&self, nodes: u32) -> TransportConfig {
        self.with(nodes as usize)
    }

    fn with(&self, at: usize) -> TransportConfig {
        let devices = &self.all.devices;
        let one = devices.get(at % devices.len().max(1)).cloned();
        TransportConfig { devices: one.into_iter().collect(), ..self.all.clone() }
    }
}
