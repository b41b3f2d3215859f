//! The ports that this process uses: opened once, with its memory registered; chosen per connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use catena_buf::{BufPool, PoolConfig};
use catena_verbs::queue_pair::{Init, QueuePair, ReadyToSend, Reset, SLOT, Sizes};
use catena_verbs::{
    Access, DeviceInfo, DeviceLimits, Gid, GidEntry, GidKind, LinkLayer, Nic, Path, PortInfo, Provider,
    VerbsError,
};
use rand::Rng;
use tracing::warn;

use super::RdmaOptions;
use super::adapter::Adapter;
use super::link::{self, Link};
use super::wire::{Terms, link_code};

/// Messages of one connection: so many can arrive before they are looked at, and be on their way.
const RECEIVES: usize = 40;
const SENDS: usize = 24;
const _: () = assert!((RECEIVES + SENDS) * SLOT == 256 << 10, "a whole buffer of the pool");
/// Work requests under way.
const WORKS: usize = 256;
/// Bytes of a message that should travel in its work request.
const INLINE: usize = 220;
/// Routers on the way at most.
const HOPS: u8 = 64;
/// Retries while the peer has no receive posted. Credits see to it that this does not happen.
const RNR_RETRIES: u8 = 6;

/// A port as configured.
struct Rail {
    adapter: Arc<Adapter>,
    port: u8,
}

/// A port as it is now.
pub(super) struct Route {
    nic: Arc<Nic>,
    limits: DeviceLimits,
    port: PortInfo,
    gid: GidEntry,
    /// Its place among the configured ones.
    at: usize,
}

/// A queue pair that waits to be told of its peer.
pub(super) struct Half {
    pair: QueuePair<Init>,
    path: Path,
    psn: u32,
    device: String,
    gid: Gid,
    pub terms: Terms,
}

/// The ports of a process.
pub(crate) struct Rails {
    rails: Vec<Rail>,
    messages: BufPool,
    options: RdmaOptions,
    next: AtomicUsize,
}

/// `device` or `device:port`.
fn parse(name: &str) -> (&str, Option<u8>) {
    match name.rsplit_once(':').map(|(device, port)| (device, port.parse())) {
        Some((device, Ok(port))) => (device, Some(port)),
        _ => (name, None),
    }
}

/// The entry of a port's table to use: the one that was configured; else, of the family of the peer's address if that is known already, the
/// address that the connection was made to or from, else one of its family; on Ethernet RoCE v2 and what reaches beyond the link, and
/// IPv4 first.
fn choose_gid(
    port: &PortInfo,
    index: Option<u8>,
    address: Option<IpAddr>,
    peer: Option<Gid>,
) -> Option<GidEntry> {
    let ethernet = port.link == LinkLayer::Ethernet;
    let wanted = address.map(Gid::of);
    let of_family = |gid: Gid, family: Option<IpAddr>| {
        !ethernet || family.is_none_or(|family| family.is_ipv4() == gid.ip().is_ipv4())
    };
    port.gids
        .iter()
        .filter(|entry| index.is_none_or(|index| entry.index == index))
        .min_by_key(|entry| {
            (
                !of_family(entry.gid, peer.map(Gid::ip)),
                Some(entry.gid) != wanted,
                !of_family(entry.gid, address),
                ethernet && entry.kind != GidKind::RoceV2,
                ethernet && entry.gid.is_link_local(),
                ethernet && entry.gid.ip().is_ipv6(),
                entry.index,
            )
        })
        .copied()
}

