//! A buddy allocator over page numbers: which power-of-two runs of a class's arena are free. Knows nothing of memory.

use std::collections::BTreeSet;

use crate::{MAX_BUF, PAGE};

/// Orders 0 (4 KiB) to this (4 MiB).
pub(crate) const MAX_ORDER: u8 = (MAX_BUF / PAGE).trailing_zeros() as u8;

/// Free runs of an arena of whole [`MAX_BUF`] blocks. The lowest fitting run is always taken, so that runs stay together.
pub(crate) struct Arena {
    free: [BTreeSet<u32>; MAX_ORDER as usize + 1],
    free_pages: usize,
}

impl Arena {
    pub fn new(blocks: u32) -> Arena {
        let mut free: [BTreeSet<u32>; MAX_ORDER as usize + 1] = Default::default();
        let pages = 1_u32 << MAX_ORDER;
        free[MAX_ORDER as usize] = (0..blocks).map(|block| block * pages).collect();
        Arena { free, free_pages: blocks as usize * pages as usize }
    }

    /// First page of a run of `1 << order` pages.
    pub fn take(&mut self, order: u8) -> Option<u32> {
        let from = (order..=MAX_ORDER).find(|&order| !self.free[order as usize].is_empty())?;
        let page = self.free[from as usize].pop_first()?;
        for split in (order..from).rev() {
            self.free[split as usize].insert(page + (1 << split));
        }
        self.free_pages -= 1 << order;
        Some(page)
    }

    pub fn give(&mut self, page: u32, order: u8) {
        self.free_pages += 1 << order;
        let (mut page, mut order) = (page, order);
        while order < MAX_ORDER && self.free[order as usize].remove(&(page ^ (1 << order))) {
            page &= !(1 << order);
            order += 1;
        }
        let fresh = self.free[order as usize].insert(page);
        debug_assert!(fresh, "a buffer was returned twice");
    }

    pub fn free_bytes(&self) -> usize {
        self.free_pages * PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_never_overlap_and_all_come_together_again() {
        let mut arena = Arena::new(2);
        let mut random = 7_u64;
        let mut held: Vec<(u32, u8)> = Vec::new();
        for _ in 0..20_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let order = (random >> 40) as u8 % (MAX_ORDER + 1);
            if random >> 63 == 0 {
                if let Some(page) = arena.take(order) {
                    assert_eq!(page % (1 << order), 0);
                    for &(other, size) in &held {
                        assert!(page + (1 << order) <= other || other + (1 << size) <= page, "overlap");
                    }
                    held.push((page, order));
                }
            } else if !held.is_empty() {
                let (page, order) = held.swap_remove((random >> 20) as usize % held.len());
                arena.give(page, order);
            }
        }
        for (page, order) in held {
            arena.give(page, order);
        }
        assert_eq!(arena.free[MAX_ORDER as usize].len(), 2);
        assert_eq!(arena.free_bytes(), 2 * MAX_BUF);
    }
}
