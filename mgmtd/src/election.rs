//! Who is primary: a decision over what was read from the store and the time on the own clock. No I/O.
//!
//! ```text
//!              read                        unchanged for T, given up, or nobody's
//!   unaware ─────────────▶ watching ──────────────────────────────────────────────▶ (take)
//!      ▲                     ▲  │ another record or beat: the T begins anew             │
//!      │ may have lapsed     │  └──────────┐                                            │ it was as watched
//!      │                     │ ◀───────────┘                                            ▼
//!      └──────────────── leading ◀─────────────────────────────────────────────────────-┘
//!                            │ renewed every T/4; another's record: watching
//! ```
//!
//! No clock is compared with another's. The primary counts from *before* it sent the renewal that succeeded last, and answers nothing
//! after T/2 of its own time. A challenger counts from *after* it first saw the record as it is, and takes it after T of its own
//! time, in a transaction that finds it still the same. So the old one has fallen silent before the new one speaks, as long as two
//! clocks' rates differ by less than a factor of two, whatever was paused or delayed in between.

use std::time::Duration;

use catena_proto::clock::Monotonic;

use crate::record::LeaseRecord;

/// A stand-by looks this often in a lease: so often that a primary which has stopped cleanly is replaced before any service, which
/// sends heartbeats every T/4 and stops after T/2, misses it.
const LOOKS: u32 = 8;

/// A mgmtd that may become primary.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its number.
    pub node: u32,
    /// This start of it; no two starts of any mgmtd have the same.
    pub incarnation: u64,
    /// Where it answers, `host:port`.
    pub address: String,
    /// The lease time T.
    pub lease: Duration,
    /// The lease of clients' sessions.
    pub client_lease: Duration,
    /// The store is certainly in no other process's use, so whoever is primary there has ended.
    pub exclusive: bool,
}

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read the record; then [`Election::saw`].
    Look,
    /// Write `record` if the store still has what was watched; then [`Election::took`] or [`Election::saw`] what is there instead.
    Take {
        /// What the store must have.
        watched: Option<LeaseRecord>,
        /// What it gets.
        record: LeaseRecord,
    },
    /// Write `record` if this start still leads; then [`Election::renewed`] or [`Election::saw`] what is there instead.
    Renew {
        /// The next beat.
        record: LeaseRecord,
    },
    /// The lease may have run out: answer nothing more, forget everything; then [`Election::lapsed`].
    StepDown,
}

/// The state of one mgmtd.
#[derive(Clone, Debug)]
pub struct Election {
    own: Candidate,
    stance: Stance,
    /// Not before this, after something failed.
    again: Monotonic,
    /// An attempt to take the lease may have succeeded without this one's learning of it: see [`Election::takeable`].
    unsure: bool,
}

#[derive(Clone, Debug)]
enum Stance {
    /// It knows nothing of the record.
    Unaware,
    /// It stands by.
    Watching { record: Option<LeaseRecord>, since: Monotonic, looked: Monotonic },
    /// It is primary.
    Leading { record: LeaseRecord, sent: Monotonic },
}

impl Election {
    /// A mgmtd that has just started.
    pub fn new(own: Candidate) -> Election {
        Election { own, stance: Stance::Unaware, again: Monotonic::default(), unsure: false }
    }

    /// What to do next, and when.
    pub fn next(&self, now: Monotonic) -> (Monotonic, Action) {
        let (at, action) = match &self.stance {
            Stance::Unaware => (Monotonic::default(), Action::Look),
            Stance::Watching { record, since, looked } => {
                let (look, take) = (*looked + self.own.lease / LOOKS, self.takeable(record.as_ref(), *since));
                if take <= look {
                    (take, Action::Take { watched: record.clone(), record: self.claim(record.as_ref()) })
                } else {
                    (look, Action::Look)
                }
            }
            Stance::Leading { record, sent } => {
                let (renew, lapse) = (self.again.max(*sent + self.own.lease / 4), *sent + self.own.lease / 2);
                if renew.max(now) >= lapse {
                    return (lapse, Action::StepDown);
                }
                (renew, Action::Renew { record: LeaseRecord { beat: record.beat + 1, ..record.clone() } })
            }
        };
        (at.max(self.again), action)
    }

    /// The store has this record, as an answer that has arrived at `now` says.
    pub fn saw(&mut self, now: Monotonic, record: Option<LeaseRecord>) {
        let since = match &self.stance {
            Stance::Watching { record: known, since, .. } if *known == record => *since,
            _ => now,
        };
        self.stance = Stance::Watching { record, since, looked: now };
    }

    /// The record that was to be taken is written; the attempt began at `sent`.
    pub fn took(&mut self, sent: Monotonic, record: LeaseRecord) {
        self.stance = Stance::Leading { record, sent };
        self.unsure = false;
    }

    /// The lease was renewed; the attempt began at `sent`.
    pub fn renewed(&mut self, sent: Monotonic, record: LeaseRecord) {
        self.took(sent, record);
    }

    /// The store did not do it, or (`unknown`) did not say whether it has taken the lease. What was watched may have changed meanwhile,
    /// which the next transaction finds out.
    pub fn failed(&mut self, now: Monotonic, unknown: bool) {
        self.again = now + self.own.lease / 16;
        self.unsure |= unknown && matches!(self.stance, Stance::Watching { .. });
    }

    /// It has stepped down.
    pub fn lapsed(&mut self) {
        self.stance = Stance::Unaware;
    }

    /// Who is primary, as far as a stand-by knows.
    pub fn watched(&self) -> Option<&LeaseRecord> {
        match &self.stance {
            Stance::Watching { record, .. } => record.as_ref(),
            _ => None,
        }
    }

    /// Until when it may answer, if it leads.
    pub fn valid_until(&self) -> Option<Monotonic> {
        match &self.stance {
            Stance::Leading { sent, .. } => Some(*sent + self.own.lease / 2),
            _ => None,
        }
    }

    /// When a record that has stood as it is `since` may be taken.
    ///
    /// One whose writes reach the store but not the answers to them would take the lease again and again, never lead, and keep others
    /// from it. After an attempt whose outcome it did not learn it therefore waits longer than the others do.
    fn takeable(&self, record: Option<&LeaseRecord>, since: Monotonic) -> Monotonic {
        let Some(record) = record else { return since };
        // This very process held it, and knows that it does not answer.
        let own = (record.holder, record.incarnation) == (self.own.node, self.own.incarnation);
        if self.own.exclusive || (!self.unsure && (record.released || own)) {
            return since;
        }
        let wait = self.own.lease.max(Duration::from_millis(record.lease_ms));
        since + if self.unsure { wait * 2 } else { wait }
    }

    fn claim(&self, over: Option<&LeaseRecord>) -> LeaseRecord {
        LeaseRecord {
            holder: self.own.node,
            incarnation: self.own.incarnation,
            term: over.map_or(0, |record| record.term) + 1,
            beat: 0,
            address: self.own.address.clone(),
            lease_ms: self.own.lease.as_millis() as u64,
            client_lease_ms: self.own.client_lease.as_millis() as u64,
            released: false,
        }
    }
}

#[cfg(test)]
mod tests;
