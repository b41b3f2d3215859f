//! Whether this process may have its node number: two mgmtd with one number are a mistake that the later one is told about.
//!
//! Nothing rests on it: who is primary is a matter of starts and terms, not of numbers. It keeps `catena admin nodes` readable, and a
//! configuration that was copied without a change from going unnoticed.

use std::time::Duration;

use catena_proto::clock::Monotonic;
use catena_proto::ids::NodeId;
use catena_proto::pb;
use catena_proto::routing::NodeKind;

use crate::cluster::kind_name;
use crate::record::MemberRecord;

/// What to do about what was found under the own number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Write this entry.
    Write(MemberRecord),
    /// Another start had the number, and may be alive; look again.
    Wait,
    /// This process may not go on with its number.
    Refused(String),
}

/// The claim to a number.
#[derive(Clone, Debug)]
pub struct Number {
    own: MemberRecord,
    lease: Duration,
    /// The store is in no other process's use.
    exclusive: bool,
    claimed: bool,
    /// Another start's entry, and since when it stands so.
    other: Option<(MemberRecord, Monotonic)>,
}

impl Number {
    /// Not claimed yet.
    pub fn new(own: MemberRecord, lease: Duration, exclusive: bool) -> Number {
        Number { own, lease, exclusive, claimed: false, other: None }
    }

    /// This process's number.
    pub fn node(&self) -> NodeId {
        NodeId(self.own.node)
    }

    /// What to do, if at `now` the store has `member` for the number, and `node` in the list of services.
    pub fn judge(&mut self, now: Monotonic, member: Option<&MemberRecord>, node: Option<&pb::Node>) -> Claim {
        let id = self.node();
        if let Some(node) = node.filter(|node| node.kind() != NodeKind::Mgmtd) {
            let kind = kind_name(node.kind());
            return Claim::Refused(format!(
                "node {id} is a {kind} service of this cluster: give this mgmtd another number"
            ));
        }
        let Some(found) = member else { return Claim::Write(self.next(0)) };
        if found.incarnation == self.own.incarnation {
            return Claim::Write(self.next(found.beat + 1));
        }
        if self.claimed {
            return Claim::Refused(format!(
                "another start of mgmtd {id}, at {}, has taken this one's place",
                found.address
            ));
        }
        // One process at a time listens at an address.
        if self.exclusive || found.address == self.own.address {
            return Claim::Write(self.next(0));
        }
        match &self.other {
            Some((other, since)) if other == found => {
                if now.since(*since) >= self.lease {
                    return Claim::Write(self.next(0));
                }
            }
            Some(_) => {
                return Claim::Refused(format!(
                    "node {id} is in use by another mgmtd, at {} (pid {}): give this one another number",
                    found.address, found.pid
                ));
            }
            None => self.other = Some((found.clone(), now)),
        }
        Claim::Wait
    }

    /// The entry is written.
    pub fn claimed(&mut self) {
        self.claimed = true;
    }

    fn next(&self, beat: u64) -> MemberRecord {
        MemberRecord { beat, ..self.own.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(8);

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    fn entry(incarnation: u64, beat: u64, address: &str) -> MemberRecord {
        MemberRecord { node: 1, incarnation, beat, address: address.into(), ..Default::default() }
    }

    fn number() -> Number {
        Number::new(entry(5, 0, "a:1"), LEASE, false)
    }

    #[test]
    fn a_free_number_is_taken_and_kept() {
        let mut number = number();
        assert_eq!(number.judge(at(0), None, None), Claim::Write(entry(5, 0, "a:1")));
        number.claimed();
        let own = entry(5, 3, "a:1");
        assert_eq!(number.judge(at(1), Some(&own), None), Claim::Write(entry(5, 4, "a:1")));
        let taken = number.judge(at(2), Some(&entry(6, 0, "b:1")), None);
        assert!(matches!(&taken, Claim::Refused(why) if why.contains("at b:1, has taken")), "{taken:?}");
    }

    #[test]
    fn the_number_of_an_earlier_start_at_the_same_address_is_free() {
        let own = Claim::Write(entry(5, 0, "a:1"));
        assert_eq!(number().judge(at(0), Some(&entry(4, 9, "a:1")), None), own);
        let mut sole = Number::new(entry(5, 0, "a:1"), LEASE, true);
        assert_eq!(sole.judge(at(0), Some(&entry(4, 9, "b:1")), None), own);
    }

    #[test]
    fn a_number_that_another_process_uses_is_refused_to_the_newcomer() {
        let mut number = number();
        assert_eq!(number.judge(at(0), Some(&entry(4, 9, "b:1")), None), Claim::Wait);
        let refused = number.judge(at(2), Some(&entry(4, 10, "b:1")), None);
        assert!(matches!(&refused, Claim::Refused(why) if why.contains("in use by another mgmtd, at b:1")));
    }

    #[test]
    fn the_number_of_one_who_is_silent_is_free_after_a_lease() {
        let mut number = number();
        let silent = entry(4, 9, "b:1");
        assert_eq!(number.judge(at(0), Some(&silent), None), Claim::Wait);
        assert_eq!(number.judge(at(7), Some(&silent), None), Claim::Wait);
        assert_eq!(number.judge(at(8), Some(&silent), None), Claim::Write(entry(5, 0, "a:1")));
    }

    #[test]
    fn the_number_of_a_service_of_another_kind_is_refused() {
        let node = pb::Node { id: 1, kind: NodeKind::Storage.into(), ..Default::default() };
        let refused = number().judge(at(0), None, Some(&node));
        assert!(matches!(&refused, Claim::Refused(why) if why.contains("node n1 is a storage service")));
    }
}
