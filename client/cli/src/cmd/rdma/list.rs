//! Devices, ports, addresses and limits.

use catena_verbs::{DeviceInfo, GidKind, LinkLayer, PortInfo};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::output::Output;
use crate::table::Table;
use crate::units;

/// Below this much lockable memory a service's pool cannot be registered.
const ENOUGH: u64 = 1 << 30;

fn link(link: LinkLayer) -> &'static str {
    match link {
        LinkLayer::InfiniBand => "InfiniBand",
        LinkLayer::Ethernet => "Ethernet (RoCE)",
    }
}

fn gids(port: &PortInfo) -> String {
    let kind = |kind| if kind == GidKind::RoceV2 { " v2" } else { "" };
    let all = port.gids.iter().map(|gid| format!("{}: {}{}", gid.index, gid.gid, kind(gid.kind)));
    all.collect::<Vec<_>>().join(", ")
}

/// Shows them, and what is too small.
pub fn print(devices: &[DeviceInfo], out: Output) {
    let mut table =
        Table::new(&["DEVICE", "STATE", "LINK", ">MTU", ">GBIT/S", "GIDS (index: address, RoCE version)"]);
    for device in devices {
        for port in &device.ports {
            table.row([
                format!("{}:{}", device.name, port.number),
                port.state.to_owned(),
                link(port.link).to_owned(),
                port.mtu.to_string(),
                format!("{:.1}", port.bits_per_second as f64 / 1e9),
                gids(port),
            ]);
        }
    }
    out.table(&table, "no RDMA device");
    match getrlimit(Resource::Memlock).current {
        Some(limit) if limit < ENOUGH => out.say(format!(
            "\nlocked memory: {}, too little for a service's buffers unless it runs as root: raise it (`ulimit -l unlimited`, \
             LimitMEMLOCK=infinity in a systemd unit)",
            units::size(limit)
        )),
        Some(limit) => out.say(format!("\nlocked memory: {}", units::size(limit))),
        None => out.say("\nlocked memory: unlimited"),
    }
}

/// `device:port` of those that are up.
pub fn active(devices: &[DeviceInfo]) -> Vec<String> {
    let ports = devices.iter().flat_map(|device| device.ports.iter().map(move |port| (device, port)));
    ports
        .filter(|(_, port)| port.active && !port.gids.is_empty())
        .map(|(device, port)| format!("{}:{}", device.name, port.number))
        .collect()
}

/// For programs.
pub fn json(devices: &[DeviceInfo]) -> Value {
    let port = |port: &PortInfo| {
        json!({
            "port": port.number, "active": port.active, "state": port.state, "link": link(port.link), "lid": port.lid,
            "mtu": port.mtu, "bits_per_second": port.bits_per_second,
            "gids": port.gids.iter().map(|gid| json!({ "index": gid.index, "gid": gid.gid.to_string(),
                "roce_v2": gid.kind == GidKind::RoceV2 })).collect::<Vec<_>>(),
        })
    };
    let device = |device: &DeviceInfo| {
        let limits = device.limits;
        json!({
            "name": device.name, "firmware": device.firmware, "ports": device.ports.iter().map(port).collect::<Vec<_>>(),
            "queue_pairs": limits.queue_pairs, "queue_depth": limits.queue_depth, "regions": limits.regions,
            "reads_out": limits.reads_out, "reads_in": limits.reads_in,
        })
    };
    devices.iter().map(device).collect()
}
