//! The order within chains: every disk heads equally many, and has every other position equally often.
//!
//! Moving the head's role within one chain is an edge from its head to another member. A path of such edges from a disk that heads too
//! many to one that heads too few evens both out and leaves the disks between as they were; while there is such a path the counts are
//! not as even as they can be, and when there is none they are.

use std::collections::VecDeque;

/// Orders every chain so that each position is spread evenly over the disks.
pub fn rotate_evenly(chains: &mut [Vec<usize>], disks: usize) {
    let replicas = chains.first().map_or(0, Vec::len);
    for position in 0..replicas.saturating_sub(1) {
        even_out(chains, disks, position);
    }
}

fn even_out(chains: &mut [Vec<usize>], disks: usize, position: usize) {
    let mut held = vec![0usize; disks];
    let mut by_holder: Vec<Vec<usize>> = vec![Vec::new(); disks];
    for (index, chain) in chains.iter().enumerate() {
        held[chain[position]] += 1;
        by_holder[chain[position]].push(index);
    }
    let mut done = vec![false; disks];
    while let Some(most) = (0..disks).filter(|&disk| !done[disk]).max_by_key(|&disk| (held[disk], disk)) {
        // Breadth first from `most` to a disk with at least two fewer.
        let mut came_by: Vec<Option<(usize, usize)>> = vec![None; disks];
        let mut queue = VecDeque::from([most]);
        let mut end = None;
        'search: while let Some(disk) = queue.pop_front() {
            for &index in &by_holder[disk] {
                for &next in &chains[index][position + 1..] {
                    if next != most && came_by[next].is_none() {
                        came_by[next] = Some((disk, index));
                        if held[next] + 2 <= held[most] {
                            end = Some(next);
                            break 'search;
                        }
                        queue.push_back(next);
                    }
                }
            }
        }
        let Some(mut disk) = end else {
            // Nothing that `most` reaches can take from it, now or later: paths only ever even out.
            done[most] = true;
            continue;
        };
        held[disk] += 1;
        held[most] -= 1;
        while let Some((from, index)) = came_by[disk] {
            let chain = &mut chains[index];
            let place =
                chain.iter().position(|&member| member == disk).expect("the path runs through the chain");
            chain.swap(position, place);
            by_holder[from].retain(|&held| held != index);
            by_holder[disk].push(index);
            disk = from;
        }
    }
}
