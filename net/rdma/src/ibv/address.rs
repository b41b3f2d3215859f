//! The address of a peer, as a queue pair wants it.

use super::sys::{ibv_ah_attr, ibv_gid, ibv_global_route};
use crate::provider::{Gid, LinkLayer, Path, PeerAddress};

/// The address of `peer` on `path`.
///
/// RoCE packets carry a GID always. Within an InfiniBand subnet the LID is enough, and a global route header of 40 bytes per packet is
/// left out unless the port wants one (`grh_required`) or the peer's GID is of another subnet than `own`.
pub fn of(path: &Path, peer: &PeerAddress, own: Option<Gid>, grh_required: bool) -> ibv_ah_attr {
    let elsewhere = own.is_some_and(|own| own.0[..8] != peer.gid.0[..8]) && !peer.gid.is_empty();
    let global = path.link == LinkLayer::Ethernet || grh_required || elsewhere;
    let mut attr = ibv_ah_attr::zeroed();
    attr.port_num = path.port;
    attr.sl = path.service_level;
    if path.link == LinkLayer::InfiniBand {
        attr.dlid = peer.lid;
    }
    if global {
        attr.is_global = 1;
        attr.grh = ibv_global_route {
            dgid: ibv_gid { raw: peer.gid.0 },
            // None: the kernel makes the UDP source port of RoCE v2 from the numbers of both queue pairs, so that switches spread
            // connections over equal paths.
            flow_label: 0,
            sgid_index: path.gid_index,
            hop_limit: path.hop_limit,
            traffic_class: path.traffic_class,
        };
    }
    attr
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: Path = Path {
        port: 2,
        link: LinkLayer::Ethernet,
        gid_index: 3,
        mtu: 4096,
        hop_limit: 64,
        traffic_class: 106,
        service_level: 5,
        timeout: 14,
        retries: 6,
        rnr_retries: 6,
        reads: 16,
    };

    fn peer(gid: &str) -> PeerAddress {
        PeerAddress { number: 17, psn: 9, lid: 21, gid: Gid::of(gid.parse().unwrap()), reads: 16 }
    }

    #[test]
    fn on_roce_a_peer_is_its_gid() {
        let attr = of(&PATH, &peer("10.0.0.7"), None, false);
        assert_eq!((attr.is_global, attr.dlid, attr.port_num, attr.sl), (1, 0, 2, 5));
        assert_eq!((attr.grh.sgid_index, attr.grh.hop_limit, attr.grh.traffic_class), (3, 64, 106));
        assert_eq!(Gid(attr.grh.dgid.raw).to_string(), "10.0.0.7");
    }

    #[test]
    fn within_an_infiniband_subnet_a_peer_is_its_lid() {
        let path = Path { link: LinkLayer::InfiniBand, ..PATH };
        let own = Some(Gid::of("fe80::1".parse().unwrap()));
        let attr = of(&path, &peer("fe80::2"), own, false);
        assert_eq!((attr.is_global, attr.dlid, attr.sl), (0, 21, 5));
        assert_eq!(of(&path, &PeerAddress { gid: Gid::default(), ..peer("::1") }, own, false).is_global, 0);
    }

    #[test]
    fn across_infiniband_subnets_the_gid_is_said_too() {
        let path = Path { link: LinkLayer::InfiniBand, ..PATH };
        let own = Some(Gid::of("fe80::1".parse().unwrap()));
        let attr = of(&path, &peer("fec0::2"), own, false);
        assert_eq!((attr.is_global, attr.dlid, attr.grh.sgid_index), (1, 21, 3));
        assert_eq!(of(&path, &peer("fe80::2"), own, true).is_global, 1, "where the port wants it");
    }
}
