//! What a device is, and how its ports are.

use std::ffi::c_int;
use std::io;

use super::absence;
use super::device::{Context, text};
use super::library::{clear_errno, errno, query_port};
use super::sys::*;
use crate::error::VerbsError;
use crate::provider::{DeviceInfo, DeviceLimits, Gid, GidEntry, GidKind, LinkLayer, PortInfo};

/// All about it, now.
pub fn device(context: &Context) -> Result<DeviceInfo, VerbsError> {
    let attr = attributes(context)?;
    let mut ports = Vec::new();
    let mut table_len = 0;
    for number in 1..=attr.phys_port_cnt {
        let (port, gids) = port(context, number)?;
        table_len += gids;
        ports.push((port, gids));
    }
    let table = gid_table(context, table_len);
    let ports = ports.into_iter().map(|(port, gids)| {
        let gids = match &table {
            Some(table) => {
                table.iter().filter(|(number, _)| *number == port.number).map(|(_, entry)| *entry).collect()
            }
            None => gids_one_by_one(context, port.number, gids),
        };
        PortInfo { gids, ..port }
    });
    let ports = ports.collect();
    // SAFETY: a record of ours; the library ends the text.
    let firmware = unsafe { text(&raw const attr.fw_ver) };
    Ok(DeviceInfo { name: context.name.clone(), firmware, limits: limits_of(&attr), ports })
}

/// What it can do.
pub fn limits(context: &Context) -> Result<DeviceLimits, VerbsError> {
    attributes(context).map(|attr| limits_of(&attr))
}

fn limits_of(attr: &ibv_device_attr) -> DeviceLimits {
    let count = |number: c_int| u32::try_from(number).unwrap_or(0);
    let reads = |number: c_int| u8::try_from(number.max(0)).unwrap_or(u8::MAX);
    DeviceLimits {
        queue_depth: count(attr.max_qp_wr),
        completions: count(attr.max_cqe),
        reads_out: reads(attr.max_qp_init_rd_atom),
        reads_in: reads(attr.max_qp_rd_atom),
        queue_pairs: count(attr.max_qp),
        regions: count(attr.max_mr),
    }
}

fn attributes(context: &Context) -> Result<ibv_device_attr, VerbsError> {
    let mut attr = ibv_device_attr::zeroed();
    // SAFETY: the context is open, the record is the header's.
    let status = unsafe { (context.functions.ibv_query_device)(context.raw.as_ptr(), &mut attr) };
    context.check("ibv_query_device", status)?;
    // It is text; whatever a driver says, it ends.
    attr.fw_ver[attr.fw_ver.len() - 1] = 0;
    Ok(attr)
}

/// The attributes of a port, as the library has them.
pub fn port_attributes(context: &Context, number: u8) -> Result<ibv_port_attr, VerbsError> {
    let mut attr = ibv_port_attr::zeroed();
    // SAFETY: the context is open.
    let status = unsafe { query_port(context.functions, context.raw.as_ptr(), number, &mut attr) };
    context.check("ibv_query_port", status)?;
    Ok(attr)
}

/// A port without its GIDs, and how many there can be.
fn port(context: &Context, number: u8) -> Result<(PortInfo, usize), VerbsError> {
    let attr = port_attributes(context, number)?;
    let link = match attr.link_layer {
        IBV_LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
        // Unspecified is InfiniBand: the field came when there was something else.
        _ => LinkLayer::InfiniBand,
    };
    let port = PortInfo {
        number,
        active: attr.state == IBV_PORT_ACTIVE,
        state: state_name(attr.state),
        link,
        lid: attr.lid,
        mtu: mtu_bytes(attr.active_mtu),
        bits_per_second: bits_per_second(attr.active_width, attr.active_speed),
        gids: Vec::new(),
        pkey_index: match link {
            LinkLayer::InfiniBand => choose_pkey(pkeys(context, number, attr.pkey_tbl_len)),
            LinkLayer::Ethernet => 0,
        },
    };
    Ok((port, usize::try_from(attr.gid_tbl_len).unwrap_or(0)))
}

/// The partitions that a port is in, by their index; stops at the first that cannot be read.
fn pkeys(context: &Context, port: u8, len: u16) -> impl Iterator<Item = (u16, u16)> {
    (0..len).map_while(move |index| {
        let mut pkey = 0;
        // SAFETY: the context is open, and the key is written to.
        let status = unsafe {
            (context.functions.ibv_query_pkey)(context.raw.as_ptr(), port, c_int::from(index), &mut pkey)
        };
        (status == 0).then(|| (index, u16::from_be(pkey)))
    })
}

/// The first partition of which the port is a full member: the highest bit (InfiniBand Architecture Specification, volume 1, 10.9.2). Two
/// limited members do not hear each other. The first one, if there is none.
fn choose_pkey(mut pkeys: impl Iterator<Item = (u16, u16)>) -> u16 {
    pkeys.find(|&(_, pkey)| pkey & 0x8000 != 0 && pkey & 0x7fff != 0).map_or(0, |(index, _)| index)
}

fn state_name(state: u32) -> &'static str {
    match state {
        IBV_PORT_NOP => "NOP",
        IBV_PORT_DOWN => "DOWN",
        IBV_PORT_INIT => "INIT",
        IBV_PORT_ARMED => "ARMED",
        IBV_PORT_ACTIVE => "ACTIVE",
        IBV_PORT_ACTIVE_DEFER => "ACTIVE_DEFER",
        _ => "UNKNOWN",
    }
}

