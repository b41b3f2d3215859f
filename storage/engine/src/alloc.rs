//! Free space of the data area: runs of 4 KiB blocks in size classes, split and merged as buddies.
//!
//! Only free runs are remembered, so a full disk costs nothing and memory is bounded by fragmentation. After a restart the free
//! space is what no chunk has: nothing about it is stored.

use std::collections::BTreeSet;

/// Size classes: 4 KiB << order, up to 64 MiB.
pub const ORDERS: usize = 15;

/// A run of `1 << order` blocks, aligned to its size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Run {
    /// Its first block.
    pub start: u32,
    /// Its size class.
    pub order: u8,
}

impl Run {
    /// A run as read from the disk, if it can be one.
    pub fn checked(start: u32, order: u8) -> Option<Run> {
        let run = Run { start, order };
        (usize::from(order) < ORDERS
            && start.is_multiple_of(run.blocks())
            && start <= u32::MAX - run.blocks())
        .then_some(run)
    }
    /// Blocks in it.
    pub fn blocks(self) -> u32 {
        1 << self.order
    }
    /// Bytes in it.
    pub fn bytes(self) -> u64 {
        u64::from(self.blocks()) * crate::format::BLOCK_U64
    }
}

/// Smallest size class of at least `blocks` blocks.
pub fn order_of(blocks: u32) -> u8 {
    blocks.max(1).next_power_of_two().trailing_zeros() as u8
}

/// The free runs of a data area that may grow.
#[derive(Debug, Default)]
pub struct Allocator {
    free: [BTreeSet<u32>; ORDERS],
    /// Blocks of the area.
    end: u32,
    /// Free blocks among them.
    free_blocks: u64,
}

impl Allocator {
    /// Blocks of the area.
    pub fn end(&self) -> u32 {
        self.end
    }
    /// Free blocks among them.
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// An area of `end` blocks in which `used` are taken. `Err` names a run that overlaps another or lies outside.
    pub fn rebuild(end: u32, mut used: Vec<Run>) -> Result<Allocator, Run> {
        used.sort_unstable();
        let mut allocator = Allocator { end, ..Allocator::default() };
        let mut at = 0;
        for run in used {
            if run.start < at || run.start + run.blocks() > end {
                return Err(run);
            }
            allocator.add(at, run.start);
            at = run.start + run.blocks();
        }
        allocator.add(at, end);
        Ok(allocator)
    }

    /// The area grows to `end` blocks.
    pub fn grow(&mut self, end: u32) {
        let from = self.end;
        assert!(end >= from, "the data area never shrinks");
        self.end = end;
        self.add(from, end);
    }

    /// Frees `[from, to)` in the largest aligned runs.
    fn add(&mut self, mut from: u32, to: u32) {
        while from < to {
            let aligned =
                if from == 0 { ORDERS as u32 - 1 } else { from.trailing_zeros().min(ORDERS as u32 - 1) };
            let fits = (to - from).ilog2();
            let order = aligned.min(fits) as u8;
            self.give(Run { start: from, order });
            from += 1 << order;
        }
    }

    /// A run of the size class is free.
    pub fn has(&self, order: u8) -> bool {
        self.free[usize::from(order)..].iter().any(|runs| !runs.is_empty())
    }

    /// Takes a free run, the lowest that fits; `None` if there is none.
    pub fn take(&mut self, order: u8) -> Option<Run> {
        let from = (usize::from(order)..ORDERS).find(|&at| !self.free[at].is_empty())?;
        let start = self.free[from].pop_first()?;
        // The upper halves stay free.
        for at in usize::from(order)..from {
            self.free[at].insert(start + (1 << at));
        }
        self.free_blocks -= 1 << order;
        Some(Run { start, order })
    }

    /// Gives a run back.
    pub fn give(&mut self, run: Run) {
        self.free_blocks += u64::from(run.blocks());
        let (mut start, mut order) = (run.start, usize::from(run.order));
        while order + 1 < ORDERS && self.free[order].remove(&(start ^ (1 << order))) {
            start &= !(1 << order);
            order += 1;
        }
        let new = self.free[order].insert(start);
        assert!(new, "run {run:?} was freed twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_that_are_free_again_become_one() {
        let mut allocator = Allocator::rebuild(64, Vec::new()).unwrap();
        let runs: Vec<Run> = (0..64).map(|_| allocator.take(0).unwrap()).collect();
        assert_eq!(allocator.take(0), None);
        assert_eq!(runs.iter().map(|run| run.start).collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
        runs.into_iter().rev().for_each(|run| allocator.give(run));
        assert_eq!((allocator.free_blocks(), allocator.take(6)), (64, Some(Run { start: 0, order: 6 })));
    }

    #[test]
    fn what_is_used_is_not_handed_out_and_overlaps_are_noticed() {
        let used = vec![Run { start: 4, order: 2 }, Run { start: 1, order: 0 }];
        let mut allocator = Allocator::rebuild(11, used).unwrap();
        assert_eq!(allocator.free_blocks(), 6);
        let mut blocks: Vec<u32> = std::iter::from_fn(|| allocator.take(0)).map(|run| run.start).collect();
        blocks.sort_unstable();
        assert_eq!(blocks, [0, 2, 3, 8, 9, 10]);
        allocator.grow(16);
        assert_eq!(allocator.take(2), Some(Run { start: 12, order: 2 }));

        let twice = vec![Run { start: 4, order: 2 }, Run { start: 6, order: 0 }];
        assert_eq!(Allocator::rebuild(11, twice).err(), Some(Run { start: 6, order: 0 }));
        let outside = vec![Run { start: 8, order: 2 }];
        assert!(Allocator::rebuild(11, outside).is_err());
    }

    #[test]
    fn size_classes_are_the_next_power_of_two() {
        for (blocks, order) in [(0, 0), (1, 0), (2, 1), (3, 2), (256, 8), (16384, 14)] {
            assert_eq!(order_of(blocks), order, "{blocks}");
        }
    }
}
