//! Which meta service is asked: one until it fails, then the next that has not failed lately.

use std::collections::BTreeMap;

use catena_rt::time::Instant;

/// The known services.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    addresses: Vec<String>,
    /// Index of the one in use, modulo their number.
    current: usize,
    /// Until when those that failed are passed over.
    resting: BTreeMap<String, Instant>,
}

impl Choice {
    /// Clients start at different services, which spreads them.
    pub fn new(addresses: Vec<String>, start: usize) -> Choice {
        Choice { addresses, current: start, resting: BTreeMap::new() }
    }

    /// The one in use.
    pub fn used(&self) -> Option<&str> {
        let used = self.current.checked_rem(self.addresses.len())?;
        self.addresses.get(used).map(String::as_str)
    }

    /// Takes over a new list. The one in use stays in use if it is still there; false if it is not.
    pub fn adopt(&mut self, addresses: Vec<String>) -> bool {
        let position = self.used().and_then(|used| addresses.iter().position(|address| address == used));
        self.current = position.unwrap_or(self.current);
        self.resting.retain(|address, _| addresses.contains(address));
        self.addresses = addresses;
        position.is_some()
    }

    /// Whom to ask: the one in use, or the next in order that does not rest; if all rest, the one whose rest ends first.
    pub fn pick(&mut self, now: Instant) -> Option<&str> {
        let count = self.addresses.len();
        let order = (0..count).map(|step| (self.current + step) % count);
        let rest = |&index: &usize| self.resting.get(&self.addresses[index]).filter(|until| **until > now);
        let picked = order.min_by_key(rest)?;
        self.current = picked;
        Some(&self.addresses[picked])
    }

    /// The one in use failed.
    pub fn leave(&mut self, until: Instant) {
        if let Some(used) = self.used().map(str::to_owned) {
            self.resting.insert(used, until);
            self.current = self.current % self.addresses.len() + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn choice(names: &str) -> Choice {
        Choice::new(names.split(' ').map(str::to_owned).collect(), 0)
    }

    #[test]
    fn one_that_failed_is_passed_over_until_it_has_rested() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut choice = choice("a b c");
        assert_eq!(choice.pick(now), Some("a"));
        choice.leave(later(30));
        assert_eq!(choice.pick(now), Some("b"));
        choice.leave(later(2));
        assert_eq!(choice.pick(now), Some("c"));
        choice.leave(later(30));
        assert_eq!(choice.pick(now), Some("b"), "all rest: the one that is back first");
        choice.leave(later(40));
        assert_eq!(choice.pick(later(31)), Some("c"), "in order again");
    }

    #[test]
    fn the_one_in_use_stays_while_it_is_known() {
        let now = Instant::now();
        let mut choice = choice("a b c");
        choice.leave(now);
        assert_eq!(choice.pick(now), Some("b"));
        assert!(choice.adopt(vec!["b".into(), "d".into()]));
        assert_eq!(choice.pick(now), Some("b"));
        assert!(!choice.adopt(vec!["d".into()]));
        assert_eq!(choice.pick(now), Some("d"));
        assert!(!choice.adopt(vec![]));
        assert_eq!(choice.pick(now), None);
    }
}
