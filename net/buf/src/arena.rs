//! A buddy allocator over page numbers: which power-of-two runs of a class's arena are free. Knows nothing of memory.
//!
//! Free runs of one size form a list through a table beside the memory, so taking and giving back are a handful of array accesses per
//! split or merge, and the memory itself is never touched.

use crate::{MAX_BUF, PAGE};

/// Orders 0 (4 KiB) to this (4 MiB).
pub(crate) const MAX_ORDER: u8 = (MAX_BUF / PAGE).trailing_zeros() as u8;
const ORDERS: usize = MAX_ORDER as usize + 1;
const NIL: u32 = u32::MAX;
const NOT_FREE: u8 = u8::MAX;

/// What is known of a page that begins a free run.
#[derive(Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    /// The run's order; [`NOT_FREE`] for every page that does not begin a free run.
    order: u8,
}

/// Free runs of an arena of whole [`MAX_BUF`] blocks.
pub(crate) struct Arena {
    heads: [u32; ORDERS],
    links: Box<[Link]>,
    free_pages: usize,
}

impl Arena {
    pub fn new(blocks: u32) -> Arena {
        let pages = blocks << MAX_ORDER;
        let links = vec![Link { next: NIL, previous: NIL, order: NOT_FREE }; pages as usize];
        let mut arena =
            Arena { heads: [NIL; ORDERS], links: links.into_boxed_slice(), free_pages: pages as usize };
        // The last one in is the first one out: begin with the lowest.
        for block in (0..blocks).rev() {
            arena.insert(block << MAX_ORDER, MAX_ORDER);
        }
        arena
    }

    fn insert(&mut self, page: u32, order: u8) {
        let head = self.heads[order as usize];
        self.links[page as usize] = Link { next: head, previous: NIL, order };
        if head != NIL {
            self.links[head as usize].previous = page;
        }
        self.heads[order as usize] = page;
    }

    fn remove(&mut self, page: u32) {
        let Link { next, previous, order } = self.links[page as usize];
        if previous == NIL {
            self.heads[order as usize] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        if next != NIL {
            self.links[next as usize].previous = previous;
        }
        self.links[page as usize].order = NOT_FREE;
    }

    /// First page of a run of `1 << order` pages, split off the smallest free run that has it: so anything that fits by its size fits
    /// an arena from which nothing has been taken yet, in whatever order it is taken.
    pub fn take(&mut self, order: u8) -> Option<u32> {
        let from = (order..=MAX_ORDER).find(|&order| self.heads[order as usize] != NIL)?;
        let page = self.heads[from as usize];
        self.remove(page);
        for split in (order..from).rev() {
            self.insert(page + (1 << split), split);
        }
        self.free_pages -= 1 << order;
        Some(page)
    }

    pub fn give(&mut self, page: u32, order: u8) {
        debug_assert_eq!(self.links[page as usize].order, NOT_FREE, "a buffer was returned twice");
        self.free_pages += 1 << order;
        let (mut page, mut order) = (page, order);
        while order < MAX_ORDER {
            let buddy = page ^ (1 << order);
            if self.links[buddy as usize].order != order {
                break;
            }
            self.remove(buddy);
            page &= buddy;
            order += 1;
        }
        self.insert(page, order);
    }

    pub fn free_bytes(&self) -> usize {
        self.free_pages * PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *state >> 20
    }

    #[test]
    fn runs_never_overlap_and_all_come_together_again() {
        let mut arena = Arena::new(3);
        let mut state = 7_u64;
        let mut used = vec![false; 3 << MAX_ORDER];
        let mut held: Vec<(u32, u8)> = Vec::new();
        for _ in 0..20_000 {
            let order = (random(&mut state) % u64::from(MAX_ORDER + 1)) as u8;
            if random(&mut state) & 1 == 0 {
                if let Some(page) = arena.take(order) {
                    assert_eq!(page % (1 << order), 0, "aligned to its size");
                    for page in &mut used[page as usize..][..1 << order] {
                        assert!(!std::mem::replace(page, true), "overlap");
                    }
                    held.push((page, order));
                }
            } else if !held.is_empty() {
                let at = random(&mut state) as usize % held.len();
                let (page, order) = held.swap_remove(at);
                used[page as usize..][..1 << order].fill(false);
                arena.give(page, order);
            }
            let in_use = used.iter().filter(|&&used| used).count() * PAGE;
            assert_eq!(arena.free_bytes(), 3 * MAX_BUF - in_use);
        }
        for (page, order) in held {
            arena.give(page, order);
        }
        assert!((0..3).all(|_| arena.take(MAX_ORDER).is_some()) && arena.take(0).is_none());
    }

    #[test]
    fn whatever_fits_by_its_size_fits_an_untouched_arena_in_any_order() {
        let mut state = 11_u64;
        for _ in 0..2_000 {
            let mut arena = Arena::new(2);
            let mut left = 2 << MAX_ORDER;
            while left > 0 {
                let order = (random(&mut state) % u64::from(MAX_ORDER + 1)) as u8;
                if 1 << order <= left {
                    arena.take(order).expect("as much is left");
                    left -= 1 << order;
                }
            }
        }
    }
}
