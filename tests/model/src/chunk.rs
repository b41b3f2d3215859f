//! A chunk as a row of cells: each holds the number of the write that put its bytes there, 0 for zeros.

use crate::linear::Model;

/// Number of a write; 0 is what nobody wrote.
pub type Stamp = u32;

/// A mutation of a chunk, in cells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Cells `from..from + count` become this write's.
    Write {
        /// First cell.
        from: u32,
        /// Cells.
        count: u32,
        /// The write.
        stamp: Stamp,
    },
    /// Exactly so many cells.
    Truncate(u32),
    /// At least so many cells.
    Extend(u32),
    /// Not there any more.
    Remove,
}

/// An operation with its outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// A mutation; the length in cells that the answer named, if it came.
    Change(Change, Option<u32>),
    /// A read of everything: `None` if there was no chunk.
    Read(Option<Vec<Stamp>>),
}

/// `None`: no chunk.
pub type State = Option<Vec<Stamp>>;

/// The specification.
pub struct Chunk;

impl Model for Chunk {
    type State = State;
    type Op = Op;

    fn initial(&self) -> State {
        None
    }

    fn step(&self, state: &State, op: &Op) -> Option<State> {
        match op {
            Op::Read(seen) => (seen == state).then(|| state.clone()),
            Op::Change(change, answered) => {
                let next = apply(state, change);
                let length = next.as_ref().map_or(0, |cells| cells.len() as u32);
                answered.is_none_or(|answered| answered == length).then_some(next)
            }
        }
    }
}

fn apply(state: &State, change: &Change) -> State {
    let mut cells = state.clone().unwrap_or_default();
    match *change {
        Change::Write { from, count, stamp } => {
            let (from, to) = (from as usize, (from + count) as usize);
            cells.resize(cells.len().max(to), 0);
            cells[from..to].fill(stamp);
        }
        Change::Truncate(length) => cells.resize(length as usize, 0),
        Change::Extend(length) => cells.resize(cells.len().max(length as usize), 0),
        Change::Remove => return None,
    }
    Some(cells)
}