impl Rails {
    /// Opens the configured ports, or all that are active, and registers `pool` and the memory of messages with each device.
    pub fn open(
        provider: Arc<dyn Provider>,
        pool: &BufPool,
        options: &RdmaOptions,
    ) -> Result<Rails, VerbsError> {
        let memory = options.message_memory.max((RECEIVES + SENDS) * SLOT);
        let messages = BufPool::new(PoolConfig { bytes: [0, 0, 0, 0, memory] })?;
        let devices = provider.devices()?;
        let mut wanted: Vec<(String, u8)> = Vec::new();
        for name in &options.devices {
            let (device, port) = parse(name);
            let Some(info) = devices.iter().find(|info| info.name == device) else {
                let known: Vec<&str> = devices.iter().map(|info| &*info.name).collect();
                return Err(VerbsError::UnknownDevice { name: name.clone(), known: known.join(", ") });
            };
            match port {
                Some(port) if !info.ports.iter().any(|known| known.number == port) => {
                    let what = format!("it has no port {port}, only {}", info.ports.len());
                    return Err(VerbsError::Limit { device: device.into(), what });
                }
                Some(port) => wanted.push((device.into(), port)),
                None => wanted.extend(info.ports.iter().map(|port| (device.into(), port.number))),
            }
        }
        if options.devices.is_empty() {
            let active = |info: &DeviceInfo| {
                let ports = info.ports.iter().filter(|port| port.active && !port.gids.is_empty());
                ports.map(|port| (info.name.clone(), port.number)).collect::<Vec<_>>()
            };
            wanted = devices.iter().flat_map(active).collect();
        }
        let chosen = !options.devices.is_empty();
        if wanted.is_empty() {
            let names: Vec<&str> = devices.iter().map(|info| &*info.name).collect();
            return Err(VerbsError::NoDevice(match names.is_empty() {
                true => "this machine has none".into(),
                false => format!("no port of {} is active", names.join(", ")),
            }));
        }
        let mut adapters: Vec<Arc<Adapter>> = Vec::new();
        let mut refused = None;
        for info in devices {
            let name = info.name.clone();
            if !wanted.iter().any(|(device, _)| *device == name) {
                continue;
            }
            match Adapter::open(provider.clone(), info, [pool.clone(), messages.clone()]) {
                Ok(adapter) => adapters.push(adapter),
                // A limit that is too low is not the device's fault, and what was asked for has to be had.
                Err(error) if chosen || matches!(error, VerbsError::MemoryLock { .. }) => return Err(error),
                Err(error) => {
                    warn!("RDMA device {name} is left out: {error}");
                    refused.get_or_insert(error);
                }
            }
        }
        if let Some(error) = refused.filter(|_| adapters.is_empty()) {
            return Err(error);
        }
        // In the order in which they were named.
        let opened = |device: &str| adapters.iter().find(|adapter| adapter.name() == device).cloned();
        let rails =
            wanted.into_iter().filter_map(|(device, port)| Some(Rail { adapter: opened(&device)?, port }));
        let rails = rails.collect();
        Ok(Rails { rails, messages, options: options.clone(), next: AtomicUsize::new(0) })
    }

    /// The ports, for logs: `mlx5_0:1, mlx5_1:1`.
    pub fn names(&self) -> String {
        let names: Vec<String> =
            self.rails.iter().map(|rail| format!("{}:{}", rail.adapter.name(), rail.port)).collect();
        names.join(", ")
    }

    /// Registers one more pool with each device.
    pub fn register(&self, pool: &BufPool) -> Result<(), VerbsError> {
        self.rails.iter().try_for_each(|rail| rail.adapter.admit(pool))
    }

    /// What is wrong with the ports, if none can be used. A port whose device does not say how it is cannot. Does not wait: it is as when
    /// this was last asked, or a connection was made.
    pub fn outage(&self) -> Option<String> {
        let seen = self.rails.iter().map(|rail| rail.adapter.last_seen());
        let (routes, down) = self.routes(None, None, seen);
        routes.is_empty().then(|| down.join(", "))
    }

    /// Asks all devices how they are, and waits for them.
    #[cfg(test)]
    pub async fn ask(self: &Arc<Self>) {
        let rails = self.clone();
        wait_for(move || Ok(rails.look().count())).await.expect("a thread");
    }

