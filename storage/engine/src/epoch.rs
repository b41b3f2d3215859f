//! Who still reads what was. A reader enters the present epoch before it looks at the index and leaves when its I/O has ended; space
//! that was given up, and blocks that are to be overwritten in place, wait until every reader of that epoch has left.

use std::collections::VecDeque;
use std::task::Waker;

#[derive(Debug)]
pub struct Epochs {
    /// The oldest epoch with readers, or the present one.
    first: u64,
    /// Readers per epoch from `first` on; the last is the present one.
    readers: VecDeque<u32>,
    pub waiting: Vec<Waker>,
}

impl Default for Epochs {
    fn default() -> Epochs {
        Epochs { first: 1, readers: VecDeque::from([0]), waiting: Vec::new() }
    }
}

impl Epochs {
    pub fn enter(&mut self) -> u64 {
        let last = self.readers.len() - 1;
        self.readers[last] += 1;
        self.first + last as u64
    }
    pub fn leave(&mut self, epoch: u64) {
        let at = (epoch - self.first) as usize;
        self.readers[at] -= 1;
        self.advance();
    }
    /// Ends the present epoch and returns it: see [`Epochs::is_over`].
    pub fn end(&mut self) -> u64 {
        let ended = self.first + self.readers.len() as u64 - 1;
        self.readers.push_back(0);
        self.advance();
        ended
    }
    /// Nobody reads what was there when this epoch ended.
    pub fn is_over(&self, epoch: u64) -> bool {
        self.first > epoch
    }
    fn advance(&mut self) {
        let before = self.first;
        while self.readers.len() > 1 && self.readers[0] == 0 {
            self.readers.pop_front();
            self.first += 1;
        }
        if self.first != before {
            self.waiting.drain(..).for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_over_when_its_readers_and_all_earlier_ones_have_left() {
        let mut epochs = Epochs::default();
        let early = epochs.enter();
        let first = epochs.end();
        let late = epochs.enter();
        let second = epochs.end();
        assert!(!epochs.is_over(first) && !epochs.is_over(second));
        epochs.leave(late);
        assert!(!epochs.is_over(second));
        epochs.leave(early);
        assert!(epochs.is_over(first) && epochs.is_over(second));
        let third = epochs.end();
        assert!(epochs.is_over(third));
    }
}
