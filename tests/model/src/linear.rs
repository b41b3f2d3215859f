//! Is there one order of these operations, consistent with real time, that the model explains?
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory of configurations ("Testing for
//! linearizability", 2017): a configuration is the set of operations already placed and the state they lead to; none is tried twice.
//! Operations whose outcome nobody knows may be placed anywhere after their begin, or never.

use std::collections::HashSet;
use std::hash::Hash;

/// Configurations after which a search is given up: some seconds.
const MOST: usize = 400_000;

/// A sequential specification.
pub trait Model {
    /// What operations act on.
    type State: Clone + Eq + Hash;
    /// An operation with its outcome, if it is known.
    type Op;
    /// At the beginning.
    fn initial(&self) -> Self::State;
    /// The state after `op`, if its outcome is right in `state`.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// One operation of a history. Times are of one clock.
#[derive(Clone, Debug)]
pub struct Call<Op> {
    /// When it began.
    pub begun: u64,
    /// When it ended; `None` if nobody knows whether it did.
    pub ended: Option<u64>,
    /// What it was.
    pub op: Op,
}

/// What the search says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none. The longest explained prefix, as indices into the history, and what could not be placed after it.
    Not {
        /// In the order found.
        placed: Vec<usize>,
        /// All of which contradict the state that the prefix leads to.
        stuck: Vec<usize>,
    },
    /// The search was given up.
    TooLarge,
}

/// What is wrong with a history, if no order of it can be found: what was explained last, and what did not fit then.
pub fn explain<M: Model>(model: &M, what: &str, calls: &[Call<M::Op>]) -> Option<String>
where
    M::Op: std::fmt::Debug,
{
    match check(model, calls, MOST) {
        Verdict::Linearizable => None,
        Verdict::TooLarge => Some(format!("undecided: {what}: the search for an order was given up")),
        Verdict::Not { placed, stuck } => {
            let shown = |at: &usize| format!("{:?}", calls[*at]);
            let last: Vec<String> = placed.iter().rev().take(4).rev().map(shown).collect();
            let stuck: Vec<String> = stuck.iter().take(6).map(shown).collect();
            Some(format!("linearizable: {what}: after {last:?} none of these fits: {stuck:?}"))
        }
    }
}

/// Searches; gives up after `most` configurations.
pub fn check<M: Model>(model: &M, history: &[Call<M::Op>], most: usize) -> Verdict {
    let mut search = Search {
        model,
        history,
        seen: HashSet::new(),
        most,
        best: (Vec::new(), Vec::new()),
        needed: history.iter().filter(|call| call.ended.is_some()).count(),
    };
    let mut order: Vec<usize> = (0..history.len()).collect();
    order.sort_by_key(|&at| history[at].begun);
    let mut placed = vec![0_u64; history.len().div_ceil(64)];
    let mut sequence = Vec::new();
    match search.go(&order, &mut placed, 0, &model.initial(), &mut sequence) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Not { placed: search.best.0, stuck: search.best.1 },
        None => Verdict::TooLarge,
    }
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Call<M::Op>],
    seen: HashSet<(Vec<u64>, M::State)>,
    most: usize,
    best: (Vec<usize>, Vec<usize>),
    needed: usize,
}

impl<M: Model> Search<'_, M> {
    fn go(
        &mut self,
        order: &[usize],
        placed: &mut Vec<u64>,
        done: usize,
        state: &M::State,
        sequence: &mut Vec<usize>,
    ) -> Option<bool> {
        if done == self.needed {
            return Some(true);
        }
        if self.seen.len() > self.most {
            return None;
        }
        // Whatever comes next must have begun before the first of the others ended.
        let is_placed = |placed: &[u64], at: usize| placed[at / 64] >> (at % 64) & 1 == 1;
        let mut horizon = u64::MAX;
        let mut candidates = Vec::new();
        for &at in order {
            let call = &self.history[at];
            if is_placed(placed, at) {
                continue;
            }
            if call.begun > horizon {
                break;
            }
            horizon = horizon.min(call.ended.unwrap_or(u64::MAX));
            candidates.push(at);
        }
        candidates.retain(|&at| self.history[at].begun <= horizon);
        // What ended first most probably came first; what never ended is tried last.
        candidates.sort_by_key(|&at| self.history[at].ended.unwrap_or(u64::MAX));
        let mut any = false;
        for &at in &candidates {
            let call = &self.history[at];
            let Some(next) = self.model.step(state, &call.op) else { continue };
            // A lost operation that changes nothing explains nothing.
            if call.ended.is_none() && next == *state {
                continue;
            }
            placed[at / 64] |= 1 << (at % 64);
            if self.seen.insert((placed.clone(), next.clone())) {
                any = true;
                sequence.push(at);
                let found = self.go(order, placed, done + usize::from(call.ended.is_some()), &next, sequence);
                sequence.pop();
                if found != Some(false) {
                    return found;
                }
            }
            placed[at / 64] &= !(1 << (at % 64));
        }
        if !any && sequence.len() >= self.best.0.len() {
            self.best = (sequence.clone(), candidates);
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register of numbers.
    struct Register;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u32),
        Read(u32),
    }

    impl Model for Register {
        type State = u32;
        type Op = Op;
        fn initial(&self) -> u32 {
            0
        }
        fn step(&self, state: &u32, op: &Op) -> Option<u32> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read(value) => (value == state).then_some(*state),
            }
        }
    }

    fn call(begun: u64, ended: impl Into<Option<u64>>, op: Op) -> Call<Op> {
        Call { begun, ended: ended.into(), op }
    }

    fn linearizable(history: &[Call<Op>]) -> bool {
        check(&Register, history, 100_000) == Verdict::Linearizable
    }

    #[test]
    fn concurrent_reads_may_see_either_side_but_not_go_back() {
        let write = call(10, 20, Op::Write(1));
        assert!(linearizable(&[write.clone(), call(11, 12, Op::Read(0)), call(13, 14, Op::Read(1))]));
        assert!(!linearizable(&[write.clone(), call(11, 12, Op::Read(1)), call(13, 14, Op::Read(0))]));
        assert!(!linearizable(&[write.clone(), call(21, 22, Op::Read(0))]));
        assert!(linearizable(&[write, call(19, 22, Op::Read(0))]));
    }

    #[test]
    fn a_lost_write_may_happen_late_or_never_but_once() {
        let lost = call(10, None, Op::Write(1));
        let read = |at, value| call(at, at + 1, Op::Read(value));
        assert!(linearizable(&[lost.clone(), read(20, 0), read(30, 0)]));
        assert!(linearizable(&[lost.clone(), read(20, 0), read(30, 1)]));
        assert!(!linearizable(&[lost.clone(), read(20, 1), read(30, 0)]));
        let other = call(32, 33, Op::Write(2));
        assert!(!linearizable(&[lost, read(30, 1), other, read(40, 2), read(50, 1)]));
    }

    #[test]
    fn a_contradiction_is_shown_where_it_is() {
        let history = [call(1, 2, Op::Write(1)), call(3, 4, Op::Read(1)), call(5, 6, Op::Read(7))];
        let verdict = check(&Register, &history, 1000);
        assert_eq!(verdict, Verdict::Not { placed: vec![0, 1], stuck: vec![2] });
    }
}