    /// How the devices are now.
    fn look(&self) -> impl Iterator<Item = Result<DeviceInfo, String>> + '_ {
        // All at once, so that none waits for another.
        let looks: Vec<u64> = self.rails.iter().map(|rail| rail.adapter.want()).collect();
        self.rails.iter().zip(looks).map(|(rail, look)| rail.adapter.seen(look))
    }

    /// The ports that can be used if these are their devices, and what is wrong with the others.
    fn routes(
        &self,
        address: Option<IpAddr>,
        peer: Option<Gid>,
        seen: impl Iterator<Item = Result<DeviceInfo, String>>,
    ) -> (Vec<Route>, Vec<String>) {
        let mut routes = Vec::new();
        let mut down = Vec::new();
        for ((at, rail), seen) in self.rails.iter().enumerate().zip(seen) {
            let name = format!("{}:{}", rail.adapter.name(), rail.port);
            let nic = rail.adapter.nic().map_err(|error| error.to_string());
            let (nic, info) = match nic.and_then(|nic| Ok((nic, seen?))) {
                Ok(both) => both,
                Err(error) => {
                    down.push(format!("{name} cannot be used: {error}"));
                    continue;
                }
            };
            let Some(port) = info.ports.into_iter().find(|port| port.number == rail.port) else { continue };
            if !port.active {
                down.push(format!("{name} is {}", port.state));
                continue;
            }
            match choose_gid(&port, self.options.gid_index, address, peer) {
                Some(gid) => {
                    routes.push(Route { nic, limits: info.limits, port, gid, at });
                }
                None => down.push(format!("{name} has no such GID")),
            }
        }
        (routes, down)
    }

    /// A port for a connection whose stream has this address here: the port that has the address too; else the peer's `hint`; else each
    /// in turn. Only ports that are up, if any is. Waits for devices, as other verbs do.
    fn choose(
        &self,
        address: Option<IpAddr>,
        hint: Option<usize>,
        peer: Option<Gid>,
    ) -> Result<Route, VerbsError> {
        let (mut routes, down) = self.routes(address, peer, self.look());
        let exact = address.map(Gid::of);
        let by_address = routes.iter().position(|route| Some(route.gid.gid) == exact);
        let by_hint = || hint.and_then(|hint| routes.iter().position(|route| route.at == hint));
        let in_turn = || self.next.fetch_add(1, Relaxed) % routes.len().max(1);
        let at = by_address.or_else(by_hint).unwrap_or_else(in_turn);
        if at >= routes.len() {
            return Err(VerbsError::NoDevice(down.join(", ")));
        }
        Ok(routes.swap_remove(at))
    }

    /// A queue pair on a port for a connection whose stream has this address here. `access`: what the peer may do; `theirs`: what it says
    /// of itself, if it was first.
    pub(super) async fn half(
        self: Arc<Self>,
        address: IpAddr,
        access: Access,
        theirs: Option<Terms>,
    ) -> Result<Half, VerbsError> {
        wait_for(move || {
            let hint = theirs.map(|terms| terms.rail.into());
            let route = self.choose(Some(address), hint, theirs.map(|terms| Gid(terms.gid)))?;
            self.half_on(route, access)
        })
        .await
    }

    fn half_on(&self, route: Route, access: Access) -> Result<Half, VerbsError> {
        let Route { nic, limits, port, gid, at } = route;
        let works = WORKS.min(limits.queue_depth as usize);
        let sizes = Sizes { works, receives: RECEIVES, sends: SENDS, inline: INLINE };
        let device = nic.name().to_owned();
        let pair: QueuePair<Reset> = QueuePair::new(nic, &self.messages, sizes)?;
        let options = &self.options;
        let pair = pair.init(port.number, options.pkey_index.unwrap_or(port.pkey_index), access)?;
        let psn = rand::rng().random_range(0..1 << 24);
        let path = Path {
            port: port.number,
            link: port.link,
            gid_index: gid.index,
            mtu: port.mtu.min(options.mtu.unwrap_or(u16::MAX)),
            hop_limit: HOPS,
            traffic_class: options.traffic_class,
            service_level: options.service_level,
            timeout: options.timeout,
            retries: options.retries,
            rnr_retries: RNR_RETRIES,
            reads: limits.reads_out,
        };
        let terms = Terms {
            gid: gid.gid.0,
            number: pair.number().into(),
            psn: psn.into(),
            lid: port.lid.into(),
            mtu: path.mtu.into(),
            receives: (RECEIVES as u16).into(),
            status: 0.into(),
            reason_len: 0.into(),
            link: link_code(port.link),
            reads_in: limits.reads_in,
            reads_out: limits.reads_out,
            rail: at as u8,
            reserved: [0; 26],
        };
        Ok(Half { pair, path, psn, device, gid: gid.gid, terms })
    }

    pub fn options(&self) -> &RdmaOptions {
        &self.options
    }
}

