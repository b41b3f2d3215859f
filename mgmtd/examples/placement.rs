//! Prints how evenly placement spreads load after a failure: `cargo run --release -p catena-mgmtd --example placement`.

use std::time::Instant;

use catena_mgmtd::placement::{Slot, Wanted, place};
use catena_proto::ids::{DiskId, NodeId};

fn main() {
    println!("nodes disks/node replicas targets/disk  chains  worst  bound  heads(min..max)   time");
    let cases = [
        (3, 1, 3, 0),
        (4, 1, 3, 0),
        (5, 2, 3, 0),
        (7, 1, 3, 0),
        (10, 4, 3, 0),
        (25, 16, 3, 0),
        (50, 1, 3, 0),
        (100, 12, 3, 0),
        (180, 16, 2, 0),
        (200, 1, 3, 0),
        (200, 1, 2, 0),
        (200, 16, 3, 0),
        (200, 10, 3, 12),
        (200, 16, 4, 0),
    ];
    for (nodes, disks, replicas, targets_per_disk) in cases {
        let mut slots: Vec<_> = (0..nodes * disks)
            .map(|i| {
                let node = NodeId(i / disks + 1);
                Slot { domain: node.to_string(), node, disk: DiskId(u128::from(i) + 1) }
            })
            .collect();
        slots.sort();
        let begin = Instant::now();
        let placement = match place(&slots, Wanted { replicas, targets_per_disk, seed: 1 }) {
            Ok(placement) => placement,
            Err(error) => {
                println!("{nodes} nodes: {error}");
                continue;
            }
        };
        let mut heads = vec![0; slots.len()];
        placement.chains.iter().for_each(|chain| heads[chain[0]] += 1);
        println!(
            "{nodes:>5} {disks:>10} {replicas:>8} {:>12} {:>7} {:>6.3} {:>6.3} {:>10}..{:<5} {:>6.0?}",
            placement.targets_per_disk,
            placement.chains.len(),
            placement.balance.worst,
            placement.balance.bound,
            heads.iter().min().unwrap(),
            heads.iter().max().unwrap(),
            begin.elapsed(),
        );
    }
}
