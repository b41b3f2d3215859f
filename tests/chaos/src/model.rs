//! What a file must hold: a version stamp for every block, in its contents and here.

use parking_lot::Mutex;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// One block's history, by its only writer.
#[derive(Clone, Copy, Default, Debug)]
struct Block {
    acknowledged: u32,
    /// What some reader has seen: no later read may show less.
    seen: u32,
    attempted: u32,
}

/// A file's blocks.
pub struct Model {
    file: u32,
    blocks: Mutex<Vec<Block>>,
}

impl Model {
    pub fn new(file: u32, blocks: usize) -> Model {
        Model { file, blocks: Mutex::new(vec![Block::default(); blocks]) }
    }

    pub fn blocks(&self) -> usize {
        self.blocks.lock().len()
    }

    /// A block's bytes under a stamp. Stamp 0 is a block that was never written: zeros.
    fn fill(&self, block: usize, stamp: u32, bytes: &mut [u8]) {
        let mut state = u64::from(self.file) << 48 ^ (block as u64) << 32 ^ u64::from(stamp);
        for word in bytes.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        bytes[..4].copy_from_slice(&stamp.to_le_bytes());
        if stamp == 0 {
            bytes.fill(0);
        }
    }

    /// The bytes of a new write over some blocks.
    pub fn begin(&self, first: usize, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count * BLOCK];
        let mut blocks = self.blocks.lock();
        for (at, part) in bytes.chunks_exact_mut(BLOCK).enumerate() {
            let block = &mut blocks[first + at];
            block.attempted += 1;
            self.fill(first + at, block.attempted, part);
        }
        bytes
    }

    /// The write over these blocks, the last one begun, is acknowledged.
    pub fn acknowledged(&self, first: usize, count: usize) {
        for block in &mut self.blocks.lock()[first..first + count] {
            block.acknowledged = block.attempted;
        }
    }

    /// What a read that begins now may not fall behind.
    pub fn floor(&self, first: usize, count: usize) -> Vec<u32> {
        self.blocks.lock()[first..first + count]
            .iter()
            .map(|block| block.acknowledged.max(block.seen))
            .collect()
    }

    /// Checks what a read that began at `floor` has brought.
    pub fn check(&self, first: usize, floor: &[u32], bytes: &[u8]) -> Result<(), String> {
        let mut expected = [0; BLOCK];
        let mut blocks = self.blocks.lock();
        for (at, &floor) in floor.iter().enumerate() {
            let index = first + at;
            let mut got = [0; BLOCK];
            // Behind the end of the file there are zeros that nobody has written.
            if let Some(part) = bytes.get(at * BLOCK..(at + 1) * BLOCK) {
                got.copy_from_slice(part);
            }
            let stamp = u32::from_le_bytes([got[0], got[1], got[2], got[3]]);
            let block = &mut blocks[index];
            let place = format!("file {} block {index}", self.file);
            if !(floor..=block.attempted).contains(&stamp) {
                return Err(format!(
                    "{place}: version {stamp} was read; {floor} was acknowledged or seen before, {} attempted",
                    block.attempted
                ));
            }
            self.fill(index, stamp, &mut expected);
            if got != expected {
                let wrong = got.iter().zip(&expected).position(|(got, expected)| got != expected);
                return Err(format!(
                    "{place}: the contents are not those of version {stamp}, from byte {wrong:?} on"
                ));
            }
            block.seen = block.seen.max(stamp);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_may_be_neither_old_nor_foreign_nor_torn() {
        let model = Model::new(1, 4);
        let first = model.begin(0, 2);
        model.acknowledged(0, 2);
        let old = model.floor(0, 2);
        assert!(model.check(0, &old, &first).is_ok());
        let second = model.begin(0, 2);
        assert!(model.check(0, &old, &first).is_ok(), "not acknowledged yet");
        assert!(model.check(0, &old, &second).is_ok(), "but may be seen");
        let seen = model.floor(0, 2);
        assert!(model.check(0, &seen, &first).is_err(), "what was seen is not taken back");
        let torn = [&second[..100], &first[100..]].concat();
        assert!(model.check(0, &old, &torn).is_err());
        assert!(model.check(1, &old, &second).is_err(), "another block's contents");
        assert!(Model::new(2, 4).check(0, &[0, 0], &[]).is_ok(), "never written");
    }
}