/// `enum ibv_mtu` in bytes; 0 for none.
fn mtu_bytes(mtu: u32) -> u16 {
    if (IBV_MTU_256..=IBV_MTU_4096).contains(&mtu) { 128 << mtu } else { 0 }
}

/// Bytes as `enum ibv_mtu`.
pub fn mtu_code(bytes: u16) -> Option<u32> {
    (IBV_MTU_256..=IBV_MTU_4096).find(|&mtu| mtu_bytes(mtu) == bytes)
}

/// A link of so many lanes at so much each, by the codes of the InfiniBand specification (PortInfo). 0 for a code that is new.
fn bits_per_second(width: u8, speed: u8) -> u64 {
    let lanes = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 0,
    };
    // SDR, DDR, QDR, FDR-10, FDR, EDR, HDR, NDR.
    let megabits = match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 0,
    };
    lanes * megabits * 1_000_000
}

/// The GIDs of all ports with their ports' numbers, in one call. `None` if the library or the kernel cannot tell.
fn gid_table(context: &Context, len: usize) -> Option<Vec<(u8, GidEntry)>> {
    let query = context.functions._ibv_query_gid_table?;
    let mut entries = vec![ibv_gid_entry::zeroed(); len];
    // SAFETY: the entries are as many and as long as we say.
    let count = unsafe {
        query(context.raw.as_ptr(), entries.as_mut_ptr(), entries.len(), 0, size_of::<ibv_gid_entry>())
    };
    entries.truncate(usize::try_from(count).ok()?);
    let entry = |raw: &ibv_gid_entry| {
        let kind = match raw.gid_type {
            IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
            _ => GidKind::Native,
        };
        let index = u8::try_from(raw.gid_index).ok()?;
        let entry = GidEntry { index, gid: Gid(raw.gid.raw), kind };
        (!entry.gid.is_empty()).then_some((u8::try_from(raw.port_num).ok()?, entry))
    };
    Some(entries.iter().filter_map(entry).collect())
}

/// The GIDs of a port, each asked for by itself, with its kind from sysfs.
fn gids_one_by_one(context: &Context, port: u8, len: usize) -> Vec<GidEntry> {
    let entry = |index: u8| {
        let gid = gid(context, port, index).ok().filter(|gid| !gid.is_empty())?;
        let path = format!("{}/{}/ports/{port}/gid_attrs/types/{index}", absence::CLASS, context.name);
        Some(GidEntry { index, gid, kind: kind_of(&std::fs::read_to_string(path).unwrap_or_default()) })
    };
    (0..=u8::MAX).take(len).filter_map(entry).collect()
}

/// As the kernel names it.
fn kind_of(sysfs: &str) -> GidKind {
    if sysfs.trim() == "RoCE v2" { GidKind::RoceV2 } else { GidKind::Native }
}

/// An entry of a port's table.
pub fn gid(context: &Context, port: u8, index: u8) -> Result<Gid, VerbsError> {
    let mut gid = ibv_gid::zeroed();
    clear_errno();
    // SAFETY: the context is open.
    let status = unsafe {
        (context.functions.ibv_query_gid)(context.raw.as_ptr(), port, c_int::from(index), &mut gid)
    };
    if status != 0 {
        let error: io::Error = errno();
        return Err(context.failed("ibv_query_gid", error));
    }
    Ok(Gid(gid.raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_lanes_times_speed() {
        assert_eq!(bits_per_second(2, 16), 56_000_000_000, "FDR");
        assert_eq!(bits_per_second(2, 32), 100_000_000_000, "EDR, 100 GbE");
        assert_eq!(bits_per_second(2, 128), 400_000_000_000, "NDR");
        assert_eq!(bits_per_second(1, 1), 2_500_000_000, "what soft-RoCE says");
        assert_eq!(bits_per_second(3, 1), 0);
    }

    #[test]
    fn the_partition_is_the_first_with_full_membership() {
        let choose = |keys: &[u16]| choose_pkey((0..).zip(keys.iter().copied()));
        assert_eq!(choose(&[0xffff, 0x8001]), 0, "the default partition");
        assert_eq!(choose(&[0x7fff, 0x8000, 0x0001, 0x8001, 0x8002]), 3);
        assert_eq!(choose(&[0x7fff]), 0, "limited, to full members");
        assert_eq!(choose(&[]), 0);
    }

    #[test]
    fn mtus_have_codes() {
        for (bytes, code) in [(256, 1), (512, 2), (1024, 3), (2048, 4), (4096, 5)] {
            assert_eq!(mtu_code(bytes), Some(code));
            assert_eq!(mtu_bytes(code), bytes);
        }
        assert_eq!((mtu_code(1500), mtu_code(0), mtu_bytes(0), mtu_bytes(6)), (None, None, 0, 0));
    }

    #[test]
    fn kinds_of_gids_are_read_from_sysfs() {
        assert_eq!(kind_of("RoCE v2\n"), GidKind::RoceV2);
        assert_eq!(kind_of("IB/RoCE v1\n"), GidKind::Native);
        assert_eq!(kind_of(""), GidKind::Native);
    }
}
