//! File contents that can be made and checked at memory speed, at any offset, from a seed.
//!
//! Every 4 KiB block is one random pattern, exclusive-or a key of the block's number: a byte that is lost, moved by anything, or from
//! another file (another seed) shows.

const BLOCK: usize = 4096;
const WORDS: usize = BLOCK / 8;

/// The contents of one file.
#[derive(Clone)]
pub struct Content {
    seed: u64,
    pattern: Box<[u64; WORDS]>,
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
pub fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Content {
    /// The contents that `seed` names.
    pub fn new(seed: u64) -> Content {
        let mut state = splitmix(seed);
        let mut pattern = Box::new([0; WORDS]);
        for word in pattern.iter_mut() {
            state = splitmix(state);
            *word = state;
        }
        Content { seed, pattern }
    }

    fn key(&self, block: u64) -> u64 {
        splitmix(self.seed ^ block.wrapping_mul(0xA24B_AED4_963E_E407))
    }

    /// The bytes at `offset` on.
    pub fn fill(&self, offset: u64, bytes: &mut [u8]) {
        self.walk(offset, bytes.len(), |key, within, range| {
            let part = &mut bytes[range];
            if within == 0 && part.len() == BLOCK {
                for (bytes, word) in part.chunks_exact_mut(8).zip(self.pattern.iter()) {
                    bytes.copy_from_slice(&(word ^ key).to_le_bytes());
                }
            } else {
                for (i, byte) in part.iter_mut().enumerate() {
                    *byte = self.byte(key, within + i);
                }
            }
            true
        });
    }

    /// Where, counted from the start of `bytes`, the first byte is that does not belong at `offset` and so on.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<usize> {
        let mut found = None;
        self.walk(offset, bytes.len(), |key, within, range| {
            let start = range.start;
            let part = &bytes[range];
            if within == 0 && part.len() == BLOCK {
                let words = part.chunks_exact(8).zip(self.pattern.iter());
                let wrong = words.fold(0, |wrong, (bytes, word)| {
                    wrong | (u64::from_le_bytes(bytes.try_into().expect("eight bytes")) ^ word ^ key)
                });
                if wrong == 0 {
                    return true;
                }
            }
            found = part
                .iter()
                .enumerate()
                .position(|(i, byte)| *byte != self.byte(key, within + i))
                .map(|i| start + i);
            found.is_none()
        });
        found
    }

    fn byte(&self, key: u64, within: usize) -> u8 {
        ((self.pattern[within / 8] ^ key) >> (within % 8 * 8)) as u8
    }

    /// Calls `part` with the key, the position in the block and the range of every block's part; stops when it says false.
    fn walk(
        &self,
        offset: u64,
        length: usize,
        mut part: impl FnMut(u64, usize, std::ops::Range<usize>) -> bool,
    ) {
        let mut at = 0;
        while at < length {
            let position = offset + at as u64;
            let within = (position % BLOCK as u64) as usize;
            let end = (at + BLOCK - within).min(length);
            if !part(self.key(position / BLOCK as u64), within, at..end) {
                return;
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_file_is_the_same_however_it_is_cut() {
        let content = Content::new(7);
        let mut whole = vec![0; 20_000];
        content.fill(0, &mut whole);
        for (start, end) in [(0, 1), (1, 4096), (4095, 4097), (4096, 8192), (3, 19_999)] {
            let mut part = vec![0; end - start];
            content.fill(start as u64, &mut part);
            assert_eq!(part, whole[start..end], "{start}..{end}");
            assert_eq!(content.first_difference(start as u64, &part), None);
        }
    }

    #[test]
    fn what_does_not_belong_is_found() {
        let content = Content::new(7);
        let mut bytes = vec![0; 12_288];
        content.fill(0, &mut bytes);
        bytes[9000] ^= 1;
        assert_eq!(content.first_difference(0, &bytes), Some(9000));
        bytes[9000] ^= 1;
        assert_eq!(content.first_difference(4096, &bytes[..4096]), Some(0), "a block of another place");
        assert!(Content::new(8).first_difference(0, &bytes).is_some(), "another file");
        assert!(content.first_difference(0, &[0; 4096]).is_some(), "zeros");
    }
}
