//! The checksum table: four bytes for each block of the data area, in pages of which a bounded number is in memory.
//!
//! Only checksums of *base* versions are here; those of pendings are in the pendings. A change is known from the log until the next
//! checkpoint, so pages may be written at any time and torn: replay puts every checksum again that changed.

use std::collections::HashMap;

use catena_proto::checksum::BLOCK;

/// Checksums in a page of the table.
pub const PER_PAGE: u32 = (BLOCK / 4) as u32;

struct Page {
    sums: Box<[u32; PER_PAGE as usize]>,
    /// Which of `sums` are known; all, once the page was loaded.
    known: Box<[u64; PER_PAGE as usize / 64]>,
    known_count: u32,
    dirty: bool,
    /// On its way to the disk: it stays until it is there, or a reader would get what was there before.
    writing: bool,
    /// Used since the hand of the clock passed.
    used: bool,
}

/// The cached part of the table.
pub struct Sums {
    /// Never iterated where order would show.
    pages: HashMap<u32, Page>,
    /// Ring of page numbers for the clock.
    clock: Vec<u32>,
    hand: usize,
    limit: usize,
    dirty: usize,
    /// Pages written so far: what was read before one of them may be old.
    pub generation: u64,
}

impl Sums {
    /// A cache of about `bytes`.
    pub fn new(bytes: usize) -> Sums {
        let limit = (bytes / BLOCK).max(16);
        Sums { pages: HashMap::new(), clock: Vec::new(), hand: 0, limit, dirty: 0, generation: 0 }
    }
    /// So many changed pages that they should be written.
    pub fn is_full(&self) -> bool {
        self.dirty * 2 > self.limit
    }

    /// Checksums of `count` blocks from `block` on. Unknown ones are 0, and their page is appended to `missing`.
    pub fn get(&mut self, block: u32, count: u32, out: &mut Vec<u32>, missing: &mut Vec<u32>) {
        let end = block + count;
        let mut at = block;
        while at < end {
            let number = at / PER_PAGE;
            let stop = end.min((number + 1) * PER_PAGE);
            let range = (at % PER_PAGE) as usize..((stop - 1) % PER_PAGE) as usize + 1;
            let known = self.pages.get_mut(&number).filter(|page| page.knows(range.clone()));
            match known {
                Some(page) => {
                    page.used = true;
                    out.extend_from_slice(&page.sums[range]);
                }
                None => {
                    missing.push(number);
                    out.resize(out.len() + range.len(), 0);
                }
            }
            at = stop;
        }
    }

    /// Sets checksums of consecutive blocks.
    pub fn put(&mut self, block: u32, crcs: &[u32]) {
        let (mut at, mut crcs) = (block, crcs);
        while !crcs.is_empty() {
            let number = at / PER_PAGE;
            let from = (at % PER_PAGE) as usize;
            let count = crcs.len().min(PER_PAGE as usize - from);
            let page = self.page(number);
            page.sums[from..from + count].copy_from_slice(&crcs[..count]);
            page.learn(from..from + count);
            page.used = true;
            if !page.dirty {
                page.dirty = true;
                self.dirty += 1;
            }
            at += count as u32;
            crcs = &crcs[count..];
        }
    }

    /// A page as read from the disk; what memory knows better stays.
    pub fn loaded(&mut self, number: u32, bytes: &[u8]) {
        let page = self.page(number);
        for (at, word) in bytes.chunks_exact(4).enumerate().take(PER_PAGE as usize) {
            if page.known[at / 64] & (1 << (at % 64)) == 0 {
                page.sums[at] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            }
        }
        page.learn(0..PER_PAGE as usize);
        page.used = true;
    }