/// Verbs that wait: for the firmware, or for the answer to "who has this address" (`ibv_modify_qp` to RTR on Ethernet, up to a second).
/// They do so on a thread for it, under this runtime.
async fn wait_for<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, VerbsError> + Send + 'static,
) -> Result<R, VerbsError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(VerbsError::NoDevice("this process is ending".into())),
        },
    }
}

impl Half {
    /// Brings it up towards its peer.
    pub async fn join(self, peer: Terms) -> Result<Link, VerbsError> {
        wait_for(move || self.join_now(&peer)).await
    }

    fn join_now(self, peer: &Terms) -> Result<Link, VerbsError> {
        let mut path = self.path;
        path.mtu = path.mtu.min(peer.mtu.get());
        path.reads = path.reads.min(peer.reads_in).max(1);
        let address = peer.peer(self.terms.reads_in);
        let pair = self.pair.ready_to_receive(&path, &address)?;
        let pair: QueuePair<ReadyToSend> = pair.ready_to_send(&path, self.psn)?;
        let to = match path.link {
            LinkLayer::Ethernet => format!("{}", address.gid),
            LinkLayer::InfiniBand => format!("lid {}", address.lid),
        };
        let name = format!("{}:{} ({}) to {to}, MTU {}", self.device, path.port, self.gid, path.mtu);
        let terms = link::Terms {
            peer_receives: peer.receives.get(),
            receives: RECEIVES as u16,
            reads: path.reads.into(),
        };
        Ok(Link::new(pair, terms, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(link: LinkLayer, gids: &[(u8, &str, GidKind)]) -> PortInfo {
        let entry = |&(index, ip, kind): &(u8, &str, GidKind)| GidEntry {
            index,
            gid: Gid::of(ip.parse().unwrap()),
            kind,
        };
        PortInfo {
            number: 1,
            active: true,
            state: "ACTIVE",
            link,
            lid: 3,
            mtu: 4096,
            bits_per_second: 0,
            pkey_index: 0,
            gids: gids.iter().map(entry).collect(),
        }
    }

    #[test]
    fn the_gid_is_the_one_that_was_asked_for_or_the_one_that_reaches_furthest() {
        let gids = [
            (0, "fe80::1", GidKind::Native),
            (1, "fe80::1", GidKind::RoceV2),
            (2, "fd09::1", GidKind::RoceV2),
            (3, "10.9.0.1", GidKind::Native),
            (4, "10.9.0.1", GidKind::RoceV2),
        ];
        let roce = port(LinkLayer::Ethernet, &gids);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let chosen = |index, address: Option<&str>, peer: Option<&str>| {
            choose_gid(&roce, index, address.map(ip), peer.map(|peer| Gid::of(ip(peer))))
                .map(|entry| entry.index)
        };
        assert_eq!(chosen(None, None, None), Some(4));
        assert_eq!(chosen(None, Some("fd09::1"), None), Some(2));
        assert_eq!(chosen(None, Some("fd09::7"), None), Some(2), "the family, if not the address");
        assert_eq!(chosen(None, Some("10.9.0.1"), None), Some(4));
        assert_eq!(chosen(None, Some("192.168.0.1"), None), Some(4));
        assert_eq!(chosen(None, Some("10.9.0.1"), Some("fd09::2")), Some(2), "both ends of one family");
        assert_eq!(chosen(Some(1), Some("fd09::1"), None), Some(1));
        assert_eq!(chosen(Some(9), None, None), None);
        let infiniband = port(LinkLayer::InfiniBand, &[(0, "fe80::2", GidKind::Native)]);
        assert_eq!(
            choose_gid(&infiniband, None, Some(ip("10.0.0.1")), None).map(|entry| entry.index),
            Some(0)
        );
    }

    #[test]
    fn a_device_may_be_named_with_its_port() {
        assert_eq!(parse("mlx5_0"), ("mlx5_0", None));
        assert_eq!(parse("mlx5_0:2"), ("mlx5_0", Some(2)));
        assert_eq!(parse("odd:name"), ("odd:name", None));
    }
}
