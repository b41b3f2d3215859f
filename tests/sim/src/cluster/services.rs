//! How each service starts within its simulated process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catena_buf::{BufPool, PoolConfig};
use catena_engine::DiskError;
use catena_engine::disk::Disk;
use catena_engine::sim::SimDisk;
use catena_mgmtd::{Parts, Service as Mgmtd};
use catena_proto::ids::*;
use catena_rt::time::sleep;
use catena_storage::{Config, DiskSource, Env, IoBackend, Membership};

use super::{CLUSTER, META_PREFIX, MGMTD_PREFIX, TOKEN, World};

/// One start of a service.
pub(super) struct Start {
    pub world: Arc<World>,
    pub node: u32,
    pub start: u64,
}

struct Attached(SimDisk);

impl DiskSource for Attached {
    fn open(&self, _: &Path, _: IoBackend, _: &BufPool) -> Result<Arc<dyn Disk>, DiskError> {
        Ok(self.0.attach())
    }
}

impl Start {
    fn exit(&self, reason: String) {
        let _ = self.world.exits.send((self.node, self.start, reason));
    }

    /// A storage node on a disk.
    pub async fn storage(self, disk: SimDisk) {
        let world = &self.world;
        let peer = World::peer(self.node);
        let text = format!(
            "cluster = '{CLUSTER}'\ntoken = '{}'\nlisten = 'node{}:1'\nnode = {}\nmgmtd = ['unused:1']\ndisks = ['disk{}']\nlease = '{}ms'\n",
            TOKEN.to_hex(),
            self.node,
            self.node,
            self.node,
            world.shape.lease.as_millis(),
        );
        let config: Config = toml::from_str(&text).expect("a configuration that the simulator wrote");
        loop {
            let env = Env {
                clock: world.clock(),
                seed: world.random(),
                incarnation: Incarnation(self.start),
                disks: Arc::new(Attached(disk.clone())),
                membership: Membership::Mgmtd(world.mgmtd_client(peer)),
            };
            let transport =
                Arc::new(world.transport(peer, Incarnation(self.start), PoolConfig::service(80 << 20)));
            match catena_storage::start(config.clone(), env, transport).await {
                Ok(running) => {
                    let failure = running.failed().await;
                    return self.exit(failure.to_string());
                }
                Err(error) => {
                    tracing::warn!(node = self.node, %error, "the storage service does not start; trying again");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// A manager.
    pub async fn mgmtd(self) {
        let world = &self.world;
        let peer = World::peer(self.node);
        let address = World::address(self.node);
        loop {
            let parts = Parts {
                cluster: CLUSTER,
                node: NodeId(self.node),
                incarnation: Incarnation(self.start),
                address: address.clone(),
                metrics: String::new(),
                pid: self.node,
                lease: world.shape.lease,
                client_lease: world.shape.lease * 3,
                clock: world.clock(),
                seed: world.random(),
                db: world.store.as_seen_by(peer, MGMTD_PREFIX),
                exclusive: false,
            };
            match Mgmtd::open(parts).await {
                Ok(service) => {
                    world.mgmtd.serve(&address, peer, service.clone());
                    let ticking = catena_rt::spawn(service.clone().run());
                    let reason = service.failed().await;
                    ticking.abort();
                    return self.exit(reason);
                }
                Err(error) => {
                    tracing::warn!(node = self.node, %error, "mgmtd does not start; trying again");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// A metadata service.
    pub async fn meta(self) {
        let world = &self.world;
        let peer = World::peer(self.node);
        let address = World::address(self.node);
        let text = format!(
            "cluster = '{CLUSTER}'\ntoken = '{}'\nlisten = 'node{}:1'\nnode = {}\nmgmtd = ['unused:1']\n[store]\nkind = 'mem'\n[layout]\nstripe = 1\nchunk_size = 65536\n[reclaim]\ninterval = '500ms'\nsessions = '5s'\n",
            TOKEN.to_hex(),
            self.node,
            self.node,
        );
        let config: catena_meta::Config =
            toml::from_str(&text).expect("a configuration that the simulator wrote");
        loop {
            let env = catena_meta::Env { clock: world.clock(), seed: world.random() | 1 };
            let transport =
                Arc::new(world.transport(peer, Incarnation(self.start), PoolConfig::client(16 << 20)));
            let db = world.store.as_seen_by(peer, META_PREFIX);
            let mgmtd = world.mgmtd_client(peer);
            let joined = async {
                let mut member = catena_meta::Member::new(&config, env, db, transport, mgmtd).await?;
                world.meta.serve(&address, peer, member.service().clone());
                member.join(&address, self.node).await?;
                Ok::<_, catena_meta::StartError>(member)
            };
            match joined.await {
                Ok(member) => {
                    let failure = member.failed().await;
                    return self.exit(failure.to_string());
                }
                Err(error) => {
                    tracing::warn!(node = self.node, %error, "the metadata service does not start; trying again");
                    world.meta.withdraw(&address);
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}