    /// Numbers of the changed pages, ascending.
    pub fn dirty_numbers(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> =
            self.pages.iter().filter(|(_, page)| page.dirty).map(|(&number, _)| number).collect();
        numbers.sort_unstable();
        numbers
    }
    /// All of the page is in memory.
    pub fn is_complete(&self, number: u32) -> bool {
        self.pages.get(&number).is_some_and(|page| page.known_count == PER_PAGE)
    }
    /// Copies a changed page out to be written; from then on it counts as clean, and stays until [`Sums::written`].
    pub fn clean(&mut self, number: u32, out: &mut [u8]) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        for (word, sum) in out.chunks_exact_mut(4).zip(page.sums.iter()) {
            word.copy_from_slice(&sum.to_le_bytes());
        }
        if std::mem::take(&mut page.dirty) {
            self.dirty -= 1;
        }
        page.writing = true;
        self.generation += 1;
    }
    /// A page that was cleaned is on the disk.
    pub fn written(&mut self, number: u32) {
        if let Some(page) = self.pages.get_mut(&number) {
            page.writing = false;
        }
    }

    /// A page that was cleaned may not have reached the disk: it is changed again.
    pub fn spoil(&mut self, number: u32) {
        if let Some(page) = self.pages.get_mut(&number) {
            page.writing = false;
            if !page.dirty {
                page.dirty = true;
                self.dirty += 1;
            }
        }
    }

    fn page(&mut self, number: u32) -> &mut Page {
        if !self.pages.contains_key(&number) {
            self.make_room();
            self.clock.push(number);
        }
        self.pages.entry(number).or_insert_with(|| Page {
            sums: Box::new([0; PER_PAGE as usize]),
            known: Box::new([0; PER_PAGE as usize / 64]),
            known_count: 0,
            dirty: false,
            writing: false,
            used: true,
        })
    }

    /// Second chance. Changed pages stay, beyond the limit if need be: the next checkpoint is due long before.
    fn make_room(&mut self) {
        let mut steps = self.clock.len() * 2;
        while self.pages.len() >= self.limit && steps > 0 {
            steps -= 1;
            self.hand %= self.clock.len();
            let number = self.clock[self.hand];
            match self.pages.get_mut(&number) {
                Some(page) if page.dirty || page.writing => self.hand += 1,
                Some(page) if page.used => {
                    page.used = false;
                    self.hand += 1;
                }
                _ => {
                    self.pages.remove(&number);
                    self.clock.swap_remove(self.hand);
                }
            }
        }
    }
}

impl Page {
    fn knows(&self, range: std::ops::Range<usize>) -> bool {
        self.known_count == PER_PAGE
            || range.into_iter().all(|at| self.known[at / 64] & (1 << (at % 64)) != 0)
    }
    fn learn(&mut self, range: std::ops::Range<usize>) {
        for at in range {
            let (word, bit) = (&mut self.known[at / 64], 1 << (at % 64));
            self.known_count += u32::from(*word & bit == 0);
            *word |= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_knows_is_newer_than_what_is_read() {
        let mut sums = Sums::new(0);
        sums.put(1020, &[1, 2, 3, 4, 5, 6]);
        let (mut out, mut missing) = (Vec::new(), Vec::new());
        sums.get(1020, 6, &mut out, &mut missing);
        assert_eq!((&out[..], missing.len()), (&[1, 2, 3, 4, 5, 6][..], 0));
        out.clear();
        sums.get(1019, 6, &mut out, &mut missing);
        assert_eq!(missing, [0]);
        sums.loaded(0, &[9; BLOCK]);
        out.clear();
        missing.clear();
        sums.get(1019, 6, &mut out, &mut missing);
        assert_eq!((&out[..], missing.len()), (&[0x0909_0909, 1, 2, 3, 4, 5][..], 0));
    }

    #[test]
    fn clean_pages_make_room_and_changed_ones_stay() {
        let mut sums = Sums::new(16 * BLOCK);
        for number in 0..100 {
            sums.loaded(number, &[0; BLOCK]);
        }
        assert!(sums.pages.len() <= 16);
        for number in 0..40 {
            sums.put(number * PER_PAGE, &[7]);
        }
        assert_eq!((sums.dirty, sums.dirty_numbers().len()), (40, 40));
        assert!(sums.is_full());
        let mut page = vec![0; BLOCK];
        for number in sums.dirty_numbers() {
            sums.loaded(number, &[0; BLOCK]);
            sums.clean(number, &mut page);
            sums.written(number);
            assert_eq!(page[0], 7);
        }
        sums.loaded(1000, &[0; BLOCK]);
        assert!(sums.pages.len() <= 17 && sums.dirty == 0);
    }
}
